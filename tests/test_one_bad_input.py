"""One bad input concerns itself alone: whatever goes wrong with it, the other images are scored."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalyclip.detector import Detector
from anomalyclip.errors import AnomalyCLIPError, AnomalyCLIPWarning, InputError
from anomalyclip.evaluation.calibration import calibrate
from anomalyclip.predicting import predict
from anomalyclip.readers import frames, open_image, size_of, suffixes
from anomalyclip.scorer import Description
from anomalyclip.tiling import Tiling
from tests.bad_files import associated_alpha, plant_special, within
from tests.generated_sets import make_set

MODES = (
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
)
DEEP = ("I;16", "I;16B", "I;16L", "I;16N")


class Choosy:
    """Scores an image by its brightness, and cannot score red ones; `broken` cannot score any."""

    image_size = 8

    def __init__(self, *, broken=False, largest_batch=100):
        self.broken, self.largest_batch, self.batches = broken, largest_batch, []

    def __call__(self, pixels):
        self.batches.append(len(pixels))
        red = (pixels == (255, 0, 0)).all(axis=(1, 2, 3))
        if self.broken or red.any():
            raise ZeroDivisionError("no blue in it")
        if len(pixels) > self.largest_batch:
            raise MemoryError
        maps = pixels.mean(axis=3, dtype=np.float32) / 255
        return maps.max(axis=(1, 2)), maps

    def identity(self):
        return {"method": "choosy"}

    def describe(self):
        return Description("choosy")


@pytest.fixture
def folder(tmp_path):
    """Seven images, the fourth of which is red."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for index in range(7):
        Image.new("RGB", (24, 20), "red" if index == 3 else (index * 20,) * 3).save(folder / f"{index}.png")
    return folder


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def names(folder):
    return [Path(record["image_path"]).stem for record in lines(folder / "predictions.jsonl")]


# --- decoding


def test_a_gray_tiff_with_associated_alpha_is_scored_as_its_colours_are(tmp_path):
    (tmp_path / "associated.tif").write_bytes(associated_alpha())
    with Image.open(tmp_path / "associated.tif") as file:
        assert file.mode == "La"
    image = open_image(tmp_path / "associated.tif")
    assert image.mode == "LA"
    assert image.getpixel((0, 0)) == (pytest.approx(100 * 255 / 128, abs=1), 128)
    (prediction,) = Detector(Choosy()).predict([tmp_path / "associated.tif"])
    assert prediction.pred_score == pytest.approx(199 / 255, abs=1 / 255)


@pytest.mark.parametrize("mode", [*MODES, *DEEP])
def test_an_image_of_any_mode_in_memory_is_scored(mode):
    assert 0 <= Detector(Choosy()).predict(Image.new(mode, (12, 10))).pred_score <= 1


def test_a_mask_of_any_mode_is_read_or_refused_by_name(tmp_path, monkeypatch):
    from anomalyclip.images import read_mask

    (tmp_path / "mask.tif").write_bytes(associated_alpha())
    assert read_mask(tmp_path / "mask.tif").all()
    monkeypatch.setattr(Image.Image, "convert", lambda *_: 1 / 0)
    with pytest.raises(InputError, match="mask.tif: damaged image: division by zero"):
        read_mask(tmp_path / "mask.tif")


