"""A method from outside the package: one class and one registration, and every command can use it."""

import csv
import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest

from anomalyclip import (
    AnomalyCLIPError,
    DetectorSpec,
    Threshold,
    calibrate,
    calibrate_labelled,
    evaluate,
    export,
)
from anomalyclip.methods import METHODS, Method, register
from anomalyclip.readers import open_image
from tests.generated_sets import make_set
from tests.toy_methods import Bright


@pytest.fixture(autouse=True)
def bright():
    """The toy method, registered as anybody would."""
    register("bright", Bright, options=["image_size"])
    yield
    METHODS.remove("bright")


@pytest.fixture
def root(tmp_path):
    """Images of 56 pixels, in which defects are brighter."""
    return make_set(tmp_path / "parts", classes=("nut",), normal=3, anomalous=3, side=56, contrast=100)


@pytest.fixture
def good(root):
    return root / "nut" / "test" / "good"


def brightest(path):
    return float(np.asarray(open_image(path)).mean(axis=2, dtype=np.float32).max() / 255)


# --- what it can do


def test_it_predicts(cli, good, tmp_path):
    out = tmp_path / "out"
    done = cli("predict", good, "--method", "bright", "--threshold", 0.9, "--save", "map", "--output", out)
    assert (done.code, done.complaints) == (0, [])
    records = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [record["pred_score"] for record in records] == pytest.approx(
        [brightest(good / f"{number:03}.png") for number in range(3)]
    )
    assert not any(record["pred_label"] for record in records)
    saved = np.load(out / "maps" / "000.npy")
    expected = np.asarray(open_image(good / "000.png")).mean(axis=2) / 255
    np.testing.assert_allclose(saved, expected, atol=1e-6)
    settings = json.loads((out / "settings.json").read_text())
    assert (settings["method"], settings["image_size"]) == ("bright", 56)
    assert (
        cli("predict", good, "--method", "bright", "--image-size", 28, "--output", out, "--resume").code == 2
    )


@pytest.mark.parametrize("tiles", [[], ["--tile", 32]])
def test_it_is_evaluated(tiles, cli, root, tmp_path):
    out = tmp_path / "out"
    options = ["--method", "bright", *tiles, "--controls", "--format", "json"]
    done = cli("test", root, *options, "--output", out)
    assert done.code == 0, done.err
    results = json.loads((out / "results.json").read_text())
    assert results["identity"]["method"] == "bright"
    assert results["identity"].get("tile") == (32 if tiles else None)
    assert results["title"] == "bright pixels"
    assert results["results"][0]["mean"]["image_auroc"] == 1.0
    assert results["results"][0]["mean"]["pixel_auroc"] > 0.95
    assert len(results["controls"]) == 2
    spec = DetectorSpec(method="bright", tile=32 if tiles else None)
    assert evaluate(spec, root).mean == results["results"][0]["mean"]
    if not tiles:
        with open(out / "images.csv") as file:
            scores = {row["image"]: float(row["score"]) for row in csv.DictReader(file)}
        assert scores["nut/test/good/000.png"] == pytest.approx(
            brightest(root / "nut/test/good/000.png"), abs=1e-5
        )


@pytest.mark.parametrize("labelled", [False, True])
def test_it_is_calibrated(labelled, cli, root, good, tmp_path):
    file = tmp_path / "threshold.json"
    data = ["--labelled", root] if labelled else [good, "--false-alarm-rate", 0.4]
    done = cli("calibrate", *data, "--method", "bright", "--output", file)
    assert (done.code, done.complaints) == (0, [])
    threshold = Threshold.from_file(file)
    assert threshold.info["identity"] == {"method": "bright", "image_size": 56}
    spec = DetectorSpec(method="bright")
    if labelled:
        assert calibrate_labelled(spec, root) == threshold
        assert threshold.score > max(brightest(path) for path in good.iterdir())
    else:
        assert calibrate(spec, good, false_alarm_rate=0.4) == threshold
        assert sum(brightest(path) >= threshold.score for path in good.iterdir()) == 1
    assert spec.load(threshold=threshold).predict(good / "000.png").pred_label is not None


# --- what it cannot do


def test_an_option_that_it_does_not_heed_is_refused_by_name(cli, good, tmp_path):
    for options, names in (
        (["--layers", 3], ["layers"]),
        (["--sigma", 2, "--prompts", "visa"], ["sigma", "prompts"]),
        (["--backbone", "micro"], ["backbone"]),
        (["--precision", "bf16"], ["precision"]),
    ):
        done = cli("predict", good, "--method", "bright", *options, "--output", tmp_path / "out")
        assert (done.code, done.err.count("error: ")) == (2, 1)
        assert all(name in done.err for name in ("bright", "image_size", *names)), done.err
        assert not (tmp_path / "out").exists()
    with pytest.raises(AnomalyCLIPError, match="bright.*layers"):
        DetectorSpec(method="bright", layers=[3]).load()


def test_a_refusal_names_the_methods_that_have_the_option():
    with pytest.raises(
        AnomalyCLIPError, match=r"'anomalyclip' has no normal and no abnormal: leave them out, or "
    ):
        DetectorSpec("micro", normal=["good"], abnormal=["bad"]).load()
    with pytest.raises(
        AnomalyCLIPError, match=r"no window stride: leave it out, or use another method \(winclip\)"
    ):
        DetectorSpec("micro", window_stride=2).load()


