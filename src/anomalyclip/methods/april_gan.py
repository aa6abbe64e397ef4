"""APRIL-GAN (VAND), zero-shot and few-shot: linear layers bring raw tokens of four blocks to the texts.

Reference: Chen et al., "APRIL-GAN: A Zero-/Few-Shot Anomaly Classification and Segmentation Method for CVPR 2023 VAND
Workshop Challenge Tracks 1&2", arXiv 2305.17382; code: ByChelsea/VAND-APRIL-GAN.
"""

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from anomalyclip.anomaly import image_score, probabilities, similarities
from anomalyclip.clip import packed
from anomalyclip.clip.model import CLIP, CLIPConfig
from anomalyclip.clip.taps import Features, Taps
from anomalyclip.clip_core import ClipCore, finite
from anomalyclip.engines.torch import TorchScorer
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.linear_layers import LinearLayers, load_linear_layers
from anomalyclip.memory import Banks, on_scale, scale_of, unknown_share
from anomalyclip.memory_core import MemoryCore, PatchMemory
from anomalyclip.methods.worded import ClassScorer, Parts, TextFeatures, build_worded
from anomalyclip.references import Memory
from anomalyclip.spec import DetectorSpec
from anomalyclip.trained import check_backbone

TEMPERATURE = 0.01
"""Divides every cosine before the softmax (the published ``100 *``)."""


def build(spec: DetectorSpec) -> TorchScorer | ClassScorer:
    """Return the scorer of a spec.

    Raises
    ------
    AnomalyCLIPError
        There are no linear layers, or they do not fit the backbone or its activation.
    """
    if spec.trained is None:
        raise AnomalyCLIPError(
            "method 'april-gan' has a trained part: give --trained FILE, from `anomalyclip train --method april-gan`"
        )
    path, layers = Path(spec.trained), load_linear_layers(spec.trained)

    def with_layers(parts: Parts) -> Parts:
        config = parts.clip.config
        layers.check_fits(config, activation_of(config), path)
        check_backbone(layers.info, parts.weights_sha256(), path)
        facts = {**parts.said.facts, "trained": spec.trained, "trained_on": layers.info.get("trained_on")}
        said = replace(parts.said, facts=facts, training=layers.info)
        return replace(parts, said=said, hashes={"layers_sha256": layers.digest()})

    def make_core(clip: CLIP, spec: DetectorSpec, text_features: TextFeatures) -> AprilGANCore:
        return AprilGANCore(clip, spec, layers, text_features)

    return build_worded(
        spec, make_core, words="april-gan", templates="april-gan", each_normalised=True, parts=with_layers
    )


def activation_of(config: CLIPConfig) -> str:
    """Return the name of a model's activation (`anomalyclip.spec.ACTIVATIONS`)."""
    return "quick-gelu" if config.quick_gelu else "gelu"


