"""What the commands do, the library does: the same results from three lines of Python."""

import json
import tempfile
import warnings
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from anomalyclip import (
    AnomalyCLIPError,
    AnomalyCLIPWarning,
    DetectorSpec,
    InputError,
    Threshold,
    calibrate,
    calibrate_labelled,
    evaluate,
    export,
    predicting,
    train,
)
from anomalyclip.engines.export import probe_pixels
from anomalyclip.engines.exported import ExportedScorer
from anomalyclip.errors import AnomalyCLIPNote
from anomalyclip.prompts import load_prompts
from tests.conftest import GOLDEN
from tests.generated_sets import make_set


@pytest.fixture(scope="module")
def backbone(tiny_state, tmp_path_factory):
    """The golden CLIP with two vision blocks."""
    prefix = "visual.transformer.resblocks."
    path = tmp_path_factory.mktemp("backbone") / "small.pt"
    torch.save(
        {k: v for k, v in tiny_state.items() if not k.startswith(prefix) or int(k.split(".")[3]) < 2}, path
    )
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("data") / "parts", normal=2, anomalous=2, side=56)


@pytest.fixture
def good(root):
    return root / "nut" / "test" / "good"


PROMPTS = GOLDEN / "paper_prompts.safetensors"


@pytest.fixture
def spec(backbone):
    return DetectorSpec(backbone, prompts=PROMPTS, image_size=56, sigma=2.0, layers=[1, 2])