def test_an_image_that_cannot_be_squashed_is_named_and_the_others_are_scored(folder, monkeypatch):
    resize = Image.Image.resize

    def choosy(image, *args, **options):
        if image.convert("RGB").getpixel((0, 0)) == (255, 0, 0):
            raise MemoryError
        return resize(image, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", choosy)
    run = predict(Detector(Choosy()), folder, folder.parent / "out", batch_size=4)
    assert (run.scored, run.failed) == (6, 1)
    (error,) = lines(run.folder / "errors.jsonl")
    assert error["image_path"] == f"{folder}/3.png"
    assert error["error"] == f"{folder}/3.png: cannot be made ready for the model: not enough memory"


# --- scoring


@pytest.mark.parametrize("batch_size", [1, 2, 4, 7])
def test_an_image_that_cannot_be_scored_is_named_and_the_rest_of_its_batch_is_scored(folder, batch_size):
    run = predict(Detector(Choosy()), folder, folder.parent / "out", batch_size=batch_size)
    assert names(run.folder) == ["0", "1", "2", "4", "5", "6"]
    (error,) = lines(run.folder / "errors.jsonl")
    assert error == {
        "image_path": f"{folder}/3.png",
        "error": f"{folder}/3.png: cannot be scored: no blue in it",
    }


def test_with_tiles_too_an_image_that_cannot_be_scored_is_named_and_the_rest_goes_on(folder):
    run = predict(Detector(Choosy(), tiling=Tiling(16)), folder, folder.parent / "out", batch_size=2)
    assert names(run.folder) == ["0", "1", "2", "4", "5", "6"]
    assert "cannot be scored: no blue in it" in lines(run.folder / "errors.jsonl")[0]["error"]


def test_without_somebody_to_tell_the_error_comes_after_the_images_before_it(folder):
    stream = Detector(Choosy()).stream(sorted(folder.iterdir()), batch_size=7)
    assert [round(next(stream).pred_score * 255) for _ in range(3)] == [0, 20, 40]
    with pytest.raises(InputError, match=r"3\.png: cannot be scored: no blue in it"):
        next(stream)


def test_whoever_gave_an_array_is_told_which_one_failed():
    red, gray = (np.full((8, 8, 3), color, np.uint8) for color in ((255, 0, 0), (9, 9, 9)))
    told = []
    found = list(
        Detector(Choosy()).stream([gray, red], batch_size=2, on_error=lambda *args: told.append(args))
    )
    assert len(found) == 1
    assert told[0][0] is red
    assert str(told[0][1]) == "ndarray in memory: cannot be scored: no blue in it"


def test_a_model_that_can_score_nothing_ends_the_run_at_once_with_its_own_error(folder):
    model = Choosy(broken=True)
    with pytest.raises(ZeroDivisionError, match="no blue in it"):
        predict(Detector(model), folder, folder.parent / "out", batch_size=2)
    assert model.batches == [2, 1]  # the batch, and a gray image that shows that it is not the images' fault


def test_a_batch_that_is_too_large_is_scored_one_by_one_and_that_is_said(folder):
    (folder / "3.png").unlink()
    with pytest.warns(
        AnomalyCLIPWarning, match=r"batch of 6 images .*not enough memory.* smaller batch size"
    ):
        run = predict(Detector(Choosy(largest_batch=2)), folder, folder.parent / "out", batch_size=6)
    assert (run.scored, run.failed) == (6, 0)


def test_calibration_leaves_out_what_cannot_be_scored(folder):
    told = []
    threshold = calibrate(
        Detector(Choosy()),
        folder,
        false_alarm_rate=0.2,
        batch_size=4,
        on_error=lambda *args: told.append(args),
    )
    assert threshold.info["images"] == 6
    assert [str(image) for image, _ in told] == [f"{folder}/3.png"]


# --- drawing and writing


def test_an_image_that_cannot_be_drawn_leaves_no_file_and_the_others_are_written(folder):
    (folder / "3.png").unlink()

    def draw(photograph, prediction):
        if prediction.image_path.endswith("2.png"):
            raise ValueError("out of colours")
        return photograph

    run = predict(Detector(Choosy()), folder, folder.parent / "out", save=["map", "heatmap"], draw=draw)
    assert names(run.folder) == ["0", "1", "4", "5", "6"]
    assert [error["error"] for error in lines(run.folder / "errors.jsonl")] == [
        f"{folder}/2.png: its results cannot be made: out of colours"
    ]
    for kind in ("maps", "heatmaps"):
        assert sorted(path.name[0] for path in (run.folder / kind).iterdir()) == ["0", "1", "4", "5", "6"]


def test_an_encoders_error_is_not_taken_for_a_full_disk(folder):
    class Odd(Image.Image):
        def save(self, *_args, **_options):
            raise OSError("encoder error -2")

    run = predict(
        Detector(Choosy()), [folder / "1.png"], folder.parent / "out", save=["heatmap"], draw=lambda *_: Odd()
    )
    assert (run.scored, run.failed) == (0, 1)
    assert "cannot be written: encoder error -2" in lines(run.folder / "errors.jsonl")[0]["error"]


# --- data sets


@pytest.fixture
def root(tmp_path):
    root = make_set(tmp_path / "set", classes=("nut",), normal=3, anomalous=3, side=56)
    (root / "nut/test/good/001.png").unlink()
    (root / "nut/test/good/001.tif").write_bytes(associated_alpha())
    return root


@pytest.fixture
def model(paper_case, tiny_backbone, tmp_path):
    paper_case.prompts.save(tmp_path / "prompts.safetensors")
    return ["--backbone", tiny_backbone, "--prompts", tmp_path / "prompts.safetensors", "--image-size", 56]


def test_associated_alpha_is_evaluated(cli, root, model, tmp_path):
    done = cli("test", root, *model, "--output", tmp_path / "out")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "out/results.json").read_text())["results"][0]["classes"][0]["normal"] == 3


@pytest.mark.slow
def test_associated_alpha_is_learned_from(cli, root, tiny_backbone, tmp_path, monkeypatch):
    monkeypatch.setenv("ANOMALYCLIP_CACHE", str(tmp_path / "cache"))
    done = cli(
        *("train", root, "--backbone", tiny_backbone, "--image-size", 56, "--epochs", 1),
        *("--output", tmp_path / "run"),
    )
    assert done.code == 0, done.err


