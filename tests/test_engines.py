"""An exported file gives what PyTorch gives, says what it is, and runs where there is no PyTorch."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from anomalyclip.benchmark import ARCHITECTURES, random_model
from anomalyclip.clip.model import CLIP, CLIPConfig
from anomalyclip.demo import PICTURES as PICTURES_OF_THE_DEMO
from anomalyclip.demo import THRESHOLD
from anomalyclip.detector import Detector
from anomalyclip.engines import export as exporting
from anomalyclip.engines import libraries
from anomalyclip.engines.card import KEY, ModelCard
from anomalyclip.engines.export import export, probe_pixels
from anomalyclip.engines.exported import ExportedScorer
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.images import squash
from anomalyclip.prediction import Threshold
from anomalyclip.readers import open_image
from anomalyclip.tiling import Tiling
from tests.conftest import GOLDEN, torch_scorer
from tests.generated_sets import make_set

SMALL = CLIPConfig(32, 56, 14, 64, 2, 1, 64, 12, 1, 77, 49408)
# Of its first block: in, out, and two of the MLP. Of the last: in for the class token's query, in for keys and values
# of all tokens, out for the plain way and for the local one, and two of the MLP.
LINEAR_LAYERS = 10
PICTURES = sorted(GOLDEN.glob("*_[01].png"))

# A process in which every import of torch fails, whoever tries it.
WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in (
            "torch", "torchvision", "safetensors", "huggingface_hub", "tokenizers", "certifi",
            "onnx", "onnxscript", "openvino", "nncf", "matplotlib", "sklearn", "tensorboard",
        ):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
from anomalyclip.cli import main
sys.argv = ["anomalyclip", *sys.argv[1:]]
main()
"""


@pytest.fixture(scope="module")
def small_state(tiny_state):
    """The golden CLIP with two vision blocks: exporting all 24 takes half a minute."""
    prefix = "visual.transformer.resblocks."
    return {k: v for k, v in tiny_state.items() if not k.startswith(prefix) or int(k.split(".")[3]) < 2}


@pytest.fixture(scope="module")
def detector(small_state, paper_case):
    options = {"backbone": "/home/me/small", "prompts": "/home/me/paper", "image_size": 70, "dpam_layers": 1}
    scorer = torch_scorer(CLIP.frozen(SMALL, small_state), paper_case.prompts, **options)
    return Detector(scorer, threshold=Threshold(score=0.5, pixel=0.4, info={"images": 20}))