@pytest.fixture
def model(backbone):
    """The same, as options."""
    sizes = ["--image-size", 56, "--sigma", 2, "--layers", 1, "--layers", 2]
    return ["--backbone", backbone, "--prompts", PROMPTS, *sizes]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder, beside an empty folder for temporary files."""
    for name in ("here", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "here"


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


class Track:
    """Counts what it is told."""

    def __init__(self):
        self.total, self.done = None, 0

    @contextmanager
    def __call__(self, what, total):
        self.total = total
        yield self.advance

    def advance(self):
        self.done += 1


# --- the same results


def test_predict_writes_what_the_command_writes(cli, model, spec, good, tmp_path):
    by_command, by_library = tmp_path / "command", tmp_path / "library"
    options = ["--threshold", 0.5, "--save", "map", "--save", "mask", "--save", "heatmap"]
    done = cli("predict", good, *model, *options, "--output", by_command)
    assert (done.code, done.complaints) == (0, [])
    track = Track()
    run = predicting.predict(
        spec.load(threshold=0.5), good, by_library, save=["map", "mask", "heatmap"], track=track
    )
    assert (run.folder, run.scored, run.failed, run.judged) == (by_library, 2, 0, True)
    assert (track.total, track.done) == (2, 2)
    assert files(by_library) == files(by_command)
    for name in files(by_library):
        assert (by_library / name).read_bytes() == (by_command / name).read_bytes(), name


def test_calibrate_returns_what_the_command_writes(cli, model, spec, good, tmp_path):
    rates = ["--false-alarm-rate", 0.6, "--false-pixel-share", 0.1]
    done = cli("calibrate", good, *model, *rates, "--output", tmp_path / "command.json")
    assert (done.code, done.complaints) == (0, [])
    track = Track()
    threshold = calibrate(spec, good, false_alarm_rate=0.6, false_pixel_share=0.1, track=track)
    threshold.to_file(tmp_path / "library.json")
    assert (tmp_path / "library.json").read_bytes() == (tmp_path / "command.json").read_bytes()
    assert (track.total, track.done) == (2, 2)
    assert all(line in done.out for line in threshold.info["says"])


def test_calibrate_takes_images_however_they_are_given(spec, good):
    detector, paths = spec.load(), sorted(good.iterdir())
    found = [
        calibrate(detector, images, false_alarm_rate=0.6)
        for images in (
            str(good),
            [good],
            paths,
            iter(paths),
            [path.read_bytes() for path in paths],
            f"{good}/*",
        )
    ]
    assert len({(threshold.score, threshold.pixel) for threshold in found}) == 1


@pytest.mark.parametrize("criterion", ["f1", "youden"])
def test_calibrate_labelled_returns_what_the_command_writes(criterion, cli, model, spec, root, tmp_path):
    options = ["--labelled", root, "--criterion", criterion]
    done = cli("calibrate", *options, *model, "--output", tmp_path / "command.json")
    assert (done.code, done.complaints) == (0, [])
    calibrate_labelled(spec, root, criterion=criterion).to_file(tmp_path / "library.json")
    assert (tmp_path / "library.json").read_bytes() == (tmp_path / "command.json").read_bytes()
    content = json.loads((tmp_path / "library.json").read_text())
    assert criterion in content["info"]["method"]


def test_evaluate_leaves_what_the_command_leaves(cli, model, spec, root, tmp_path):
    by_command, by_library = tmp_path / "command", tmp_path / "library"
    done = cli(
        *("test", root, *model, "--controls", "--compare", "--protocol", "exact", "--threshold", 0.5),
        *("--save", "map", "--output", by_command),
    )
    assert done.code == 0, done.err
    options = {"controls": True, "compare": True, "protocol": "exact", "threshold": 0.5, "save": ["map"]}
    result = evaluate(spec, root, output=by_library, **options)
    assert files(by_library) == files(by_command)
    same = [name for name in files(by_library) if name.endswith((".npy", ".csv", ".md", "settings.json"))]
    assert len(same) == 8 + 4
    for name in same:
        assert (by_library / name).read_bytes() == (by_command / name).read_bytes(), name
    ours, theirs = (json.loads((place / "results.json").read_text()) for place in (by_library, by_command))
    for found in (ours, theirs):
        del found["seconds"], found["peak_memory_mb"]
        for entry in (*found["results"], *found["controls"]):
            for one in (entry, *entry["classes"]):
                one.pop("seconds", None)
    assert ours == theirs
    assert result.mean == theirs["results"][0]["mean"]
    assert list(result.notes) == theirs["notes"]
    assert all(note in done.err for note in result.notes)
    assert result.not_beaten() == theirs["controls_not_beaten"]


def test_train_leaves_what_the_command_leaves(cli, backbone, root, tmp_path):
    by_command, by_library = tmp_path / "command", tmp_path / "library"
    done = cli(
        *("train", root, "--backbone", backbone, "--image-size", 56, "--epochs", 2, "--batch-size", 3),
        *("--seed", 5, "--val-fraction", 0.5, "--prompt-length", 3, "--learning-rate", 0.01),
        *("--output", by_command, "--cache", tmp_path / "cache-1"),
    )
    assert (done.code, done.complaints) == (0, [])
    records, track = [], Track()
    run = train(
        root,
        DetectorSpec(backbone, image_size=56),
        output=by_library,
        cache=tmp_path / "cache-2",
        epochs=2,
        batch_size=3,
        seed=5,
        val_fraction=0.5,
        prompt_length=3,
        learning_rate=0.01,
        on_record=records.append,
        track=track,
    )
    assert (run.finished, run.folder, run.prompts) == (True, by_library, by_library / "prompts.safetensors")
    assert (track.total, track.done) == (8, 8)
    assert files(by_library) == files(by_command)
    for name in (
        "prompts.safetensors",
        "prompts.pth",
        "metrics.jsonl",
        "settings.json",
        "checkpoints/state.pt",
    ):
        assert (by_library / name).read_bytes() == (by_command / name).read_bytes(), name
    lines = (by_library / "metrics.jsonl").read_text().splitlines()
    assert records == [json.loads(line) for line in lines]
    assert run.epochs == [record for record in records if "step" not in record]
    assert f"best epoch on the held-out images: {run.best_epoch}" in done.out
    assert load_prompts(run.prompts).length == 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_export_writes_what_the_command_writes(cli, model, spec, tmp_path):
    Threshold(score=0.5, pixel=0.4).to_file(tmp_path / "threshold.json")
    options, file = ["--tile", 100, "--dynamic-batch"], tmp_path / "model.onnx"
    done = cli("export", *model, *options, "--threshold", tmp_path / "threshold.json", "--output", file)
    assert (done.code, done.complaints) == (0, [])
    theirs, before = ExportedScorer(file), file.read_bytes()
    choices = {"threshold": tmp_path / "threshold.json", "dynamic_batch": True}
    with pytest.raises(AnomalyCLIPError, match="model.onnx.*exists.*overwrite"):
        export(replace(spec, tile=100), file, **choices)
    assert file.read_bytes() == before
    report = export(replace(spec, tile=100), file, **choices, overwrite=True)
    assert (report.files, report.size, report.images) == ((file,), file.stat().st_size, 4)
    ours = ExportedScorer(file)
    assert ours.card == theirs.card
    assert (ours.card.tile, ours.card.limits.score, ours.card.identity["sigma"]) == (100, 0.5, 2.0)
    pixels = probe_pixels(56)
    for one, other, original in zip(ours(pixels), theirs(pixels), spec.load().scorer(pixels), strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(one, original, atol=1e-4)


# --- evaluate


def test_an_evaluation_without_a_folder_leaves_nothing_behind(spec, root, here, tmp_path):
    before = files(root)
    result = evaluate(spec, root, controls=True)
    assert 0 <= result.mean["pixel_auroc"] <= 1
    assert list(here.iterdir()) == []
    assert list((tmp_path / "temporary").iterdir()) == []
    assert files(root) == before
    calibrate_labelled(spec, root)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_an_evaluation_that_fails_leaves_nothing_behind_either(spec, here, tmp_path):
    root = make_set(tmp_path / "broken", classes=("nut",), normal=1, anomalous=1, side=56)
    for path in root.glob("nut/test/*/*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(AnomalyCLIPError, match="none of its 2"):
        evaluate(spec, root)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_maps_are_evaluated_without_a_detector(spec, root, here, tmp_path):
    predicting.predict(spec, root, "predicted", save=["map"])
    before = files(here)
    result = evaluate(None, root, maps="predicted")
    assert result.mean == pytest.approx(evaluate(spec, root).mean)
    assert files(here) == before
    assert "predicted" in result.about["title"]


def test_several_data_sets_are_one_evaluation(spec, root, tmp_path):
    other = make_set(tmp_path / "others", classes=("x",), normal=2, anomalous=2, side=56, seed=1)
    both = evaluate(spec, [root, other])
    alone = [evaluate(spec, one).mean["image_auroc"] for one in (root, other)]
    assert [result.key for result in both.results] == ["parts", "others"]
    assert both.mean["image_auroc"] == pytest.approx(sum(alone) / 2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"formats": ["pdf"]}, "'pdf'.*json.*html"),
        ({"protocol": "published"}, "'published'.*paper.*exact"),
        ({"maps": "."}, "detector.*maps"),
        ({"dataset": ["mvtec", "visa"]}, "1 data sets, but 2"),
        ({"threshold": 2.0}, "2.0"),
        ({"resume": True}, "resume.*output"),
        ({"save": ["map"]}, "save.*output"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_loaded(options, says, root, here):
    with pytest.raises(AnomalyCLIPError, match=says):
        evaluate(DetectorSpec("no-such-backbone"), root, **options)
    assert list(here.iterdir()) == []


def test_there_must_be_something_to_evaluate(root):
    with pytest.raises(AnomalyCLIPError, match="detector.*maps"):
        evaluate(None, root)


# --- train


@pytest.fixture
def learn(backbone, root, tmp_path):
    """A short training."""

    def run(name, **options):
        settings = {"cache": tmp_path / "cache", "epochs": 3, "batch_size": 2, "prompt_length": 2} | options
        return train(root, DetectorSpec(backbone, image_size=56), output=tmp_path / name, **settings)

    return run


def test_an_unknown_choice_is_named_with_those_that_there_are(learn, tmp_path):
    with pytest.raises(AnomalyCLIPError, match="epoch, lr: .*batch_size.*epochs.*val_root"):
        learn("run", epoch=3, lr=1)
    with pytest.raises(AnomalyCLIPError, match="^root: "):
        learn("run", root=1)
    assert not (tmp_path / "run").exists()


def test_a_training_that_was_stopped_goes_on_to_the_same_bytes(learn, tmp_path):
    whole = learn("whole")
    records = []
    half = learn("stopped", on_record=records.append, stop=lambda: len(records) >= 3)
    assert (half.finished, half.epoch, half.step) == (False, 1, 3)
    assert not half.prompts.exists()
    with pytest.raises(AnomalyCLIPError, match="stopped already has results"):
        learn("stopped")
    rest = []
    done = learn("stopped", resume=True, on_record=rest.append)
    assert (whole.finished, done.finished) == (True, True)
    assert [record for record in records + rest if "step" in record] == [
        json.loads(line)
        for line in (whole.folder / "metrics.jsonl").read_text().splitlines()
        if '"step"' in line
    ], "every step was taken once"
    for name in ("prompts.safetensors", "prompts.pth", "metrics.jsonl", "checkpoints/state.pt"):
        assert (whole.folder / name).read_bytes() == (done.folder / name).read_bytes(), name
    with pytest.raises(AnomalyCLIPError, match="other settings.*epochs: 3 then, 4 now"):
        learn("stopped", resume=True, epochs=4)


def test_what_was_encoded_before_a_stop_is_kept(learn, tmp_path):
    asked = []

    def stop():
        asked.append(1)
        return len(asked) > 3

    with pytest.raises(AnomalyCLIPError, match="stopped.*kept"):
        learn("run", stop=stop)
    assert not (tmp_path / "run").exists()
    track = Track()
    assert learn("run", track=track, epochs=1).finished
    assert 0 < track.total < 8


def test_an_image_that_cannot_be_learned_from_is_an_error_unless_somebody_is_told(backbone, tmp_path):
    root = make_set(tmp_path / "parts", classes=("nut",), normal=2, anomalous=2, side=56)
    broken = root / "nut" / "test" / "good" / "001.png"
    broken.write_bytes(b"no image")
    spec, told = DetectorSpec(backbone, image_size=56), []
    options = {"cache": tmp_path / "cache", "epochs": 1}
    with pytest.raises(InputError, match=r"001\.png"):
        train(root, spec, output=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
    run = train(
        root, spec, output=tmp_path / "run", on_error=lambda path, error: told.append(path), **options
    )
    assert told == [broken]
    assert load_prompts(run.prompts).info["images"] == "3"


# --- images that cannot be used


def test_an_image_that_cannot_be_scored_is_an_error_unless_somebody_is_told(spec, tmp_path):
    root = make_set(tmp_path / "parts", classes=("nut",), normal=3, anomalous=2, side=56)
    good = root / "nut" / "test" / "good"
    (good / "001.png").write_bytes(b"no image")
    detector, told = spec.load(), []

    def on_error(image, error):
        told.append((str(image).rpartition("/")[2], isinstance(error, InputError)))

    for make in (
        lambda **options: calibrate(detector, good, false_alarm_rate=0.6, **options),
        lambda **options: calibrate_labelled(detector, root, **options),
    ):
        with pytest.raises(InputError, match=r"001\.png"):
            make()
        assert make(on_error=on_error).info["images"] in (2, 4)
    assert told == [("001.png", True)] * 2
    run = predicting.predict(detector, good, tmp_path / "out", on_error=on_error)
    assert (run.scored, run.failed, len(told)) == (2, 1, 3)
    assert "001.png" in (tmp_path / "out" / "errors.jsonl").read_text()
    result = evaluate(detector, root)
    assert len(result.failed) == 1
    assert "001.png" in result.failed[0]


# --- warnings


@pytest.fixture
def elsewhere(spec, paper_case, tmp_path):
    """The spec, with prompts that were learned at another size."""
    prompts = replace(paper_case.prompts, info={"image_size": "70"})
    prompts.save(tmp_path / "learned.safetensors")
    return replace(spec, prompts=str(tmp_path / "learned.safetensors"))


SAYS = "prompts were learned with other settings.*image_size: 70 then, 56 now"


def test_what_the_commands_warn_of_is_a_warning_in_python(elsewhere, root, good, tmp_path):
    for use in (
        elsewhere.load,
        lambda: predicting.predict(elsewhere, good, tmp_path / "out"),
        lambda: calibrate(elsewhere, good, false_alarm_rate=0.6),
        lambda: calibrate_labelled(elsewhere, root),
        lambda: evaluate(elsewhere, root),
    ):
        with pytest.warns(AnomalyCLIPWarning, match=SAYS) as caught:
            use()
        # Notes are of the bare weights, whose activation nothing says.
        assert len([one for one in caught if not issubclass(one.category, AnomalyCLIPNote)]) == 1


@pytest.mark.parametrize("command", ["predict", "calibrate", "test"])
def test_and_a_line_on_the_command_line_whatever_the_filters_say(
    command, cli, model, elsewhere, root, good, tmp_path
):
    data = root if command == "test" else good
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = cli(command, data, *model, "--prompts", elsewhere.prompts, "--output", tmp_path / "out")
    assert done.code == 0, done.err
    lines = [line for line in done.err.splitlines() if "were learned with other settings" in line]
    assert len(lines) == 1
    assert lines[0].startswith("warning: ")


def test_an_export_warns_of_it_too(elsewhere, tmp_path, monkeypatch):
    def enough(*rest, **named):
        raise InterruptedError

    monkeypatch.setattr("anomalyclip.engines.export._write_onnx", enough)
    with pytest.warns(AnomalyCLIPWarning, match=SAYS), pytest.raises(AnomalyCLIPError):
        export(elsewhere, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_training_without_masks_is_warned_of_here_and_there(cli, backbone, tmp_path):
    root = make_set(tmp_path / "parts", classes=("nut",), normal=1, anomalous=1, side=56)
    for mask in root.rglob("*_mask.png"):
        mask.unlink()
    options = {"cache": tmp_path / "cache", "epochs": 1}
    with pytest.warns(AnomalyCLIPWarning, match="mask"):
        train(root, DetectorSpec(backbone, image_size=56), output=tmp_path / "run", **options)
    done = cli(
        *("train", root, "--backbone", backbone, "--image-size", 56, "--epochs", 1),
        *("--cache", tmp_path / "cache", "--output", tmp_path / "other"),
    )
    assert done.code == 0, done.err
    assert [line.startswith("warning: ") for line in done.err.splitlines() if "mask" in line] == [True]