def default_blocks(config: CLIPConfig) -> tuple[int, ...]:
    """Return the blocks whose tokens are used: a quarter, half, three quarters and all of them.

    Examples
    --------
    >>> default_blocks(CLIPConfig(768, 336, 14, 1024, 24, 16, 768, 12, 12, 77, 49408))
    (6, 12, 18, 24)
    """
    return tuple(sorted({max(config.vision_layers * quarter // 4, 1) for quarter in (1, 2, 3, 4)}))


class AprilGANCore(ClipCore):
    """The mathematics of zero-shot APRIL-GAN.

    Parameters
    ----------
    clip : CLIP
        The model; its image tower is used.
    spec : DetectorSpec
        Image size, sigma (None: 0) and how the image score is made.
    layers : LinearLayers
        The trained part.
    text_features : callable
        Gives (2, E) float, normalised, normal then abnormal.
    """

    text_features: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(
        self, clip: CLIP, spec: DetectorSpec, layers: LinearLayers, text_features: TextFeatures
    ) -> None:
        super().__init__(
            clip.visual,
            clip.config,
            Taps(plain=layers.blocks, positions="bicubic"),
            image_size=spec.image_size,
            sigma=spec.sigma or 0.0,
            score_rule=spec.image_score or "text",
            full_size=True,
        )
        self.register_buffer("text_features", finite(text_features()), persistent=False)
        self.register_buffer("weight", layers.weight, persistent=False)
        self.register_buffer("bias", layers.bias, persistent=False)

    def settings(self) -> dict[str, object]:
        """Return what decides the scores besides weights and texts, JSON-ready."""
        return {**super().settings(), "layers": list(self.layers)}

    def rows(self, found: Features) -> Tensor:
        """Return raw tokens: CLS, then the patches of every block."""
        layers = [found.plain[block][:, 1:] for block in self.layers]  # B N D
        return torch.cat([found.cls[:, None], *layers], dim=1).float()

    @property
    def row_width(self) -> int:
        """Width of the tokens."""
        return self.config.vision_width

    @property
    def row_kind(self) -> str:
        """What tells these rows from those of AnomalyCLIP's prompts."""
        return "raw bicubic"

    def compare(self, features: Features) -> tuple[Tensor, Tensor]:
        """Return scores (B,) and maps (B, S, S).

        The published map is the sum over blocks; the mean keeps it within [0, 1].
        """
        scores = probabilities(self.project(features.cls), self.text_features, temperature=TEMPERATURE)[:, 1]
        maps = [
            block_map(features.plain[block][:, 1:], weight, bias, self.text_features, self.image_size)
            for block, weight, bias in zip(self.layers, self.weight, self.bias, strict=True)
        ]
        return scores, torch.stack(maps).mean(dim=0)


class AprilGANMemory(PatchMemory):
    """APRIL-GAN with references: raw tokens of the same blocks, each compared with those of the references.

    The map is the mean of the text map and the enlarged distances (the published sum of both over 4 blocks, divided by
    8). The published image score is the mean of the text score and the map's maximum, scaled to [0, 1] over all test
    images of the class: `over_class`. Of a single image the maximum m counts as m / (m + s), with the constant s from
    the references, which keeps the order of m.
    """

    rule = "max"
    dtype = torch.float32  # as published

    def __init__(self, core: ClipCore) -> None:
        self.blocks, self.size = core.layers, core.image_size
        self.taps = Taps(plain=self.blocks, positions=core.taps.positions)
        self.far = 1.0

    def features(self, found: Features) -> dict[str, Tensor]:
        """Return normalised raw tokens (B, N, D) of every block."""
        return {
            f"block {number}": F.normalize(found.plain[number][:, 1:].float(), dim=-1)
            for number in self.blocks
        }

    def within(self, features: Banks, grid: tuple[int, int]) -> None:
        """Return nothing: raw tokens say more about their place than about what is there."""

    def scale(self, memory: Memory) -> float:
        """Return what the maximum of a normal image's map is like."""
        self.far = scale_of(memory.left_out)
        apart, said = memory.left_out.flatten(1).amax(dim=1), memory.text_maps.flatten(1).amax(dim=1)
        return max(float(apart.median() + said.median()) / 2, 1e-4)

    def fused(
        self, core: MemoryCore, text: Tensor, maps: Tensor, distances: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores and maps (B, S, S); see `PatchMemory.fused`."""
        grid = distances.view(-1, 1, core.patch_grid, core.patch_grid)
        memory = F.interpolate(grid, (self.size, self.size), mode="bilinear", align_corners=True)[:, 0]
        together = (maps + memory) / 2
        if core.memory_rule == self.rule:
            scores = (text + on_scale(together.amax(dim=(1, 2)), core.scale)) / 2
        else:
            scores = image_score(text, core.enlarged(memory).clamp(0, 1), core.memory_rule, grids=memory)
        return scores, together, unknown_share(distances, self.far)

    def over_class(self, core: MemoryCore, scores: Tensor, highest: Tensor) -> Tensor | None:
        """Return the published image scores of a class's test images, of those of single images and map maxima."""
        if core.memory_rule != self.rule or core.sigma:
            return None
        text = 2 * scores - on_scale(highest, core.scale)
        span = (highest.max() - highest.min()).clamp(min=1e-12)
        return ((text + (highest - highest.min()) / span) / 2).clamp(0, 1)


AprilGANCore.few_shot = AprilGANMemory


def block_map(tokens: Tensor, weight: Tensor, bias: Tensor, text_features: Tensor, size: int) -> Tensor:
    """Return how anomalous each pixel is by one block's tokens: enlarged logits, then softmax, as published.

    Parameters
    ----------
    tokens : Tensor
        (B, N, D) float, raw.
    weight, bias : Tensor
        (E, D) and (E,), the block's linear layer.
    text_features : Tensor
        (2, E), or (B, 2, E) where each image has its own; normalised.
    size : int
        The side S.

    Returns
    -------
    Tensor
        (B, S, S) float32 within [0, 1].
    """
    projected = packed.linear(tokens.float(), weight, bias)  # B N E
    if text_features.dim() == 2:
        cosines = similarities(projected, text_features)  # B N 2
    else:
        cosines = F.normalize(projected, dim=-1) @ text_features.transpose(1, 2)
    side = round(cosines.shape[1] ** 0.5)
    logits = (cosines / TEMPERATURE).transpose(1, 2).unflatten(2, (side, side))  # type: ignore[no-untyped-call]
    enlarged = F.interpolate(logits, (size, size), mode="bilinear", align_corners=True)  # B 2 S S
    return enlarged.softmax(dim=1)[:, 1]
