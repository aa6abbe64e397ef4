"""Thresholds: what they promise on normal images, what the number of images allows to say, and the file."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.evaluation.thresholds import (
    NormalMaps,
    clopper_pearson,
    images_needed,
    labelled_threshold,
    score_threshold,
)
from anomalyclip.prediction import Threshold
from tests.generated_sets import make_set

scores = st.lists(st.floats(0, 0.875, width=32, allow_subnormal=False), min_size=1, max_size=60)


@given(scores, st.floats(0.001, 0.5))
def test_at_most_the_wanted_share_of_the_normal_images_is_called_anomalous(normal, rate):
    threshold = score_threshold(normal, rate)
    values = np.array(normal, np.float32)
    alarms = int((values >= threshold.value).sum())
    assert alarms == threshold.alarms.count <= rate * len(normal) + 1e-6
    lower = values[values < threshold.value].max()  # any lower threshold would call this one too
    assert (values >= lower).sum() > rate * len(normal) - 1e-6


def test_twenty_images_cannot_tell_one_percent_from_fourteen():
    threshold = score_threshold(np.linspace(0.1, 0.5, 20), 0.01)
    assert threshold.alarms.high == pytest.approx(1 - 0.05 ** (1 / 20))
    assert "20 images are too few to distinguish a rate of 1 % from 14 %" in threshold.explanation()
    assert "299 normal images" in threshold.explanation()


def test_enough_images_keep_what_was_wanted():
    threshold = score_threshold(np.linspace(0, 0.5, 299), 0.01)
    assert threshold.alarms.count == 2
    assert "calibrate with a rate of 0.0017, which allows 0 of 299" in threshold.explanation()
    assert score_threshold(np.linspace(0, 0.5, 299), 0.0017).alarms.high <= 0.01
    assert "are too few to distinguish" in threshold.explanation()  # 2 alarms of 299 may be more than 1 %
    assert "the wanted 50 % is guaranteed" in replace(threshold, wanted=0.5).explanation()


@pytest.mark.parametrize(("count", "total"), [(0, 20), (3, 40), (20, 20), (7, 300)])
def test_bounds_are_where_the_seen_count_becomes_a_5_percent_surprise(count, total):
    interval = clopper_pearson(count, total)
    if count < total:
        assert binom.cdf(count, total, interval.high) == pytest.approx(0.05)
    else:
        assert interval.high == 1
    if count:
        assert binom.sf(count - 1, total, interval.low) == pytest.approx(0.05)
    else:
        assert interval.low == 0


def test_the_bound_of_the_false_alarm_rate_holds_on_fresh_images():
    """The promise itself: in at least 95 of 100 calibrations the true rate is below the bound."""
    random = np.random.default_rng(0)
    kept = 0
    for _ in range(2000):
        threshold = score_threshold(random.random(50) * 0.9, 0.05)  # uniform: the true rate is known
        kept += 1 - threshold.value / 0.9 <= threshold.alarms.high
    assert 0.94 < kept / 2000 < 0.97


@pytest.mark.parametrize("rate", [0.5, 0.01, 0.001])
def test_the_number_of_images_needed_is_the_least_that_suffices(rate):
    needed = images_needed(rate)
    assert clopper_pearson(0, needed).high <= rate < clopper_pearson(0, needed - 1).high


def test_scores_that_are_all_one_allow_no_threshold():
    with pytest.raises(AnomalyCLIPError, match="20 of 20 normal images have the highest possible score, 1"):
        score_threshold(np.ones(20), 0.01)


@pytest.mark.parametrize("rate", [0, 1, -0.1, float("nan")])
def test_a_rate_must_be_within_0_and_1(rate):
    with pytest.raises(AnomalyCLIPError, match="expected a number above 0 and below 1"):
        score_threshold([0.1], rate)


def test_the_pixel_threshold_is_within_one_bin_of_the_exact_quantile():
    random = np.random.default_rng(0)
    everything, maps = [], NormalMaps()
    for _ in range(20):
        values = random.beta(2, 30, (64, 64)).astype(np.float32)
        everything.append(values)
        maps.add(values)
    found = maps.threshold(0.001)
    exact = np.quantile(everything, 0.999)
    assert exact <= found.value <= exact * (1 + 2 / 4096) + 1e-6
    assert found.share == pytest.approx(np.mean(np.array(everything) >= found.value))
    assert found.marked.count == sum(values.max() >= found.value for values in everything)


def test_labelled_images_give_the_best_f1_or_the_best_difference_of_rates():
    labels = [False] * 6 + [True] * 4
    values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 0.6, 0.7, 0.8, 0.35]
    f1 = labelled_threshold(labels, values, "f1")
    assert (f1.value, f1.misses.count, f1.alarms.count) == (0.6, 1, 1)
    youden = labelled_threshold([False] * 9 + [True], [0.1] * 8 + [0.9, 0.8], "youden")
    assert (youden.value, youden.misses.count, youden.alarms.count) == (0.8, 0, 1)


def test_where_no_threshold_is_better_than_calling_every_image_normal_youden_is_the_highest_score_there_is():
    found = labelled_threshold([True, False, False], [0.1, 0.2, 0.9], "youden")
    assert (found.value, found.misses.count, found.alarms.count) == (1.0, 1, 0)


def test_one_kind_of_image_alone_cannot_be_told_apart():
    with pytest.raises(AnomalyCLIPError, match="must include normal and anomalous"):
        labelled_threshold([True, True], [0.1, 0.2], "f1")


@pytest.fixture
def model(paper_case, tiny_backbone, tmp_path):
    paper_case.prompts.save(tmp_path / "prompts.safetensors")
    return ["--backbone", tiny_backbone, "--prompts", tmp_path / "prompts.safetensors", "--image-size", 56]


@pytest.fixture
def root(tmp_path):
    return make_set(tmp_path / "parts", normal=5, side=56)


def test_the_file_of_normal_images_brings_predict_its_verdicts(cli, model, root, tmp_path):
    file, good = tmp_path / "threshold.json", root / "nut" / "test" / "good"
    done = cli("calibrate", good, *model, "--false-alarm-rate", 0.2, "--output", file)
    assert done.code == 0, done.err
    assert "1 of 5 are classified as anomalous" in done.out
    threshold = Threshold.from_file(file)
    assert threshold.info["images"] == 5
    assert threshold.info["false_alarm_rate"]["wanted"] == 0.2
    assert len(threshold.info["identity"]["weights_sha256"]) == 64
    assert threshold.info["spec"]["image_size"] == 56
    done = cli("predict", good, *model, "--threshold", file, "--output", tmp_path / "out")
    assert done.code == 0, done.err
    records = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert sum(record["pred_label"] for record in records) == 1


def test_a_threshold_or_prompts_made_with_other_settings_are_warned_of(
    cli, model, root, paper_case, tmp_path
):
    file, good = tmp_path / "threshold.json", root / "nut" / "test" / "good"
    assert cli("calibrate", good, *model, "--sigma", 2, "--tile", 40, "--output", file).code == 0
    same = cli(
        "predict", good, *model, "--sigma", 2, "--tile", 40, "--threshold", file, "--output", tmp_path / "1"
    )
    assert (same.code, len(same.err.splitlines())) == (0, 1)
    assert same.err.startswith("note: threshold: score 0.")
    assert "calibrated on 5 normal images" in same.err
    other = cli("predict", good, *model, "--threshold", file, "--output", tmp_path / "2")
    assert other.code == 0
    expected = (
        "the threshold was made with other settings (sigma: 2.0 then, 4.0 now; tile: 40 then, none now; overlap: 0.25 "
        "then, none now): calibrate it again"
    )
    assert expected in other.err
    tested = cli("test", root, *model, "--threshold", file, "--format", "json", "--output", tmp_path / "3")
    assert (tested.code, expected in tested.err) == (0, True)

    learned = {"image_size": "70", "layers": "24", "dpam_layers": "19"}
    other_prompts = replace(paper_case.prompts, normal=paper_case.prompts.normal * 1.5, info=learned)
    other_prompts.save(tmp_path / "prompts.safetensors")
    done = cli("predict", good, *model, "--threshold", file, "--output", tmp_path / "4")
    assert "the prompts were learned with other settings (image_size: 70 then, 56 now)\n" in done.err
    assert "; other prompts: " in done.err


def test_labelled_images_are_cut_like_normal_ones(cli, model, root, tmp_path):
    found = {}
    for name, tiles in (("whole", []), ("tiled", ["--tile", 40])):
        file = tmp_path / f"{name}.json"
        done = cli("calibrate", "--labelled", root, *model, *tiles, "--output", file)
        assert done.code == 0, done.err
        found[name] = Threshold.from_file(file)
    assert found["tiled"].info["identity"]["tile"] == 40
    assert "tile" not in found["whole"].info["identity"]
    assert found["tiled"].score != found["whole"].score


@pytest.mark.parametrize("criterion", ["f1", "youden"])
def test_labelled_images_give_a_file_too(cli, model, root, tmp_path, criterion):
    file = tmp_path / "threshold.json"
    done = cli("calibrate", "--labelled", root, *model, "--criterion", criterion, "--output", file)
    assert done.code == 0, done.err
    assert "expect somewhat worse" in done.out
    threshold = Threshold.from_file(file)
    assert threshold.info["images"] == 22
    assert 0 < threshold.pixel < 1


def test_an_image_that_cannot_be_used_is_named_and_the_rest_counts(cli, model, root, tmp_path):
    good = root / "nut" / "test" / "good"
    (good / "broken.png").write_bytes(b"")
    done = cli("calibrate", good, *model, "--output", tmp_path / "threshold.json")
    assert done.code == 1
    assert "broken.png" in done.err
    assert Threshold.from_file(tmp_path / "threshold.json").info["images"] == 5


def test_it_is_normal_images_or_labelled_ones(cli, model, root):
    for arguments in ([], [root, "--labelled", root]):
        done = cli("calibrate", *arguments, *model)
        assert done.code == 2
        assert "give either normal images, or a labelled data set" in done.err


def test_a_whole_data_set_is_not_taken_for_normal_images(cli, model, root, tmp_path):
    done = cli("calibrate", root, *model, "--output", tmp_path / "threshold.json")
    assert done.code == 2
    assert (
        "is in a folder for masks, so there are probably defective images here too: give only folders of normal"
        in done.err
    )
    assert not (tmp_path / "threshold.json").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--labelled", "ROOT", "--false-alarm-rate", 0.001], "--false-alarm-rate is for normal images"),
        (["GOOD", "--criterion", "youden"], "--criterion is for labelled images: give --labelled ROOT"),
        (["GOOD", "--dataset", "mvtec"], "--dataset is for labelled images: give --labelled ROOT"),
    ],
)
def test_an_option_of_the_other_way_is_refused_and_not_ignored(cli, model, root, options, says):
    places = {"ROOT": root, "GOOD": root / "nut" / "test" / "good"}
    done = cli("calibrate", *(places.get(option, option) for option in options), *model)
    assert (done.code, says in done.err) == (2, True), done.err


def test_where_nothing_can_be_written_nothing_is_scored(cli, model, root, tmp_path, monkeypatch):
    monkeypatch.setattr("anomalyclip.loading.load", None)  # it must not come to that
    good = root / "nut" / "test" / "good"
    file = next(good.iterdir())
    done = cli("calibrate", good, *model, "--output", file / "threshold.json")
    assert (done.code, "a file is in the place of one of its folders" in done.err) == (2, True)
    (tmp_path / "threshold.json").write_text("of a thousand images")
    done = cli("calibrate", good, *model, "--output", tmp_path / "threshold.json")
    assert (done.code, "exists: give --overwrite to replace it" in done.err) == (2, True)
    assert (tmp_path / "threshold.json").read_text() == "of a thousand images"


def test_a_threshold_that_nothing_can_pass_is_warned_of(cli, model, root, tmp_path, monkeypatch):
    """As from defective images that were taken for normal ones."""
    found = score_threshold([0.9999, 0.99995], 0.5)
    monkeypatch.setattr("anomalyclip.evaluation.calibration.score_threshold", lambda *_: found)
    (tmp_path / "threshold.json").write_text("an older one")
    good, file = root / "nut" / "test" / "good", tmp_path / "threshold.json"
    done = cli("calibrate", good, *model, "--output", file, "--overwrite")
    assert done.code == 0, done.err
    assert "hardly any score will be above 0.9999" in done.err
    assert Threshold.from_file(file).score == found.value
