"""From labels and scores, or masks and maps, to a `Ranking`; values that cannot be ranked are refused."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.metrics.ranking import Floats, Ranking
from anomalyclip.metrics.regions import areas_within


def rank_scores(labels: ArrayLike, scores: ArrayLike) -> Ranking:
    """Sort the scores of normal and of anomalous items; both arrays have the same shape, which may be any."""
    is_anomalous, values = _binary(labels, "labels"), _real(scores, "scores")
    _require_same_shape(is_anomalous, values, "labels", "scores")
    if values.size == 0:
        raise AnomalyCLIPError("labels and scores are empty: a metric needs at least one item")
    dtype = np.result_type(values, np.float32)
    normal, anomalous = (values[kept].astype(dtype, copy=False) for kept in (~is_anomalous, is_anomalous))
    normal.sort()
    anomalous.sort()
    if not _ends_are_finite(normal, anomalous):
        raise not_finite("scores")
    return Ranking(normal, anomalous, np.ones(anomalous.size))


def rank_pixels(masks: ArrayLike | Sequence[ArrayLike], maps: ArrayLike | Sequence[ArrayLike]) -> Ranking:
    """Sort the pixels of all maps; each anomalous pixel has the weight one over the area of its region."""
    truth = [_binary(mask, f"mask {i}") for i, mask in enumerate(_images(masks))]
    values = [_real(scores, f"map {i}") for i, scores in enumerate(_images(maps))]
    _require_pairs(truth, values)

    n_anomalous = sum(int(np.count_nonzero(mask)) for mask in truth)
    dtype = np.result_type(np.float32, *{scores.dtype for scores in values})
    normal = np.empty(sum(mask.size for mask in truth) - n_anomalous, dtype)
    anomalous = np.empty(n_anomalous, dtype)
    weights = np.empty(n_anomalous)
    n, p = 0, 0  # number of values filled in so far
    for mask, scores in zip(truth, values, strict=True):
        inside, outside = scores[mask], scores[~mask]
        normal[n : n + outside.size] = outside
        anomalous[p : p + inside.size] = inside
        weights[p : p + inside.size] = 1.0 / areas_within(mask)
        n, p = n + outside.size, p + inside.size

    ranking = Ranking.sort(normal, anomalous, weights)
    if not _ends_are_finite(ranking.normal, ranking.anomalous):
        raise not_finite(next(f"map {i}" for i, scores in enumerate(values) if not np.isfinite(scores).all()))
    return ranking


def _images(stack: Any) -> Sequence[Any]:
    """Return one (H, W) array per image: the elements of a list, or the last two axes of an array."""
    if not hasattr(stack, "ndim"):
        return list(stack)
    array = np.asarray(stack)
    if array.ndim < 2:
        raise AnomalyCLIPError(
            f"masks and maps must be (H, W) images or stacks of them, got shape {array.shape}"
        )
    return list(array.reshape(-1, *array.shape[-2:])) if array.size else []


def _binary(labels: Any, name: str) -> NDArray[np.bool_]:
    array = np.asarray(labels)
    if array.dtype == bool:
        return array
    _real(array, name)
    truth = array.astype(bool)
    if not np.array_equal(truth, array):
        stranger = array[truth != array].flat[0]
        raise AnomalyCLIPError(f"{name} must be 0 (normal) or 1 (anomalous), got {stranger}: binarise first")
    return truth


def _real(scores: Any, name: str) -> NDArray[Any]:
    array = np.asarray(scores)
    if array.dtype.kind not in "fiub":
        raise AnomalyCLIPError(f"{name} must be real numbers, got dtype {array.dtype}")
    return array


def _require_same_shape(truth: NDArray[Any], scores: NDArray[Any], truth_name: str, scores_name: str) -> None:
    if truth.shape != scores.shape:
        raise AnomalyCLIPError(
            f"{truth_name} of shape {truth.shape} does not fit {scores_name} of shape {scores.shape}: "
            "both must have the same shape"
        )


def _require_pairs(masks: list[NDArray[np.bool_]], maps: list[NDArray[Any]]) -> None:
    if len(masks) != len(maps):
        raise AnomalyCLIPError(f"{len(masks)} masks and {len(maps)} maps: every map needs its mask")
    if not any(mask.size for mask in masks):
        raise AnomalyCLIPError("masks and maps are empty: a metric needs at least one pixel")
    for i, (mask, scores) in enumerate(zip(masks, maps, strict=True)):
        if mask.ndim != 2:
            raise AnomalyCLIPError(f"mask {i} must be an image (H, W), got shape {mask.shape}")
        _require_same_shape(mask, scores, f"mask {i}", f"map {i}")


def _ends_are_finite(*ascending: Floats) -> bool:
    """Return whether all scores are finite: sorting moves -inf to the front, and inf and NaN to the end."""
    return all(bool(np.isfinite(scores[[0, -1]]).all()) for scores in ascending if scores.size)


def not_finite(name: str) -> AnomalyCLIPError:
    """Return the error for NaN or infinite scores."""
    return AnomalyCLIPError(
        f"{name} has a NaN or an infinite value, which cannot be ranked: every score must be finite"
    )
