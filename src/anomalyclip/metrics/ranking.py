"""The sorted scores that all metrics are computed from: all scores, or those in one range of values.

Normal and anomalous scores are sorted separately. Sorting plain floats is several times cheaper than the argsort
of all scores that a textbook implementation needs. Only anomalous scores, which are few, carry additional data
(the region that they belong to). All counts then come from binary searches of one kind in the other.

At a threshold, a metric needs the counts above it. So scores that do not fit into memory are ranked range by
range, highest first, and each ranking carries the counts of the ranges above it. Equal scores are always in the
same range. Scores that fit into memory are one range with nothing above it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]

# Anomalous scores that are processed together: enough to be fast, few enough for the processor's cache.
_BLOCK = 1 << 16


class Population(NamedTuple):
    """Numbers and extremes of all scores, which are known before the first range is ranked."""

    normal: int
    anomalous: int
    lowest: np.floating[Any]
    highest: np.floating[Any]

    @property
    def has_both(self) -> bool:
        """Whether both labels occur; otherwise every metric is NaN."""
        return self.normal > 0 and self.anomalous > 0


class Above(NamedTuple):
    """Totals of the ranges above: normal scores, anomalous scores, and the summed overlap of the regions."""

    normal: int = 0
    anomalous: int = 0
    overlap: float = 0.0


NOTHING = Above()


class Passing(NamedTuple):
    """Counts that pass each of several thresholds, including the ranges above."""

    false_alarms: Integers
    hits: Integers
    overlap: Floats


class Steps(NamedTuple):
    """Some distinct anomalous scores in increasing order, and the counts that pass a threshold at each of them."""

    scores: Floats
    ties: Integers  # anomalous scores equal to each
    hits: Integers  # anomalous scores at or above each
    false_alarms: Integers  # normal scores at or above each
    false_alarms_above: Integers  # normal scores above each
    overlap: Floats  # contribution of each to the summed overlap of the regions


@dataclass(frozen=True, eq=False)
class Ranking:
    """Sorted scores of normal and anomalous items in one range of values; at least one score in total.

    Parameters
    ----------
    normal : (N,) float array, ascending
    anomalous : (P,) float array, ascending, of the same dtype
    weights : (P,) float64 array
        One over the number of items in the region of each anomalous item; 1 if each is its own region.
    above : Above
        Totals of the ranges above this one.
    """

    normal: Floats
    anomalous: Floats
    weights: Floats
    above: Above = NOTHING

    @classmethod
    def sort(cls, normal: Floats, anomalous: Floats, weights: Floats, above: Above = NOTHING) -> "Ranking":
        """Rank scores in any order; `normal` is sorted in place."""
        normal.sort()
        order = np.argsort(anomalous)
        return cls(normal, anomalous[order], weights[order], above)

    @property
    def population(self) -> Population:
        """The population, if this range holds all scores."""
        return Population(
            self.normal.size,
            self.anomalous.size,
            self.lowest,
            max(scores[-1] for scores in (self.normal, self.anomalous) if scores.size),
        )

    @property
    def lowest(self) -> np.floating[Any]:
        """The lowest score of this range."""
        lowest: np.floating[Any] = min(scores[0] for scores in (self.normal, self.anomalous) if scores.size)
        return lowest

    @property
    def through(self) -> Above:
        """Totals of this range and those above it, which are the totals above the next range."""
        return Above(
            self.above.normal + self.normal.size,
            self.above.anomalous + self.anomalous.size,
            float(self._overlap_from[0]),
        )

    def passing(self, thresholds: Floats, *, at: bool = True) -> Passing:
        """Count the scores above thresholds in this range; with `at`, also the scores equal to them."""
        side: Literal["left", "right"] = "left" if at else "right"
        index = np.searchsorted(self.anomalous, thresholds, side)
        return Passing(
            self._normal_from(thresholds, side),
            self.above.anomalous + self.anomalous.size - index,
            self._overlap_from[index],
        )

    def steps(self) -> Iterator[Steps]:
        """Yield the distinct anomalous scores in blocks; equal scores are always in the same block."""
        start = 0
        while start < self.anomalous.size:
            last = self.anomalous[min(start + _BLOCK, self.anomalous.size) - 1]
            end = int(np.searchsorted(self.anomalous, last, side="right"))
            scores = self.anomalous[start:end]
            first = np.flatnonzero(np.append(True, scores[1:] != scores[:-1]))
            distinct = scores[first]
            yield Steps(
                scores=distinct,
                ties=np.diff(first, append=scores.size),
                hits=self.above.anomalous + self.anomalous.size - start - first,
                false_alarms=self._normal_from(distinct, "left"),
                false_alarms_above=self._normal_from(distinct, "right"),
                overlap=np.add.reduceat(self.weights[start:end], first),
            )
            start = end

    def _normal_from(self, thresholds: Floats, side: Literal["left", "right"]) -> Integers:
        below: Integers = np.searchsorted(self.normal, thresholds, side)
        return self.above.normal + self.normal.size - below

    @cached_property
    def _overlap_from(self) -> Floats:
        """Summed overlap of the regions if anomalous scores from an index on are found; (P + 1,), decreasing."""
        found = np.zeros(self.anomalous.size + 1)
        np.cumsum(self.weights[::-1], out=found[-2::-1])
        found += self.above.overlap
        return found
