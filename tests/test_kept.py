"""Engines: the same detector from an exported file that is made once and kept in the cache folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalyclip import AnomalyCLIPError, Detector, DetectorSpec, evaluate, export, fit
from anomalyclip.data.synthetic.writer import write_dataset
from anomalyclip.demo import PICTURES
from anomalyclip.engines import kept
from anomalyclip.engines.kept import KeptScorer, prepare, scorer_for
from anomalyclip.engines.torch import TorchScorer
from anomalyclip.errors import AnomalyCLIPNote
from anomalyclip.evaluation.calibration import calibrate
from anomalyclip.methods import METHODS, Method
from anomalyclip.predicting import predict
from anomalyclip.runs import RunFolder, told

PICTURE = PICTURES / "slate_good.jpg"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("ANOMALYCLIP_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True, scope="module")
def clock():
    """Files are faster than PyTorch, whatever else this machine does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "_seconds", lambda scorer: 1.0 if isinstance(scorer, KeptScorer) else 2.0)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A cache folder with the ONNX file of micro."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANOMALYCLIP_CACHE", str(folder))
        with pytest.warns(AnomalyCLIPNote, match="is made once"):
            DetectorSpec("micro", engine="onnx").load()
    return folder


@pytest.fixture
def filled(made: Path, cache: Path) -> Path:
    shutil.copytree(made, cache)
    return cache


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"engine": "onnx", "precision": "bf16"},
            "engine onnx: it runs in float32 .precision bf16 is PyTorch's",
        ),
        (
            {"engine": "openvino", "compiled": True},
            "engine openvino: it runs in float32 .--compile is PyTorch's",
        ),
        ({"engine": "onnx", "device": "cuda"}, "engine onnx: it runs on the CPU"),
        (
            {"engine": "onnx", "references": ("s3://parts/a",)},
            "engine onnx: references must be on this machine .s3://parts/a is not",
        ),
        (
            {"engine": "onnx", "method": "anomalydino", "references": ("a",)},
            "engine onnx: images of method anomalydino have any proportions",
        ),
        (
            {"engine": "onnx", "method": "dark", "backbone": "ViT-L-14-336"},
            "engine onnx: method dark has no backbone",
        ),
        ({"engine": "tensorrt"}, "engine 'tensorrt': expected one of auto, torch, onnx, openvino"),
        ({"engine": "onnx", "method": "winclip"}, "method 'winclip' puts the name"),
    ],
)
def test_what_an_engine_cannot_run_is_refused(options, message, monkeypatch):
    monkeypatch.setitem(METHODS._known, "dark", Method("dark", lambda spec: None, frozenset({"image_size"})))
    with pytest.raises(AnomalyCLIPError, match=message):
        scorer_for(DetectorSpec(**{"backbone": "micro"} | options))


def test_an_exported_file_has_its_own_engine(tmp_path):
    with pytest.raises(AnomalyCLIPError, match="is an exported file, which has its own"):
        DetectorSpec(model=tmp_path / "model.onnx", engine="onnx")


def test_a_missing_engine_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setattr(kept, "find_spec", lambda name: None)
    with pytest.raises(
        AnomalyCLIPError, match=r"needs openvino: pip install 'anomalyclip\[export,openvino\]'"
    ):
        scorer_for(DetectorSpec("micro", engine="openvino"))


def test_auto_without_a_kept_file_is_pytorch():
    assert isinstance(DetectorSpec("micro").load().scorer, TorchScorer)


@pytest.mark.parametrize("images", [None, kept.PAYS_FROM - 1])
def test_few_images_are_not_worth_a_file(images, cache):
    prepare(DetectorSpec("micro"), images=images)
    assert not (cache / "engines").exists()


def test_auto_goes_on_with_pytorch_if_the_file_cannot_be_made(cache):
    cache.write_text("a file where the cache folder should be")
    with pytest.warns(
        AnomalyCLIPNote, match="PyTorch is used: .* cannot be kept in .*engines .*ANOMALYCLIP_CACHE"
    ):
        prepare(DetectorSpec("micro"), images=kept.PAYS_FROM)
    assert isinstance(DetectorSpec("micro").load().scorer, TorchScorer)


