"""Two scorers that know nothing about defects, as a baseline for models.

On pictures of one object in the middle, "anomalous means near the centre" looks like a good detector, and so does
"anomalous means different from the surroundings". A model that is not better than these has proved nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from anomalyclip.evaluation.results import METRICS, Metrics
from anomalyclip.scorer import Description, Scorer


class CentreScorer:
    """The same map for every image: 1 in the centre, falling to 0 in the corners; the score is always 0.5.

    Parameters
    ----------
    image_size : int
        Side S of the maps in pixels.

    Examples
    --------
    >>> scores, maps = CentreScorer(5)(np.zeros((1, 5, 5, 3), np.uint8))
    >>> scores.tolist(), maps[0, 2].tolist()[2], maps[0, 0].tolist()[0]
    ([0.5], 1.0, 0.0)
    """

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        offset = np.linspace(-1, 1, image_size, dtype=np.float32)
        self._map = (
            (1 - np.hypot(offset[:, None], offset) / np.float32(np.sqrt(2))).clip(0, 1).astype(np.float32)
        )

    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Score a batch (B, S, S, 3); its pixels are not used."""
        return np.full(len(pixels), 0.5, np.float32), np.repeat(self._map[None], len(pixels), axis=0)

    def identity(self) -> dict[str, Any]:
        """Return its name and the image size."""
        return {"method": "control: centre", "image_size": self.image_size}

    def describe(self) -> Description:
        """Return its description for reports."""
        return Description("control: nearness to the centre")


class ContrastScorer:
    """Difference in brightness between each pixel and its surroundings; the score is the map's maximum.

    The map is the absolute difference between the brightness in [0, 1] and its mean over a square around the pixel
    (a sixth of the image's side wide), smoothed like a model's map (sigma 4 pixels of 518).

    Parameters
    ----------
    image_size : int
        Side S of the maps in pixels.

    Examples
    --------
    >>> picture = np.zeros((1, 70, 70, 3), np.uint8)
    >>> picture[0, 33:36, 33:36] = 255
    >>> scores, maps = ContrastScorer(70)(picture)
    >>> bool(maps[0, 34, 34] > 0.3), bool(maps[0, 5, 5] < 0.01)
    (True, True)
    """

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size

    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Score a batch (B, S, S, 3)."""
        gray = pixels.mean(axis=3, dtype=np.float32) / 255  # B S S
        around = ndimage.uniform_filter(gray, (1, self.image_size // 6, self.image_size // 6))
        smooth = self.image_size * 4 / 518
        maps = ndimage.gaussian_filter(np.abs(gray - around), (0, smooth, smooth)).clip(0, 1)
        return maps.max(axis=(1, 2)), maps

    def identity(self) -> dict[str, Any]:
        """Return its name and the image size."""
        return {"method": "control: contrast", "image_size": self.image_size}

    def describe(self) -> Description:
        """Return its description for reports."""
        return Description("control: difference from the surroundings")


CONTROLS: dict[str, Callable[[int], Scorer]] = {"centre": CentreScorer, "contrast": ContrastScorer}
"""By name, the function that makes a control for an image size."""


def not_beaten(model: Metrics, controls: Mapping[str, Metrics]) -> list[str]:
    """Return, in words, each metric for which a control is at least as good as the model.

    Examples
    --------
    >>> not_beaten({"pixel_auroc": 0.8}, {"centre": {"pixel_auroc": 0.85}, "contrast": {"pixel_auroc": 0.7}})
    ['pixel AUROC: model 80.0, centre 85.0']
    """
    found = []
    for metric, (level, name) in METRICS.items():
        own = model.get(metric)
        if own is None:
            continue
        better = [
            f"{control} {100 * other:.1f}"
            for control, metrics in controls.items()
            if (other := metrics.get(metric)) is not None and other >= own
        ]
        if better:
            found.append(f"{level} {name}: model {100 * own:.1f}, {', '.join(better)}")
    return found
