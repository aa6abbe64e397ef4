"""Exact detection metrics: arrays in, numbers out."""

from anomalyclip.metrics.curves import PrecisionRecallCurve, ProCurve, RocCurve
from anomalyclip.metrics.detection import (
    ImageMetrics,
    auroc,
    average_precision,
    f1_max,
    image_metrics,
    precision_recall_curve,
    roc_curve,
    youden,
)
from anomalyclip.metrics.localization import PixelMetrics, aupro, pixel_metrics, pro_curve
from anomalyclip.metrics.sums import F1Max, Youden

__all__ = [
    "F1Max",
    "ImageMetrics",
    "PixelMetrics",
    "PrecisionRecallCurve",
    "ProCurve",
    "RocCurve",
    "Youden",
    "aupro",
    "auroc",
    "average_precision",
    "f1_max",
    "image_metrics",
    "pixel_metrics",
    "precision_recall_curve",
    "pro_curve",
    "roc_curve",
    "youden",
]