@pytest.mark.parametrize(
    ("engine", "told", "resumed"),
    [
        ("auto", "torch", "torch"),
        ("auto", "onnx", "onnx"),
        ("openvino", "torch", "openvino"),
        ("auto", None, "auto"),
    ],
)
def test_a_resumed_run_goes_on_with_its_engine_unless_another_is_chosen(engine, told, resumed, tmp_path):
    with RunFolder("predict", tmp_path, results="*.jsonl").begin(
        {}, about={} if told is None else {"engine": told}
    ):
        pass
    spec = DetectorSpec("micro", engine=engine)
    assert kept.of_run(spec, RunFolder("predict", tmp_path, resume=True, results="*.jsonl")).engine == resumed
    assert kept.of_run(spec, RunFolder("predict", tmp_path, results="*.jsonl")) == spec


def test_a_file_belongs_to_everything_that_decides_the_scores(tmp_path, monkeypatch):
    prompts = tmp_path / "prompts.safetensors"
    prompts.write_bytes((Path(kept.resolve_backbone("micro")) / "prompts.safetensors").read_bytes())
    spec = DetectorSpec("micro", prompts=str(prompts))
    first = kept._folder(spec, "onnx")
    assert kept._folder(DetectorSpec("micro", prompts=str(prompts), engine="onnx", tile=300), "onnx") == first
    assert kept._folder(DetectorSpec("micro", prompts=str(prompts), sigma=2.0), "onnx") != first
    assert kept._folder(spec, "openvino") != first
    os.utime(prompts, (1, 1))
    changed = kept._folder(spec, "onnx")
    assert changed != first
    monkeypatch.setattr(kept, "version", lambda name: "another")
    assert kept._folder(spec, "onnx") != changed


def test_a_file_with_references_belongs_to_them_too(tmp_path):
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name)
    spec = DetectorSpec("micro", references=[str(tmp_path / "a.png")])
    whole = DetectorSpec("micro", references=[str(tmp_path)])
    first = kept._folder(whole, "onnx")
    assert first != kept._folder(spec, "onnx") != kept._folder(DetectorSpec("micro"), "onnx")
    assert first != kept._folder(replace(whole, tile=300), "onnx")  # which also cuts the references
    os.utime(tmp_path / "b.png", (1, 1))
    assert kept._folder(whole, "onnx") != first


def test_auto_is_pytorch_where_findings_are_shown_beside_references():
    assert scorer_for(DetectorSpec("micro", references=[str(PICTURE)])) is None


@pytest.mark.slow
def test_references_are_in_the_file_which_warns_of_another_product_and_gives_a_threshold(tmp_path):
    write_dataset(tmp_path / "set", ["tablet", "paper"], normal=2, anomalous=1, seed=3)
    right = sorted((tmp_path / "set" / "tablet" / "test").rglob("*.png"))
    wrong = sorted((tmp_path / "set" / "paper" / "test" / "good").iterdir())
    spec = DetectorSpec("micro", references=tmp_path / "set" / "tablet" / "train" / "good", engine="onnx")
    with pytest.warns(AnomalyCLIPNote, match="is made once"):
        detector = spec.load()
    plain = replace(spec, engine="torch").load()
    for one, other in zip(detector.predict(right), plain.predict(right), strict=True):
        assert one.pred_score == pytest.approx(other.pred_score, abs=1e-5)
        np.testing.assert_allclose(one.anomaly_map, other.anomaly_map, atol=1e-5)
    assert detector.observations() == plain.observations() == []
    detector.predict(wrong)
    assert detector.observations()[0].startswith("2 of 2 images do not look like the references")
    assert detector.identity() == plain.identity()
    assert calibrate(detector, false_alarm_rate=0.5).info["images"] == 2


