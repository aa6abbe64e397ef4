"""Thresholds with confidence bounds: from normal images alone for a wanted false-alarm rate, or from labelled images.

If a threshold is set just above the r-th lowest of n normal scores, its false-alarm rate on new normal images has a
Beta(n - r + 1, r) distribution, for any continuous distribution of the scores (ties make false alarms rarer). The upper
quantile of this rate is also the Clopper-Pearson bound for n - r alarms among n images.
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
"""Confidence of each bound; the interval between both bounds has a confidence of 0.9."""


@dataclass(frozen=True)
class RateInterval:
    """Bounds of a rate after observing `count` of `total`, each with 95 % confidence."""

    count: int
    total: int
    low: float
    high: float


def clopper_pearson(count: int, total: int) -> RateInterval:
    """Return exact one-sided 95 % bounds of a rate after observing `count` of `total`.

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
    """Return how many normal images without a false alarm are needed to show that the rate is at most `rate`.

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
        Scores at or above it are classified as anomalous; in [0, 1].
    wanted : float
        The wanted false-alarm rate.
    alarms : RateInterval
        Number of normal images classified as anomalous, and the resulting bounds of the false-alarm rate.
    """

    value: float
    wanted: float
    alarms: RateInterval

    def explanation(self) -> str:
        """Return in words what this number of images can guarantee.

        Examples
        --------
        >>> print(score_threshold([0.01 * i for i in range(20)], 0.01).explanation())
        20 images are too few to distinguish a rate of 1 % from 14 %: 0 of 20 are classified as anomalous, so the true
        rate may be up to 13.9 % (95 % confidence). Guaranteeing 1 % needs at least 299 normal images without a false
        alarm.
        """
        seen = self.alarms
        bound = f"{seen.count} of {seen.total} are classified as anomalous, so the true rate may be up to "
        bound += _percent(seen.high)
        if seen.high <= self.wanted:
            return f"{bound} (95 % confidence): the wanted {_percent(self.wanted)} is guaranteed."
        return (
            f"{seen.total} images are too few to distinguish a rate of {_percent(self.wanted)} from "
            f"{_percent(seen.high, coarse=True)}: {bound} (95 % confidence). "
            f"{self._remedy()}"
        )

    def _remedy(self) -> str:
        """Return how to guarantee the wanted rate: with more images, or with fewer alarms among these."""
        total, needed = self.alarms.total, images_needed(self.wanted)
        if total < needed:
            return f"Guaranteeing {_percent(self.wanted)} needs at least {needed} normal images without a false alarm."
        fewer = max(k for k in range(self.alarms.count) if clopper_pearson(k, total).high <= self.wanted)
        return (
            f"To guarantee {_percent(self.wanted)}, calibrate with a rate of {(fewer + 0.5) / total:.2g}, which allows "
            f"{fewer} of {total}."
        )


def _percent(rate: float, *, coarse: bool = False) -> str:
    value = 100 * rate
    return f"{value:.0f} %" if coarse and value >= 2 else f"{value:.3g} %"


def score_threshold(normal_scores: ArrayLike, rate: float) -> ScoreThreshold:
    """Return the lowest score threshold at which at most this share of normal images is classified as anomalous.

    Parameters
    ----------
    normal_scores : array of float
        Scores of normal images, in [0, 1].
    rate : float
        Wanted false-alarm rate, above 0 and below 1.

    Returns
    -------
    ScoreThreshold
        Just above one of the scores.

    Raises
    ------
    AnomalyCLIPError
        There are no scores, the rate is outside (0, 1), or so many scores are 1 that no threshold can keep the rate.

    Examples
    --------
    >>> threshold = score_threshold(np.linspace(0, 0.5, 1001), 0.05)
    >>> round(threshold.value, 4), threshold.alarms.count
    (0.475, 50)
    """
    require_share(rate, "false-alarm rate")
    scores = np.sort(np.asarray(normal_scores, dtype=np.float32))
    if scores.size == 0:
        raise AnomalyCLIPError("no normal image could be scored, so calibration is not possible")
    allowed = math.floor(rate * scores.size + 1e-9)
    value = float(np.nextafter(scores[scores.size - allowed - 1], np.float32(np.inf)))
    if value > 1:
        raise AnomalyCLIPError(
            f"{np.count_nonzero(scores == 1)} of {scores.size} normal images have the highest possible score, 1: no "
            f"threshold can keep a false-alarm rate of {_percent(rate)}; the model does not suit these images"
        )
    count = int(np.count_nonzero(scores >= value))
    return ScoreThreshold(value, rate, clopper_pearson(count, scores.size))


