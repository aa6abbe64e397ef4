"""Pixel metrics in bounded memory: the same figures as from one sort of everything, range by range."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.evaluation import pixels
from anomalyclip.evaluation.order import BITS, Counts, bins, lowest
from anomalyclip.evaluation.pixels import pixel_metrics_in_ranges, region_areas
from anomalyclip.metrics import pixel_metrics

floats = st.floats(-2, 2, width=32, allow_subnormal=False)


def areas_of(masks):
    return [region_areas(mask) if mask.any() else None for mask in masks]


def assert_same(found, expected):
    for name in ("auroc", "average_precision", "f1_max", "aupro_published", "aupro_exact"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-9, err_msg=name)


@pytest.mark.parametrize("decimals", [1, 2, 6])
@pytest.mark.parametrize("shift", [0.0, -0.4])
def test_ranges_give_what_one_sort_gives(decimals, shift, monkeypatch):
    """Rounded maps tie often, within a range and across regions; negative ones come from other systems."""
    random = np.random.default_rng(decimals)
    masks = random.random((5, 30, 40)) < 0.1
    masks[0] = False
    maps = (np.round(random.random((5, 30, 40)) * 0.5 + 0.3 * masks, decimals) + shift).astype(np.float32)
    monkeypatch.setattr(pixels, "_NORMAL_BYTES", 20_000)  # 4 MB hold 200 of 6000 pixels: some thirty ranges
    monkeypatch.setattr(pixels, "_ANOMALOUS_BYTES", 20_000)
    assert_same(pixel_metrics_in_ranges(maps, areas_of(masks), memory=4), pixel_metrics(masks, maps))


@settings(deadline=None, max_examples=40)
@given(
    masks=arrays(bool, (2, 4, 5)),
    maps=arrays(np.float32, (2, 4, 5), elements=st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.75, 1.0])),
)
def test_any_maps_give_what_one_sort_gives(masks, maps):
    assert_same(pixel_metrics_in_ranges(maps, areas_of(masks)), pixel_metrics(masks, maps))


def test_the_best_difference_of_rates_is_found():
    maps = np.array([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]], np.float32)[None]
    masks = np.array([[0, 0, 0, 1, 0, 1]], bool)[None]
    assert pixel_metrics_in_ranges(maps, areas_of(masks)).youden == pytest.approx(0.4)


def test_curves_pass_through_the_corners_and_never_fall():
    random = np.random.default_rng(0)
    masks = random.random((3, 50, 50)) < 0.05
    maps = random.random((3, 50, 50), dtype=np.float32)
    curves = pixel_metrics_in_ranges(maps, areas_of(masks)).curves
    for rate in (curves.fpr, curves.tpr, curves.pro):
        assert (rate[0], rate[-1]) == (0, pytest.approx(1))
        assert (np.diff(rate) >= 0).all()


def test_a_map_of_another_shape_than_its_mask_is_refused():
    with pytest.raises(AnomalyCLIPError, match=r"map 0 has shape \(4, 4\), its mask \(5, 5\)"):
        pixel_metrics_in_ranges([np.zeros((4, 4), np.float32)], [np.ones((5, 5), np.int32)])


@given(arrays(np.float32, 50, elements=floats))
def test_bins_rise_with_the_value_and_begin_at_their_lowest(values):
    values = np.sort(values)
    found = bins(values)
    assert (np.diff(found.astype(np.int64)) >= 0).all()
    for index, value in zip(found, values, strict=True):
        assert lowest(int(index)) <= value
        assert int(index) + 1 == 1 << BITS or value < lowest(int(index) + 1)


@given(arrays(np.float32, 300, elements=floats), st.integers(1, 400))
def test_ranges_cover_every_value_once_and_hold_what_they_may(values, capacity):
    counts = Counts()
    counts.add(values)
    held = [values[(values >= low) & (values < high)] for low, high in counts.ranges(capacity)]
    np.testing.assert_array_equal(np.sort(np.concatenate(held)), np.sort(values))
    for part in held:
        assert part.size <= capacity or len(np.unique(bins(part))) == 1


@given(arrays(np.float32, 200, elements=st.floats(0, 1, width=32)), st.floats(0.001, 0.5))
def test_a_threshold_marks_at_most_the_share_and_is_one_bin_wide(values, share):
    counts = Counts()
    counts.add(values)
    edge = counts.threshold(share)
    assert (values >= edge).sum() <= share * values.size
    assert counts.at_or_above(edge) == (values >= edge).sum()
    below = lowest(int(bins(np.array([edge]))[0]) - 1)
    assert (values >= below).sum() > share * values.size
