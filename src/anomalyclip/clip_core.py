"""Cores on a frozen CLIP: what all of them share, and the one that compares image features with two texts."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from anomalyclip.anomaly import patch_probabilities, probabilities
from anomalyclip.backbones.config import ViTConfig
from anomalyclip.clip import packed
from anomalyclip.clip import taps as tower
from anomalyclip.clip.model import PLAIN, CLIPConfig, ImageFeatures, LocalPath, VisionTransformer
from anomalyclip.clip.taps import Features, Taps
from anomalyclip.core import Core
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.framing import Framing

_KEPT_TABLES = 8
"""Positional tables that are kept for images of other proportions."""

_VISION_ONLY = 448
"""Pixels of the side of an image, as AnomalyDINO was published."""


class ClipCore(Core):
    """A core whose encoder is one pass through CLIP's image tower.

    Cores of one tower, image size and positional table can share a pass: `encode_for` what several need
    (``one.taps | other.taps``), then `compare` of each.

    Parameters
    ----------
    visual : VisionTransformer
        The image tower; it is used as it is.
    config : CLIPConfig or ViTConfig
        Of the model.
    taps : Taps
        What `compare` needs from a pass.
    image_size : int, optional
        None: `default_image_size`.
    sigma : float
        Gaussian smoothing of the maps in pixels.
    score_rule : str
        A key of `anomalyclip.spec.IMAGE_SCORES`.
    framing : Framing, optional
        How images become its input. None: squashed to S x S.
    full_size : bool
        Whether `compare` gives maps of S x S, rather than one value for each patch.

    Raises
    ------
    AnomalyCLIPError
        The image size or the blocks do not fit the backbone, or sigma is outside [0, S].
    """

    positions: Tensor

    few_shot: ClassVar[type | None] = None
    """How references are used: a subclass of `anomalyclip.memory_core.PatchMemory`. None: that one."""

    def __init__(
        self,
        visual: VisionTransformer,
        config: CLIPConfig | ViTConfig,
        taps: Taps,
        *,
        image_size: int | None,
        sigma: float,
        score_rule: str,
        full_size: bool = False,
        framing: Framing | None = None,
    ) -> None:
        size = default_image_size(config) if image_size is None else image_size
        check_size(config, size)
        check_blocks(config, (*taps.plain, *taps.local), taps.path.blocks)
        side = size // config.patch_size
        super().__init__(
            image_size=size,
            grid=size if full_size else side,
            sigma=sigma,
            score_rule=score_rule,
            framing=framing,
            mean=config.mean,
            std=config.std,
        )
        self.config, self.taps, self.patch_grid = config, taps, side
        self.layers: tuple[int, ...] = taps.plain
        self.visual = visual
        positions = visual.positions(side, side, rule=taps.positions).detach().clone()
        self.register_buffer("positions", positions, persistent=False)
        self._other_positions: dict[tuple[int, int], Tensor] = {}

    def settings(self) -> dict[str, object]:
        """Return what determines the scores besides weights and texts, JSON-ready."""
        return {
            "image_size": self.image_size,
            "sigma": float(self.sigma),
            "image_score": self.score_rule,
        }

    def encode(self, pixels: Tensor) -> Features:
        """Return what one pass of normalised pixels (B, 3, S, S) keeps for this core."""
        return self.encode_for(pixels, self.taps)

    def encode_for(self, pixels: Tensor, taps: Taps) -> Features:
        """Return what one pass keeps for several cores, of which this is one."""
        rows, columns = (length // self.config.patch_size for length in pixels.shape[-2:])
        return tower.run(self.visual, pixels, self._positions(rows, columns), taps)

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Return the positional table (1 + h * w, D) for a grid; of those that are not square a few are kept."""
        if (rows, columns) == (self.patch_grid, self.patch_grid):
            return self.positions
        if (rows, columns) not in self._other_positions:
            with torch.inference_mode(False), torch.no_grad():
                table = self.visual.positions(rows, columns, rule=self.taps.positions).to(self.positions)
            while len(self._other_positions) >= _KEPT_TABLES:
                self._other_positions.pop(next(iter(self._other_positions)), None)
            self._other_positions[rows, columns] = table
        return self._other_positions[rows, columns]

    def project(self, tokens: Tensor, *, norm: bool = True) -> Tensor:
        """Return raw tokens (..., D) in the space that images and texts share, (..., E)."""
        return self.visual.project(tokens, norm=norm)

    def projected(self, found: Features, tokens: Tensor) -> Tensor:
        """Return tokens of a pass, (B, 1 + N, D), projected (B, 1 + N, E), once for all cores that share the pass."""
        if id(tokens) not in found.projected:  # the tokens live as long as `found`, which holds them
            found.projected[id(tokens)] = self.project(tokens)
        return found.projected[id(tokens)]

    def rows(self, found: Features) -> Tensor:
        """Return what training needs of each image, (B, 1 + L * N, W) float32: its own row, then every layer's patches.

        Raises
        ------
        AnomalyCLIPError
            The method has no trained part.
        """
        raise AnomalyCLIPError(f"{type(self).__name__} has no trained part")

    @property
    def row_width(self) -> int:
        """Width W of the rows."""
        return self.config.embed_dim

    @property
    def row_kind(self) -> str:
        """What tells these rows from those of AnomalyCLIP's prompts."""
        return ""

    @property
    def is_packed(self) -> bool:
        """Whether the tower's weights are stored for oneDNN."""
        return packed.is_packed(self.visual)

    def pack(self) -> None:
        """Store the tower's weights for oneDNN where that is clearly faster; see `anomalyclip.clip.packed`."""
        packed.pack_if_faster(self.visual, tokens=1 + self.patch_grid**2)

    def unpack(self) -> None:
        """Store the tower's weights in the plain layout."""
        packed.unpack(self.visual)

    def half_encoder(self) -> "ClipCore":
        """Turn the image tower and the positional table to half precision, in place."""
        self.visual.half()
        self.positions = self.positions.half()
        self._other_positions = {grid: table.half() for grid, table in self._other_positions.items()}
        return self