def test_a_case_that_cannot_be_drawn_is_said_and_its_score_counts(cli, root, model, tmp_path, monkeypatch):
    monkeypatch.setattr("anomalyclip.evaluation.cases.heat_map", lambda _: 1 / 0)
    done = cli("test", root, *model, "--output", tmp_path / "out")
    assert (
        "warning: not drawn in the report: nut/test/good/000.png: cannot be drawn: division by zero"
        in done.err
    )
    assert json.loads((tmp_path / "out/results.json").read_text())["results"][0]["classes"][0]["normal"] == 3


def test_a_damaged_mask_costs_one_sample_and_not_the_training(
    cli, root, tiny_backbone, tmp_path, monkeypatch
):
    monkeypatch.setenv("ANOMALYCLIP_CACHE", str(tmp_path / "cache"))
    (root / "nut/ground_truth/spot/001_mask.png").write_bytes(b"torn")
    done = cli(
        *("train", root, "--backbone", tiny_backbone, "--image-size", 56, "--epochs", 1),
        *("--output", tmp_path / "run"),
    )
    assert done.code == 1
    assert "001_mask.png: not an image of a known format" in done.err
    assert "error: skipped because they cannot be used: 1 file" in done.err
    assert (tmp_path / "run/prompts.safetensors").is_file()


# --- pipes, sockets, devices


@pytest.mark.parametrize(
    ("kind", "says"), [("pipe", r"a named pipe \(FIFO\)"), ("socket", "a socket"), ("device", "a device")]
)
def test_what_is_no_regular_file_is_refused_without_opening_it_by_every_reader(kind, says, tmp_path):
    for suffix in sorted(suffixes()):
        path = plant_special(tmp_path / f"a{suffix}", kind)
        for use in (open_image, size_of, lambda path: list(frames(path))):
            with within(10), pytest.raises(InputError, match=rf"a{suffix}: is {says}; expected a file"):
                use(path)


@pytest.mark.parametrize("kind", ["pipe", pytest.param("socket", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "command", ["test", "prepare", pytest.param("train", marks=pytest.mark.slow), "predict"]
)
def test_in_a_data_set_they_are_named_and_the_rest_counts(
    command, kind, cli, root, model, tmp_path, monkeypatch
):
    monkeypatch.setenv("ANOMALYCLIP_CACHE", str(tmp_path / "cache"))
    plant_special(root / "nut/test/good/007.png", kind)
    plant_special(root / "nut/test/good/008.png", kind)
    shutil.rmtree(root / "nut/ground_truth")
    arguments = {
        "test": ["test", root, *model, "--output", tmp_path / "out"],
        "train": ["train", root, *model[:2], "--image-size", 56, "--epochs", 1, "--output", tmp_path / "out"],
        "prepare": ["prepare", root, "--check"],
        "predict": ["predict", root, *model, "--output", tmp_path / "out"],
    }[command]
    with within(100):
        done = cli(*arguments)
    assert done.code == 1, done.err
    said = done.out if command == "prepare" else done.err
    assert said.count("expected a file") == 2
    assert "007.png" in said


def test_a_mask_and_a_list_of_a_data_set_may_be_no_regular_file_either(cli, root, model, tmp_path):
    mask = root / "nut/ground_truth/spot/001_mask.png"
    mask.unlink()
    plant_special(mask, "pipe")
    with within(60):
        done = cli("test", root, *model, "--output", tmp_path / "out")
    assert done.code == 1
    assert "001_mask.png: is a named pipe" in done.err


# --- formats


def eps():
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"


def test_a_file_with_eps_content_never_starts_ghostscript(tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("gs", "gswin32c", "gswin64c"):
        (programs / name).write_text(f"#!/bin/sh\ntouch '{tmp_path}/started'\n")
        (programs / name).chmod(0o755)
    (tmp_path / "photograph.png").write_bytes(eps())
    code = (
        "import sys; from anomalyclip.readers import open_image, frames; from anomalyclip.errors import InputError\n"
        "for source in (sys.argv[1], open(sys.argv[1], 'rb').read()):\n"
        "    try: list(frames(source))\n"
        "    except InputError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "photograph.png"],
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.count("not an image of a known format") == 2
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM"])
def test_the_documented_formats_are_told_by_content_whatever_the_name(format, tmp_path):
    Image.new("RGB", (8, 6), "gray").save(tmp_path / "any.dat", format)
    assert open_image(tmp_path / "any.dat").size == (8, 6)


@pytest.mark.parametrize("format", ["ICO", "TGA", "PCX", "SGI", "JPEG2000", "PDF", "EPS"])
def test_other_formats_are_refused_under_any_name(format, tmp_path):
    Image.new("RGB", (16, 16), "gray").save(tmp_path / "a.png", format)
    with pytest.raises(AnomalyCLIPError, match=r"a\.png: not an image of a known format \(PNG, JPEG, BMP"):
        open_image(tmp_path / "a.png")
