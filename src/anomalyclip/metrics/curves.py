"""The curves behind the areas, complete or thinned to the points that a plot needs."""

from typing import NamedTuple

import numpy as np

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.metrics.ranking import Floats, Integers, Passing, Population, Ranking


class RocCurve(NamedTuple):
    """Rates at decreasing thresholds, from (0, 0) at infinity to (1, 1) at the lowest score."""

    fpr: Floats
    tpr: Floats
    thresholds: Floats


class PrecisionRecallCurve(NamedTuple):
    """Precision and recall at increasing thresholds, closed by (1, 0), which has no threshold."""

    precision: Floats
    recall: Floats
    thresholds: Floats


class ProCurve(NamedTuple):
    """False-positive rate and mean per-region overlap at decreasing thresholds, from (0, 0) to (1, 1)."""

    fpr: Floats
    pro: Floats
    thresholds: Floats


class Points:
    """Counts at the thresholds of the curves, collected while the ranges of a population are added.

    Parameters
    ----------
    population : Population
    points : int or None
        Approximate number of thresholds to keep, at even quantiles of the normal and of the anomalous scores;
        None keeps every distinct score.
    """

    def __init__(self, population: Population, points: int | None) -> None:
        if points is not None and points < 4:
            raise AnomalyCLIPError(f"points={points}: expected at least 4, or None to keep all points")
        self._population = population
        self._points = points
        none = np.zeros(1, np.int64)
        self._thresholds: list[Floats] = [np.array([np.inf], population.lowest.dtype)]
        self._passing = [Passing(none, none, np.zeros(1))]
        self._regions = 0.0

    def add(self, ranking: Ranking) -> "Points":
        """Add one range, the highest first."""
        kept = [
            self._kept(ranking.normal, self._population.normal),
            self._kept(ranking.anomalous, self._population.anomalous),
        ]
        thresholds = np.unique(np.concatenate(kept))[::-1]
        self._thresholds.append(thresholds)
        self._passing.append(ranking.passing(thresholds))
        self._regions = ranking.through.overlap
        return self

    def _kept(self, scores: Floats, total: int) -> Floats:
        """Return scores at even quantiles with both ends, in proportion to their share of all scores of their kind."""
        if self._points is None or scores.size == 0:
            return scores
        number = max(2, round(self._points // 2 * scores.size / total))
        return scores[np.linspace(0, scores.size - 1, min(number, scores.size)).astype(np.int64)]

    def roc(self) -> RocCurve:
        """Return the ROC curve; the rate of a label that does not occur is NaN."""
        thresholds, passing = self._falling()
        return RocCurve(
            _share(passing.false_alarms, self._population.normal),
            _share(passing.hits, self._population.anomalous),
            thresholds,
        )

    def precision_recall(self) -> PrecisionRecallCurve:
        """Return the precision-recall curve; recall is NaN if nothing is anomalous."""
        thresholds, passing = self._falling()
        rising = slice(None, 0, -1)  # all but infinity, which nothing passes
        hits, false_alarms = passing.hits[rising], passing.false_alarms[rising]
        recall = _share(hits, self._population.anomalous)
        return PrecisionRecallCurve(
            np.append(hits / (hits + false_alarms), 1.0), np.append(recall, 0.0), thresholds[rising]
        )

    def pro(self) -> ProCurve:
        """Return the PRO curve; values that need a label that does not occur are NaN."""
        thresholds, passing = self._falling()
        fpr = _share(passing.false_alarms, self._population.normal)
        return ProCurve(fpr, _share(passing.overlap, self._regions), thresholds)

    def _falling(self) -> tuple[Floats, Passing]:
        passing = Passing(*(np.concatenate(counts) for counts in zip(*self._passing, strict=True)))
        return np.concatenate(self._thresholds), passing


def _share(counts: Floats | Integers, total: float) -> Floats:
    """Return shares of a total; NaN if the total is 0."""
    return counts / total if total else np.full(counts.size, np.nan)
