"""Per-region overlap: the published figure, both definitions by brute force, and what has no answer."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import auc

from anomalyclip import metrics
from anomalyclip.errors import AnomalyCLIPError

GOLDEN = np.load(Path(__file__).parent / "golden" / "metrics.npz")


def regions(mask):
    """The sets of pixels that a king can walk between, by flood fill."""
    left = {tuple(place) for place in np.argwhere(mask)}
    while left:
        region, edge = set(), [left.pop()]
        while edge:
            y, x = edge.pop()
            region.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            edge += near
        yield region


def fpr_and_pro(masks, called_anomalous):
    """One point of the curve, from its definition."""
    overlaps = [
        sum(called[place] for place in region) / len(region)
        for mask, called in zip(masks, called_anomalous, strict=True)
        for region in regions(mask)
    ]
    return called_anomalous[~masks].mean(), np.mean(overlaps)


def exact_by_brute_force(masks, maps, max_fpr):
    points = [(0.0, 0.0)] + [fpr_and_pro(masks, maps >= t) for t in np.unique(maps)[::-1]]
    area = 0.0
    for (f0, p0), (f1, p1) in pairwise(points):
        if f1 > max_fpr > f0:
            f1, p1 = max_fpr, p0 + (p1 - p0) * (max_fpr - f0) / (f1 - f0)
        if f1 <= max_fpr:
            area += (f1 - f0) * (p0 + p1) / 2
    return area / max_fpr


def published_by_brute_force(masks, maps, max_fpr):
    low, high = maps.min(), maps.max()
    points = [fpr_and_pro(masks, maps > t) for t in np.arange(low, high, (high - low) / 200)]
    kept = np.array([point for point in points if point[0] < max_fpr]).reshape(-1, 2)
    if len(kept) == 0 or np.ptp(kept[:, 0]) == 0:
        return math.nan
    stretched = (kept[:, 0] - kept[:, 0].min()) / np.ptp(kept[:, 0])
    return auc(stretched, kept[:, 1])


@st.composite
def masked_maps(draw):
    """A few small images with defects; scores of which most or few tie, in single or double precision."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(2, 6)))
    masks = draw(hnp.arrays(bool, shape).filter(lambda a: a.any() and not a.all()))
    steps = draw(st.sampled_from([2, 5, 1000]))
    maps = draw(hnp.arrays(np.int64, shape, elements=st.integers(-steps, steps))) / 7
    return masks, maps.astype(draw(st.sampled_from([np.float32, np.float64])))


def test_the_published_figure_is_reproduced():
    ours = metrics.aupro(GOLDEN["masks"], GOLDEN["maps"])
    assert ours == pytest.approx(float(GOLDEN["pixel_aupro"]), abs=1e-6)


@given(masked_maps(), st.sampled_from([0.05, 0.3, 0.5, 1.0]))
def test_exact_aupro_is_its_definition_at_every_threshold(case, max_fpr):
    masks, maps = case
    ours = metrics.aupro(masks, maps, method="exact", max_fpr=max_fpr)
    assert ours == pytest.approx(exact_by_brute_force(masks, maps, max_fpr), abs=1e-12)


