"""Pixel metrics of a class whose maps do not fit into memory, exact all the same.

Every metric here is a sum (or a maximum) over thresholds, and what it needs at a threshold is how many normal pixels,
anomalous pixels and shares of regions lie above. So the maps are gone through in ranges of values, highest first: each
range is sorted in memory, and the counts of the ranges above it are carried along. Equal values are always in the same
range, so that ties are exact. The figures equal `anomalyclip.metrics.pixel_metrics`, which sorts everything at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.evaluation.order import Counts
from anomalyclip.metrics import F1Max
from anomalyclip.metrics.ranking import area_under

Map = NDArray[np.float32]
Areas = NDArray[np.int32]

MEMORY = 32
"""Megabytes that one range may take by default."""

CURVE_POINTS = 400

# Bytes that a pixel takes while its range is sorted: normal ones a value, its copy and the masks that picked it;
# anomalous ones also region, order, and the counts at their value.
_NORMAL_BYTES, _ANOMALOUS_BYTES = 12, 96


@dataclass(frozen=True)
class PixelCurves:
    """Points of the curves at falling thresholds; each (T,) float64 within [0, 1]."""

    fpr: NDArray[np.float64]
    tpr: NDArray[np.float64]
    pro: NDArray[np.float64]
    precision: NDArray[np.float64]


@dataclass(frozen=True)
class PixelResult:
    """Pixel metrics of one class, all within [0, 1]; NaN where no pixel is anomalous or none is normal.

    `youden` is the threshold with the largest difference between true and false positive rate. `aupro_published` is
    also NaN for maps that it is not defined for; see `anomalyclip.metrics.aupro`.
    """

    auroc: float
    average_precision: float
    f1_max: F1Max
    youden: float
    aupro_published: float
    aupro_exact: float
    curves: PixelCurves


def region_areas(mask: NDArray[np.bool_]) -> Areas:
    """Return, for every pixel, the area of its 8-connected region of the mask; 0 where nothing is wrong.

    Examples
    --------
    >>> region_areas(np.array([[1, 1, 0, 1]], dtype=bool)).tolist()
    [[2, 2, 0, 1]]
    """
    regions, _ = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(regions.ravel()).astype(np.int32)
    areas[0] = 0
    spread: Areas = areas[regions]
    return spread


def pixel_metrics_in_ranges(
    maps: Sequence[Map], areas: Sequence[Areas | None], *, memory: float = MEMORY, max_fpr: float = 0.3
) -> PixelResult:
    """Compute the pixel metrics of one class in bounded memory.

    Parameters
    ----------
    maps : sequence of (H, W) float32 arrays
        Indexed several times; it may read from disk each time. Finite.
    areas : sequence of (H, W) int32 arrays or None
        What `region_areas` returned for the mask of each; None for a normal image.
    memory : float
        Megabytes for sorting; 4 are the least.
    max_fpr : float
        The limit of both AUPROs.

    Returns
    -------
    PixelResult

    Raises
    ------
    AnomalyCLIPError
        A map has a value that is not finite, or another shape than its mask.
    """
    sums = _Sums(max_fpr)
    counts = Counts()
    for index, values, area in _pairs(maps, areas):
        if not np.isfinite(values).all():
            raise AnomalyCLIPError(f"map {index} has a NaN or an infinite value, which has no rank")
        counts.add(values, _NORMAL_BYTES)
        inside = values[area > 0] if area is not None else values[:0]
        counts.add(inside, _ANOMALOUS_BYTES - _NORMAL_BYTES)
        sums.see(values, inside, area)
    if not (sums.normal and sums.anomalous):
        return sums.nothing()
    sums.begin()
    for low, high in counts.ranges(int(max(memory, 4) * 1e6)):
        sums.add(*_range(maps, areas, low, high))
    return sums.result()


def _pairs(maps: Sequence[Map], areas: Sequence[Areas | None]) -> Iterator[tuple[int, Map, Areas | None]]:
    for index, (values, area) in enumerate(zip(maps, areas, strict=True)):
        if area is not None and values.shape != area.shape:
            raise AnomalyCLIPError(
                f"map {index} has shape {values.shape}, its mask {area.shape}; both must be the same"
            )
        yield index, values, area


def _range(
    maps: Sequence[Map], areas: Sequence[Areas | None], low: np.float32, high: np.float32
) -> tuple[Map, Map, NDArray[np.float64]]:
    """Return the sorted normal values of a range, its sorted anomalous values, and one over their regions' areas."""
    normal, anomalous, shares = [], [], []
    for _, values, area in _pairs(maps, areas):
        within = values >= low
        within &= values < high
        if area is None:
            normal.append(values[within])
            continue
        wrong = area > 0
        normal.append(values[within & ~wrong])
        wrong &= within
        anomalous.append(values[wrong])
        shares.append(area[wrong])
    below = np.concatenate(normal)
    normal.clear()
    below.sort()
    above = np.concatenate(anomalous)
    order = np.argsort(above)
    return below, above[order], 1.0 / np.concatenate(shares)[order]


_NO_F1 = F1Max(-1.0, np.nan)


