"""Whether two methods differ on the same images: bootstrap over images, and DeLong's test of two AUROCs.

What is compared is the mean over classes, as in the tables. Images are drawn again within each class and each label,
the same ones for both methods.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

Weights = NDArray[np.float64]
"""(R, n): how often each of n images is in each of R draws."""

Statistic = Callable[[Weights], NDArray[np.float64]]
"""A metric of one class (R,) for draws of its images; NaN where it does not apply."""

_CELLS = 4_000_000  # of the largest array that a statistic makes, as a rule


@dataclass(frozen=True)
class Difference:
    """How a metric differs from the reference's, within [-1, 1].

    Parameters
    ----------
    value : float
        Metric minus the reference's, on the images as they are.
    low, high : float
        The middle 95 % of the differences of the draws.
    p : float or None
        Of a paired test that there is no difference; None where there is no test for this metric.
    """

    value: float
    low: float
    high: float
    p: float | None = None


def draws(labels: NDArray[np.bool_], count: int, rng: np.random.Generator) -> Weights:
    """Return how often each image is drawn: with replacement, as many of each label as there are.

    Parameters
    ----------
    labels : ndarray of bool, shape (n,)
    count : int
        R, number of draws.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of float64, shape (R, n)

    Examples
    --------
    >>> weights = draws(np.array([True, False, False]), 4, np.random.default_rng(0))
    >>> weights[:, 0].tolist(), weights.sum(axis=1).tolist()
    ([1.0, 1.0, 1.0, 1.0], [3.0, 3.0, 3.0, 3.0])
    """
    weights = np.zeros((count, len(labels)))
    for label in (False, True):
        places = np.flatnonzero(labels == label)
        if len(places):
            chance = np.full(len(places), 1 / len(places))
            weights[:, places] = rng.multinomial(len(places), chance, size=count)
    return weights


def image_statistic(labels: NDArray[np.bool_], scores: NDArray[np.floating], metric: str) -> Statistic:
    """Return an image metric as a function of how often each image counts.

    Parameters
    ----------
    labels : ndarray of bool, shape (n,)
    scores : ndarray of float, shape (n,)
    metric : {"image_auroc", "image_ap", "image_f1_max"}
        As in `anomalyclip.metrics.detection`.

    Examples
    --------
    >>> labels, scores = np.array([False, True, True]), np.array([0.2, 0.1, 0.9])
    >>> image_statistic(labels, scores, "image_auroc")(np.array([[1.0, 1, 1], [1, 0, 2]])).tolist()
    [0.5, 1.0]
    """
    order = np.argsort(-scores, kind="stable")
    falling, positive = scores[order], labels[order]
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))  # equal scores count together

    def statistic(weights: Weights) -> NDArray[np.float64]:
        drawn = weights[:, order]
        found = np.cumsum(drawn * positive, axis=1)[:, ends]
        false = np.cumsum(drawn * ~positive, axis=1)[:, ends]
        return rank_metric(found, false, metric.partition("_")[2])

    return statistic


def rank_metric(found: NDArray[np.float64], false: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """Return AUROC, AP or the largest F1 of cumulative counts along falling scores.

    Parameters
    ----------
    found, false : ndarray of float64, shape (R, K)
        What is anomalous, and what is normal, at or above each of K falling limits; all of it at the last.
    name : {"auroc", "ap", "f1_max"}

    Returns
    -------
    ndarray of float64, shape (R,)
        NaN where there is nothing anomalous, or nothing normal for the AUROC.
    """
    positives, negatives = found[:, -1:], false[:, -1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        steps = np.diff(found, axis=1, prepend=0)
        if name == "auroc":
            before = np.concatenate([np.zeros_like(false[:, :1]), false[:, :-1]], axis=1)
            area = (steps * (negatives - (before + false) / 2)).sum(axis=1)
            return np.asarray(area / (positives * negatives)[:, 0])
        if name == "ap":
            precision = np.where(found + false > 0, found / (found + false), 0.0)
            return np.asarray((steps * precision).sum(axis=1) / positives[:, 0])
        f1 = 2 * found / (positives + found + false)
        return np.where(positives[:, 0] > 0, np.nan_to_num(f1).max(axis=1), np.nan)


def bootstrap(
    labels: Sequence[NDArray[np.bool_]],
    statistics: Mapping[str, Sequence[Statistic]],
    *,
    count: int = 2000,
    seed: Sequence[int] = (0,),
    cells: Callable[[int], int] = lambda images: images,
) -> dict[str, NDArray[np.float64]]:
    """Return the mean over classes of a metric for many draws of the images, the same draws for every method.

    Parameters
    ----------
    labels : sequence of ndarray of bool
        Of the images of each class.
    statistics : mapping of str to sequence of Statistic
        By method, the metric of each class.
    count : int
        R, number of draws.
    seed : sequence of int
        Of the draws; each class has its own.
    cells : callable
        From the number of images of a class to the numbers that a statistic holds for one draw.

    Returns
    -------
    dict of str to ndarray of float64, shape (R,)
        A class in which the metric does not apply is left out of the mean; NaN where that is every class.

    References
    ----------
    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13.
    """
    sums = {name: np.zeros(count) for name in statistics}
    counted = {name: np.zeros(count) for name in statistics}
    for place, of_class in enumerate(labels):
        rng = np.random.default_rng([*seed, place])
        step = max(1, _CELLS // max(1, cells(len(of_class))))
        for start in range(0, count, step):
            part = slice(start, min(start + step, count))
            weights = draws(of_class, part.stop - part.start, rng)
            for name, several in statistics.items():
                values = several[place](weights)
                known = ~np.isnan(values)
                sums[name][part] += np.where(known, values, 0)
                counted[name][part] += known
    with np.errstate(invalid="ignore"):
        return {name: sums[name] / counted[name] for name in statistics}


def interval(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """Return the middle 95 % of draws; None if a metric applies in none of them."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


