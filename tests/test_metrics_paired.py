"""Paired comparisons: metrics of drawn images are those of the images repeated, and DeLong's variance is his."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalyclip import AnomalyCLIPError
from anomalyclip.metrics import image_metrics, pixel_metrics
from anomalyclip.metrics.by_image import PixelCounts, pixel_counts, pixel_statistic
from anomalyclip.metrics.paired import (
    bootstrap,
    delong,
    draws,
    image_statistic,
    interval,
    mean_of,
)
from anomalyclip.metrics.regions import region_areas


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 3)), min_size=2, max_size=12))
def test_an_image_that_is_drawn_twice_counts_as_two(images):
    labels, scores, times = (np.array(column) for column in zip(*images, strict=True))
    labels = labels.astype(bool)
    repeated = np.repeat(np.arange(len(labels)), times)
    if len(set(labels[repeated])) < 2:
        return
    expected = image_metrics(list(labels[repeated]), scores[repeated].astype(float))
    weights = times[None].astype(float)
    found = [
        image_statistic(labels, scores.astype(float), metric)(weights)[0]
        for metric in ("image_auroc", "image_ap", "image_f1_max")
    ]
    assert found == pytest.approx([expected.auroc, expected.average_precision, expected.f1_max.f1])


@pytest.fixture
def pixels():
    """Five maps of few values, two with regions, and how often each is drawn."""
    rng = np.random.default_rng(0)
    masks = [np.zeros((12, 12), bool) for _ in range(5)]
    masks[1][2:5, 3:9] = masks[1][9:11, 9:11] = masks[3][5:9, 1:4] = True
    maps = [(rng.integers(0, 8, (12, 12)) + 3 * mask).astype(np.float32) / 11 for mask in masks]
    return masks, maps, np.array([1, 2, 0, 1, 3])


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        ("pixel_auroc", "auroc"),
        ("pixel_ap", "average_precision"),
        ("pixel_f1_max", "f1_max"),
        ("pixel_aupro_exact", "aupro_exact"),
    ],
)
def test_so_does_one_with_all_its_pixels_and_regions(pixels, metric, name):
    masks, maps, times = pixels
    repeated = np.repeat(np.arange(5), times)
    exact = pixel_metrics([masks[index] for index in repeated], [maps[index] for index in repeated])
    counts = pixel_counts(maps, [region_areas(mask) if mask.any() else None for mask in masks])
    found = pixel_statistic(counts, metric)(times[None].astype(float))[0]
    expected = getattr(exact, name)
    assert found == pytest.approx(expected.f1 if name == "f1_max" else expected, abs=1e-6)


def test_many_values_are_counted_in_classes_with_little_loss():
    rng = np.random.default_rng(1)
    masks = [np.zeros((64, 64), bool) for _ in range(6)]
    for mask in masks[::2]:
        mask[10:30, 12:40] = True
    maps = [(rng.random((64, 64)) + 0.4 * mask).astype(np.float32) for mask in masks]
    counts = pixel_counts(maps, [region_areas(mask) if mask.any() else None for mask in masks])
    exact = pixel_metrics(masks, maps)
    found = pixel_statistic(counts, "pixel_auroc")(np.ones((1, 6)))[0]
    assert counts.normal.shape[1] == 512
    assert found == pytest.approx(exact.auroc, abs=5e-4)
    assert found != exact.auroc


def test_counts_are_kept_in_a_file_and_a_damaged_one_is_named(pixels, tmp_path):
    masks, maps, _ = pixels
    counts = pixel_counts(maps, [region_areas(mask) if mask.any() else None for mask in masks])
    counts.save(tmp_path / "counts.npz")
    assert np.array_equal(PixelCounts.load(tmp_path / "counts.npz").overlap, counts.overlap)
    (tmp_path / "counts.npz").write_bytes(b"PK")
    with pytest.raises(AnomalyCLIPError, match=r"counts\.npz: damaged"):
        PixelCounts.load(tmp_path / "counts.npz")


def test_images_are_drawn_within_their_label():
    labels = np.array([True] * 3 + [False] * 5)
    weights = draws(labels, 50, np.random.default_rng(0))
    assert (weights[:, :3].sum(axis=1) == 3).all()
    assert (weights[:, 3:].sum(axis=1) == 5).all()
    assert len({tuple(row) for row in weights}) > 40


def scored(seed, count=60):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3 == 0
    return labels, rng.normal(size=count) + labels, rng.normal(size=count) + 0.5 * labels


def test_methods_are_drawn_together_and_the_mean_over_classes_is_what_differs():
    classes = [scored(seed) for seed in range(3)]
    labels = [one[0] for one in classes]
    statistics = {
        name: [image_statistic(one[0], one[place], "image_auroc") for one in classes]
        for name, place in (("first", 1), ("same", 1), ("other", 2))
    }
    values = bootstrap(labels, statistics, count=400, seed=[3])
    assert np.array_equal(values["first"], values["same"])
    assert interval(values["first"] - values["same"]) == (0.0, 0.0)
    low, high = interval(values["first"] - values["other"])
    ones = [np.ones((1, len(of_class))) for of_class in labels]
    exact = [
        np.mean([one(weights)[0] for one, weights in zip(statistics[name], ones, strict=True)])
        for name in ("first", "other")
    ]
    assert low < exact[0] - exact[1] < high
    assert np.array_equal(values["other"], bootstrap(labels, statistics, count=400, seed=[3])["other"])


def test_the_number_of_draws_at_once_changes_nothing():
    labels, one, _ = scored(1)
    statistics = {"one": [image_statistic(labels, one, "image_ap")]}
    whole = bootstrap([labels], statistics, count=120)
    parts = bootstrap([labels], statistics, count=120, cells=lambda images: 100_000)
    assert len(parts["one"]) == 120
    assert np.quantile(parts["one"], 0.5) == pytest.approx(np.quantile(whole["one"], 0.5), abs=0.02)


def test_a_class_without_one_of_the_labels_is_left_out_of_the_mean():
    labels, one, _ = scored(2)
    alone = np.zeros(4, bool)
    both = {
        "one": [image_statistic(labels, one, "image_auroc"), image_statistic(alone, one[:4], "image_auroc")]
    }
    with_it = bootstrap([labels, alone], both, count=50)["one"]
    assert np.array_equal(with_it, bootstrap([labels], {"one": both["one"][:1]}, count=50)["one"])
    assert interval(np.full(3, np.nan)) is None


def test_delongs_variance_is_that_of_the_structural_components():
    """The definition of 1988, by pairs of images, with ties."""
    labels, one, other = scored(4)
    one, other = one.round(1), other.round(1)

    def components(scores):
        above = np.sign(scores[labels][:, None] - scores[~labels][None]) / 2 + 0.5
        return above.mean(axis=1), above.mean(axis=0)

    (v1, w1), (v2, w2) = components(one), components(other)
    variance = np.cov(v1, v2) / labels.sum() + np.cov(w1, w2) / (~labels).sum()
    found = delong(labels, one, other)
    assert found.difference == pytest.approx(v1.mean() - v2.mean())
    assert found.variance == pytest.approx(variance[0, 0] + variance[1, 1] - 2 * variance[0, 1])


def test_delongs_variance_agrees_with_the_bootstrap():
    labels, one, other = scored(5, count=400)
    statistics = {
        "one": [image_statistic(labels, one, "image_auroc")],
        "other": [image_statistic(labels, other, "image_auroc")],
    }
    values = bootstrap([labels], statistics)
    spread = (values["one"] - values["other"]).std()
    assert spread == pytest.approx(delong(labels, one, other).variance ** 0.5, rel=0.1)


def test_the_p_value_is_uniform_where_there_is_no_difference():
    """Two scores of equal quality: one in ten tests finds a difference at 10 %."""
    rng = np.random.default_rng(6)
    labels = np.arange(80) % 2 == 0
    values = []
    for _ in range(400):
        common = rng.normal(size=80) + labels
        values.append(delong(labels, common + rng.normal(size=80), common + rng.normal(size=80)).p)
    assert 0.06 < np.mean(np.array(values) < 0.1) < 0.14


def test_scores_that_rank_alike_do_not_differ_and_too_few_images_have_no_test():
    labels, one, _ = scored(7)
    assert delong(labels, one, np.exp(one)) == (0.0, 0.0)
    assert delong(labels, one, np.exp(one)).p == 1.0
    assert delong(np.array([True, False, False]), np.arange(3.0), np.arange(3.0)) is None
    perfect = labels.astype(float)
    assert delong(labels, perfect, -perfect).p == 0.0
    pair = delong(labels, one, _)
    assert mean_of([pair, pair]) == pytest.approx((pair.difference, pair.variance / 2))
