"""The one sort that every metric here is read from, and the metrics that are defined at every threshold.

Normal and anomalous scores are sorted apart. Sorting plain floats is several times cheaper than the argsort
of all of them that a textbook implementation needs, and only the anomalous ones, which are few, carry more
than their score (the region that they belong to). All counts then come from binary searches of one kind in
the other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Counts = NDArray[np.int64]

# Anomalous scores that are looked at together: enough to be fast, few enough for the processor's cache.
_BLOCK = 1 << 16


class F1Max(NamedTuple):
    """The best F1 of all thresholds, and its threshold: scores at or above it are called anomalous."""

    f1: float
    threshold: float


class Figures(NamedTuple):
    """What one walk over the ranking gives."""

    auroc: float
    average_precision: float
    f1_max: F1Max
    aupro_exact: float


class _Steps(NamedTuple):
    """Some distinct anomalous scores in rising order, and what passes a threshold at each of them."""

    scores: Floats
    ties: Counts  # anomalous scores that equal each
    hits: Counts  # anomalous scores at or above each
    false_alarms: Counts  # normal scores at or above each
    fpr: tuple[Floats, Floats]  # share of normal scores above each, and at or above each
    overlap: Floats  # what each adds to the summed overlap of the regions


@dataclass(frozen=True, eq=False)
class Ranking:
    """Sorted scores of normal and anomalous items.

    Parameters
    ----------
    normal : (N,) float array, ascending
    anomalous : (P,) float array, ascending, of the same dtype
    weights : (P,) float64 array
        One over the number of items in the region of each anomalous item; 1 where each is its own region.
    """

    normal: Floats
    anomalous: Floats
    weights: Floats

    @property
    def has_both(self) -> bool:
        """Whether there is something to tell apart; without it every metric is NaN."""
        return self.normal.size > 0 and self.anomalous.size > 0

    def figures(self, max_fpr: float = 1.0) -> Figures:
        """Compute what is defined at every threshold; AUPRO up to `max_fpr`, divided by it.

        Only anomalous scores have to be looked at: between two of them neither recall nor overlap changes,
        and of the thresholds there, the upper score has the fewest false alarms, hence the best F1.
        """
        if not self.has_both:
            return Figures(np.nan, np.nan, F1Max(np.nan, np.nan), np.nan)
        auroc = average_precision = aupro = 0.0
        best = F1Max(0.0, np.nan)
        for step in self._steps():
            share = step.ties / self.anomalous.size
            auroc += area_under(share, *step.fpr)
            average_precision += float(share @ (step.hits / (step.hits + step.false_alarms)))
            aupro += area_under(step.overlap, *step.fpr, max_fpr)
            f1 = 2 * step.hits / (self.anomalous.size + step.hits + step.false_alarms)
            top = f1.size - 1 - int(np.argmax(f1[::-1]))  # the last of equals, as in the next line
            if f1[top] >= best.f1:
                best = F1Max(float(f1[top]), float(step.scores[top]))
        aupro /= float(self.weights.sum()) * max_fpr
        # A perfect ranking must not exceed 1 by the rounding of a sum of many shares.
        return Figures(min(auroc, 1.0), min(average_precision, 1.0), best, min(aupro, 1.0))

    @cached_property
    def overlap_from(self) -> Floats:
        """Mean overlap of the regions when anomalous items from an index on are found; (P + 1,), 1 to 0."""
        found = np.zeros(self.anomalous.size + 1)
        np.cumsum(self.weights[::-1], out=found[-2::-1])
        found /= found[0]
        return found

    def _steps(self) -> Iterator[_Steps]:
        start = 0
        while start < self.anomalous.size:
            last = self.anomalous[min(start + _BLOCK, self.anomalous.size) - 1]
            end = int(np.searchsorted(self.anomalous, last, side="right"))  # ties stay together
            scores = self.anomalous[start:end]
            first = np.flatnonzero(np.append(True, scores[1:] != scores[:-1]))
            distinct = scores[first]
            above = self.normal.size - np.searchsorted(self.normal, distinct, side="right")
            at_or_above = self.normal.size - np.searchsorted(self.normal, distinct, side="left")
            yield _Steps(
                scores=distinct,
                ties=np.diff(first, append=scores.size),
                hits=self.anomalous.size - start - first,
                false_alarms=at_or_above,
                fpr=(above / self.normal.size, at_or_above / self.normal.size),
                overlap=np.add.reduceat(self.weights[start:end], first),
            )
            start = end


def area_under(gains: Floats, start: Floats, end: Floats, max_fpr: float = 1.0) -> float:
    """Area over [0, max_fpr] that gains in height, each coming evenly between two rates, add under a curve.

    Between `start[i]` and `end[i]` lie the normal scores that tie with the i-th anomalous one: there the
    curve slopes, everywhere else it is flat. So the area is a sum over the gains, with no curve to be built.
    """
    risen = np.maximum(np.minimum(end, max_fpr) - start, 0.0)
    slope = np.divide(risen * risen, 2 * (end - start), out=np.zeros_like(end), where=end > start)
    return float(gains @ (slope + np.maximum(max_fpr - end, 0.0)))
