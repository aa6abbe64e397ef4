"""Pixel metrics as functions of how often each image counts: counts of pixels by image and class of map values.

Drawing images again (`anomalyclip.metrics.paired`) needs a metric thousands of times. So the values of a map are put
into some hundred classes once; what is lost is the order within a class. The metrics themselves are exact elsewhere
(`anomalyclip.metrics.localization`); this is for their intervals.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import replacing, writing
from anomalyclip.metrics.paired import Statistic, Weights, rank_metric

CLASSES = 512
"""Of map values, each with about as many pixels."""

_SAMPLED = 500_000  # pixels, at least, decide where classes begin


@dataclass(frozen=True)
class PixelCounts:
    """Pixels of n images by class of map values, the highest values first.

    Attributes
    ----------
    normal, anomalous : ndarray of float32, shape (n, K)
        Numbers of pixels.
    overlap : ndarray of float32, shape (n, K)
        Of each region of an image the share that is in the class, summed over its regions.
    """

    normal: NDArray[np.float32]
    anomalous: NDArray[np.float32]
    overlap: NDArray[np.float32]

    @property
    def labels(self) -> NDArray[np.bool_]:
        """Whether an image has anomalous pixels."""
        return np.asarray(self.anomalous.any(axis=1))

    def save(self, path: Path) -> None:
        """Write them, whole or not at all."""
        with writing(path), replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, normal=self.normal, anomalous=self.anomalous, overlap=self.overlap)

    @classmethod
    def load(cls, path: Path) -> "PixelCounts":
        """Read what `save` wrote.

        Raises
        ------
        AnomalyCLIPError
            The file is missing or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as content:
                return cls(**{name: content[name] for name in ("normal", "anomalous", "overlap")})
        except Exception as error:  # zipfile and zlib have their own
            raise AnomalyCLIPError(f"{path}: damaged ({error}); start again in another folder") from None


def pixel_counts(maps: Sequence[Any], areas: Sequence[Any], *, classes: int = CLASSES) -> PixelCounts:
    """Count the pixels of images.

    Parameters
    ----------
    maps : sequence of ndarray of float, shape (h, w)
        Each is asked for twice, one at a time.
    areas : sequence of ndarray of int or None
        `anomalyclip.metrics.regions.region_areas` of the masks; None: all normal.
    classes : int
        K, at most.

    Examples
    --------
    >>> counts = pixel_counts([np.array([[0.1, 0.9]]), np.array([[0.2, 0.3]])], [np.array([[0, 1]]), None])
    >>> counts.labels.tolist(), float(counts.normal.sum()), float(counts.overlap.sum())
    ([True, False], 3.0, 1.0)
    """
    step = max(1, len(maps) * np.asarray(maps[0]).size // _SAMPLED)
    sample = np.concatenate([np.asarray(values).ravel()[::step] for values in maps])
    limits = np.unique(np.quantile(sample, np.linspace(0, 1, classes + 1)[1:-1]))  # rising
    count = len(limits) + 1
    rows: list[NDArray[np.float32]] = []
    for values, area in zip(maps, areas, strict=True):
        place = count - 1 - np.searchsorted(limits, np.asarray(values).ravel(), side="right")
        row = np.zeros((3, count), np.float32)
        if area is None:
            row[0] = np.bincount(place, minlength=count)
        else:
            flat = np.asarray(area).ravel()
            inside = flat > 0
            row[0] = np.bincount(place[~inside], minlength=count)
            row[1] = np.bincount(place[inside], minlength=count)
            row[2] = np.bincount(place[inside], weights=1 / flat[inside], minlength=count)
        rows.append(row)
    normal, anomalous, overlap = np.stack(rows, axis=1)
    return PixelCounts(normal, anomalous, overlap)


def pixel_statistic(counts: PixelCounts, metric: str, *, max_fpr: float = 0.3) -> Statistic:
    """Return a pixel metric as a function of how often each image counts.

    Parameters
    ----------
    counts : PixelCounts
    metric : {"pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_aupro_exact"}
        The last is the mean overlap of the regions up to a false-positive rate of `max_fpr`.
    max_fpr : float

    Examples
    --------
    >>> counts = pixel_counts([np.array([[0.1, 0.9]]), np.array([[0.2, 0.3]])], [np.array([[0, 1]]), None])
    >>> pixel_statistic(counts, "pixel_auroc")(np.ones((1, 2))).tolist()
    [1.0]
    """

    def statistic(weights: Weights) -> NDArray[np.float64]:
        false = np.cumsum(weights @ counts.normal, axis=1)
        if metric == "pixel_aupro_exact":
            return _aupro(np.cumsum(weights @ counts.overlap, axis=1), false, max_fpr)
        found = np.cumsum(weights @ counts.anomalous, axis=1)
        return rank_metric(found, false, metric.partition("_")[2])

    return statistic


def _aupro(overlap: NDArray[np.float64], false: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    """Return the area (R,) under mean overlap against false-positive rate up to a limit, over that limit."""
    with np.errstate(invalid="ignore", divide="ignore"):
        rate, mean = false / false[:, -1:], overlap / overlap[:, -1:]
        start, low = (
            np.concatenate([np.zeros_like(one[:, :1]), one[:, :-1]], axis=1) for one in (rate, mean)
        )
        end = np.minimum(rate, limit)
        width = np.maximum(end - np.minimum(start, limit), 0)
        share = np.where(rate > start, (end - start) / (rate - start), 1.0)
        high = low + (mean - low) * np.clip(share, 0, 1)  # where the limit cuts a step
        return np.asarray((width * (low + high) / 2).sum(axis=1) / limit)
