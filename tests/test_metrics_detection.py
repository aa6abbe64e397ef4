"""Metrics of labels and scores: the published figures, scikit-learn as oracle, and what has no answer."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sklearn

from anomalyclip import metrics
from anomalyclip.errors import AnomalyCLIPError

GOLDEN = np.load(Path(__file__).parent / "golden" / "metrics.npz")
ONE_NUMBER = [metrics.auroc, metrics.average_precision]
OF_LABELS_AND_SCORES = [
    *ONE_NUMBER,
    metrics.f1_max,
    metrics.youden,
    metrics.roc_curve,
    metrics.precision_recall_curve,
    metrics.image_metrics,
]
EVERY = [*OF_LABELS_AND_SCORES, metrics.aupro, metrics.pro_curve, metrics.pixel_metrics]


@st.composite
def labelled_scores(draw):
    """Both labels, and scores of which most or few tie, in all three precisions."""
    n = draw(st.integers(2, 60))
    labels = draw(hnp.arrays(bool, n).filter(lambda a: a.any() and not a.all()))
    steps = draw(st.sampled_from([2, 5, 1000]))
    scores = draw(hnp.arrays(np.int64, n, elements=st.integers(-steps, steps))) / 7
    return labels, scores.astype(draw(st.sampled_from([np.float16, np.float32, np.float64])))


def test_image_and_pixel_figures_are_the_published_ones():
    labels, scores, masks, maps = (GOLDEN[key] for key in ("labels", "scores", "masks", "maps"))
    assert metrics.auroc(labels, scores) == pytest.approx(float(GOLDEN["image_auroc"]), abs=1e-6)
    assert metrics.average_precision(labels, scores) == pytest.approx(float(GOLDEN["image_ap"]), abs=1e-6)
    assert metrics.auroc(masks, maps) == pytest.approx(float(GOLDEN["pixel_auroc"]), abs=1e-6)
    assert metrics.average_precision(masks, maps) == pytest.approx(float(GOLDEN["pixel_ap"]), abs=1e-6)


@given(labelled_scores())
def test_auroc_and_average_precision_are_those_of_scikit_learn(case):
    labels, scores = case
    exact = scores.astype(np.float64)
    assert metrics.auroc(labels, scores) == pytest.approx(sklearn.roc_auc_score(labels, exact), abs=1e-12)
    assert metrics.average_precision(labels, scores) == pytest.approx(
        sklearn.average_precision_score(labels, exact), abs=1e-12
    )


@given(labelled_scores())
def test_f1_max_is_the_best_of_all_thresholds_and_its_threshold_gives_it(case):
    labels, scores = case
    by_threshold = {t: sklearn.f1_score(labels, scores >= t) for t in np.unique(scores)}
    f1, threshold = metrics.f1_max(labels, scores)
    assert f1 == pytest.approx(max(by_threshold.values()), abs=1e-12)
    assert by_threshold[scores.dtype.type(threshold)] == pytest.approx(f1, abs=1e-12)


@given(labelled_scores())
def test_youden_is_the_highest_threshold_with_the_largest_difference_of_rates(case):
    labels, scores = case
    differences = [
        ((scores[labels] >= t).mean() - (scores[~labels] >= t).mean(), t) for t in np.unique(scores)
    ]
    largest = max(difference for difference, _ in differences)
    j, threshold = metrics.youden(labels, scores)
    assert j == pytest.approx(largest, abs=1e-12)
    if largest > 1e-12:  # where it is 0, calling nothing anomalous is as good
        assert threshold == max(t for difference, t in differences if difference > largest - 1e-12)


def test_of_thresholds_whose_youden_ties_the_highest_is_taken_whatever_rounding_makes_of_the_rates():
    # At 1: 2/8 - 3/28 = 1/7; at 0: 8/8 - 24/28 = 1/7. As floating-point rates the second is larger by one rounding.
    labels = [True] * 8 + [False] * 28
    scores = [1] * 2 + [0] * 6 + [1] * 3 + [0] * 21 + [-1] * 4
    assert metrics.youden(labels, scores) == (1 / 7, 1.0)


@pytest.mark.parametrize("distinct", [1, 3, 1000, 10**9])
def test_more_scores_than_are_looked_at_together_make_no_seam(distinct):
    rng = np.random.default_rng(0)
    labels = rng.random(300_000) < 0.6
    scores = rng.integers(0, distinct, labels.size) + labels * (distinct // 10)
    together = metrics.image_metrics(labels, scores)
    assert together.auroc == pytest.approx(sklearn.roc_auc_score(labels, scores), abs=1e-12)
    expected = sklearn.average_precision_score(labels, scores)
    assert together.average_precision == pytest.approx(expected, abs=1e-12)
    precision, recall, _ = sklearn.precision_recall_curve(labels, scores)
    expected = (2 * precision * recall / (precision + recall)).max()
    assert together.f1_max.f1 == pytest.approx(expected, abs=1e-12)
    assert sklearn.f1_score(labels, scores >= together.f1_max.threshold) == pytest.approx(expected, abs=1e-12)


def test_of_equally_good_thresholds_f1_max_takes_the_highest():
    # At 4: TP 1, FN 1, FP 0: F1 = 2/3. At 1: TP 2, FP 2: F1 = 2/3.
    assert metrics.f1_max([1, 0, 0, 1], [4, 3, 2, 1]) == (pytest.approx(2 / 3), 4.0)
    # With two more normal ones below: at 4, J = 1/2 - 0, at 1, J = 1 - 2/4.
    assert metrics.youden([1, 0, 0, 1, 0, 0], [4, 3, 2, 1, 0, 0]) == (0.5, 4.0)


@given(labelled_scores())
def test_curves_are_those_of_scikit_learn_at_every_distinct_score(case):
    labels, scores = case
    for ours, theirs in zip(
        metrics.roc_curve(labels, scores),
        sklearn.roc_curve(labels, scores.astype(np.float64), drop_intermediate=False),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    for ours, theirs in zip(
        metrics.precision_recall_curve(labels, scores),
        sklearn.precision_recall_curve(labels, scores.astype(np.float64)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_a_thinned_curve_keeps_points_of_the_full_one_its_ends_and_no_wide_gap():
    rng = np.random.default_rng(0)
    labels = rng.random(5000) < 0.1
    scores = rng.standard_normal(5000) + labels
    full, thin = metrics.roc_curve(labels, scores), metrics.roc_curve(labels, scores, points=100)
    assert 90 <= thin.fpr.size <= 101
    assert set(zip(*thin, strict=True)) <= set(zip(*full, strict=True))
    assert (thin.fpr[0], thin.tpr[0], thin.fpr[-1], thin.tpr[-1]) == (0, 0, 1, 1)
    assert np.diff(thin.fpr).max() < 2.2 / 100
    assert np.diff(thin.tpr).max() < 2.2 / 100
    area = sklearn.auc(thin.fpr, thin.tpr)
    assert area == pytest.approx(metrics.auroc(labels, scores), abs=2e-3)

    full, thin = (metrics.precision_recall_curve(labels, scores, points=p) for p in (None, 100))
    pairs = set(zip(full.precision, full.recall, strict=True))
    assert set(zip(thin.precision, thin.recall, strict=True)) <= pairs
    assert thin.recall[0] == 1


def test_image_metrics_are_the_single_functions_together():
    labels, scores = GOLDEN["labels"], GOLDEN["scores"]
    together = metrics.image_metrics(labels, scores, curve_points=8)
    assert together.auroc == metrics.auroc(labels, scores)
    assert together.average_precision == metrics.average_precision(labels, scores)
    assert together.f1_max == metrics.f1_max(labels, scores)
    assert together.youden == metrics.youden(labels, scores)
    np.testing.assert_array_equal(together.roc, metrics.roc_curve(labels, scores, points=8))
    assert together.precision_recall is not None
    np.testing.assert_array_equal(
        together.precision_recall.recall, metrics.precision_recall_curve(labels, scores, points=8).recall
    )
    assert metrics.image_metrics(labels, scores).roc is None


@pytest.mark.parametrize("label_dtype", [bool, np.uint8, np.int64, np.float32])
@pytest.mark.parametrize("score_dtype", [np.float16, np.float32, np.float64, np.uint8, np.int64])
def test_every_usual_type_and_any_shape_gives_the_same_figure(label_dtype, score_dtype):
    labels = np.array([[0, 1, 0], [1, 1, 0]], dtype=label_dtype)
    scores = np.array([[3, 3, 1], [7, 2, 2]], dtype=score_dtype)
    assert metrics.auroc(labels, scores) == pytest.approx(6.0 / 9 + 0.5 * 2 / 9)
    assert metrics.auroc(labels.ravel(), scores.ravel()) == metrics.auroc(labels, scores)


def test_double_precision_is_not_rounded_away():
    assert metrics.auroc([0, 1], np.array([1.0, 1.0 + 1e-12])) == 1.0


def test_minus_zero_ties_with_zero():
    assert metrics.auroc([0, 1], np.array([-0.0, 0.0], dtype=np.float32)) == 0.5


def test_the_callers_arrays_are_left_as_they_were():
    labels, scores = np.zeros(3, dtype=bool), np.array([3.0, 1.0, 2.0], dtype=np.float32)
    metrics.auroc(labels, scores)
    metrics.pixel_metrics(labels[None], scores[None])
    assert scores.tolist() == [3.0, 1.0, 2.0]
    assert not labels.any()


@pytest.mark.parametrize("label", [0, 1])
def test_one_label_alone_has_no_figure(label):
    labels, scores = [label] * 3, [0.1, 0.2, 0.3]
    assert math.isnan(metrics.auroc(labels, scores))
    assert math.isnan(metrics.average_precision(labels, scores))
    assert all(math.isnan(value) for value in metrics.f1_max(labels, scores))
    assert all(math.isnan(value) for value in metrics.youden(labels, scores))
    together = metrics.image_metrics(labels, scores, curve_points=10)
    assert math.isnan(together.auroc)
    assert together.roc is not None


def test_normal_images_alone_still_show_the_false_positive_rate_of_a_threshold():
    curve = metrics.roc_curve([0, 0, 0, 0], [0.1, 0.2, 0.3, 0.3])
    assert curve.thresholds.tolist() == [np.inf, 0.3, 0.2, 0.1]
    assert curve.fpr.tolist() == [0, 0.5, 0.75, 1]
    assert np.isnan(curve.tpr).all()
    assert np.isnan(metrics.precision_recall_curve([0, 0], [0.1, 0.2]).recall[:-1]).all()


def test_constant_scores_say_nothing():
    labels, scores = [0, 1, 0, 0], [0.5] * 4
    assert metrics.auroc(labels, scores) == 0.5
    assert metrics.average_precision(labels, scores) == 0.25
    assert metrics.f1_max(labels, scores) == (pytest.approx(0.4), 0.5)


@pytest.mark.parametrize("function", EVERY)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("label", [0, 1])
def test_a_score_that_has_no_rank_is_an_error_whatever_its_label(function, bad, label):
    labels = np.array([[0, 0, 1, 1], [0, 1, 0, 1]])
    scores = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]])
    scores[1, label] = bad
    with pytest.raises(AnomalyCLIPError, match=r"(scores|map 0) has a NaN or an infinite value"):
        function(labels, scores)


@pytest.mark.parametrize("function", EVERY)
@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        (np.zeros((0, 2, 2)), np.zeros((0, 2, 2)), "empty"),
        (np.zeros((2, 3)), np.zeros((3, 2)), r"\(2, 3\).*\(3, 2\)"),
        (np.array([[0, 255]]), np.zeros((1, 2)), "got 255: binarise first"),
        (np.array([[0.0, np.nan]]), np.zeros((1, 2)), "got nan"),
        (np.array([["good", "bad"]]), np.zeros((1, 2)), "must be real numbers"),
        (np.zeros((1, 2)), np.zeros((1, 2), dtype=complex), "must be real numbers"),
    ],
)
def test_what_cannot_be_ranked_is_refused_and_named(function, labels, scores, message):
    with pytest.raises(AnomalyCLIPError, match=message):
        function(labels, scores)


@pytest.mark.parametrize("function", [metrics.roc_curve, metrics.precision_recall_curve, metrics.pro_curve])
def test_a_curve_of_too_few_points_is_refused(function):
    with pytest.raises(AnomalyCLIPError, match="points=3"):
        function(np.array([[0, 1]]), np.array([[0.1, 0.2]]), points=3)
