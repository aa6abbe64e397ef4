"""The curves behind the areas, whole or thinned to what a picture can show."""

from typing import NamedTuple

import numpy as np

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.metrics.ranking import Floats, Ranking


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


class ProCurve(NamedTuple):
    """False-positive rate and mean per-region overlap at falling thresholds, from (0, 0) to (1, 1)."""

    fpr: Floats
    pro: Floats
    thresholds: Floats


def roc(ranking: Ranking, points: int | None) -> RocCurve:
    """ROC curve of a ranking; the rate of a label that does not occur is NaN."""
    distinct = _thresholds(ranking, points)
    thresholds = np.append(np.array(np.inf, distinct.dtype), distinct)
    fpr, tpr = (_share_from(scores, thresholds) for scores in (ranking.normal, ranking.anomalous))
    return RocCurve(fpr, tpr, thresholds)


def precision_recall(ranking: Ranking, points: int | None) -> PrecisionRecallCurve:
    """Precision-recall curve of a ranking; recall is NaN when nothing is anomalous."""
    thresholds = _thresholds(ranking, points)[::-1]
    hits = ranking.anomalous.size - np.searchsorted(ranking.anomalous, thresholds)
    alarms = hits + ranking.normal.size - np.searchsorted(ranking.normal, thresholds)
    recall = _share_from(ranking.anomalous, thresholds)
    return PrecisionRecallCurve(np.append(hits / alarms, 1.0), np.append(recall, 0.0), thresholds)


def per_region_overlap(ranking: Ranking, points: int | None) -> ProCurve:
    """PRO curve of a ranking; what a label that does not occur would give is NaN."""
    fpr, pro, thresholds = roc(ranking, points)
    if ranking.anomalous.size:
        pro = ranking.overlap_from[np.searchsorted(ranking.anomalous, thresholds)]
    return ProCurve(fpr, pro, thresholds)


def _thresholds(ranking: Ranking, points: int | None) -> Floats:
    """Distinct scores in falling order; with `points`, only even quantiles of both kinds."""
    kept = [ranking.normal, ranking.anomalous]
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
