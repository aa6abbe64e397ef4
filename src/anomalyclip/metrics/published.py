"""AUPRO as the published code computes it, so that figures can be compared with the paper's."""

import numpy as np

from anomalyclip.metrics.ranking import Floats, Population, Ranking

_THRESHOLDS = 200


class PublishedAupro:
    """Counts at the published thresholds, filled in while the ranges of a population are added."""

    def __init__(self, population: Population, max_fpr: float) -> None:
        self._population = population
        self._max_fpr = max_fpr
        self._thresholds = _evenly_spaced(population)
        self._open = self._thresholds.size  # thresholds from this index on are done
        self._false_alarms = np.empty(self._open)
        self._overlap = np.empty(self._open)
        self._regions = 0.0

    def add(self, ranking: Ranking) -> "PublishedAupro":
        """Add one range, the highest first; it completes the thresholds that no score of a lower range exceeds."""
        first = int(np.searchsorted(self._thresholds, ranking.lowest))
        here = slice(first, self._open)
        # As published, a pixel counts if it is above the threshold, not if it is equal to it.
        passing = ranking.passing(self._thresholds[here], at=False)
        self._false_alarms[here], self._overlap[here] = passing.false_alarms, passing.overlap
        self._open, self._regions = first, ranking.through.overlap
        return self

    def area(self) -> float:
        """Return the trapezoid area over the rates below `max_fpr`, which are stretched to [0, 1].

        Returns
        -------
        float
            NaN if the definition divides zero by zero: only one label, or no two different rates below `max_fpr`.
        """
        if not self._population.has_both:
            return np.nan
        fpr = self._false_alarms / self._population.normal
        kept = fpr < self._max_fpr
        fpr, pro = fpr[kept], self._overlap[kept] / self._regions
        if fpr.size == 0 or fpr[0] == fpr[-1]:
            return np.nan
        stretched = (fpr - fpr[-1]) / (fpr[0] - fpr[-1])  # thresholds increase, so rates decrease
        return min(float(np.sum(-np.diff(stretched) * (pro[1:] + pro[:-1]) / 2)), 1.0)


def _evenly_spaced(population: Population) -> Floats:
    """Return the thresholds in the maps' own precision and by the published expression; empty if that fails."""
    low, high = population.lowest, population.highest
    with np.errstate(over="ignore"):
        step = (high - low) / _THRESHOLDS
    if step == 0 or not np.isfinite(step):
        return np.empty(0, low.dtype)
    return np.arange(low, high, step, dtype=low.dtype)