class Paired(NamedTuple):
    """A difference of two metrics, and its variance."""

    difference: float
    variance: float

    @property
    def p(self) -> float:
        """Two-sided p-value that there is none; 1 where the two rank all images alike."""
        if self.variance <= 1e-18:
            return 1.0 if abs(self.difference) < 1e-12 else 0.0
        return float(2 * norm.sf(abs(self.difference) / math.sqrt(self.variance)))


def mean_of(several: Sequence[Paired]) -> Paired:
    """Return the mean of independent differences."""
    return Paired(
        math.fsum(one.difference for one in several) / len(several),
        math.fsum(one.variance for one in several) / len(several) ** 2,
    )


def delong(
    labels: NDArray[np.bool_], scores: NDArray[np.floating], reference: NDArray[np.floating]
) -> Paired | None:
    """Return how the AUROCs of two scores of the same images differ, by DeLong's method.

    Parameters
    ----------
    labels : ndarray of bool, shape (n,)
        Whether an image is anomalous.
    scores, reference : ndarray of float, shape (n,)

    Returns
    -------
    Paired or None
        None where there are fewer than two images of either label.

    References
    ----------
    DeLong, DeLong and Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating
    characteristic curves", Biometrics 44, 1988; by midranks as in Sun and Xu, "Fast implementation of DeLong's
    algorithm", IEEE Signal Processing Letters 21, 2014.

    Examples
    --------
    >>> labels = np.arange(40) % 2 == 0
    >>> good, poor = labels + np.linspace(0, 1.5, 40), np.sin(np.arange(40.0))
    >>> delong(labels, good, good).p, delong(labels, good, poor).p < 0.01
    (1.0, True)
    """
    if min(labels.sum(), (~labels).sum()) < 2:
        return None
    one, other = (_placements(labels, values) for values in (scores, reference))
    positive, negative = one[0] - other[0], one[1] - other[1]
    variance = positive.var(ddof=1) / len(positive) + negative.var(ddof=1) / len(negative)
    return Paired(float(positive.mean()), float(variance))


def _placements(
    labels: NDArray[np.bool_], scores: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the share of normal images below each anomalous one, and of anomalous ones above each normal one."""
    positive, negative = scores[labels], scores[~labels]
    together = rankdata(np.concatenate([positive, negative]))
    above = (together[: len(positive)] - rankdata(positive)) / len(negative)
    below = 1 - (together[len(positive) :] - rankdata(negative)) / len(positive)
    return above, below
