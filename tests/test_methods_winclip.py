"""WinCLIP, zero-shot: every number from pixels to maps against the published reproduction."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from anomalyclip import AnomalyCLIPError, Detector, DetectorSpec, evaluate, export
from anomalyclip.clip.backbone import load_backbone
from anomalyclip.clip.tokenizer import Tokenizer
from anomalyclip.demo import PICTURES
from anomalyclip.texts import phrase_features
from anomalyclip.words import words_of
from tests.conftest import rival_arrays
from tests.generated_sets import make_set

CASES = ["56_screw", "56_metal_nut", "84_screw", "84_gelu_screw"]


@pytest.fixture(scope="module")
def published():
    return rival_arrays("winclip")


def scorer_of(backbone, case, **options):
    size, name = case.replace("gelu_", "").split("_", 1)
    options = {"class_name": name, **options}
    if "gelu" in case:
        options["activation"] = "gelu"
    return DetectorSpec(backbone, method="winclip", image_size=int(size), **options).load().scorer


@pytest.mark.parametrize("case", CASES)
def test_every_step_is_the_published_one(case, published, rival_backbone, rival_inputs):
    expected = {
        name[len(case) + 1 :]: value for name, value in published.items() if name.startswith(case + "_")
    }
    scorer = scorer_of(rival_backbone, case)
    core, pixels = scorer.core, rival_inputs[f"pixels_{scorer.image_size}"][:2]
    np.testing.assert_allclose(core.text_features.numpy(), expected["text"], atol=1e-5)
    with torch.inference_mode():
        found = scorer.features(pixels)
        if "image_embedding" in expected:
            np.testing.assert_allclose(
                core.project(found.cls).numpy(), expected["image_embedding"], atol=2e-5
            )
        for side in (2, 3):
            cls = found.windows[side, 1]
            if f"window_embedding_{side}" in expected:
                embedding = core.project(cls).numpy()
                np.testing.assert_allclose(embedding, expected[f"window_embedding_{side}"], atol=2e-5)
            values = core.of_cls(cls)[..., 1]
            np.testing.assert_allclose(values.numpy(), expected[f"window_score_{side}"], atol=1e-5)
            harmonic = 1 / core.spread(1 / values, (side, 1))
            np.testing.assert_allclose(harmonic.numpy(), expected[f"harmonic_{side}"], atol=1e-5)
        scores, grids = core.compare(found)
    np.testing.assert_allclose(scores.numpy(), expected["image_score"], atol=1e-5)
    np.testing.assert_allclose(grids.numpy(), expected["map_grid"], atol=1e-5)
    for values, name in zip(scorer(pixels), ("image_score", "map"), strict=True):
        np.testing.assert_allclose(values, expected[name], atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_features_of_its_sentences_are_averaged_as_they_are(case, published, rival_backbone):
    spec = DetectorSpec(rival_backbone, method="winclip")
    activation = "gelu" if "gelu" in case else None
    clip = load_backbone(rival_backbone, activation=activation).clip
    words = words_of(spec, Path(rival_backbone), words="winclip", templates="winclip")
    sides = words.phrases(case.replace("gelu_", "").split("_", 1)[1])
    found = torch.stack([phrase_features(clip, Tokenizer()(side)).mean(dim=0) for side in sides])
    np.testing.assert_allclose(found.numpy(), published[f"{case}_text_raw"], atol=1e-5)


@pytest.mark.parametrize("case", [case for case in CASES if case != "56_metal_nut"])
def test_windows_hold_the_published_patches_in_the_published_order(case, published, rival_backbone):
    core = scorer_of(rival_backbone, case).core
    for side in (2, 3):
        windows = published[f"{case}_windows_{side}"]
        held = core.spread(torch.eye(len(windows)), (side, 1)).flatten(1) > 0
        assert [row.nonzero()[:, 0].tolist() for row in held] == windows.tolist()


def test_the_other_reading_is_of_normality_and_of_windows_alone(published, rival_backbone, rival_inputs):
    """Per size the mean of 1 / P_normal over windows, then over sizes; the map is one minus its inverse."""
    scorer = scorer_of(rival_backbone, "56_screw", window_rule="normal")
    with torch.inference_mode():
        _, grids = scorer.core.compare(scorer.features(rival_inputs["pixels_56"][:2]))
    inverse = np.zeros((2, 2, 16))
    for scale, side in enumerate((2, 3)):
        windows, normal = (
            published[f"56_screw_windows_{side}"],
            1 - published[f"56_screw_window_score_{side}"],
        )
        for patch in range(16):
            held = [index for index, window in enumerate(windows) if patch in window]
            inverse[scale, :, patch] = (1 / normal[:, held]).mean(axis=1)
    expected = 1 - 1 / inverse.mean(axis=0)
    np.testing.assert_allclose(grids.numpy().reshape(2, 16), expected, atol=1e-5)
    assert scorer.identity()["window_rule"] == "normal"


@pytest.mark.parametrize("stride", [1, 2])
def test_a_patch_is_the_harmonic_mean_of_the_windows_that_hold_it(stride, rival_backbone):
    scorer = scorer_of(rival_backbone, "84_screw", windows=(3,), window_stride=stride)
    values = torch.rand(1, {1: 16, 2: 9}[stride])
    first = {1: range(4), 2: [0, 2, 3]}[stride]
    corners = [(row, column) for row in first for column in first]
    found = scorer.core.spread(values, (3, stride))[0]
    for row in range(6):
        for column in range(6):
            held = [
                value
                for value, (y, x) in zip(values[0], corners, strict=True)
                if y <= row < y + 3 and x <= column < x + 3
            ]
            assert found[row, column] == pytest.approx(float(torch.stack(held).mean()), abs=1e-6)


def test_windows_follow_the_grid_and_a_stride_needs_fewer():
    detector = Detector.from_pretrained("micro", method="winclip", class_name="object")
    identity = detector.identity()
    assert (identity["windows"], identity["window_stride"], identity["sigma"]) == ([2, 3], 1, 0.0)
    coarse = Detector.from_pretrained("micro", method="winclip", class_name="object", window_stride=2)
    crack, good = PICTURES / "slate_crack.jpg", PICTURES / "slate_good.jpg"
    for one in (detector, coarse):
        assert one.predict(crack).anomaly_map.max() > one.predict(good).anomaly_map.max()
    assert coarse.scorer.core.taps.windows == ((2, 2), (3, 2))
    assert coarse.identity() != identity


def test_it_is_evaluated_and_batches_change_nothing(tmp_path, cli):
    root = make_set(tmp_path / "parts", classes=("nut",), normal=2, anomalous=2, side=60)
    spec = DetectorSpec("micro", method="winclip", image_size=96)
    assert evaluate(spec, root, batch_size=3).mean == pytest.approx(evaluate(spec, root).mean, abs=1e-5)
    model = ["--backbone", "micro", "--method", "winclip", "--image-size", 96, "--window-stride", 2]
    done = cli("test", root, *model, "--format", "json", "--output", tmp_path / "out")
    assert done.code == 0, done.err
    identity = json.loads((tmp_path / "out" / "results.json").read_text())["identity"]
    assert (identity["method"], identity["window_stride"], identity["class_name"]) == ("winclip", 2, None)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"windows": (20,)}, "window of 20 patches: the image has 15 x 15"),
        ({"windows": (2,), "window_stride": 3}, "window stride 3: windows of 2 patches"),
        ({"image_size": 100}, "image size 100.*multiple"),
        ({"layers": (3,)}, "'winclip' has no layers"),
    ],
)
def test_what_cannot_be_is_one_clear_error(options, says):
    with pytest.raises(AnomalyCLIPError, match=says):
        DetectorSpec("micro", method="winclip", class_name="object", **options).load()


def test_an_export_without_a_class_name_is_one_message_and_no_file(cli, tmp_path):
    done = cli("export", "--backbone", "micro", "--method", "winclip", "--output", tmp_path / "out.onnx")
    assert (done.code, done.err.count("error: "), "--class-name" in done.err) == (2, 1, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("method", ["winclip", "words", "clip"])
def test_it_is_exported_with_its_words_in_the_file(method, tmp_path):
    spec = DetectorSpec("micro", method=method, class_name="plate", image_score="faprompt")
    report = export(spec, tmp_path / "out.onnx", dynamic_batch=True)
    assert max(report.score_difference, report.map_difference) < 1e-5
    exported, detector = Detector.from_exported(tmp_path / "out.onnx"), spec.load()
    assert exported.identity() == detector.identity()
    score = exported.predict(PICTURES / "slate_crack.jpg").pred_score
    assert score == pytest.approx(detector.predict(PICTURES / "slate_crack.jpg").pred_score, abs=1e-5)
