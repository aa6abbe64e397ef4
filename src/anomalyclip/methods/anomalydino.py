"""AnomalyDINO: every patch of an image is compared with those of a few normal images; no words are needed.

Reference: Damm et al., "AnomalyDINO: Boosting Patch-based Few-shot Anomaly Detection with DINOv2", WACV 2025. Its
backbone is DINOv2; any other works too. Images keep their proportions.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from anomalyclip.backbones.config import ViTConfig
from anomalyclip.backbones.load import load_tower
from anomalyclip.clip.config import CLIPConfig
from anomalyclip.clip.model import VisionTransformer
from anomalyclip.clip.taps import Features, Taps
from anomalyclip.clip_core import ClipCore, check_blocks, default_image_size
from anomalyclip.engines.torch import TorchScorer, check_runnable
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.foreground import foreground
from anomalyclip.framing import Framing
from anomalyclip.memory import Banks, on_scale, scale_of, unknown_share
from anomalyclip.memory_core import MemoryCore, PatchMemory
from anomalyclip.references import Memory
from anomalyclip.scorer import Description
from anomalyclip.spec import DetectorSpec

SIGMA = 4.0
"""Published smoothing of the map, in pixels."""

HIGHEST = 0.01
"""Share of the patches whose mean distance is the image score."""


def build(spec: DetectorSpec) -> TorchScorer:
    """Return the scorer of a spec; without references it can only be fitted.

    Raises
    ------
    AnomalyCLIPError
        The backbone cannot be found or read, or an option cannot be used with it.
    """
    check_runnable(spec.device, spec.precision)
    tower = load_tower(spec.backbone)
    if spec.foreground and not tower.dinov2:
        raise AnomalyCLIPError(
            f"foreground: its threshold is for DINOv2, and {spec.backbone} is not known to be one, by its form, its "
            "configuration or its name: leave --foreground out"
        )
    core = AnomalyDINOCore(
        tower.visual,
        tower.config,
        image_size=spec.image_size,
        layers=spec.layers,
        sigma=SIGMA if spec.sigma is None else spec.sigma,
        only_foreground=spec.foreground,
    )
    settings = {"method": "anomalydino", **core.settings()}
    return TorchScorer(
        core,
        identity=lambda: settings | {"weights_sha256": tower.fingerprint()},
        description=Description(
            f"AnomalyDINO, {spec.backbone}", {"method": "anomalydino", "backbone": spec.backbone}
        ),
        device=spec.device,
        precision=spec.precision,
        compiled=spec.compiled,
    )


class AnomalyDINOCore(ClipCore):
    """Patch features of a backbone, to be compared with references.

    Parameters
    ----------
    visual, config
        The backbone.
    image_size : int, optional
        The short side of images, a multiple of the patch size. None: 448 for a vision-only backbone, as published.
    layers : sequence of int, optional
        Blocks whose patches are compared, after the final norm. None: the last, as published.
    sigma : float
        Gaussian smoothing of the maps in pixels.
    only_foreground : bool
        Whether only patches that show the object are compared (`anomalyclip.foreground`), with DINOv2.

    Raises
    ------
    AnomalyCLIPError
        A value does not fit the backbone.
    """

    needs_references = True

    def __init__(
        self,
        visual: VisionTransformer,
        config: CLIPConfig | ViTConfig,
        *,
        image_size: int | None = None,
        layers: Sequence[int] | None = None,
        sigma: float = SIGMA,
        only_foreground: bool = False,
    ) -> None:
        blocks = tuple(layers or (config.vision_layers,))
        check_blocks(config, blocks, 0)
        size = default_image_size(config) if image_size is None else image_size
        super().__init__(
            visual,
            config,
            Taps(plain=blocks),
            image_size=size,
            sigma=sigma,
            score_rule="text",
            framing=Framing(size, patch=config.patch_size),
        )
        self.only_foreground = only_foreground

    def settings(self) -> dict[str, object]:
        """Return what determines the scores besides weights and references."""
        settings = {"image_size": self.image_size, "sigma": float(self.sigma), "layers": list(self.layers)}
        return settings | ({"foreground": True} if self.only_foreground else {})

    def patches(self, found: Features, block: int) -> Tensor:
        """Return the patches (B, N, D) after a block and the final norm, normalised, float32; of background 0."""
        tokens = self.visual.ln_post(found.plain[block][:, 1:]).float()
        patches = F.normalize(tokens, dim=-1)
        return patches * foreground(tokens, found.grid)[..., None] if self.only_foreground else patches

    def compare(self, features: Features) -> tuple[Tensor, Tensor]:
        """Return scores (B,) and maps (B, h, w) that say nothing: only references do."""
        batch = len(features.cls)
        zeros = features.cls.new_zeros
        return zeros(batch, dtype=torch.float32), zeros((batch, *features.grid), dtype=torch.float32)

    def enlarged(self, grids: Tensor) -> Tensor:
        """Refuse: there are no references."""
        raise AnomalyCLIPError(
            "method 'anomalydino' compares images with normal ones: give references (--references PATH)"
        )


class AnomalyDINOMemory(PatchMemory):
    """The patches of the references, each normalised, and the distance to the nearest of them.

    The image score is the mean distance of the 1 % of patches that are farthest, and the map shows all distances,
    enlarged and smoothed. Both are put on the fixed scale d / (d + scale) afterwards, which keeps every order, so that
    AUROC and PRO are those of the distances.
    """

    def __init__(self, core: ClipCore) -> None:
        assert isinstance(core, AnomalyDINOCore)
        self.core, self.blocks, self.taps = core, core.layers, core.taps

    def features(self, found: Features) -> dict[str, Tensor]:
        """Return (B, N, D) float32, normalised, by the name of their bank."""
        return {f"block {number}": self.core.patches(found, number) for number in self.blocks}

    def distances(self, features: Banks, banks: Banks) -> Tensor:
        """Return (B, N) float32: how far each patch is from those of the banks; 0 for the background."""
        apart = super().distances(features, banks)
        return apart * _shown(features) if self.core.only_foreground else apart

    def within(self, features: Banks, grid: tuple[int, int]) -> Tensor | None:
        """Return how far each patch is from others of its image (B, N); 0 for the background."""
        apart = super().within(features, grid)
        return apart if apart is None or not self.core.only_foreground else apart * _shown(features)

    def scale(self, memory: Memory) -> float:
        """Return the distance below which 99 % of normal patches are, the background aside."""
        far = memory.left_out.flatten()
        return scale_of(far[far > 0] if self.core.only_foreground and bool((far > 0).any()) else far)

    def fused(
        self, core: MemoryCore, text: Tensor, maps: Tensor, distances: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores, half the distances as maps (see `enlarged`), and the share of unknown patches."""
        scores = on_scale(farthest(distances, among_positive=self.core.only_foreground), core.scale)
        return scores, distances.view(maps.shape) / 2, unknown_share(distances, core.scale)

    def enlarged(self, core: MemoryCore, grids: Tensor) -> Tensor:
        """Return maps (B, H, W) of half the distances: enlarged and smoothed, then put on the fixed scale."""
        return on_scale(2 * super().enlarged(core, grids), core.scale)


def _shown(features: Banks) -> Tensor:
    """Return which patches (B, N) are not background."""
    return torch.stack([own.abs().amax(dim=-1) > 0 for own in features.values()]).any(dim=0)


def farthest(distances: Tensor, *, among_positive: bool = False) -> Tensor:
    """Return the mean (B,) of the 1 % of the distances (B, N), or of those above 0, that are largest, at least of one.

    Examples
    --------
    >>> farthest(torch.arange(400.0)[None])
    tensor([397.5000])
    """
    if among_positive:
        largest = distances.sort(dim=1, descending=True).values
        counts = (HIGHEST * (largest > 0).sum(dim=1)).floor().clamp(min=1)[:, None]
        counted = torch.arange(largest.shape[1], device=largest.device) < counts
        return (largest * counted).sum(dim=1) / counts[:, 0]
    count = max(int(HIGHEST * distances.shape[1]), 1)
    return distances.topk(count, dim=1, sorted=False).values.mean(dim=1)


AnomalyDINOCore.few_shot = AnomalyDINOMemory
