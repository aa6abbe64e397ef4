"""Metrics of masks and anomaly maps: per-region overlap, and all of a class's pixel metrics from one sort."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from numpy.typing import ArrayLike

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.metrics.curves import Points, PrecisionRecallCurve, ProCurve, RocCurve
from anomalyclip.metrics.inputs import rank_pixels
from anomalyclip.metrics.published import PublishedAupro
from anomalyclip.metrics.ranking import Population, Ranking
from anomalyclip.metrics.sums import F1Max, Sums, Youden

Images = ArrayLike | Sequence[ArrayLike]


def aupro(
    masks: Images, maps: Images, *, method: Literal["published", "exact"] = "published", max_fpr: float = 0.3
) -> float:
    """Area under the per-region overlap curve, up to a false-positive rate.

    At a threshold, the per-region overlap (PRO) is the share of each defect region (8-connected) that is
    found, averaged over all regions of all images, so a small defect counts as much as a large one. The
    false-positive rate (FPR) is the share of all normal pixels that are classified as anomalous.

    Parameters
    ----------
    masks : (..., H, W) array, bool or 0 and 1, or a list of (H, W) arrays
        1 is anomalous. Images in a list may differ in size.
    maps : array or list of the same shape, real numbers
        Higher is more anomalous. float16 is computed as float32 and integers of 32 bits or more as float64.
    method : {"published", "exact"}
        "published" is the rule behind the paper's tables: 200 evenly spaced thresholds over the range of
        all maps, the points with an FPR below `max_fpr`, their FPRs stretched to [0, 1], and the trapezoid
        rule. "exact" is the definition: the curve through all distinct thresholds from (0, 0), cut at
        `max_fpr` by interpolation, and its area divided by `max_fpr`. They differ by up to about 0.015 on
        real maps, and by more on coarse maps.
    max_fpr : float
        In (0, 1].

    Returns
    -------
    float
        In [0, 1]. NaN if no pixel is anomalous or none is normal. "published" is also NaN if its points
        have fewer than two different FPRs below `max_fpr`, for example for constant maps.

    Raises
    ------
    AnomalyCLIPError
        Empty input, shapes or numbers of masks and maps that differ, masks with other values than 0 and 1,
        maps with NaN or infinity, an unknown `method`, a `max_fpr` outside (0, 1].

    References
    ----------
    Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 4.2.
    The published variant: `cal_pro_score` of AnomalyCLIP's code (Zhou et al., ICLR 2024).

    Examples
    --------
    >>> import numpy as np
    >>> mask = np.array([[1, 1, 0, 0, 1]])
    >>> aupro(mask, np.array([[0.9, 0.2, 0.1, 0.3, 0.8]]), method="exact", max_fpr=1.0)
    0.875
    """
    if method not in ("published", "exact"):
        raise AnomalyCLIPError(f"method={method!r}: expected 'published' or 'exact'")
    require_rate(max_fpr)
    ranking = rank_pixels(masks, maps)
    if method == "published":
        return PublishedAupro(ranking.population, max_fpr).add(ranking).area()
    return Sums(ranking.population, max_fpr).add(ranking).figures().aupro_exact


def pro_curve(masks: Images, maps: Images, *, points: int | None = None) -> ProCurve:
    """Mean per-region overlap against the false-positive rate; ``score >= threshold`` is anomalous.

    Parameters
    ----------
    masks, maps
        As for `aupro`.
    points : int, optional
        Approximate number of points to keep, as for `roc_curve`. None keeps every distinct score.

    Returns
    -------
    ProCurve
        `fpr`, `pro`, `thresholds`, each (T,), at decreasing thresholds; the first is infinity, at (0, 0).
        `pro` is NaN if no pixel is anomalous, and `fpr` if none is normal.

    Raises
    ------
    AnomalyCLIPError
        As for `aupro`, and for fewer than 4 points.

    Examples
    --------
    >>> import numpy as np
    >>> curve = pro_curve(np.array([[1, 1, 0, 1]]), np.array([[0.9, 0.2, 0.3, 0.8]]))
    >>> curve.fpr.tolist(), curve.pro.tolist()
    ([0.0, 0.0, 0.0, 1.0, 1.0], [0.0, 0.25, 0.75, 0.75, 1.0])
    """
    ranking = rank_pixels(masks, maps)
    return Points(ranking.population, points).add(ranking).pro()


@dataclass(frozen=True)
class PixelMetrics:
    """The pixel-level metrics of one class; each is the result of the function with its name."""

    auroc: float
    average_precision: float
    f1_max: F1Max
    youden: Youden
    aupro_published: float
    aupro_exact: float
    roc: RocCurve | None
    precision_recall: PrecisionRecallCurve | None
    pro: ProCurve | None


def pixel_metrics(
    masks: Images, maps: Images, *, max_fpr: float = 0.3, curve_points: int | None = None
) -> PixelMetrics:
    """Compute all pixel metrics of a class from one sort, at little more cost than a single metric.

    Parameters
    ----------
    masks, maps
        As for `aupro`; all images of the class. Arrays are read image by image and may be memory-mapped.
    max_fpr : float
        The FPR limit of both AUPROs, in (0, 1].
    curve_points : int, optional
        The `points` of the three curves; without it the curves are None.

    Returns
    -------
    PixelMetrics
        All NaN if only one label occurs.

    Raises
    ------
    AnomalyCLIPError
        As for `aupro`.

    Examples
    --------
    >>> import numpy as np
    >>> masks, maps = np.array([[[0, 0, 1, 1]]]), np.array([[[0.1, 0.4, 0.35, 0.8]]], dtype=np.float16)
    >>> metrics = pixel_metrics(masks, maps)
    >>> metrics.auroc, metrics.aupro_exact
    (0.75, 0.5)
    """
    require_rate(max_fpr)
    ranking = rank_pixels(masks, maps)
    return PixelSums(ranking.population, max_fpr, curve_points).add(ranking).metrics()


class PixelSums:
    """All pixel metrics of a population, summed while its ranges are added, the highest first."""

    def __init__(self, population: Population, max_fpr: float, curve_points: int | None) -> None:
        self._sums = Sums(population, max_fpr)
        self._published = PublishedAupro(population, max_fpr)
        self._points = None if curve_points is None else Points(population, curve_points)

    def add(self, ranking: Ranking) -> "PixelSums":
        """Add one range; each pixel must be added once."""
        self._sums.add(ranking)
        self._published.add(ranking)
        if self._points is not None:
            self._points.add(ranking)
        return self

    def metrics(self) -> PixelMetrics:
        """Return the metrics of everything that was added."""
        figures, points = self._sums.figures(), self._points
        return PixelMetrics(
            auroc=figures.auroc,
            average_precision=figures.average_precision,
            f1_max=figures.f1_max,
            youden=figures.youden,
            aupro_published=self._published.area(),
            aupro_exact=figures.aupro_exact,
            roc=None if points is None else points.roc(),
            precision_recall=None if points is None else points.precision_recall(),
            pro=None if points is None else points.pro(),
        )


def require_rate(max_fpr: float) -> None:
    """Raise an `AnomalyCLIPError` if a limit of the false-positive rate is not in (0, 1]."""
    if not 0 < max_fpr <= 1:
        raise AnomalyCLIPError(
            f"max_fpr={max_fpr}: a false-positive rate limit must be above 0 and at most 1"
        )
