"""Pixel metrics in bounded memory: the same figures as from one sort of everything, range by range."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.metrics import pixel_metrics, streaming
from anomalyclip.metrics.regions import region_areas
from anomalyclip.metrics.streaming import pixel_metrics_in_ranges

NAMES = ("auroc", "average_precision", "f1_max", "youden", "aupro_published", "aupro_exact")


@pytest.fixture(params=["one range", "many ranges"])
def compute(request, monkeypatch):
    """`pixel_metrics_in_ranges` of masks and maps; with every pixel said to take the whole memory, ranges are bins."""
    if request.param == "many ranges":
        monkeypatch.setattr(streaming, "_NORMAL_BYTES", 4_000_000)
        monkeypatch.setattr(streaming, "_ANOMALOUS_BYTES", 4_000_000)
    return lambda masks, maps, **options: pixel_metrics_in_ranges(maps, areas_of(masks), memory=4, **options)


def areas_of(masks):
    return [region_areas(mask) if mask.any() else None for mask in masks]


def assert_same(found, expected):
    for name in NAMES:
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=0, atol=1e-12, err_msg=name
        )


@pytest.mark.parametrize("decimals", [1, 2, 6])
@pytest.mark.parametrize("shift", [0.0, -0.4])
def test_ranges_give_what_one_sort_gives(decimals, shift, monkeypatch):
    """Rounded maps tie often, within a range and across regions; negative ones come from other systems."""
    random = np.random.default_rng(decimals)
    masks = random.random((5, 30, 40)) < 0.1
    masks[0] = False
    maps = (np.round(random.random((5, 30, 40)) * 0.5 + 0.3 * masks, decimals) + shift).astype(np.float32)
    monkeypatch.setattr(
        streaming, "_NORMAL_BYTES", 20_000
    )  # 4 MB hold 200 of 6000 pixels: some thirty ranges
    monkeypatch.setattr(streaming, "_ANOMALOUS_BYTES", 20_000)
    assert_same(pixel_metrics_in_ranges(maps, areas_of(masks), memory=4), pixel_metrics(masks, maps))


@settings(deadline=None, max_examples=40)
@given(
    masks=arrays(bool, (2, 4, 5)),
    maps=arrays(np.float32, (2, 4, 5), elements=st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.75, 1.0])),
)
def test_any_maps_give_what_one_sort_gives(masks, maps):
    assert_same(pixel_metrics_in_ranges(maps, areas_of(masks)), pixel_metrics(masks, maps))


def test_the_best_difference_of_rates_is_found(compute):
    maps = np.array([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]], np.float32)[None]
    masks = np.array([[0, 0, 0, 1, 0, 1]], bool)[None]
    assert compute(masks, maps).youden == (pytest.approx(0.75), pytest.approx(0.4))


def test_of_equally_good_thresholds_the_highest_is_taken_across_ranges(compute):
    # At 4: TP 1, FP 0; at 1: TP 2, FP 2. F1 is 2/3 at both; J is 1/2 at both once there are two more normal pixels.
    maps = np.array([[4, 3, 2, 1]], np.float32)[None]
    masks = np.array([[1, 0, 0, 1]], bool)[None]
    assert compute(masks, maps).f1_max == (pytest.approx(2 / 3), 4.0)
    maps = np.array([[4, 3, 2, 1, 0, 0]], np.float32)[None]
    masks = np.array([[1, 0, 0, 1, 0, 0]], bool)[None]
    assert compute(masks, maps).youden == (0.5, 4.0)


def test_a_false_positive_rate_that_equals_the_limit_is_outside_the_published_aupro(compute):
    # Scores from 0 to 200, so that thresholds are whole numbers. Of 10 normal pixels one each lies at 190, 150 and 100.
    maps = np.array([[200, 170, 120, 50, 190, 150, 100, 0, 0, 0, 0, 0, 0, 0]], np.float32)[None]
    masks = np.array([[1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]], bool)[None]
    # Above t, as t falls: FPR 0, PRO 1/4 to 190; 0.1, 1/4 to 170 and 2/4 to 150; 0.2, 2/4 to 120 and 3/4 to 100; then
    # exactly 0.3. Without that one the FPRs stretch to 0, 1/2, 1; with it the area would be 1/2.
    expected = (1 / 4 + 2 / 4) / 2
    assert 3 / 10 == 0.3
    assert pixel_metrics(masks, maps, max_fpr=0.3).aupro_published == pytest.approx(expected, abs=1e-12)
    assert compute(masks, maps, max_fpr=0.3).aupro_published == pytest.approx(expected, abs=1e-12)


def test_curves_pass_through_the_corners_and_never_fall(compute):
    random = np.random.default_rng(0)
    masks = random.random((3, 30, 30)) < 0.05
    maps = random.random((3, 30, 30), dtype=np.float32)
    found = compute(masks, maps, curve_points=400)
    for rate in (
        found.roc.fpr,
        found.roc.tpr,
        found.pro.fpr,
        found.pro.pro,
        found.precision_recall.recall[::-1],
    ):
        assert (rate[0], rate[-1]) == (0, pytest.approx(1))
        assert (np.diff(rate) >= 0).all()
    assert (found.precision_recall.precision[-1], found.roc.thresholds[0]) == (1, np.inf)


def test_points_of_the_curves_lie_on_the_whole_curves(compute):
    random = np.random.default_rng(1)
    masks = random.random((3, 30, 30)) < 0.3
    maps = random.random((3, 30, 30), dtype=np.float32)
    found, whole = compute(masks, maps, curve_points=50), pixel_metrics(masks, maps, curve_points=10**6)
    for name in ("roc", "precision_recall", "pro"):
        thin, full = getattr(found, name), getattr(whole, name)
        places = np.flatnonzero(np.isin(full.thresholds, thin.thresholds))
        np.testing.assert_array_equal(full.thresholds[places], thin.thresholds)
        for values, expected in zip(thin[:2], full[:2], strict=True):
            np.testing.assert_allclose(values[: places.size], expected[places], atol=1e-12)


@pytest.mark.parametrize("label", [False, True])
def test_one_label_alone_has_no_figure_and_keeps_its_own_rate(label, compute):
    masks, maps = np.full((2, 3, 3), label), np.random.default_rng(0).random((2, 3, 3), dtype=np.float32)
    found = compute(masks, maps, curve_points=10)
    assert_same(found, pixel_metrics(masks, maps))
    assert np.isnan(found.auroc)
    assert np.isnan(found.roc.fpr).all() == label
    assert np.isnan(found.roc.tpr).all() != label


def test_curves_are_computed_only_when_asked_for(compute):
    found = compute(np.array([[[True, False]]]), np.array([[[1, 0]]], np.float32))
    assert (found.roc, found.precision_recall, found.pro) == (None, None, None)


def test_a_map_of_another_shape_than_its_mask_is_refused():
    with pytest.raises(AnomalyCLIPError, match=r"map 0 has shape \(4, 4\), but its mask has \(5, 5\)"):
        pixel_metrics_in_ranges([np.zeros((4, 4), np.float32)], [np.ones((5, 5), np.int32)])


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        ([], {}, "maps are empty"),
        ([np.zeros((0, 3), np.float32)], {}, "maps are empty"),
        ([np.array([[0, np.nan]], np.float32)], {}, "map 0 has a NaN or an infinite value"),
        ([np.zeros((1, 2), np.float32)], {"max_fpr": 0}, "max_fpr=0"),
        ([np.zeros((1, 2), np.float32)], {"curve_points": 3}, "points=3"),
    ],
)
def test_what_cannot_be_ranked_is_refused(maps, options, message):
    with pytest.raises(AnomalyCLIPError, match=message):
        pixel_metrics_in_ranges(maps, [None] * len(maps), **options)


def test_a_range_beyond_the_precision_has_no_published_figure(compute):
    masks, maps = np.array([[[True, False]]]), np.array([[[3e38, -3e38]]], np.float32)
    found = compute(masks, maps)
    assert np.isnan(found.aupro_published)
    assert found.aupro_exact == 1.0
