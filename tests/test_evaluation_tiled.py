"""Tiles belong to the detector: `test` and `calibrate --labelled` cut images as `predict` does."""

import csv
import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from anomalyclip import (
    AnomalyCLIPWarning,
    Detector,
    DetectorSpec,
    Threshold,
    Tiling,
    calibrate_labelled,
    evaluate,
)
from anomalyclip.methods import METHODS, register
from anomalyclip.readers import open_image
from tests.generated_sets import write
from tests.toy_methods import Bright

WIDTH, HEIGHT = 96, 64
TILES = ["--method", "bright", "--tile", 40, "--overlap", 0.5]
SPEC = DetectorSpec(method="bright", tile=40, overlap=0.5)


@pytest.fixture(autouse=True)
def bright():
    register("bright", Bright, options=["image_size"])
    yield
    METHODS.remove("bright")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Images that are not square, with defects that are hard to see."""
    root, random = tmp_path_factory.mktemp("data") / "parts", np.random.default_rng(0)
    for kind, count in (("good", 3), ("spot", 4)):
        for number in range(count):
            pixels = random.normal(128, 25, (HEIGHT, WIDTH, 3))
            if kind == "spot":
                mask = np.zeros((HEIGHT, WIDTH), bool)
                top, left = random.integers(0, HEIGHT - 10), random.integers(0, WIDTH - 10)
                mask[top : top + 9, left : left + 9] = True
                pixels[mask] += 20
                write(root / "nut" / "ground_truth" / kind / f"{number:03}_mask.png", mask * np.uint8(255))
            write(root / "nut" / "test" / kind / f"{number:03}.png", pixels.clip(0, 255).astype(np.uint8))
    return root


@pytest.fixture
def by_hand(root):
    """Per image: label, score, map and mask, of a detector that was made by hand."""
    detector = Detector(Bright(DetectorSpec()), tiling=Tiling(40, overlap=0.5))
    found = []
    for path in sorted(root.glob("nut/test/*/*.png")):
        prediction = detector.predict(path)
        anomaly = path.parent.name == "spot"
        mask = np.zeros((HEIGHT, WIDTH), bool)
        if anomaly:
            file = root / "nut" / "ground_truth" / "spot" / f"{path.stem}_mask.png"
            mask = np.asarray(open_image(file)) > 127
        found.append((anomaly, prediction.pred_score, prediction.anomaly_map, mask))
    return [list(column) for column in zip(*found, strict=True)]


def test_the_evaluation_is_of_maps_of_the_images_own_size_and_figures_are_those_of_its_tiles(
    cli, root, by_hand, tmp_path
):
    out = tmp_path / "out"
    done = cli("test", root, *TILES, "--save", "map", "--format", "json", "--output", out)
    assert done.code == 0, done.err
    labels, scores, maps, masks = by_hand
    saved = [np.load(path) for path in sorted((out / "parts" / "maps").rglob("*.npy"))]
    assert [array.shape for array in saved] == [(HEIGHT, WIDTH)] * 7
    for ours, theirs in zip(saved, maps, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    with open(out / "images.csv") as file:
        found = {row["image"]: float(row["score"]) for row in csv.DictReader(file)}
    assert [found[name] for name in sorted(found)] == pytest.approx(scores)

    results = json.loads((out / "results.json").read_text())
    values, truth = np.concatenate([m.ravel() for m in maps]), np.concatenate([m.ravel() for m in masks])
    mean = results["results"][0]["mean"]
    assert mean["image_auroc"] == pytest.approx(roc_auc_score(labels, scores))
    assert mean["pixel_auroc"] == pytest.approx(roc_auc_score(truth, values), abs=1e-6)
    assert mean["pixel_ap"] == pytest.approx(average_precision_score(truth, values), abs=1e-6)
    assert (results["identity"]["tile"], results["identity"]["overlap"]) == (40, 0.5)
    assert evaluate(SPEC, root).mean == mean
    whole = evaluate(DetectorSpec(method="bright"), root).mean
    assert whole["pixel_auroc"] != pytest.approx(mean["pixel_auroc"], abs=1e-4)


def test_controls_are_cut_as_the_model_is(cli, root, tmp_path):
    done = cli("test", root, *TILES, "--controls", "--format", "json", "--output", tmp_path / "out")
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    tiled = {entry["scorer"]: entry["mean"]["pixel_auroc"] for entry in results["controls"]}
    plain = evaluate(DetectorSpec(method="bright"), root, controls=True)
    for control in plain.controls:
        assert control.mean["pixel_auroc"] != pytest.approx(tiled[control.scorer], abs=1e-4)


@pytest.mark.parametrize("criterion", ["f1", "youden"])
def test_a_labelled_threshold_is_the_best_on_the_tiled_predictions(criterion, cli, root, by_hand, tmp_path):
    file = tmp_path / "threshold.json"
    done = cli("calibrate", "--labelled", root, *TILES, "--criterion", criterion, "--output", file)
    assert (done.code, done.complaints) == (0, [])
    threshold = Threshold.from_file(file)
    labels, scores, maps, masks = by_hand
    values, truth = np.concatenate([m.ravel() for m in maps]), np.concatenate([m.ravel() for m in masks])
    assert quality(labels, scores, threshold.score, criterion) == pytest.approx(
        max(quality(labels, scores, score, criterion) for score in scores)
    )
    candidates = np.quantile(values, np.linspace(0.5, 1, 200))
    best = max(quality(truth, values, value, criterion) for value in candidates)
    assert quality(truth, values, threshold.pixel, criterion) >= best - 1e-6
    assert threshold == calibrate_labelled(SPEC, root, criterion=criterion)
    assert threshold.info["identity"]["tile"] == 40
    assert (
        threshold.score != calibrate_labelled(DetectorSpec(method="bright"), root, criterion=criterion).score
    )


def quality(labels, values, threshold, criterion):
    """F1, or sensitivity + specificity - 1, of calling anomalous what is at or above a threshold."""
    labels, called = np.asarray(labels, bool), np.asarray(values) >= threshold
    if criterion == "youden":
        return called[labels].mean() - called[~labels].mean()
    return 2 * (called & labels).sum() / (called.sum() + labels.sum())


def test_a_threshold_of_tiles_is_warned_of_where_images_are_not_cut_and_the_other_way_round(
    cli, root, tmp_path, recwarn
):
    tiled = calibrate_labelled(SPEC, root)
    tiled.to_file(tmp_path / "threshold.json")
    whole = calibrate_labelled(DetectorSpec(method="bright"), root)
    SPEC.load(threshold=tiled)
    assert not recwarn.list
    with pytest.warns(AnomalyCLIPWarning, match="threshold.*tile: 40 then, none now"):
        DetectorSpec(method="bright").load(threshold=tiled)
    with pytest.warns(AnomalyCLIPWarning, match="threshold.*tile: none then, 40 now"):
        SPEC.load(threshold=whole)
    with pytest.warns(AnomalyCLIPWarning, match="threshold.*overlap: 0.5 then, 0.25 now"):
        DetectorSpec(method="bright", tile=40).load(threshold=tiled)
    image = root / "nut" / "test" / "good" / "000.png"
    options = ["--method", "bright", "--threshold", tmp_path / "threshold.json"]
    for command, data in (("predict", [image]), ("test", [root, "--format", "json"])):
        done = cli(command, *data, *options, "--output", tmp_path / command)
        assert done.code == 0
        assert "warning: the threshold" in done.err
        assert "tile: 40 then, none now" in done.err
        done = cli(command, *data, *options, *TILES, "--output", tmp_path / f"{command}-tiled")
        assert (done.code, done.complaints) == (0, [])