class TextCore(ClipCore):
    """Softmax of the cosines with two texts, of the image and of each patch.

    AnomalyCLIP (the local path, learned prompts) and its untrained relatives (plain CLIP, CLIP Surgery, CoOp) differ
    in nothing else.

    Parameters
    ----------
    visual, config, image_size, sigma, score_rule
        As for `ClipCore`.
    text_features : callable
        Gives (2, E) float, normalised, normal then abnormal; called after all options have been checked.
    layers : sequence of int, optional
        Blocks whose patch features make the map, which is the mean over them. None: the last.
    path : LocalPath
        The local path from which they are read; without blocks it is the plain one.
    ln_post : bool
        Whether the image feature passes `ln_post` before it is projected.
    surgery : bool
        Whether patches are compared by CLIP Surgery's rule (`anomalyclip.anomaly.feature_surgery`).

    Raises
    ------
    AnomalyCLIPError
        A value does not fit the backbone, or the text features are not finite.
    """

    text_features: Tensor

    def __init__(
        self,
        visual: VisionTransformer,
        config: CLIPConfig | ViTConfig,
        text_features: Callable[[], Tensor],
        *,
        image_size: int | None = None,
        layers: Sequence[int] | None = None,
        path: LocalPath = PLAIN,
        sigma: float = 4.0,
        score_rule: str = "text",
        ln_post: bool = False,
        surgery: bool = False,
    ) -> None:
        blocks = tuple(layers or (config.vision_layers,))
        taps = Taps(local=blocks, path=path) if path.blocks > 0 else Taps(plain=blocks)
        check_blocks(config, blocks, path.blocks)
        super().__init__(visual, config, taps, image_size=image_size, sigma=sigma, score_rule=score_rule)
        self.layers, self.path, self.ln_post, self.surgery = blocks, path, ln_post, surgery
        self.register_buffer("text_features", finite(text_features()), persistent=False)

    @property
    def dpam_layers(self) -> int:
        """Number of final blocks with the local path."""
        return self.path.blocks

    def settings(self) -> dict[str, object]:
        """Return what determines the scores besides weights and texts; newer options only if they are used."""
        unusual = {
            "local_attention": (self.path.attends, "v"),
            "ln_post": (self.ln_post, False),
            "feature_surgery": (self.surgery, False),
        }
        return {
            **super().settings(),
            "layers": list(self.layers),
            "dpam_layers": self.dpam_layers,
            **{name: value for name, (value, usual) in unusual.items() if value != usual},
        }

    def features(self, found: Features) -> ImageFeatures:
        """Return the features that are compared with the texts, projected and not normalised."""
        tokens = found.local if self.path.blocks else found.plain
        patches = {layer: self.projected(found, tokens[layer]) for layer in self.layers}
        return ImageFeatures(self.project(found.cls, norm=self.ln_post), patches)

    def rows(self, found: Features) -> Tensor:
        """Return the normalised features, projected."""
        image, patches = self.features(found)
        layers = [patches[layer][:, 1:] for layer in self.layers]  # B N E
        return F.normalize(torch.cat([image[:, None], *layers], dim=1).float(), dim=-1)

    @property
    def row_kind(self) -> str:
        """What tells these rows from those of AnomalyCLIP's prompts."""
        attends = f"local {self.path.attends}" if self.path.blocks and self.path.attends != "v" else ""
        return " ".join(filter(None, [attends, "ln_post" if self.ln_post else ""]))

    def compare(self, features: Features) -> tuple[Tensor, Tensor]:
        """Return scores (B,) and patch maps (B, g, g)."""
        image, patches = self.features(features)
        scores = probabilities(image, self.text_features)[:, 1]
        surgery_by = image if self.surgery else None
        return scores, patch_probabilities(patches, self.text_features, surgery_by=surgery_by)