@pytest.mark.slow
def test_the_same_scores_come_from_a_file_that_is_made_once(filled):
    expected = DetectorSpec("micro", engine="torch").load()
    with warnings.catch_warnings():
        warnings.simplefilter("error", AnomalyCLIPNote)
        for spec in (
            DetectorSpec("micro", engine="onnx"),
            DetectorSpec("micro"),
        ):  # auto, now that it is there
            detector = spec.load()
            assert isinstance(detector.scorer, KeptScorer)
            one, other = detector.predict(PICTURE), expected.predict(PICTURE)
            assert one.pred_score == pytest.approx(other.pred_score, abs=1e-5)
            np.testing.assert_allclose(one.anomaly_map, other.anomaly_map, atol=1e-5)
            assert detector.identity() == expected.identity()
    assert len([path for path in (filled / "engines").iterdir() if path.is_dir()]) == 1


@pytest.mark.slow
def test_auto_leaves_a_file_that_is_slower_than_pytorch(filled):
    spec = DetectorSpec("micro")
    (note,) = (filled / "speed").iterdir()
    assert json.loads(note.read_text()) == {"seconds": {"torch": 2.0, "onnx": 1.0}}
    note.write_text(json.dumps({"seconds": {"torch": 2.0, "onnx": 2.2}}))
    assert isinstance(spec.load().scorer, TorchScorer)
    assert isinstance(replace(spec, engine="onnx").load().scorer, KeptScorer)
    note.write_text(json.dumps({"seconds": {"torch": 2.0, "onnx": 2.05}}))  # it starts faster
    assert isinstance(spec.load().scorer, KeptScorer)
    note.unlink()  # as on another machine that shares the folder
    assert isinstance(spec.load().scorer, KeptScorer)


