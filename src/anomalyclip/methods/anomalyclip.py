"""AnomalyCLIP: two texts, a frozen CLIP whose last blocks carry a local path (DPAM), and their cosines.

Reference: Zhou et al., "AnomalyCLIP: Object-agnostic Prompt Learning for Zero-shot Anomaly Detection", ICLR 2024.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from anomalyclip.anomaly import patch_probabilities, probabilities
from anomalyclip.clip.backbone import load_backbone
from anomalyclip.clip.model import CLIP, CLIPConfig, ImageFeatures, LocalPath, VisionTransformer
from anomalyclip.clip.weights import fingerprint
from anomalyclip.core import Core
from anomalyclip.engines.torch import TorchScorer, check_runnable
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.prompts import load_prompts_for
from anomalyclip.scorer import Description
from anomalyclip.spec import DetectorSpec
from anomalyclip.texts import Texts

_OWN = "of its own"


def build(spec: DetectorSpec) -> TorchScorer:
    """Return the scorer of a spec: backbone and prompts by name or path.

    Raises
    ------
    AnomalyCLIPError
        They cannot be had or read, do not fit each other, or an option cannot be used with them.
    """
    check_runnable(spec.device, spec.precision)  # before a gigabyte is fetched
    backbone = load_backbone(spec.backbone)
    prompts = load_prompts_for(backbone.clip, spec.backbone, spec.prompts)
    return assemble(backbone.clip, prompts, spec, weights_sha256=backbone.fingerprint)


def assemble(
    clip: CLIP,
    texts: Texts,
    spec: DetectorSpec | None = None,
    *,
    weights_sha256: Callable[[], str] | None = None,
) -> TorchScorer:
    """Return a scorer of a model in memory; the text tower is let go.

    Parameters
    ----------
    clip : CLIP
        The frozen model; its image tower is used as it is.
    texts : Texts
        What gives the two text features.
    spec : DetectorSpec, optional
        Everything else; what it says of backbone and prompts are only names here.
    weights_sha256 : callable, optional
        Gives `anomalyclip.clip.weights.fingerprint` of the weights when it is needed. None computes it now.

    Raises
    ------
    AnomalyCLIPError
        An option cannot be used with this model.
    """
    spec = spec or DetectorSpec()
    with torch.inference_mode():
        core = AnomalyCLIPCore(clip.visual, clip.config, spec, lambda: texts.text_features(clip))
    if weights_sha256 is None:
        known = fingerprint(clip.config, clip.state_dict())
        weights_sha256 = lambda: known  # noqa: E731 (a function is what is kept)
    settings = {"method": "anomalyclip", **core.settings()}
    hashes = {"prompts_sha256": texts.digest()}
    return TorchScorer(
        core,
        identity=lambda: settings | {"weights_sha256": weights_sha256()} | hashes,
        description=_describe(spec, texts),
        device=spec.device,
        precision=spec.precision,
        compiled=spec.compiled,
    )


def _describe(spec: DetectorSpec, texts: Texts) -> Description:
    prompts = spec.prompts or texts.info.get("name", _OWN)
    trained_on = texts.info.get("trained_on")
    title = f"{Path(spec.backbone).name}, prompts {Path(prompts).name}" + (
        f", trained on {trained_on}" if trained_on else ""
    )
    facts = {"method": "anomalyclip", "backbone": spec.backbone, "prompts": prompts, "trained_on": trained_on}
    return Description(title, facts, dict(texts.info))


class AnomalyCLIPCore(Core):
    """The mathematics of AnomalyCLIP, with the positional table and the text features of one use as constants.

    Parameters
    ----------
    visual : VisionTransformer
        The image tower.
    config : CLIPConfig
        Of the model.
    spec : DetectorSpec
        Image size, layers, DPAM layers, sigma and how the image score is made; None is `default_image_size`, the last
        block, `default_dpam_layers`.
    text_features : callable
        Gives (2, E) float, normalised, normal then abnormal; called once all options are known to be possible.

    Raises
    ------
    AnomalyCLIPError
        A value that the backbone cannot have, or text features that are not finite.
    """

    positions: Tensor
    text_features: Tensor

    def __init__(
        self,
        visual: VisionTransformer,
        config: CLIPConfig,
        spec: DetectorSpec,
        text_features: Callable[[], Tensor],
    ) -> None:
        size = default_image_size(config) if spec.image_size is None else spec.image_size
        layers = spec.layers or (config.vision_layers,)
        local = default_dpam_layers(config) if spec.dpam_layers is None else spec.dpam_layers
        _check(config, size, layers, local)
        grid = size // config.patch_size
        super().__init__(image_size=size, grid=grid, sigma=spec.sigma, score_rule=spec.image_score)
        self.config, self.layers, self.path = config, layers, LocalPath(local)
        self.visual = visual
        texts = text_features().float()
        if not texts.isfinite().all():
            raise AnomalyCLIPError(
                "the prompts' text features are NaN or infinite: the weights or the prompts are damaged"
            )
        self.register_buffer("text_features", texts, persistent=False)
        self.register_buffer("positions", visual.positions(grid, grid).detach().clone(), persistent=False)

    @property
    def dpam_layers(self) -> int:
        """Number of final blocks with the local path."""
        return self.path.blocks

    def settings(self) -> dict[str, object]:
        """Return what decides the scores besides weights and texts, JSON-ready."""
        return {
            "image_size": self.image_size,
            "layers": list(self.layers),
            "dpam_layers": self.dpam_layers,
            "sigma": float(self.sigma),
            "image_score": self.score_rule,
        }

    def encode(self, pixels: Tensor) -> ImageFeatures:
        """Return the features of normalised pixels (B, 3, S, S)."""
        visual = self.visual
        tokens = visual.embed(pixels.to(self.positions.dtype), self.positions)  # B 1+N D
        found = visual.run(tokens, local=self.layers, path=self.path)
        patches = {layer: visual.project(local) for layer, local in found.local.items()}
        return ImageFeatures(visual.project(found.cls, norm=False), patches)

    def half_encoder(self) -> "AnomalyCLIPCore":
        """Turn the image tower and the positional table to half precision, in place."""
        self.visual.half()
        self.positions = self.positions.half()
        return self

    def compare(self, features: ImageFeatures) -> tuple[Tensor, Tensor]:
        """Return scores (B,) and patch maps (B, g, g): softmax of the cosines with the two texts."""
        scores = probabilities(features.image, self.text_features)[:, 1]
        return scores, patch_probabilities(features.patches, self.text_features)


def _check(config: CLIPConfig, size: int, layers: Sequence[int], dpam_layers: int) -> None:
    if size <= 0 or size % config.patch_size:
        near = max(round(size / config.patch_size), 1) * config.patch_size
        raise AnomalyCLIPError(
            f"image size {size}: expected a multiple of the backbone's patch size {config.patch_size}: use {near}"
        )
    depth = config.vision_layers
    for layer in layers:
        if not 1 <= layer <= depth:
            raise AnomalyCLIPError(f"layer {layer} does not exist: the backbone's blocks are 1 to {depth}")
    if not 0 <= dpam_layers <= depth:
        raise AnomalyCLIPError(f"{dpam_layers} DPAM layers: expected 0 to {depth}, the backbone's blocks")


def default_image_size(config: CLIPConfig) -> int:
    """Return the side that a backbone is used at: its native patch grid times 37/24, which is 518 for ViT-L/14@336.

    Examples
    --------
    >>> default_image_size(CLIPConfig(768, 336, 14, 1024, 24, 16, 768, 12, 12, 77, 49408))
    518
    """
    grid = round(config.image_size // config.patch_size * 37 / 24)
    return grid * config.patch_size


def default_dpam_layers(config: CLIPConfig) -> int:
    """Return how many final blocks have the local path: 19 of 24, in proportion for other depths.

    Examples
    --------
    >>> default_dpam_layers(CLIPConfig(512, 224, 16, 768, 12, 12, 512, 12, 8, 77, 49408))
    9
    """
    return config.vision_layers * 19 // 24
