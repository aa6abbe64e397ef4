"""The metrics that are defined at every threshold, as sums and maxima over ranges of scores."""

from typing import NamedTuple

import numpy as np

from anomalyclip.metrics.ranking import Floats, Population, Ranking, Steps


class F1Max(NamedTuple):
    """The best F1 over all thresholds, and its threshold: scores at or above it are anomalous."""

    f1: float
    threshold: float


class Youden(NamedTuple):
    """The largest true- minus false-positive rate over all thresholds, and its threshold, as for `F1Max`."""

    j: float
    threshold: float


class Figures(NamedTuple):
    """The metrics from one pass over the scores."""

    auroc: float
    average_precision: float
    f1_max: F1Max
    youden: Youden
    aupro_exact: float


class Sums:
    """The metrics of a population, summed while its ranges are added; AUPRO up to `max_fpr`, divided by it.

    Only thresholds at anomalous scores are needed: between two of them neither recall nor overlap changes, and
    the upper one has the fewest false alarms there, hence the best F1 and Youden's J.
    """

    def __init__(self, population: Population, max_fpr: float = 1.0) -> None:
        self._population = population
        self._max_fpr = max_fpr
        self._auroc = self._average_precision = self._aupro = self._regions = 0.0
        self._f1_max, self._youden = F1Max(-np.inf, np.nan), Youden(-np.inf, np.nan)

    def add(self, ranking: Ranking) -> "Sums":
        """Add one range; each score of the population must be added once."""
        if self._population.has_both:
            for steps in ranking.steps():
                self._add(steps)
            self._regions += float(ranking.weights.sum())
        return self

    def _add(self, steps: Steps) -> None:
        normal, anomalous = self._population.normal, self._population.anomalous
        share = steps.ties / anomalous
        fpr_above, fpr = steps.false_alarms_above / normal, steps.false_alarms / normal
        self._auroc += _area_under(share, fpr_above, fpr)
        self._aupro += _area_under(steps.overlap, fpr_above, fpr, self._max_fpr)
        alarms = steps.hits + steps.false_alarms
        self._average_precision += float(share @ (steps.hits / alarms))
        # The highest of equally good thresholds: within these steps by _last_best, between steps by max of a pair.
        self._f1_max = max(self._f1_max, F1Max(*_last_best(2 * steps.hits / (anomalous + alarms), steps)))
        self._youden = max(self._youden, Youden(*_last_best(self._differences(steps), steps)))

    def _differences(self, steps: Steps) -> Floats:
        """Return Youden's J at each step, such that equal fractions are equal numbers and ties are recognised."""
        normal, anomalous = self._population.normal, self._population.anomalous
        if normal * anomalous >= 2**63:  # the integers below would overflow
            return steps.hits / anomalous - steps.false_alarms / normal
        return (steps.hits * normal - steps.false_alarms * anomalous) / (normal * anomalous)

    def figures(self) -> Figures:
        """Return the metrics of the population; all NaN if only one label occurs."""
        if not self._population.has_both:
            return Figures(np.nan, np.nan, F1Max(np.nan, np.nan), Youden(np.nan, np.nan), np.nan)
        aupro = self._aupro / (self._regions * self._max_fpr)
        # The rounded sum of many shares must not exceed 1 for a perfect ranking.
        return Figures(
            min(self._auroc, 1.0),
            min(self._average_precision, 1.0),
            self._f1_max,
            self._youden,
            min(aupro, 1.0),
        )


def _last_best(values: Floats, steps: Steps) -> tuple[float, float]:
    best = values.size - 1 - int(np.argmax(values[::-1]))
    return float(values[best]), float(steps.scores[best])


def _area_under(gains: Floats, start: Floats, end: Floats, max_fpr: float = 1.0) -> float:
    """Area over [0, max_fpr] under a curve that rises by each gain evenly between two rates.

    Between `start[i]` and `end[i]` are the normal scores that tie with the i-th anomalous score: there the curve
    slopes, and everywhere else it is flat. So the area is a sum over the gains, and no curve has to be built.
    """
    risen = np.maximum(np.minimum(end, max_fpr) - start, 0.0)
    slope = np.divide(risen * risen, 2 * (end - start), out=np.zeros_like(end), where=end > start)
    return float(gains @ (slope + np.maximum(max_fpr - end, 0.0)))
