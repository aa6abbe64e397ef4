"""Per-region overlap (PRO): how much of each defect is found, every defect counting the same."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from anomalyclip.metrics.ranking import Floats, Ranking


class ProCurve(NamedTuple):
    """False-positive rate and mean per-region overlap at falling thresholds, from (0, 0) to (1, 1)."""

    fpr: Floats
    pro: Floats
    thresholds: Floats


@dataclass(frozen=True, eq=False)
class RegionRanking(Ranking):
    """A ranking of pixels that knows how much each anomalous one adds to the overlap of its region.

    Parameters
    ----------
    weights : (P,) float array
        One over the area of the region of each anomalous pixel, in the order of `anomalous`.
    """

    weights: Floats

    def aupro_exact(self, max_fpr: float) -> float:
        """Area under the curve through every threshold, up to `max_fpr` and divided by it."""
        if not self.has_both:
            return np.nan
        overlap = self._overlap_from[self.anomalous.size - np.append(self.steps.hits, 0)]
        return self.area(-np.diff(overlap), max_fpr) / max_fpr

    def aupro_published(self, max_fpr: float) -> float:
        """AUPRO as the published code defines it: 200 even thresholds, the kept rates stretched to [0, 1]."""
        if not self.has_both:
            return np.nan
        low = min(self.normal[0], self.anomalous[0])
        high = max(self.normal[-1], self.anomalous[-1])
        with np.errstate(over="ignore"):
            step = (high - low) / 200
        if step == 0 or not np.isfinite(step):
            return np.nan
        # In the maps' own precision, as published; a pixel counts when it is above the threshold, not at it.
        thresholds = np.arange(low, high, step, dtype=self.normal.dtype)
        fpr = (self.normal.size - np.searchsorted(self.normal, thresholds, side="right")) / self.normal.size
        pro = self._overlap_from[np.searchsorted(self.anomalous, thresholds, side="right")]
        kept = fpr < max_fpr
        fpr, pro = fpr[kept], pro[kept]
        if fpr.size == 0 or fpr[0] == fpr[-1]:
            return np.nan
        stretched = (fpr - fpr[-1]) / (fpr[0] - fpr[-1])  # thresholds rise, so the rates fall
        return float(np.sum(-np.diff(stretched) * (pro[1:] + pro[:-1]) / 2))

    def pro_curve(self, points: int | None) -> ProCurve:
        """Curve through every distinct score, or about `points` of them; an absent label's rate is NaN."""
        fpr, tpr, thresholds = self.roc_curve(points)
        if self.anomalous.size == 0:
            return ProCurve(fpr, tpr, thresholds)
        return ProCurve(fpr, self._overlap_from[np.searchsorted(self.anomalous, thresholds)], thresholds)

    @cached_property
    def _overlap_from(self) -> Floats:
        """Mean overlap of the regions when anomalous pixels from an index on are found; (P + 1,), 1 to 0."""
        found: Floats = np.append(np.cumsum(self.weights[::-1])[::-1], 0.0)
        found /= found[0]
        return found
