"""Metrics of labels and scores, with one of each per item: images, or pixels that all count the same."""

from dataclasses import dataclass

from numpy.typing import ArrayLike

from anomalyclip.metrics.curves import Points, PrecisionRecallCurve, RocCurve
from anomalyclip.metrics.inputs import rank_scores
from anomalyclip.metrics.ranking import Ranking
from anomalyclip.metrics.sums import F1Max, Figures, Sums, Youden


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: the probability that an anomalous item scores above a normal one; ties count half.

    Parameters
    ----------
    labels : array of any shape, bool or 0 and 1
        1 is anomalous.
    scores : array of the same shape, real numbers
        Higher is more anomalous. float16 is computed as float32 and integers of 32 bits or more as float64.

    Returns
    -------
    float
        In [0, 1]; 0.5 for random scores. NaN if only one label occurs.

    Raises
    ------
    AnomalyCLIPError
        Empty input, shapes that differ, labels other than 0 and 1, scores that are NaN or infinite.

    Examples
    --------
    >>> auroc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75
    """
    return _figures(rank_scores(labels, scores)).auroc


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Average precision: the sum over thresholds of (gain in recall) x (precision), without interpolation.

    The definition of ``sklearn.metrics.average_precision_score``. Equal scores are one threshold.

    Parameters
    ----------
    labels, scores
        As for `auroc`.

    Returns
    -------
    float
        In (0, 1]; for random scores, the share of anomalous items. NaN if only one label occurs.

    Raises
    ------
    AnomalyCLIPError
        As for `auroc`.

    Examples
    --------
    >>> round(average_precision([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]), 4)
    0.8333
    """
    return _figures(rank_scores(labels, scores)).average_precision


def f1_max(labels: ArrayLike, scores: ArrayLike) -> F1Max:
    """Best F1 = 2 TP / (2 TP + FP + FN) over all thresholds, and its threshold.

    Parameters
    ----------
    labels, scores
        As for `auroc`.

    Returns
    -------
    F1Max
        `f1` in (0, 1] and `threshold`, one of the scores: ``scores >= threshold`` is anomalous. Of several
        equally good thresholds, the highest, which gives the fewest false alarms. Both are NaN if only one
        label occurs.

    Raises
    ------
    AnomalyCLIPError
        As for `auroc`.

    Examples
    --------
    >>> f1_max([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    F1Max(f1=0.8, threshold=0.35)
    """
    return _figures(rank_scores(labels, scores)).f1_max


def youden(labels: ArrayLike, scores: ArrayLike) -> Youden:
    """Largest Youden's J = TP/P - FP/N over all thresholds, and its threshold.

    Parameters
    ----------
    labels, scores
        As for `auroc`.

    Returns
    -------
    Youden
        `j` in [0, 1], which equals sensitivity + specificity - 1, and `threshold`, chosen as for `f1_max`. If `j` is
        0, no threshold is better than classifying everything as normal. Both are NaN if only one label occurs.

    Raises
    ------
    AnomalyCLIPError
        As for `auroc`.

    References
    ----------
    Youden, "Index for rating diagnostic tests", Cancer 3, 1950.

    Examples
    --------
    >>> youden([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    Youden(j=0.5, threshold=0.8)
    """
    return _figures(rank_scores(labels, scores)).youden


def roc_curve(labels: ArrayLike, scores: ArrayLike, *, points: int | None = None) -> RocCurve:
    """Compute false- and true-positive rates at decreasing thresholds; ``score >= threshold`` is anomalous.

    Parameters
    ----------
    labels, scores
        As for `auroc`.
    points : int, optional
        Approximate number of points to keep, at least 4: thresholds at even quantiles of the normal and of
        the anomalous scores, so that between points neither rate changes by more than about ``2 / points``,
        except at ties. None keeps every distinct score.

    Returns
    -------
    RocCurve
        `fpr`, `tpr`, `thresholds`, each (T,); the first threshold is infinity, at (0, 0). The rate of a
        label that does not occur is NaN, so normal items alone still give the false-positive rate at every
        threshold.

    Raises
    ------
    AnomalyCLIPError
        As for `auroc`, and for fewer than 4 points.

    Examples
    --------
    >>> fpr, tpr, thresholds = roc_curve([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    >>> fpr.tolist(), tpr.tolist()
    ([0.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0, 1.0])
    """
    return _curve_points(rank_scores(labels, scores), points).roc()


def precision_recall_curve(
    labels: ArrayLike, scores: ArrayLike, *, points: int | None = None
) -> PrecisionRecallCurve:
    """Precision and recall at increasing thresholds; ``score >= threshold`` is anomalous.

    Parameters
    ----------
    labels, scores
        As for `auroc`.
    points : int, optional
        Approximate number of points to keep, as for `roc_curve`. None keeps every distinct score.

    Returns
    -------
    PrecisionRecallCurve
        `precision` and `recall`, each (T + 1,), closed by (1, 0), and `thresholds` (T,), as in
        scikit-learn. `recall` is NaN (except for the closing 0) if nothing is anomalous.

    Raises
    ------
    AnomalyCLIPError
        As for `auroc`, and for fewer than 4 points.

    Examples
    --------
    >>> precision, recall, thresholds = precision_recall_curve([0, 1, 1], [0.1, 0.4, 0.8])
    >>> precision.round(2).tolist(), recall.tolist(), thresholds.tolist()
    ([0.67, 1.0, 1.0, 1.0], [1.0, 1.0, 0.5, 0.0], [0.1, 0.4, 0.8])
    """
    return _curve_points(rank_scores(labels, scores), points).precision_recall()


@dataclass(frozen=True)
class ImageMetrics:
    """The image-level metrics of one class; each is the result of the function with its name."""

    auroc: float
    average_precision: float
    f1_max: F1Max
    youden: Youden
    roc: RocCurve | None
    precision_recall: PrecisionRecallCurve | None


def image_metrics(labels: ArrayLike, scores: ArrayLike, *, curve_points: int | None = None) -> ImageMetrics:
    """Compute all metrics of labels and scores from one sort.

    Parameters
    ----------
    labels, scores
        As for `auroc`.
    curve_points : int, optional
        The `points` of `roc_curve` and `precision_recall_curve`; without it the curves are None.

    Returns
    -------
    ImageMetrics
        All NaN if only one label occurs.

    Raises
    ------
    AnomalyCLIPError
        As for `auroc`.

    Examples
    --------
    >>> image_metrics([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]).auroc
    0.75
    """
    ranking = rank_scores(labels, scores)
    figures = _figures(ranking)
    points = None if curve_points is None else _curve_points(ranking, curve_points)
    return ImageMetrics(
        auroc=figures.auroc,
        average_precision=figures.average_precision,
        f1_max=figures.f1_max,
        youden=figures.youden,
        roc=None if points is None else points.roc(),
        precision_recall=None if points is None else points.precision_recall(),
    )


def _figures(ranking: Ranking) -> Figures:
    return Sums(ranking.population).add(ranking).figures()


def _curve_points(ranking: Ranking, points: int | None) -> Points:
    return Points(ranking.population, points).add(ranking)