@dataclass
class _Sums:
    """What is known of the ranges so far, and the metrics' sums over them."""

    max_fpr: float
    normal: int = 0  # pixels in all
    anomalous: int = 0
    regions: float = 0.0
    least: np.float32 = field(default=np.float32(np.inf))
    most: np.float32 = field(default=np.float32(-np.inf))
    n: int = 0  # normal pixels in the ranges done, all above the next one
    p: int = 0
    r: float = 0.0
    auroc: float = 0.0
    average_precision: float = 0.0
    aupro: float = 0.0
    best_f1: F1Max = _NO_F1
    best_youden: tuple[float, float] = (-2.0, np.nan)

    def see(self, values: Map, inside: Map, area: Areas | None) -> None:
        self.anomalous += inside.size
        self.normal += values.size - inside.size
        if area is not None:
            self.regions += float((1.0 / area[area > 0]).sum())
        self.least, self.most = min(self.least, values.min()), max(self.most, values.max())

    def begin(self) -> None:
        # In the maps' own precision and by its very expression, as published.
        step = (self.most - self.least) / 200
        self.thresholds = (
            np.arange(self.least, self.most, step, dtype=np.float32) if step > 0 else np.empty(0, np.float32)
        )
        self.published_fpr = np.empty(self.thresholds.size)
        self.published_pro = np.empty(self.thresholds.size)
        self.open = np.ones(self.thresholds.size, bool)
        self.points: list[NDArray[np.float64]] = [np.array([[0.0, 0.0, 0.0, 1.0]])]

    def add(self, normal: Map, anomalous: Map, weights: NDArray[np.float64]) -> None:
        """Take in one range: values of normal and of anomalous pixels, ascending, and the latter's shares."""
        overlap = np.append(np.cumsum(weights[::-1])[::-1], 0.0)  # of this range, from an index on
        if anomalous.size:
            self._add_steps(normal, anomalous, overlap)
        self._add_published(normal, anomalous, overlap)
        self._add_points(normal, anomalous, overlap)
        self.n += normal.size
        self.p += anomalous.size
        self.r += float(overlap[0])

    def _add_steps(self, normal: Map, anomalous: Map, overlap: NDArray[np.float64]) -> None:
        first = np.flatnonzero(np.append(True, anomalous[1:] != anomalous[:-1]))
        values = anomalous[first]
        hits = self.p + anomalous.size - first
        alarms = self.n + normal.size - np.searchsorted(normal, values, side="left")
        above = self.n + normal.size - np.searchsorted(normal, values, side="right")
        gains = np.diff(first, append=anomalous.size) / self.anomalous
        start, end = above / self.normal, alarms / self.normal
        self.auroc += area_under(gains, start, end, 1.0)
        self.aupro += area_under(
            -np.diff(overlap[np.append(first, -1)]) / self.regions, start, end, self.max_fpr
        )
        self.average_precision += float(gains @ (hits / (hits + alarms)))
        f1 = 2 * hits / (self.anomalous + hits + alarms)
        best = f1.size - 1 - int(np.argmax(f1[::-1]))
        if f1[best] > self.best_f1.f1:  # of equal ones the highest threshold, which came first
            self.best_f1 = F1Max(float(f1[best]), float(values[best]))
        youden = hits / self.anomalous - end
        best = youden.size - 1 - int(np.argmax(youden[::-1]))
        if youden[best] > self.best_youden[0]:
            self.best_youden = (float(youden[best]), float(values[best]))

    def _add_published(self, normal: Map, anomalous: Map, overlap: NDArray[np.float64]) -> None:
        """Fill in the thresholds of this range: those that no value of a lower range exceeds."""
        least = min([values[0] for values in (normal, anomalous) if values.size], default=np.float32(np.inf))
        here = self.open & (self.thresholds >= least)
        found = self.thresholds[here]
        above = self.n + normal.size - np.searchsorted(normal, found, side="right")
        self.published_fpr[here] = above / self.normal
        self.published_pro[here] = (
            self.r + overlap[np.searchsorted(anomalous, found, side="right")]
        ) / self.regions
        self.open &= ~here

    def _add_points(self, normal: Map, anomalous: Map, overlap: NDArray[np.float64]) -> None:
        """Keep points of the curves: thresholds at even quantiles of the normal and of the anomalous values."""
        picked = []
        for values, total in ((normal, self.normal), (anomalous, self.anomalous)):
            number = min(values.size, max(2, round(CURVE_POINTS / 2 * values.size / total)))
            picked.append(values[np.linspace(0, values.size - 1, number).astype(np.int64)])
        thresholds = np.unique(np.concatenate(picked))[::-1]
        alarms = self.n + normal.size - np.searchsorted(normal, thresholds)
        index = np.searchsorted(anomalous, thresholds)
        hits = self.p + anomalous.size - index
        pro = (self.r + overlap[index]) / self.regions
        self.points.append(
            np.stack(
                [alarms / self.normal, hits / self.anomalous, pro, hits / np.maximum(hits + alarms, 1)],
                axis=1,
            )
        )

    def result(self) -> PixelResult:
        fpr, tpr, pro, precision = np.concatenate(self.points).T
        # A perfect ranking must not exceed 1 by the rounding of a sum of many shares.
        return PixelResult(
            auroc=min(self.auroc, 1.0),
            average_precision=min(self.average_precision, 1.0),
            f1_max=self.best_f1,
            youden=self.best_youden[1],
            aupro_published=self._published(),
            aupro_exact=min(self.aupro / self.max_fpr, 1.0),
            curves=PixelCurves(fpr, tpr, pro.clip(0, 1), precision),
        )

    def _published(self) -> float:
        kept = self.published_fpr < self.max_fpr
        fpr, pro = self.published_fpr[kept], self.published_pro[kept]
        if fpr.size == 0 or fpr[0] == fpr[-1]:
            return np.nan
        stretched = (fpr - fpr[-1]) / (fpr[0] - fpr[-1])  # thresholds rise, so the rates fall
        return float(np.sum(-np.diff(stretched) * (pro[1:] + pro[:-1]) / 2))

    def nothing(self) -> PixelResult:
        none = np.empty(0)
        nan = np.nan
        return PixelResult(nan, nan, F1Max(nan, nan), nan, nan, nan, PixelCurves(none, none, none, none))
