"""The one sort that every metric here is read from.

Normal and anomalous scores are sorted apart. Sorting plain floats is several times cheaper than the argsort
of all of them that a textbook implementation needs, and only the anomalous ones, which are few, carry more
than their score (the region that they belong to). All counts then come from binary searches of one kind in
the other.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomalyclip.errors import AnomalyCLIPError

Floats = NDArray[np.floating[Any]]
Counts = NDArray[np.int64]


class F1Max(NamedTuple):
    """The best F1 of all thresholds, and its threshold: scores at or above it are called anomalous."""

    f1: float
    threshold: float


class RocCurve(NamedTuple):
    """Rates at falling thresholds, from (0, 0) at infinity to (1, 1) at the lowest score."""

    fpr: Floats
    tpr: Floats
    thresholds: Floats


class PrecisionRecallCurve(NamedTuple):
    """Precision and recall at rising thresholds, closed by (1, 0), which has no threshold."""

    precision: Floats
    recall: Floats
    thresholds: Floats


class Steps(NamedTuple):
    """The distinct anomalous scores in rising order, and what passes a threshold at each of them."""

    scores: Floats
    share: Floats  # of all anomalous scores, those that equal each
    hits: Counts  # anomalous scores at or above each
    normal_above: Counts
    normal_at_or_above: Counts


@dataclass(frozen=True, eq=False)
class Ranking:
    """Sorted scores of normal and anomalous items, from which every metric is read.

    Parameters
    ----------
    normal : (N,) float array, ascending
    anomalous : (P,) float array, ascending, of the same dtype
    """

    normal: Floats
    anomalous: Floats

    @property
    def has_both(self) -> bool:
        """Whether there is something to tell apart; without it every metric is NaN."""
        return self.normal.size > 0 and self.anomalous.size > 0

    def auroc(self) -> float:
        """Area under the ROC curve: the chance that an anomalous score beats a normal one, ties half."""
        if not self.has_both:
            return np.nan
        return self.area(self.steps.share)

    def average_precision(self) -> float:
        """Mean precision over the anomalous items, each at the threshold that equals its score."""
        if not self.has_both:
            return np.nan
        precision = self.steps.hits / (self.steps.hits + self.steps.normal_at_or_above)
        return float(self.steps.share @ precision)

    def f1_max(self) -> F1Max:
        """Best F1 over all thresholds; of several equally good ones the highest, which alarms least.

        Only anomalous scores can be best: raising any other threshold to the next of them loses no hit.
        """
        if not self.has_both:
            return F1Max(np.nan, np.nan)
        f1 = 2 * self.steps.hits / (self.anomalous.size + self.steps.hits + self.steps.normal_at_or_above)
        best = f1.size - 1 - int(np.argmax(f1[::-1]))
        return F1Max(float(f1[best]), float(self.steps.scores[best]))

    def roc_curve(self, points: int | None) -> RocCurve:
        """Curve through every distinct score, or about `points` of them; an absent label's rate is NaN."""
        thresholds = self._thresholds(points)
        thresholds = np.append(np.array(np.inf, thresholds.dtype), thresholds)
        return RocCurve(
            _share_from(self.normal, thresholds), _share_from(self.anomalous, thresholds), thresholds
        )

    def precision_recall_curve(self, points: int | None) -> PrecisionRecallCurve:
        """Curve through every distinct score, or about `points` of them; recall is NaN without anomalies."""
        thresholds = self._thresholds(points)[::-1]
        hits = self.anomalous.size - np.searchsorted(self.anomalous, thresholds)
        alarms = hits + self.normal.size - np.searchsorted(self.normal, thresholds)
        recall = _share_from(self.anomalous, thresholds)
        return PrecisionRecallCurve(np.append(hits / alarms, 1.0), np.append(recall, 0.0), thresholds)

    @cached_property
    def steps(self) -> Steps:
        """The ranking at each distinct anomalous score, the only places where a curve can rise."""
        first = np.flatnonzero(np.append(True, self.anomalous[1:] != self.anomalous[:-1]))
        scores = self.anomalous[first]
        return Steps(
            scores,
            np.diff(first, append=self.anomalous.size) / self.anomalous.size,
            self.anomalous.size - first,
            self.normal.size - np.searchsorted(self.normal, scores, side="right"),
            self.normal.size - np.searchsorted(self.normal, scores, side="left"),
        )

    def area(self, gains: Floats, max_fpr: float = 1.0) -> float:
        """Area over [0, max_fpr] under a curve that gains `gains[i]` in height at the i-th anomalous score.

        Where normal scores tie with that score, the gain comes evenly over the rates between them (a slope);
        everywhere else the curve is flat. So the area is a sum over the gains, with no curve to be built.
        """
        start = self.steps.normal_above / self.normal.size
        end = self.steps.normal_at_or_above / self.normal.size
        risen = np.maximum(np.minimum(end, max_fpr) - start, 0.0)
        slope = np.divide(risen * risen, 2 * (end - start), out=np.zeros_like(end), where=end > start)
        return float(gains @ (slope + np.maximum(max_fpr - end, 0.0)))

    def _thresholds(self, points: int | None) -> Floats:
        """Distinct scores in falling order; with `points`, only even quantiles of both kinds."""
        kept = [self.normal, self.anomalous]
        if points is not None:
            if points < 4:
                raise AnomalyCLIPError(f"points={points}: a curve needs at least 4; None keeps all")
            places = [np.linspace(0, scores.size - 1, min(points // 2, scores.size)) for scores in kept]
            kept = [scores[place.astype(np.int64)] for scores, place in zip(kept, places, strict=True)]
        return np.unique(np.concatenate(kept))[::-1]


def _share_from(ascending: Floats, thresholds: Floats) -> Floats:
    """Share of the scores at or above each threshold; NaN where there are no scores."""
    if ascending.size == 0:
        return np.full(thresholds.size, np.nan)
    return (ascending.size - np.searchsorted(ascending, thresholds)) / ascending.size
