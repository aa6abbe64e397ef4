"""Pixel metrics of a class whose maps do not fit into memory, exact all the same.

The maps are gone through several times: once to count their values, then once for each range of values, highest first.
A range is sorted in memory and added to the same sums to which `anomalyclip.metrics.pixel_metrics` adds everything at
once, so the figures are the same.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.metrics.counts import Counts
from anomalyclip.metrics.inputs import not_finite
from anomalyclip.metrics.localization import PixelMetrics, PixelSums, require_rate
from anomalyclip.metrics.ranking import Above, Population, Ranking

Map = NDArray[np.float32]
Areas = NDArray[np.int32]

MEMORY = 32
"""Megabytes that one range may take by default."""

# Bytes that a pixel takes while its range is sorted: normal ones a value, its copy and the masks that picked it;
# anomalous ones also region, order, and the counts at their value.
_NORMAL_BYTES, _ANOMALOUS_BYTES = 12, 96


def pixel_metrics_in_ranges(
    maps: Sequence[Map],
    areas: Sequence[Areas | None],
    *,
    memory: float = MEMORY,
    max_fpr: float = 0.3,
    curve_points: int | None = None,
) -> PixelMetrics:
    """Compute the pixel metrics of one class in bounded memory.

    Parameters
    ----------
    maps : sequence of (H, W) float32 arrays
        Higher is more anomalous; finite. Indexed several times; it may read from disk each time.
    areas : sequence of (H, W) int32 arrays or None
        What `anomalyclip.metrics.regions.region_areas` returned for the mask of each; None for a normal image.
    memory : float
        Megabytes for sorting; 4 are the least.
    max_fpr, curve_points
        As for `anomalyclip.metrics.pixel_metrics`.

    Returns
    -------
    PixelMetrics
        What `anomalyclip.metrics.pixel_metrics` returns, but for the last digits of sums in another order and for
        the thresholds at which the curves are thinned.

    Raises
    ------
    AnomalyCLIPError
        No pixel at all, a map with NaN or infinity or of another shape than its mask, a `max_fpr` or `curve_points`
        out of range.

    Examples
    --------
    >>> from anomalyclip.metrics.regions import region_areas
    >>> areas = region_areas(np.array([[0, 0, 1, 1]], dtype=bool))
    >>> found = pixel_metrics_in_ranges([np.array([[0.1, 0.4, 0.35, 0.8]], np.float32)], [areas])
    >>> found.auroc, found.aupro_exact
    (0.75, 0.5)
    """
    require_rate(max_fpr)
    population, counts = _counted(maps, areas)
    sums = PixelSums(population, max_fpr, curve_points)
    above = Above()
    for low, high in counts.ranges(int(max(memory, 4) * 1e6)):
        ranking = _ranked(maps, areas, low, high, above)
        sums.add(ranking)
        above = ranking.through
        del ranking  # or else it would stay in memory while the next one is read
    return sums.metrics()


def _counted(maps: Sequence[Map], areas: Sequence[Areas | None]) -> tuple[Population, Counts]:
    """Return what must be known before the first range, and the bytes that values take when they are sorted."""
    counts = Counts()
    normal = anomalous = 0
    lowest, highest = np.float32(np.inf), np.float32(-np.inf)
    for index, values, area in _pairs(maps, areas):
        if not np.isfinite(values).all():
            raise not_finite(f"map {index}")
        counts.add(values, _NORMAL_BYTES)
        lowest = min(lowest, values.min(initial=np.float32(np.inf)))
        highest = max(highest, values.max(initial=np.float32(-np.inf)))
        normal += values.size
        if area is not None:
            inside = values[area > 0]
            counts.add(inside, _ANOMALOUS_BYTES - _NORMAL_BYTES)
            normal -= inside.size
            anomalous += inside.size
    if normal + anomalous == 0:
        raise AnomalyCLIPError("maps are empty: a metric needs at least one pixel")
    return Population(normal, anomalous, lowest, highest), counts


def _ranked(
    maps: Sequence[Map], areas: Sequence[Areas | None], low: np.float32, high: np.float32, above: Above
) -> Ranking:
    """Rank the values of one range, ``low <= value < high``."""
    normal = []
    anomalous, inside = [np.empty(0, np.float32)], [np.empty(0, np.int32)]
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
        inside.append(area[wrong])
    together = np.concatenate(normal)
    normal.clear()  # or else the values would be held twice while they are sorted
    return Ranking.sort(together, np.concatenate(anomalous), 1.0 / np.concatenate(inside), above)


def _pairs(maps: Sequence[Map], areas: Sequence[Areas | None]) -> Iterator[tuple[int, Map, Areas | None]]:
    for index, (values, area) in enumerate(zip(maps, areas, strict=True)):
        if area is not None and values.shape != area.shape:
            raise AnomalyCLIPError(
                f"map {index} has shape {values.shape}, its mask {area.shape}; both must be the same"
            )
        yield index, values, area
