"""Exact pixel metrics of a class whose maps do not fit into memory.

The maps are read several times: once to count their values, then once for each range of values, highest first. Each
range is sorted in memory and added to the same sums to which `anomalyclip.metrics.pixel_metrics` adds everything at
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

# Bytes per pixel while its range is sorted. A normal pixel needs its value, a copy of it and the masks that select it;
# an anomalous pixel also needs its region, its order, and the counts at its value.
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
        Finite; higher is more anomalous. Each map is accessed several times and may be read from disk each time.
    areas : sequence of (H, W) int32 arrays or None
        The result of `anomalyclip.metrics.regions.region_areas` for each mask; None for a normal image.
    memory : float
        Megabytes for sorting, at least 4.
    max_fpr, curve_points
        As for `anomalyclip.metrics.pixel_metrics`.

    Returns
    -------
    PixelMetrics
        The same as `anomalyclip.metrics.pixel_metrics`, except for the last digits (sums are in another order) and
        the thresholds that are kept when curves are thinned.

    Raises
    ------
    AnomalyCLIPError
        There are no pixels, a map has NaN or infinite values or another shape than its mask, or `max_fpr` or
        `curve_points` is out of range.

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
        del ranking  # otherwise it would stay in memory while the next one is read
    return sums.metrics()


def _counted(maps: Sequence[Map], areas: Sequence[Areas | None]) -> tuple[Population, Counts]:
    """Return the population, and counts of the bytes that values need when they are sorted."""
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
    normal.clear()  # otherwise the values would be in memory twice while they are sorted
    return Ranking.sort(together, np.concatenate(anomalous), 1.0 / np.concatenate(inside), above)


def _pairs(maps: Sequence[Map], areas: Sequence[Areas | None]) -> Iterator[tuple[int, Map, Areas | None]]:
    for index, (values, area) in enumerate(zip(maps, areas, strict=True)):
        if area is not None and values.shape != area.shape:
            raise AnomalyCLIPError(
                f"map {index} has shape {values.shape}, but its mask has {area.shape}; both must be the same"
            )
        yield index, values, area
