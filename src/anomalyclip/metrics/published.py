"""AUPRO as the published code computes it, so that figures can stand beside the paper's."""

import numpy as np

from anomalyclip.metrics.ranking import Ranking

_THRESHOLDS = 200


def aupro_published(ranking: Ranking, max_fpr: float) -> float:
    """Trapezoid area over evenly spaced thresholds, the rates below `max_fpr` stretched to [0, 1].

    Returns
    -------
    float
        NaN where the definition divides zero by zero: only one label, or no two rates below `max_fpr`.
    """
    if not ranking.has_both:
        return np.nan
    low = min(ranking.normal[0], ranking.anomalous[0])
    high = max(ranking.normal[-1], ranking.anomalous[-1])
    with np.errstate(over="ignore"):
        step = (high - low) / _THRESHOLDS
    if step == 0 or not np.isfinite(step):
        return np.nan
    # In the maps' own precision, as published; a pixel counts when it is above the threshold, not at it.
    thresholds = np.arange(low, high, step, dtype=ranking.normal.dtype)
    false_alarms = ranking.normal.size - np.searchsorted(ranking.normal, thresholds, side="right")
    fpr = false_alarms / ranking.normal.size
    pro = ranking.overlap_from[np.searchsorted(ranking.anomalous, thresholds, side="right")]
    kept = fpr < max_fpr
    fpr, pro = fpr[kept], pro[kept]
    if fpr.size == 0 or fpr[0] == fpr[-1]:
        return np.nan
    stretched = (fpr - fpr[-1]) / (fpr[0] - fpr[-1])  # thresholds rise, so the rates fall
    return min(float(np.sum(-np.diff(stretched) * (pro[1:] + pro[:-1]) / 2)), 1.0)