@pytest.fixture(scope="module")
def exported(detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export(detector, path, dynamic_batch=True)
    return path


def without_torch(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def with_card(source: Path, target: Path, **changes) -> Path:
    """A copy of an exported file whose card says something else; None for `card` drops it."""
    model = onnx.load(source)
    (entry,) = [entry for entry in model.metadata_props if entry.key == KEY]
    if "card" in changes:
        model.metadata_props.remove(entry)
    else:
        entry.value = json.dumps({**json.loads(entry.value), **changes})
    onnx.save(model, target)
    return target


def largest_difference(one, other):
    return max(np.abs(a - b).max() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_file_with_a_free_batch_size_gives_what_pytorch_gives(detector, exported, batch):
    pixels = probe_pixels(70)[:batch]
    assert largest_difference(ExportedScorer(exported)(pixels), detector.scorer(pixels)) < 1e-4


@pytest.mark.parametrize("rule", ["max", "top1", "mean"])
def test_a_file_makes_the_image_score_from_the_map_as_pytorch_does(
    detector, small_state, paper_case, tmp_path, rule
):
    options = {"image_size": 70, "dpam_layers": 1, "image_score": rule}
    scorer = torch_scorer(CLIP.frozen(SMALL, small_state), paper_case.prompts, **options)
    tiled = Detector(scorer, tiling=Tiling(64, overlap=0.5))
    export(tiled, tmp_path / "model.onnx", dynamic_batch=True)
    loaded, pixels = ExportedScorer(tmp_path / "model.onnx"), probe_pixels(70)
    for batch in (pixels[:1], pixels[1:]):
        assert largest_difference(loaded(batch), scorer(batch)) < 1e-4
    text, maps = detector.scorer(pixels)  # the same model, whose score is that of the texts
    pixels_counted = {"max": 1, "top1": 49, "mean": 4900}[rule]
    highest = np.sort(maps.reshape(4, -1), axis=1)[:, -pixels_counted:].mean(axis=1)
    np.testing.assert_allclose(loaded(pixels)[0], (text + highest) / 2, atol=1e-4)
    assert loaded.identity()["image_score"] == rule

    large = open_image(PICTURES[0]).convert("RGB").resize((150, 110))
    own, other = (one.predict(large) for one in (tiled, Detector.from_exported(tmp_path / "model.onnx")))
    assert other.anomaly_map.shape == (110, 150)  # the file says how images are cut
    assert other.pred_score == pytest.approx(own.pred_score, abs=1e-4)


def test_predictions_are_those_of_the_detector_that_was_exported(detector, exported):
    ours, theirs = (
        d.predict([str(p) for p in PICTURES[:3]])
        for d in (detector, Detector.from_exported(exported, threads=1))
    )
    for own, other in zip(ours, theirs, strict=True):
        assert other.pred_score == pytest.approx(own.pred_score, abs=1e-4)
        np.testing.assert_allclose(other.anomaly_map, own.anomaly_map, atol=1e-4)
        assert (other.threshold, other.pixel_threshold) == (0.5, 0.4)
        assert other.image_size == own.image_size


def test_the_file_says_what_it_is(exported, detector):
    card = ExportedScorer(exported).card
    assert (card.image_size, card.precision, card.labels) == (70, "fp32", ("normal", "anomalous"))
    assert card.identity == detector.identity()
    assert {"layers": [2], "dpam_layers": 1, "sigma": 4.0}.items() <= card.identity.items()
    assert card.threshold == {"score": 0.5, "pixel": 0.4, "info": {"images": 20}}
    assert (card.facts["backbone"], card.facts["prompts"]) == ("small", "paper")
    assert {"anomalyclip", "torch", "onnx"} <= card.made_with.keys()


def test_the_file_holds_nothing_of_this_machine(exported):
    content = exported.read_bytes()
    assert str(Path(exporting.__file__).parent).encode() not in content
    assert b"/home/me" not in content
    assert b"token_embedding" not in content  # the text tower stays behind


@pytest.mark.parametrize("format", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_half_precision_has_half_the_size(detector, exported, tmp_path, format):
    pytest.importorskip(format)
    report = export(
        detector, tmp_path / {"onnx": "m.onnx", "openvino": "m.xml"}[format], format=format, precision="fp16"
    )
    assert max(report.score_difference, report.map_difference) < 5e-3
    assert report.files[-1].stat().st_size < 0.6 * exported.stat().st_size
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in report.files}
    # One image at a time is what this file takes; more are run one by one.
    pixels = probe_pixels(70)
    assert largest_difference(ExportedScorer(report.files[0])(pixels), detector.scorer(pixels)) < 5e-3


def test_openvino_gives_what_pytorch_gives(detector, tmp_path):
    pytest.importorskip("openvino")
    export(detector, tmp_path / "model.xml", format="openvino", dynamic_batch=True)
    loaded = Detector.from_exported(tmp_path / "model.xml", threshold=0.25)
    pixels = probe_pixels(70)
    assert largest_difference(loaded.scorer(pixels), detector.scorer(pixels)) < 1e-4
    assert loaded.threshold == Threshold(score=0.25, pixel=0.25)
    automatic = ExportedScorer(tmp_path / "model.xml", providers=["auto"])  # which would like bfloat16
    assert largest_difference(automatic(pixels), detector.scorer(pixels)) < 1e-4
    with pytest.raises(AnomalyCLIPError, match=r"device 'abacus' is not available; this machine has: .*cpu"):
        ExportedScorer(tmp_path / "model.xml", providers=["abacus"])
    with pytest.raises(AnomalyCLIPError, match=r"OpenVINO cannot run it on cpu\.9"):
        ExportedScorer(tmp_path / "model.xml", providers=["cpu.9"])
    (tmp_path / "model.bin").unlink()
    with pytest.raises(AnomalyCLIPError, match=r"model\.bin, are missing"):
        ExportedScorer(tmp_path / "model.xml")


def test_int8_is_calibrated_on_the_users_images_and_stays_near(detector, exported, tmp_path):
    report = export(detector, tmp_path / "m.onnx", precision="int8", calibration=PICTURES)
    assert report.images == len(PICTURES)
    assert 0 < report.score_difference < 0.1
    assert 0 < report.map_difference < 0.1
    quantised, width = onnx.load(tmp_path / "m.onnx").graph.initializer, SMALL.vision_width
    matrices = [t for t in quantised if len(t.dims) == 2 and width in t.dims and min(t.dims) >= width]
    assert [t.data_type for t in matrices] == [onnx.TensorProto.INT8] * LINEAR_LAYERS


def test_the_card_of_an_int8_file_tells_what_it_was_calibrated_on(detector, tmp_path):
    digests = []
    for pictures in (PICTURES[:2], PICTURES[:2], PICTURES[1:3]):
        export(detector, tmp_path / "m.onnx", precision="int8", calibration=pictures, overwrite=True)
        digests.append(ExportedScorer(tmp_path / "m.onnx").identity()["calibration_sha256"])
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.slow
def test_openvino_int8_is_quantised_and_stays_near(detector, tmp_path):
    pytest.importorskip("nncf")
    report = export(detector, tmp_path / "m.xml", format="openvino", precision="int8", calibration=PICTURES)
    assert 0 < max(report.score_difference, report.map_difference) < 0.1
    model = libraries.openvino_core().read_model(tmp_path / "m.xml")
    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
    assert sum(op.get_element_type().to_string() == "i8" for op in constants) == LINEAR_LAYERS


@pytest.mark.slow
def test_openvino_int8_of_the_papers_width_and_size_can_be_loaded(tmp_path):
    """Quantised by nncf's own choice, attention included, OpenVINO 2026 refuses to compile it."""
    pytest.importorskip("nncf")
    two_blocks = replace(ARCHITECTURES["ViT-L-14-336"], vision_layers=2, text_layers=9)
    scorer = torch_scorer(*random_model(two_blocks), image_size=518, layers=[2], dpam_layers=1)
    options = {"format": "openvino", "precision": "int8", "calibration": PICTURES[:2], "dynamic_batch": True}
    assert export(Detector(scorer), tmp_path / "m.xml", **options).images == 2


def test_a_file_that_is_not_equal_is_not_written(detector, tmp_path, monkeypatch):
    monkeypatch.setitem(exporting.TOLERANCES, "fp32", 0.0)
    (tmp_path / "model.onnx").write_text("the former one")
    with pytest.raises(AnomalyCLIPError, match=r"model\.onnx: not written: .* differs from PyTorch by"):
        export(detector, tmp_path / "model.onnx", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "the former one"


def test_weights_that_one_onnx_file_cannot_hold_are_refused(detector, tmp_path, monkeypatch):
    """Beyond 1.5 GB PyTorch writes a second file, which would be lost; OpenVINO's form has no such limit."""
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 1000)
    with pytest.raises(AnomalyCLIPError, match=r"do not fit into one ONNX file; use --format openvino, or"):
        export(detector, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    pytest.importorskip("openvino")
    export(detector, tmp_path / "model.xml", format="openvino")
    pixels = probe_pixels(70)
    assert largest_difference(ExportedScorer(tmp_path / "model.xml")(pixels), detector.scorer(pixels)) < 1e-4


def test_of_many_calibration_images_those_of_every_folder_are_taken():
    images = [f"{product}/{number}.png" for product in "abcd" for number in range(50)]
    taken = exporting.spread(images, 128)
    assert (len(taken), len(set(taken))) == (128, 128)
    assert {path[0]: sum(other[0] == path[0] for other in taken) for path in taken} == dict.fromkeys(
        "abcd", 32
    )
    assert exporting.spread(images[:3], 128) == images[:3]


def test_a_file_that_is_replaced_halfway_does_not_load(detector, tmp_path, monkeypatch):
    """Killed between weights and model, the former model must not be left beside the new weights."""
    pytest.importorskip("openvino")
    export(detector, tmp_path / "model.xml", format="openvino")
    replace_file = os.replace

    def killed(source, target):
        if Path(target).suffix == ".xml":
            raise KeyboardInterrupt
        replace_file(source, target)

    monkeypatch.setattr(exporting.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        export(detector, tmp_path / "model.xml", format="openvino", overwrite=True)
    with pytest.raises(AnomalyCLIPError, match="no such file"):
        ExportedScorer(tmp_path / "model.xml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tflite"}, "format 'tflite': expected one of onnx, openvino"),
        ({"precision": "int4"}, "precision 'int4': expected one of fp32, fp16, int8"),
        ({"format": "openvino"}, r"must end in \.xml"),
        ({"precision": "int8"}, "needs calibration images"),
        ({"calibration": PICTURES}, "calibration images are only for int8"),
    ],
)
def test_impossible_exports_are_refused_before_anything_is_written(detector, tmp_path, options, message):
    with pytest.raises(AnomalyCLIPError, match=message):
        export(detector, tmp_path / "model.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_an_exported_detector_cannot_be_exported_again(exported, tmp_path):
    with pytest.raises(
        AnomalyCLIPError, match="method 'anomalyclip' cannot be exported: it does not run as one"
    ):
        export(Detector.from_exported(exported), tmp_path / "again.onnx")


def test_a_file_that_is_no_export_is_one_message(exported, tmp_path):
    (tmp_path / "text.onnx").write_text("not a model")
    (tmp_path / "page.xml").write_text("<html><body>Not found</body></html>")
    for path, message in [
        (tmp_path / "missing.onnx", "no such file"),
        (
            tmp_path / "page.xml",
            r"page\.xml: not a model that OpenVINO can read .*expected a file written by",
        ),
        (tmp_path / "text.onnx", r"text\.onnx: not a model that ONNX Runtime .* can load"),
        (with_card(exported, tmp_path / "other.onnx", card=None), "not one written by `anomalyclip export`"),
        (
            with_card(exported, tmp_path / "newer.onnx", version=99, made_with={"anomalyclip": "9.0"}),
            r"format 99, made by anomalyclip 9\.0; .* update anomalyclip",
        ),
        (
            with_card(exported, tmp_path / "newest.onnx", version=99, made_with=None),
            r"made by anomalyclip \(unknown\)",
        ),
        *(
            (with_card(exported, tmp_path / f"odd{number}.onnx", **odd), "metadata is damaged")
            for number, odd in enumerate(
                (
                    {"surprise": 1},
                    {"image_size": "70"},
                    {"threshold": {"score": 0.5, "x": 1}},
                    {"identity": None},
                )
            )
        ),
    ]:
        with pytest.raises(AnomalyCLIPError, match=message):
            Detector.from_exported(path)


def with_odd_patches(path, changed):
    """Change to how many patches the tokens of an image are arranged: the graph contradicts itself."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.int64 and values.ndim == 1 and values[-1] == 25:
            values = np.array([*values[:-1], 7])
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
            onnx.save(model, changed)
            return changed
    raise AssertionError


def that_fails_when_it_runs(path, changed):
    """Replace the graph by one that puts the pixels into a shape that they do not fit."""
    model, node = onnx.load(path), onnx.helper.make_node
    for part in (model.graph.node, model.graph.initializer, model.graph.value_info):
        del part[:]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([7, 11]), "shape"))
    model.graph.node.extend(
        [
            node("Cast", ["image"], ["floats"], to=onnx.TensorProto.FLOAT),
            node("Reshape", ["floats", "shape"], ["map"]),
            node("Reshape", ["floats", "shape"], ["score"]),
        ]
    )
    onnx.save(model, changed)
    return changed


def test_the_runtime_says_nothing_of_its_own_of_a_damaged_file(exported, tmp_path, capfd):
    """Its lines would name no file; what they say is in the error, which names it."""
    odd = with_odd_patches(exported, tmp_path / "odd.onnx")
    with pytest.raises(AnomalyCLIPError, match=r"odd\.onnx: .*ShapeInferenceError"):
        ExportedScorer(odd)
    failing = ExportedScorer(that_fails_when_it_runs(exported, tmp_path / "failing.onnx"))
    with pytest.raises(
        AnomalyCLIPError, match=r"failing\.onnx: does not run on CPUExecutionProvider \(.*Reshape"
    ):
        failing(probe_pixels(70))
    assert capfd.readouterr() == ("", "")


def test_a_card_without_a_version_is_damaged():
    with pytest.raises(AnomalyCLIPError, match=r"m\.onnx: its 'anomalyclip' metadata is damaged"):
        ModelCard.from_json("{}", name="m.onnx")


def test_pixels_of_another_size_or_type_are_refused(exported):
    scorer = ExportedScorer(exported)
    for pixels in (np.zeros((1, 84, 84, 3), np.uint8), np.zeros((1, 70, 70, 3), np.float32)):
        with pytest.raises(AnomalyCLIPError, match=r"takes uint8 \(B, 70, 70, 3\)"):
            scorer(pixels)


def test_results_that_are_no_numbers_are_refused(exported, tmp_path):
    model = onnx.load(exported)
    for tensor in model.graph.initializer:
        if sorted(tensor.dims) == [2, 32]:  # the text features
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(np.full(tensor.dims, np.nan, np.float32), tensor.name)
            )
    onnx.save(model, tmp_path / "nan.onnx")
    with pytest.raises(AnomalyCLIPError, match=r"nan\.onnx: returned NaN or infinite scores on CPUExecution"):
        ExportedScorer(tmp_path / "nan.onnx")(probe_pixels(70))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["m.onnx", "m.xml"])
def test_threads_may_share_a_file(detector, tmp_path, name):
    """OpenVINO's one request would be overwritten by the next call while its results are read."""
    export(detector, tmp_path / name, format={"m.onnx": "onnx", "m.xml": "openvino"}[name])
    scorer, pixels = ExportedScorer(tmp_path / name, threads=1), probe_pixels(70)
    alone = [scorer(pixels[at : at + 1]) for at in range(4)]
    with ThreadPoolExecutor(4) as pool:
        calls = [(at % 4, pool.submit(scorer, pixels[at % 4 : at % 4 + 1])) for at in range(400)]
        for at, call in calls:
            for together, expected in zip(call.result(), alone[at], strict=True):
                np.testing.assert_array_equal(together, expected)


def test_an_absent_provider_is_named_with_those_that_are_there(exported):
    with pytest.raises(
        AnomalyCLIPError, match=r"provider 'tensorrt' is not available; this ONNX Runtime has: .*cpu"
    ):
        ExportedScorer(exported, providers=["tensorrt", "cpu"])
    assert ExportedScorer(exported, providers=["CPUExecutionProvider"]).device == "CPUExecutionProvider"
    with pytest.raises(AnomalyCLIPError, match="0 threads"):
        ExportedScorer(exported, threads=0)


def test_predict_runs_an_exported_file_where_torch_cannot_be_imported(detector, exported, tmp_path):
    arguments = [*PICTURES[:2], "--model", exported, "--threads", 1, "--output", tmp_path / "out"]
    kinds = ["--save", "map", "--save", "heatmap", "--save", "mask"]
    done = without_torch("predict", *arguments, *kinds)
    assert done.returncode == 0, done.stderr
    assert done.stderr == (
        "note: threshold of the exported file: score 0.5000, pixel 0.4000 (made of unknown images)\n"
    )
    records = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    for record, expected in zip(records, detector.predict([str(p) for p in PICTURES[:2]]), strict=True):
        assert record["pred_score"] == pytest.approx(expected.pred_score, abs=1e-4)
        assert record["pred_label"] == expected.pred_label
        saved = np.load(tmp_path / "out" / record["files"]["map"])
        np.testing.assert_allclose(saved, expected.anomaly_map, atol=1e-4)
        assert open_image(tmp_path / "out" / record["files"]["mask"]).size == expected.image_size
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert (settings["image_size"], settings["sigma"]) == (70, 4.0)


def at_home(folder):
    """An environment in which what a library keeps for its user goes into this folder, and nothing says CI."""
    hidden = {"CI", "ORT_RUNNING_UNIT_TESTS", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"}
    return {name: value for name, value in os.environ.items() if name not in hidden} | {"HOME": str(folder)}


def test_running_an_exported_file_is_reported_to_nobody(exported, tmp_path):
    """ONNX Runtime keeps what it is about to send in the home folder."""
    (tmp_path / "home").mkdir()
    command = ["predict", PICTURES[0], "--model", exported, "--output", tmp_path / "out"]
    subprocess.run(
        [sys.executable, "-m", "anomalyclip", *map(str, command)],
        check=True,
        capture_output=True,
        env=at_home(tmp_path / "home"),
    )
    assert list((tmp_path / "home").rglob("*")) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["m.onnx", "m.xml"])
def test_exporting_is_reported_to_nobody(name, tmp_path):
    """Nor do OpenVINO and nncf tell of themselves; they too would keep a file at home."""
    (tmp_path / "home").mkdir()
    format = {"m.onnx": "onnx", "m.xml": "openvino"}[name]
    options = ["--format", format, "--precision", "int8", "--calibration", PICTURES[0]]
    subprocess.run(
        [sys.executable, "-m", "anomalyclip", "export", "--backbone", "micro", "--output", tmp_path / name]
        + [str(option) for option in options],
        check=True,
        capture_output=True,
        env=at_home(tmp_path / "home"),
    )
    left = {path.relative_to(tmp_path / "home").parts[0] for path in (tmp_path / "home").rglob("*")}
    assert not left & {"intel", "Intel", ".cache"}


SIGNALLED = """
import signal, subprocess, sys
from anomalyclip import Detector
first, second = Detector.from_exported(sys.argv[1]), Detector.from_exported(sys.argv[1])
del first
del second
signal.signal(signal.SIGCHLD, lambda *_: print("signalled", flush=True))
subprocess.run(["true"], check=True)
"""


@pytest.mark.slow
def test_a_process_outlives_its_openvino_models(detector, tmp_path):
    """A core of its own for each model leaves a process that dies of its next signal, where the processor has AMX."""
    pytest.importorskip("openvino")
    export(detector, tmp_path / "m.xml", format="openvino")
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, str(tmp_path / "m.xml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["signalled"])


def test_a_threshold_for_an_exported_file_is_calibrated_with_it_where_torch_cannot_be_imported(
    exported, cli, tmp_path
):
    arguments = ["calibrate", *PICTURES[:3], "--model", exported, "--false-alarm-rate", 0.4]
    done = without_torch(*arguments, "--output", tmp_path / "threshold.json")
    assert (done.returncode, done.stderr) == (0, "")
    threshold = Threshold.from_file(tmp_path / "threshold.json")
    scores = sorted(
        p.pred_score for p in Detector.from_exported(exported).predict([str(p) for p in PICTURES[:3]])
    )
    assert scores[1] < threshold.score <= scores[2]  # one of three may be called anomalous
    assert threshold.info["identity"] == ExportedScorer(exported).identity()
    refused = cli("calibrate", PICTURES[0], "--model", exported, "--sigma", 2)
    assert (refused.code, "--sigma cannot be changed with --model" in refused.err) == (2, True)


def test_an_exported_file_is_evaluated_where_torch_cannot_be_imported(exported, cli, tmp_path):
    root = make_set(tmp_path / "parts", normal=3, side=70)
    done = without_torch("test", root, "--model", exported, "--format", "json", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "small, prompts paper" in done.stdout
    about = json.loads((tmp_path / "out" / "results.json").read_text())["model"]
    assert about["model"] == str(exported)
    lines = (tmp_path / "out").glob("*/classes/*")
    assert list(lines)
    both = cli("test", root, "--model", exported, "--from-maps", tmp_path / "out")
    assert (both.code, "--model cannot be combined with --from-maps" in both.err) == (2, True)
    labelled = without_torch(
        "calibrate", "--labelled", root, "--model", exported, "--output", tmp_path / "t.json"
    )
    assert labelled.returncode == 0, labelled.stderr
    assert 0 < Threshold.from_file(tmp_path / "t.json").score < 1


def test_what_needs_pytorch_says_so_where_there_is_none():
    done = without_torch("predict", PICTURES[0], "--backbone", "micro")
    assert done.returncode == 2
    assert "this needs" in done.stderr
    assert "pip install" in done.stderr
    assert "--model FILE" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_exported_file_scores_tiles_as_pytorch_does(detector, exported, cli, tmp_path):
    large = open_image(PICTURES[0]).convert("RGB").resize((200, 150))
    large.save(tmp_path / "large.png")
    tiling = ["--tile", 64, "--overlap", 0.5]
    done = cli(
        "predict",
        tmp_path / "large.png",
        "--model",
        exported,
        *tiling,
        "--save",
        "map",
        "--output",
        tmp_path / "out",
    )
    assert done.code == 0, done.err
    tiled = Detector(detector.scorer, tiling=Tiling(64, overlap=0.5))
    expected = tiled.predict(tmp_path / "large.png")
    saved = np.load(next((tmp_path / "out" / "maps").rglob("*.npy")))
    assert saved.shape == (large.height, large.width)
    np.testing.assert_allclose(saved, expected.anomaly_map, atol=1e-4)


def test_options_that_the_file_has_decided_are_refused(cli, exported, tmp_path):
    done = cli("predict", PICTURES[0], "--model", exported, "--image-size", 84, "--sigma", 2)
    assert done.code == 2
    assert "--image-size, --sigma cannot be changed with --model" in done.err
    done = cli("predict", PICTURES[0], "--provider", "cpu")
    assert done.code == 2
    assert "--provider is for exported files" in done.err
    done = cli("predict", PICTURES[0], "--overlap", 0.5)
    assert (done.code, "--overlap is for tiles" in done.err) == (2, True)


def test_the_command_refuses_impossible_exports_before_a_backbone_is_fetched(cli, tmp_path):
    for options, message in [
        (["--output", tmp_path / "m.xml"], "must end in .onnx"),
        (["--output", tmp_path / "m.onnx", "--precision", "int8"], "needs calibration images"),
    ]:
        done = cli("export", "--backbone", tmp_path / "no_such_weights", *options)
        assert (done.code, message in done.err) == (2, True), done.err


def test_the_command_exports_and_tells_the_differences(cli, small_state, tmp_path):
    torch.save(small_state, tmp_path / "small.pt")
    options = ["--backbone", tmp_path / "small.pt", "--prompts", GOLDEN / "paper_prompts.safetensors"]
    done = cli("export", *options, "--image-size", 56, "--output", tmp_path / "deep" / "model.onnx")
    assert (done.code, done.complaints) == (0, [])
    assert "largest difference from PyTorch over 4 images: score" in done.out
    card = ExportedScorer(tmp_path / "deep" / "model.onnx").card
    assert (card.facts["backbone"], card.facts["prompts"]) == ("small.pt", "paper_prompts.safetensors")
    assert card.threshold is None


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 5e-3)])
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_exports_equal_the_published_code(golden, tiny_clip, tmp_path, format, precision, tolerance):
    scorer = torch_scorer(
        tiny_clip,
        golden.prompts,
        image_size=golden.image_size,
        layers=golden.layers,
        dpam_layers=golden.dpam_layers,
    )
    path = tmp_path / {"onnx": "m.onnx", "openvino": "m.xml"}[format]
    report = export(Detector(scorer), path, format=format, precision=precision, dynamic_batch=True)
    assert max(report.score_difference, report.map_difference) < tolerance
    pixels = np.stack([squash(open_image(image), golden.image_size) for image in golden.images])
    scores, maps = ExportedScorer(path)(pixels)
    np.testing.assert_allclose(scores, golden.arrays["score"], atol=tolerance)
    np.testing.assert_allclose(maps, golden.published_map("anomaly_map"), atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 5e-3)])
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_exports_of_the_embedded_backbone_judge_pictures_as_pytorch_does(
    tmp_path, format, precision, tolerance
):
    detector = Detector.from_pretrained("micro", threshold=THRESHOLD, device="cpu")
    path = tmp_path / {"onnx": "m.onnx", "openvino": "m.xml"}[format]
    export(detector, path, format=format, precision=precision)
    pictures = [str(path) for path in sorted(PICTURES_OF_THE_DEMO.iterdir())]
    loaded = Detector.from_exported(path)
    for ours, theirs in zip(loaded.predict(pictures), detector.predict(pictures), strict=True):
        assert ours.pred_score == pytest.approx(theirs.pred_score, abs=tolerance)
        np.testing.assert_allclose(ours.anomaly_map, theirs.anomaly_map, atol=tolerance)
        assert ours.pred_label == theirs.pred_label