@given(masked_maps().filter(lambda case: np.ptp(case[1]) > 0), st.sampled_from([0.05, 0.3, 0.5, 1.0]))
def test_published_aupro_is_its_definition_at_200_thresholds(case, max_fpr):
    masks, maps = case
    ours = metrics.aupro(masks, maps, method="published", max_fpr=max_fpr)
    assert ours == pytest.approx(published_by_brute_force(masks, maps, max_fpr), abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("distinct", [3, 10**6])
def test_exact_aupro_of_many_pixels_is_the_area_under_the_whole_curve(distinct):
    rng = np.random.default_rng(0)
    masks = rng.random((4, 200, 300)) < 0.6
    maps = rng.integers(0, distinct, masks.shape).astype(np.float32)
    curve = metrics.pro_curve(masks, maps)
    ours = metrics.aupro(masks, maps, method="exact", max_fpr=1.0)
    assert ours == pytest.approx(auc(curve.fpr, curve.pro), abs=1e-12)


def test_in_published_aupro_a_pixel_on_a_threshold_is_not_above_it():
    # Range 0 to 200, so that every score lies on a threshold; several differ only by what is called above.
    masks = np.array([[1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]], dtype=bool)
    maps = np.array([[200, 150, 50, 150, 100, 50, 0, 0, 0, 0, 0, 0, 0, 0]], dtype=np.float32)
    # Above t: FPR 3/11, PRO 1 for t < 50; 2/11, 2/3 to 100; 1/11, 2/3 to 150; then 0, 1/3.
    # FPRs stretch to 1, 2/3, 1/3, 0; trapezoids of PRO 1, 2/3, 2/3, 1/3.
    expected = ((1 + 2 / 3) / 2 + 2 / 3 + (2 / 3 + 1 / 3) / 2) / 3
    assert metrics.aupro(masks, maps) == pytest.approx(expected, abs=1e-12)
    assert published_by_brute_force(masks[None], maps[None], 0.3) == pytest.approx(expected, abs=1e-12)


@given(masked_maps())
def test_the_pro_curve_holds_every_distinct_threshold(case):
    masks, maps = case
    curve = metrics.pro_curve(masks, maps)
    assert curve.thresholds.tolist() == [np.inf, *np.unique(maps)[::-1].tolist()]
    expected = np.array([fpr_and_pro(masks, maps >= t) for t in curve.thresholds])
    np.testing.assert_allclose(np.column_stack([curve.fpr, curve.pro]), expected, atol=1e-12)


@given(masked_maps())
def test_pixel_metrics_are_the_single_functions_together(case):
    masks, maps = case
    together = metrics.pixel_metrics(masks, maps, max_fpr=0.5, curve_points=10)
    assert together.auroc == metrics.auroc(masks, maps)
    assert together.average_precision == metrics.average_precision(masks, maps)
    assert together.f1_max == metrics.f1_max(masks, maps)
    assert together.youden == metrics.youden(masks, maps)
    assert together.aupro_exact == metrics.aupro(masks, maps, method="exact", max_fpr=0.5)
    published = metrics.aupro(masks, maps, method="published", max_fpr=0.5)
    assert together.aupro_published == pytest.approx(published, abs=0, nan_ok=True)
    np.testing.assert_array_equal(together.roc, metrics.roc_curve(masks, maps, points=10))
    np.testing.assert_array_equal(together.pro, metrics.pro_curve(masks, maps, points=10))
    assert together.precision_recall is not None
    thresholds = metrics.precision_recall_curve(masks, maps, points=10).thresholds
    np.testing.assert_array_equal(together.precision_recall.thresholds, thresholds)


def test_curves_are_computed_only_when_asked_for():
    together = metrics.pixel_metrics(np.array([[0, 1]]), np.array([[0.1, 0.2]]))
    assert (together.roc, together.precision_recall, together.pro) == (None, None, None)


def test_pixels_that_touch_at_a_corner_are_one_region():
    mask = np.array([[1, 0, 0, 0], [0, 1, 0, 1]])
    found_first = np.array([[1.0, 0, 0, 0], [0, 0, 0, 0]])
    # Half of one of two regions is found at no false alarm, the rest with all pixels at once.
    assert metrics.pro_curve(mask, found_first).pro.tolist() == [0, 0.25, 1]


def test_a_small_defect_counts_as_much_as_a_large_one():
    mask = np.array([[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1]])
    assert metrics.pro_curve(mask, 1.0 * (np.arange(11) == 10)[None]).pro.tolist() == pytest.approx(
        [0, 0.5, 1]
    )


def test_defects_of_two_images_are_two_regions():
    masks = np.array([[[1, 0, 0]], [[1, 1, 0]]])
    maps = np.array([[[1.0, 0, 0]], [[0, 0, 0]]])
    assert metrics.pro_curve(masks, maps).pro.tolist() == [0, 0.5, 1]


def test_stacks_with_a_channel_lists_and_memory_maps_give_the_same_figures(tmp_path):
    masks, maps = GOLDEN["masks"], GOLDEN["maps"]
    np.save(tmp_path / "maps.npy", maps)
    expected = metrics.pixel_metrics(masks, maps)
    assert metrics.pixel_metrics(masks[:, None], maps[:, None]) == expected
    assert metrics.pixel_metrics(list(masks), list(maps)) == expected
    assert (
        metrics.pixel_metrics(masks.astype(bool), np.load(tmp_path / "maps.npy", mmap_mode="r")) == expected
    )


def test_images_of_a_list_may_differ_in_size():
    masks = [np.array([[1, 0]]), np.array([[0], [0], [1]])]
    maps = [np.array([[0.9, 0.1]]), np.array([[0.2], [0.3], [0.8]])]
    assert metrics.aupro(masks, maps, method="exact") == 1.0


def test_half_precision_maps_give_the_figures_of_their_values():
    masks, half = GOLDEN["masks"], GOLDEN["maps"].astype(np.float16)
    assert metrics.pixel_metrics(masks, half) == metrics.pixel_metrics(masks, half.astype(np.float32))


@pytest.mark.parametrize("label", [0, 1])
def test_without_a_region_or_without_a_normal_pixel_there_is_no_figure(label):
    masks, maps = np.full((2, 3, 3), label), np.random.default_rng(0).random((2, 3, 3))
    assert math.isnan(metrics.aupro(masks, maps, method="published"))
    assert math.isnan(metrics.aupro(masks, maps, method="exact"))
    together = metrics.pixel_metrics(masks, maps, curve_points=10)
    assert math.isnan(together.auroc)
    assert together.pro is not None
    assert np.isnan(together.pro.pro).all() == (label == 0)
    assert np.isnan(together.pro.fpr).all() == (label == 1)


@pytest.mark.parametrize("value", [0.0, 0.5, np.float32(0.1)])
def test_constant_maps_are_chance_when_exact_and_have_no_published_figure(value):
    mask = np.array([[1, 0], [0, 0]])
    maps = np.full((2, 2), value)
    assert metrics.aupro(mask, maps, method="exact") == pytest.approx(0.15)
    assert math.isnan(metrics.aupro(mask, maps, method="published"))


def test_a_perfect_map_never_exceeds_one():
    masks = np.zeros((10, 64, 64), dtype=bool)  # sums of these shares round to more than 1
    masks[:5, 10:20, 10:30] = masks[:5, 40:44, 50:54] = True
    together = metrics.pixel_metrics(masks, np.random.default_rng(0).random(masks.shape) + masks)
    for value in (together.auroc, together.average_precision, together.f1_max.f1, together.aupro_exact):
        assert 1 - 1e-12 < value <= 1


def test_a_map_that_knows_nothing_has_half_the_limit():
    rng = np.random.default_rng(0)
    masks, maps = rng.random((30, 200, 200)) < 0.02, rng.random((30, 200, 200))
    assert metrics.aupro(masks, maps, method="exact") == pytest.approx(0.15, abs=0.005)
    assert metrics.aupro(masks, maps, method="published") == pytest.approx(0.15, abs=0.005)


def test_a_perfect_two_valued_map_is_one_when_exact_and_has_no_published_figure():
    mask = np.array([[1, 0], [0, 0]])
    assert metrics.aupro(mask, mask.astype(np.float32), method="exact") == 1.0
    assert math.isnan(metrics.aupro(mask, mask.astype(np.float32), method="published"))


def test_a_range_beyond_the_precision_has_no_published_figure():
    mask, maps = np.array([[1, 0]]), np.array([[3e38, -3e38]], dtype=np.float32)
    assert math.isnan(metrics.aupro(mask, maps, method="published"))
    assert metrics.aupro(mask, maps, method="exact") == 1.0


def test_the_map_that_has_a_nan_is_named():
    masks, maps = np.zeros((3, 2, 2)), np.zeros((3, 2, 2))
    maps[2, 0, 1] = np.nan
    with pytest.raises(AnomalyCLIPError, match="map 2 has a NaN"):
        metrics.aupro(masks, maps)


@pytest.mark.parametrize(
    ("masks", "maps", "message"),
    [
        (np.zeros((2, 2, 2)), np.zeros((3, 2, 2)), "2 masks and 3 maps"),
        ([np.zeros((2, 2)), np.zeros((2, 3))], [np.zeros((2, 2))] * 2, r"mask 1 of shape \(2, 3\)"),
        (np.zeros(4), np.zeros(4), r"\(H, W\)"),
        ([np.zeros(4)], [np.zeros(4)], r"mask 0 must be an image \(H, W\)"),
        ([], [], "empty"),
    ],
)
def test_masks_and_maps_that_do_not_pair_are_refused(masks, maps, message):
    with pytest.raises(AnomalyCLIPError, match=message):
        metrics.aupro(masks, maps)


def test_an_unknown_method_and_an_impossible_limit_are_refused():
    mask, scores = np.array([[0, 1]]), np.array([[0.1, 0.2]])
    with pytest.raises(AnomalyCLIPError, match="'published' or 'exact'"):
        metrics.aupro(mask, scores, method="fast")  # type: ignore[arg-type]
    for limit in (0, -0.1, 1.5, math.nan):
        with pytest.raises(AnomalyCLIPError, match="max_fpr="):
            metrics.aupro(mask, scores, max_fpr=limit)
        with pytest.raises(AnomalyCLIPError, match="max_fpr="):
            metrics.pixel_metrics(mask, scores, max_fpr=limit)