@pytest.mark.slow
def test_a_file_that_was_found_to_be_slower_is_not_kept_for_auto_nor_made_again(cache, monkeypatch):
    monkeypatch.setattr(kept, "PAYS_FROM", 3)
    monkeypatch.setattr(kept, "_installed", lambda: iter(["onnx"]))
    monkeypatch.setattr(kept, "_seconds", lambda scorer: 2.0 if isinstance(scorer, KeptScorer) else 1.0)
    with pytest.warns(AnomalyCLIPNote, match="PyTorch is used: it is faster here than the ONNX Runtime file"):
        prepare(DetectorSpec("micro"), images=3)
    assert not [path for path in (cache / "engines").iterdir() if path.is_dir()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare(DetectorSpec("micro"), images=3)
    assert isinstance(DetectorSpec("micro").load().scorer, TorchScorer)


@pytest.mark.slow
@pytest.mark.parametrize("has_file", [False, True])
def test_a_resumed_run_gives_the_digits_of_one_that_was_never_stopped(has_file, made, cache, tmp_path):
    """Also if another run of ``auto`` makes a file meanwhile."""
    pictures = sorted(map(str, PICTURES.glob("*.jpg")))[:3]
    if has_file:
        shutil.copytree(made, cache)
    predict(DetectorSpec("micro"), pictures, tmp_path / "whole", save=["map"])
    predict(DetectorSpec("micro"), pictures[:1], tmp_path / "run", save=["map"])
    if not has_file:
        shutil.copytree(made, cache)
    assert predict(DetectorSpec("micro"), pictures, tmp_path / "run", save=["map"], resume=True).scored == 2
    for name in ("predictions.jsonl", *(f"maps/{Path(path).stem}.npy" for path in pictures)):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert told(tmp_path / "run")["engine"] == ("onnx" if has_file else "torch")


@pytest.mark.slow
def test_with_a_kept_file_pytorch_is_not_imported(filled):
    program = (
        "import sys; from anomalyclip import Detector; "
        f"print(Detector.from_pretrained('micro').predict({str(PICTURE)!r}).pred_score > 0, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


@pytest.mark.slow
def test_what_needs_pytorch_gets_it_and_thresholds_are_shared(filled, tmp_path):
    spec = DetectorSpec("micro", engine="onnx")
    detector = spec.load()
    found = calibrate(detector, [PICTURE] * 3, false_alarm_rate=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = Detector.from_pretrained("micro", engine="torch", threshold=found)
    assert same.threshold is found
    assert fit(detector, [PICTURE]).patches == 225
    assert export(detector, tmp_path / "model.onnx").score_difference < 1e-5
    write_dataset(tmp_path / "set", ["slate"], normal=2, anomalous=2, seed=1)
    result = evaluate(spec, tmp_path / "set")
    plain = evaluate(DetectorSpec("micro", engine="torch"), tmp_path / "set")
    assert result.mean == pytest.approx(plain.mean, abs=1e-6)


@pytest.mark.slow
def test_a_damaged_file_is_made_again_and_auto_does_without(filled):
    spec = DetectorSpec("micro", engine="onnx")
    path = spec.load().scorer.path
    path.write_bytes(path.read_bytes()[:1000])
    assert isinstance(DetectorSpec("micro").load().scorer, TorchScorer)
    with pytest.warns(AnomalyCLIPNote, match="is made once"):
        assert spec.load().predict(PICTURE).pred_score > 0
    assert path.stat().st_size > 1_000_000


@pytest.mark.slow
def test_only_the_newest_file_of_a_specification_is_kept(filled, monkeypatch):
    monkeypatch.setattr(kept, "version", lambda name: "next")
    with pytest.warns(AnomalyCLIPNote, match="is made once"):
        DetectorSpec("micro", engine="onnx").load()
    (note,) = (filled / "engines").glob("*/about.json")
    assert json.loads(note.read_text())["versions"]["onnxruntime"] == "next"


@pytest.mark.slow
def test_two_processes_that_start_at_once_make_one_file(cache):
    command = [sys.executable, "-m", "anomalyclip", "predict", str(PICTURE), "--backbone", "micro"]
    outputs = [cache.parent / name for name in ("a", "b")]

    def run(output):
        return subprocess.run(
            [*command, "--engine", "onnx", "--output", str(output)], capture_output=True, text=True
        )

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(run, outputs))
    assert [one.returncode for one in done] == [0, 0], done
    assert sum("is made once" in one.stderr for one in done) == 1
    texts = [(output / "predictions.jsonl").read_text() for output in outputs]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_a_killed_export_leaves_nothing_that_is_used(cache):
    program = "from anomalyclip import DetectorSpec; DetectorSpec('micro', engine='onnx').load()"
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    process.stderr.readline()  # the note: it has begun
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list((cache / "engines").glob("*/model.onnx"))
    assert isinstance(DetectorSpec("micro").load().scorer, TorchScorer)
    with pytest.warns(AnomalyCLIPNote, match="is made once"):
        DetectorSpec("micro", engine="onnx").load()
    assert not list((cache / "engines").glob(".*"))


@pytest.mark.slow
def test_a_full_disk_is_one_message_and_leaves_nothing(cache):
    program = (
        "import resource; from anomalyclip import AnomalyCLIPError, DetectorSpec\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))\n"  # as if the disk were full then
        "try: DetectorSpec('micro', engine='onnx').load()\n"
        "except AnomalyCLIPError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    assert "model.onnx cannot be written: File too large. Free some disk space" in done.stdout
    assert [path.suffix for path in (cache / "engines").iterdir()] == [".lock"]


@pytest.mark.slow
def test_many_images_make_the_file_for_auto(cache, monkeypatch):
    monkeypatch.setattr(kept, "PAYS_FROM", 3)
    with pytest.warns(AnomalyCLIPNote, match="is made once"):
        prepare(DetectorSpec("micro"), images=3)
    detector = DetectorSpec("micro").load()
    assert isinstance(detector.scorer, KeptScorer)
    assert detector.scorer.engine == "openvino"  # the faster of those that are installed
    expected = DetectorSpec("micro", engine="torch").load().predict(PICTURE)
    np.testing.assert_allclose(detector.predict(PICTURE).anomaly_map, expected.anomaly_map, atol=1e-5)