def finite(text_features: Tensor) -> Tensor:
    """Return text features as float32.

    Raises
    ------
    AnomalyCLIPError
        They are NaN or infinite.
    """
    texts = text_features.float()
    if not texts.isfinite().all():
        raise AnomalyCLIPError(
            "the prompts' text features are NaN or infinite: the weights or the prompts are damaged"
        )
    return texts


def check_size(config: CLIPConfig | ViTConfig, size: int) -> None:
    """Refuse an image size that is not a multiple of the patch size."""
    if size <= 0 or size % config.patch_size:
        near = max(round(size / config.patch_size), 1) * config.patch_size
        raise AnomalyCLIPError(
            f"image size {size}: expected a multiple of the backbone's patch size {config.patch_size}: use {near}"
        )


def check_blocks(config: CLIPConfig | ViTConfig, layers: Sequence[int], dpam_layers: int) -> None:
    """Refuse blocks that the backbone does not have."""
    depth = config.vision_layers
    for layer in layers:
        if not 1 <= layer <= depth:
            raise AnomalyCLIPError(f"layer {layer} does not exist: the backbone's blocks are 1 to {depth}")
    if not 0 <= dpam_layers <= depth:
        raise AnomalyCLIPError(f"{dpam_layers} DPAM layers: expected 0 to {depth}, the backbone's blocks")


def default_image_size(config: CLIPConfig | ViTConfig) -> int:
    """Return the side that a backbone is used at: its native patch grid times 37/24, which is 518 for ViT-L/14@336.

    Vision-only backbones are used at 448, as AnomalyDINO is, or the nearest multiple of their patch size.

    Examples
    --------
    >>> default_image_size(CLIPConfig(768, 336, 14, 1024, 24, 16, 768, 12, 12, 77, 49408))
    518
    """
    if isinstance(config, ViTConfig):
        return max(round(_VISION_ONLY / config.patch_size), 1) * config.patch_size
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