@dataclass(frozen=True)
class PixelThreshold:
    """A pixel threshold from the maps of normal images.

    Parameters
    ----------
    value : float
        Map values at or above it are classified as anomalous.
    wanted, share : float
        The wanted share of false pixels, and the share on these images.
    marked : RateInterval
        Number of images in which it marks any pixel, and the bounds of that rate. Only a rate of images has exact
        bounds, because images are independent of each other and pixels are not.
    """

    value: float
    wanted: float
    share: float
    marked: RateInterval


class NormalMaps:
    """Counts the pixels of the maps of normal images, in memory that does not grow with their number.

    Pixels are counted in bins that are at most 1/4096 of their value wide (`metrics.counts`). The threshold is the edge
    of a bin: it marks at most the wanted share of pixels, and is less than one bin above the exact quantile.

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
            No map was added, the share is outside (0, 1), or so many pixels are 1 that no threshold can keep the share.
        """
        require_share(share, "share of false pixels")
        if not self._highest:
            raise AnomalyCLIPError("no normal image could be scored, so calibration is not possible")
        edge = self._counts.threshold(share)
        if edge > 1:
            raise AnomalyCLIPError(
                f"more than {_percent(share)} of the normal images' pixels have the highest possible value, 1: no "
                "threshold can keep that share; the model does not suit these images"
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
    """A score threshold from labelled images, with its missed defects and false alarms on these images."""

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
        Largest F1, or largest sensitivity + specificity - 1; the highest of equally good thresholds.

    Raises
    ------
    AnomalyCLIPError
        There are only normal or only anomalous images, or the criterion is unknown.

    Examples
    --------
    >>> found = labelled_threshold([False, False, True, True], [0.1, 0.4, 0.35, 0.8], "f1")
    >>> found.value, found.misses.count, found.alarms.count
    (0.35, 0, 1)
    """
    truth, values = np.asarray(labels, dtype=bool), np.asarray(scores)
    if truth.all() or not truth.any():
        raise AnomalyCLIPError(
            "labelled images must include normal and anomalous images; to calibrate on normal images alone, use "
            "NORMALS and --false-alarm-rate"
        )
    require_criterion(criterion)
    if criterion == "f1":
        value = f1_max(truth, values).threshold
    else:
        best = youden(truth, values)
        value = best.threshold if best.j > 0 else math.inf
    value = min(value, 1.0)  # it is infinite if no threshold is better than classifying every image as normal
    missed = int(np.count_nonzero(values[truth] < value))
    false = int(np.count_nonzero(values[~truth] >= value))
    return LabelledThreshold(
        value,
        criterion,
        clopper_pearson(missed, int(truth.sum())),
        clopper_pearson(false, int((~truth).sum())),
    )


def require_criterion(criterion: str) -> None:
    """Raise an `AnomalyCLIPError` if a criterion for labelled images is unknown."""
    if criterion not in ("f1", "youden"):
        raise AnomalyCLIPError(f"criterion {criterion!r}: expected f1 or youden")


def require_share(value: float, name: str) -> None:
    """Raise an `AnomalyCLIPError` if a rate or share is not within (0, 1)."""
    if not 0 < value < 1:
        raise AnomalyCLIPError(f"{name} {value}: expected a number above 0 and below 1, such as 0.01")
