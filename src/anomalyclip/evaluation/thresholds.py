"""Thresholds one can stand by: from normal images alone at a wanted false-alarm rate, or from labelled images.

A threshold that is set just above the r-th lowest of n normal scores raises a false alarm on a new normal image with a
probability that has a Beta(n - r + 1, r) distribution, whatever the distribution of the scores (if it is continuous;
ties make false alarms rarer). Its upper quantile is also the Clopper-Pearson bound for n - r alarms among n images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.metrics import f1_max, youden
from anomalyclip.metrics.counts import Counts

CONFIDENCE = 0.95
"""Of each bound on its own; an interval between both holds with 0.9."""


@dataclass(frozen=True)
class RateInterval:
    """Bounds of a rate of which `count` of `total` were seen, each with 95 % confidence."""

    count: int
    total: int
    low: float
    high: float


def clopper_pearson(count: int, total: int) -> RateInterval:
    """Return exact one-sided 95 % bounds of a rate of which `count` of `total` were seen.

    References
    ----------
    Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial",
    Biometrika 26, 1934.

    Examples
    --------
    >>> interval = clopper_pearson(0, 20)
    >>> interval.low, round(interval.high, 3)
    (0.0, 0.139)
    """
    low = float(beta.ppf(1 - CONFIDENCE, count, total - count + 1)) if count else 0.0
    high = float(beta.ppf(CONFIDENCE, count + 1, total - count)) if count < total else 1.0
    return RateInterval(count, total, low, high)


def images_needed(rate: float) -> int:
    """Return how many normal images without one alarm it takes to tell that the rate is at most this.

    Examples
    --------
    >>> images_needed(0.01)
    299
    """
    return math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-rate) - 1e-9)


@dataclass(frozen=True)
class ScoreThreshold:
    """A score threshold from normal images.

    Parameters
    ----------
    value : float
        Scores at or above it are called anomalous; within [0, 1].
    wanted : float
        The false-alarm rate that was asked for.
    alarms : RateInterval
        How many of the normal images are called anomalous, and the bounds of the rate that this allows.
    """

    value: float
    wanted: float
    alarms: RateInterval

    def explanation(self) -> str:
        """Return in plain words what the number of images allows to say.

        Examples
        --------
        >>> print(score_threshold([0.01 * i for i in range(20)], 0.01).explanation())
        With 20 images a 1 % rate cannot be told from 14 %: 0 of 20 are called anomalous, so that the true rate may be
        up to 13.9 % (95 % confidence). To stand by 1 % takes at least 299 normal images without an alarm.
        """
        seen = self.alarms
        bound = f"{seen.count} of {seen.total} are called anomalous, so that the true rate may be up to "
        bound += _percent(seen.high)
        if seen.high <= self.wanted:
            return f"{bound} (95 % confidence): the wanted {_percent(self.wanted)} is kept."
        return (
            f"With {seen.total} images a {_percent(self.wanted)} rate cannot be told from "
            f"{_percent(seen.high, coarse=True)}: {bound} (95 % confidence). "
            f"{self._remedy()}"
        )

    def _remedy(self) -> str:
        """Return how the wanted rate could be stood by: more images, or fewer alarms among these."""
        total, needed = self.alarms.total, images_needed(self.wanted)
        if total < needed:
            return (
                f"To stand by {_percent(self.wanted)} takes at least {needed} normal images without an alarm."
            )
        fewer = max(k for k in range(self.alarms.count) if clopper_pearson(k, total).high <= self.wanted)
        return (
            f"To stand by {_percent(self.wanted)} calibrate at a rate of {(fewer + 0.5) / total:.2g}, which allows "
            f"{fewer} of {total}."
        )


def _percent(rate: float, *, coarse: bool = False) -> str:
    value = 100 * rate
    return f"{value:.0f} %" if coarse and value >= 2 else f"{value:.3g} %"


def score_threshold(normal_scores: ArrayLike, rate: float) -> ScoreThreshold:
    """Return the lowest score threshold that calls at most this share of normal images anomalous.

    Parameters
    ----------
    normal_scores : array of float
        Scores of normal images, within [0, 1].
    rate : float
        Wanted false-alarm rate, above 0 and below 1.

    Returns
    -------
    ScoreThreshold
        Just above one of the scores.

    Raises
    ------
    AnomalyCLIPError
        No score, a rate outside (0, 1), or scores so many of which are 1 that no threshold can keep the rate.

    Examples
    --------
    >>> threshold = score_threshold(np.linspace(0, 0.5, 1001), 0.05)
    >>> round(threshold.value, 4), threshold.alarms.count
    (0.475, 50)
    """
    require_share(rate, "false-alarm rate")
    scores = np.sort(np.asarray(normal_scores, dtype=np.float32))
    if scores.size == 0:
        raise AnomalyCLIPError("no normal image could be scored: there is nothing to calibrate with")
    allowed = math.floor(rate * scores.size + 1e-9)
    value = float(np.nextafter(scores[scores.size - allowed - 1], np.float32(np.inf)))
    if value > 1:
        raise AnomalyCLIPError(
            f"{np.count_nonzero(scores == 1)} of {scores.size} normal images have the highest score that there is, 1: "
            f"no threshold keeps a false-alarm rate of {_percent(rate)}; the model does not fit these images"
        )
    count = int(np.count_nonzero(scores >= value))
    return ScoreThreshold(value, rate, clopper_pearson(count, scores.size))


@dataclass(frozen=True)
class PixelThreshold:
    """A pixel threshold from the maps of normal images.

    Parameters
    ----------
    value : float
        Map values at or above it are called anomalous.
    wanted, share : float
        Share of false pixels that was asked for, and that it gives on these images.
    marked : RateInterval
        In how many of the images it marks a pixel at all, and the bounds of that rate: images are independent of each
        other, pixels are not, so that only a rate of images has exact bounds.
    """

    value: float
    wanted: float
    share: float
    marked: RateInterval


class NormalMaps:
    """Counts the pixels of normal images' maps, in memory that does not grow with their number.

    Pixels are counted in bins a 4096th of their value wide or finer (`metrics.counts`), and the threshold is the edge
    of a bin: it marks at most the wanted share of pixels, and lies less than one bin above the exact quantile.

    Examples
    --------
    >>> maps = NormalMaps()
    >>> for brightest in (0.25, 0.5):
    ...     maps.add(np.linspace(0, brightest, 100, dtype=np.float32).reshape(10, 10))
    >>> found = maps.threshold(0.05)
    >>> round(found.value, 2), found.share, found.marked.count
    (0.45, 0.05, 1)
    """

    def __init__(self) -> None:
        self._counts = Counts()
        self._highest: list[float] = []

    def add(self, anomaly_map: NDArray[np.float32]) -> None:
        """Count the pixels of one map."""
        self._counts.add(anomaly_map)
        self._highest.append(float(anomaly_map.max()))

    def threshold(self, share: float) -> PixelThreshold:
        """Return the lowest threshold that marks at most this share of all pixels.

        Raises
        ------
        AnomalyCLIPError
            No map was added, the share is outside (0, 1), or so many pixels are 1 that no threshold can keep it.
        """
        require_share(share, "share of false pixels")
        if not self._highest:
            raise AnomalyCLIPError("no normal image could be scored: there is nothing to calibrate with")
        edge = self._counts.threshold(share)
        if edge > 1:
            raise AnomalyCLIPError(
                f"more than {_percent(share)} of the normal images' pixels have the highest value that there is, 1: no "
                "threshold keeps that share; the model does not fit these images"
            )
        marked = sum(highest >= float(edge) for highest in self._highest)
        return PixelThreshold(
            float(edge),
            share,
            self._counts.at_or_above(edge) / self._counts.total,
            clopper_pearson(marked, len(self._highest)),
        )


@dataclass(frozen=True)
class LabelledThreshold:
    """A score threshold from labelled images, with what it misses and what it alarms falsely on these images."""

    value: float
    criterion: str
    misses: RateInterval
    alarms: RateInterval


def labelled_threshold(labels: Sequence[bool], scores: Sequence[float], criterion: str) -> LabelledThreshold:
    """Return the threshold that is best on labelled images.

    Parameters
    ----------
    labels : sequence of bool
        Whether each image is anomalous.
    scores : sequence of float
        Its score.
    criterion : {"f1", "youden"}
        Largest F1, or largest sensitivity + specificity - 1; of equally good thresholds the highest.

    Raises
    ------
    AnomalyCLIPError
        Only one kind of image, or another criterion.

    Examples
    --------
    >>> found = labelled_threshold([False, False, True, True], [0.1, 0.4, 0.35, 0.8], "f1")
    >>> found.value, found.misses.count, found.alarms.count
    (0.35, 0, 1)
    """
    truth, values = np.asarray(labels, dtype=bool), np.asarray(scores)
    if truth.all() or not truth.any():
        raise AnomalyCLIPError(
            "labelled images must be normal and anomalous ones; from normal images alone calibrate with NORMALS and "
            "--false-alarm-rate"
        )
    require_criterion(criterion)
    if criterion == "f1":
        value = f1_max(truth, values).threshold
    else:
        best = youden(truth, values)
        value = best.threshold if best.j > 0 else math.inf
    value = min(value, 1.0)  # infinity, where nothing is better than calling every image normal
    missed = int(np.count_nonzero(values[truth] < value))
    false = int(np.count_nonzero(values[~truth] >= value))
    return LabelledThreshold(
        value,
        criterion,
        clopper_pearson(missed, int(truth.sum())),
        clopper_pearson(false, int((~truth).sum())),
    )


def require_criterion(criterion: str) -> None:
    """Raise an `AnomalyCLIPError` if a criterion for labelled images is not known."""
    if criterion not in ("f1", "youden"):
        raise AnomalyCLIPError(f"criterion {criterion!r}: expected f1 or youden")


def require_share(value: float, name: str) -> None:
    """Raise an `AnomalyCLIPError` if a rate or share is not within (0, 1)."""
    if not 0 < value < 1:
        raise AnomalyCLIPError(f"{name} {value}: expected a number above 0 and below 1, such as 0.01")
