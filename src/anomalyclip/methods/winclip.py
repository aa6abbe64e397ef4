"""WinCLIP and WinCLIP+: CLIP looks at the image through windows of two sizes, and every window is compared with words.

Reference: Jeong et al., "WinCLIP: Zero-/Few-Shot Anomaly Classification and Segmentation", CVPR 2023. There is no code
of the authors; the default follows zqhang/Accurate-WinCLIP-pytorch, the reproduction whose figures are published.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from anomalyclip.anomaly import image_score, probabilities
from anomalyclip.clip.model import CLIP, CLIPConfig, VisionTransformer
from anomalyclip.clip.taps import Features, Taps, Window, starts
from anomalyclip.clip_core import ClipCore, check_size, default_image_size, finite
from anomalyclip.engines.torch import TorchScorer
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.memory import Banks, nearest, unknown_share
from anomalyclip.memory_core import MemoryCore, PatchMemory
from anomalyclip.methods.worded import ClassScorer, TextFeatures, build_worded
from anomalyclip.spec import DetectorSpec


def build(spec: DetectorSpec) -> TorchScorer | ClassScorer:
    """Return the scorer of a spec."""
    return build_worded(spec, make_core, words="winclip", templates="winclip")


def make_core(clip: CLIP, spec: DetectorSpec, text_features: TextFeatures) -> "WinCLIPCore":
    """Return the core of a spec."""
    return WinCLIPCore(clip.visual, clip.config, spec, text_features)


class WinCLIPCore(ClipCore):
    """The mathematics of zero-shot WinCLIP.

    Parameters
    ----------
    visual : VisionTransformer
        The image tower.
    config : CLIPConfig
        Of the model.
    spec : DetectorSpec
        Image size, windows, sigma (None: 0) and how the image score is computed.
    text_features : callable
        Returns (2, E) float, normalised, normal then abnormal.

    Raises
    ------
    AnomalyCLIPError
        Windows do not fit the grid, or the image size does not fit the backbone.
    """

    text_features: Tensor

    def __init__(
        self,
        visual: VisionTransformer,
        config: CLIPConfig,
        spec: DetectorSpec,
        text_features: TextFeatures,
    ) -> None:
        size = default_image_size(config) if spec.image_size is None else spec.image_size
        check_size(config, size)
        grid = size // config.patch_size
        sides = default_windows(grid) if spec.windows is None else spec.windows
        windows = _windows(grid, sides, spec.window_stride or 1)
        super().__init__(
            visual,
            config,
            Taps(windows=windows, positions="bicubic"),
            image_size=size,
            sigma=spec.sigma or 0.0,
            score_rule=spec.image_score or "text",
        )
        self.windows, self.rule = windows, spec.window_rule or "abnormal"
        for window in windows:
            self.register_buffer(_name(window), _cover(grid, window), persistent=False)
        self.register_buffer("text_features", finite(text_features()), persistent=False)

    def settings(self) -> dict[str, object]:
        """Return what determines the scores besides weights and texts, JSON-ready."""
        sides, (_, stride) = [side for side, _ in self.windows], self.windows[0]
        return {**super().settings(), "windows": sides, "window_stride": stride, "window_rule": self.rule}

    def compare(self, features: Features) -> tuple[Tensor, Tensor]:
        """Return scores (B,) and maps (B, g, g)."""
        scores = self.of_cls(features.cls)[:, 1]
        of_windows = {window: self.of_cls(features.windows[window]) for window in self.windows}  # B W 2
        return scores, self.combine(scores, of_windows)

    def of_cls(self, cls: Tensor) -> Tensor:
        """Return how normal and how anomalous the images or windows are (..., 2) whose last CLS tokens these are."""
        return probabilities(self.project(cls), self.text_features)

    def combine(self, scores: Tensor, of_windows: dict[Window, Tensor]) -> Tensor:
        """Return the map (B, g, g): the harmonic mean over the windows that hold a patch, and over their sizes.

        The published reproduction takes the harmonic mean of P_abnormal, and the image's own score as one more size.
        The other reading (caoyunkang/WinClip) takes one minus the harmonic mean of P_normal, of windows alone.
        """
        if self.rule == "normal":
            inverse = [self.spread(1 / one[..., 0], window) for window, one in of_windows.items()]
            return 1 - 1 / torch.stack(inverse).mean(dim=0)
        inverse = [self.spread(1 / one[..., 1], window) for window, one in of_windows.items()]  # B g g
        image = (1 / scores)[:, None, None].expand_as(inverse[0])
        return 1 / torch.stack([*inverse, image]).mean(dim=0)

    def spread(self, values: Tensor, window: Window) -> Tensor:
        """Return for each patch (B, g, g) the mean of the values (B, W) of the windows that hold it."""
        cover: Tensor = self.get_buffer(_name(window)).to(values.device)  # g w
        along = cover.shape[1]
        # Windows are products of their sides, so a sum over those that hold a patch is two small matrix products.
        counts = cover.sum(dim=1)
        total: Tensor = cover @ values.view(-1, along, along) @ cover.T
        return total / (counts[:, None] * counts)


class WinCLIPMemory(PatchMemory):
    """WinCLIP+: windows of both sizes and the patches of the last block, each compared with those of the references.

    Half the cosine distance; windows are combined by the harmonic mean, as their scores are; the mean of all kinds is
    the memory's map. The map is the mean of it and the text map (the published sum, halved), and the image score the
    mean of the text score and the memory map's maximum.
    """

    rule = "max"
    dtype = torch.float32  # as published

    def __init__(self, core: ClipCore) -> None:
        assert isinstance(core, WinCLIPCore)
        self.core, self.windows, self.last = core, core.windows, core.config.vision_layers
        self.taps = Taps(plain=(self.last,), windows=core.windows, positions=core.taps.positions)

    def features(self, found: Features) -> dict[str, Tensor]:
        """Return normalised windows (B, W, E), projected, and patches (B, N, D), before the final norm."""
        windows = {
            _bank(window): F.normalize(self.core.project(found.windows[window]).float(), dim=-1)
            for window in self.windows
        }
        return {**windows, "patches": F.normalize(found.plain[self.last][:, 1:].float(), dim=-1)}

    def distances(self, features: Banks, banks: Banks) -> Tensor:
        """Return the memory's map (B, N)."""
        kinds = [nearest(features["patches"], banks["patches"]) / 2]  # B N
        for window in self.windows:
            apart = (nearest(features[_bank(window)], banks[_bank(window)]) / 2).clamp(min=_LEAST)
            kinds.append(1 / self.core.spread(1 / apart, window).flatten(1))
        return torch.stack(kinds).mean(dim=0)

    def fused(
        self, core: MemoryCore, text: Tensor, maps: Tensor, distances: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores and maps as published; see `PatchMemory.fused`."""
        memory = distances.view(maps.shape)
        scores = (text + memory.amax(dim=(1, 2))) / 2
        if core.memory_rule != self.rule:
            scores = image_score(text, core.enlarged(memory), core.memory_rule, grids=memory)
        return scores, (maps + memory) / 2, unknown_share(distances, core.scale)


_LEAST = 1e-9
"""Distance of what is in the memory itself: a harmonic mean over windows that hold it is 0 then."""


def _bank(window: Window) -> str:
    return f"windows of {window[0]}"


WinCLIPCore.few_shot = WinCLIPMemory


def default_windows(grid: int) -> tuple[int, int]:
    """Return the sides of the published windows in patches: 2 and 3 of a grid of 15, never less, more on a larger one.

    Examples
    --------
    >>> default_windows(37), default_windows(24), default_windows(15)
    ((5, 7), (3, 5), (2, 3))
    """
    small = max(round(grid * 2 / 15), 2)
    return small, max(round(grid * 3 / 15), small + 1)


def _windows(grid: int, sides: tuple[int, ...], stride: int) -> tuple[Window, ...]:
    for side in sides:
        if side > grid:
            raise AnomalyCLIPError(
                f"window of {side} patches: the image has {grid} x {grid}; expected 1 to {grid}"
            )
        if stride > side:
            raise AnomalyCLIPError(
                f"window stride {stride}: windows of {side} patches would leave some out; expected 1 to {side}"
            )
    return tuple((side, stride) for side in sorted(set(sides)))


def _cover(grid: int, window: Window) -> Tensor:
    """Return (g, w): 1 where the patch is in the window, along one side."""
    first = torch.tensor(starts(grid, window))
    patches = torch.arange(grid)[:, None]
    return ((patches >= first) & (patches < first + window[0])).float()


def _name(window: Window) -> str:
    return f"cover_{window[0]}_{window[1]}"