def test_exporting_it_is_one_clear_message_and_leaves_no_file(cli, tmp_path):
    done = cli("export", "--method", "bright", "--output", tmp_path / "out" / "model.onnx")
    assert (done.code, done.err.count("error: ")) == (2, 1)
    assert "method 'bright' cannot be exported" in done.err
    assert "Traceback" not in done.err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    with pytest.raises(AnomalyCLIPError, match="'bright' cannot be exported"):
        export(DetectorSpec(method="bright"), tmp_path / "model.onnx")


def test_training_for_it_is_refused(root, tmp_path):
    from anomalyclip import train

    with pytest.raises(AnomalyCLIPError, match="method.*training"):
        train(root, DetectorSpec(method="bright"), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- the registry


def test_an_unknown_name_lists_all_methods_with_it(cli, good, tmp_path):
    done = cli("predict", good, "--method", "brihgt", "--output", tmp_path / "out")
    assert (done.code, done.err.count("error: ")) == (2, 1)
    assert "'brihgt'" in done.err
    assert f"expected one of {', '.join(METHODS)}" in done.err


@pytest.mark.parametrize("command", ["predict", "test", "calibrate", "export", "compare"])
def test_the_help_names_every_method_of_this_package(command, cli):
    own = [name for name, method in METHODS.items() if str(method.builder).startswith("anomalyclip.")]
    said = cli(command, "--help").out.replace("|", " ").replace("│", " ").replace(",", " ").split()
    assert len(own) >= 7
    assert set(own) <= set(said)


def test_the_registry_tells_which_methods_there_are():
    assert (next(iter(METHODS)), [*METHODS][-1]) == ("anomalyclip", "bright")
    assert len(METHODS) == len(set(METHODS))
    assert "bright" in METHODS
    assert "brihgt" not in METHODS
    assert METHODS["bright"] == Method("bright", Bright, frozenset({"image_size"}))


def test_a_builder_may_be_named_and_is_imported_when_it_is_needed():
    register("named", "tests.toy_methods:Dark", options=["image_size"])
    try:
        spec = DetectorSpec(method="named", image_size=28)
        assert spec.load().identity() == {"method": "dark", "image_size": 28}
    finally:
        METHODS.remove("named")


# --- by entry point

SHINY = """
from anomalyclip.methods import Method, register
from anomalyclip.scorer import Description

class Shiny:
    def __init__(self, spec):
        self.image_size = spec.image_size or 56
    def __call__(self, pixels):
        maps = pixels.max(axis=3).astype("float32") / 255
        return maps.max(axis=(1, 2)), maps
    def identity(self):
        return {"method": "shiny", "image_size": self.image_size}
    def describe(self):
        return Description("shiny pixels")

METHOD = Method("shiny", Shiny, frozenset({"image_size"}))
"""
DECORATED = SHINY.replace("class Shiny", '@register("shiny", options=["image_size"])\nclass Shiny')


def distribution(folder, target, module=SHINY):
    """What pip leaves of a package with one entry point."""
    folder.mkdir()
    (folder / "shiny_method.py").write_text(module)
    info = folder / "shiny_method-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shiny-method\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[anomalyclip.methods]\nshiny = {target}\n")
    return folder


def test_an_installed_package_brings_its_method_to_the_command_line(good, tmp_path):
    """A real process: nothing of this one's registry is there."""
    site = distribution(tmp_path / "site", "shiny_method:METHOD")
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "anomalyclip", "predict", str(good), "--output", str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": path}

    def run(*options):
        return subprocess.run([*command, *options], env=environment, capture_output=True, text=True)

    done = run("--method", "shiny")
    assert (done.returncode, done.stderr) == (0, "")
    first = json.loads((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()[0])
    assert first["pred_score"] == pytest.approx(np.asarray(open_image(first["image_path"])).max() / 255)
    refused = run("--method", "shiny", "--overwrite", "--layers", "3")
    assert (refused.returncode, "shiny" in refused.stderr, "layers" in refused.stderr) == (2, True, True)
    unknown = run("--method", "shine", "--overwrite")
    assert (unknown.returncode, ", shiny\n" in unknown.stderr) == (2, True)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of installed packages for this process; what it brought is forgotten after the test."""

    def make(target, module=SHINY) -> Path:
        folder = distribution(tmp_path / "site", target, module)
        monkeypatch.syspath_prepend(folder)
        assert entry_points(group="anomalyclip.methods", name="shiny")
        return folder

    yield make
    sys.modules.pop("shiny_method", None)
    METHODS._known.pop("shiny", None)


def test_an_entry_point_may_name_the_class_that_registers_itself(site):
    site("shiny_method:Shiny", DECORATED)
    assert DetectorSpec(method="shiny").load().identity()["method"] == "shiny"
    with pytest.raises(AnomalyCLIPError, match="shiny.*layers"):
        DetectorSpec(method="shiny", layers=[3]).load()


@pytest.mark.parametrize(
    ("target", "module", "says"),
    [
        ("shiny_method:Shiny", SHINY, "expected"),
        ("shiny_method:NOTHING", SHINY, "NOTHING"),
        ("nowhere:METHOD", SHINY, "nowhere"),
        ("shiny_method:METHOD", "import a_package_that_is_missing", "a_package_that_is_missing"),
        ("shiny_method:METHOD", "1 / 0", "division"),
    ],
)
def test_an_entry_point_that_cannot_be_used_is_one_error_and_harms_no_other_method(
    site, target, module, says
):
    site(target, module)
    with pytest.raises(AnomalyCLIPError, match=f"'shiny'.*{says}"):
        DetectorSpec(method="shiny").load()
    assert DetectorSpec(method="bright").load().identity()["method"] == "bright"
