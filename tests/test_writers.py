"""Predictions on disk: one line each, files beside them, and nothing lost or left half-done by a kill."""

import json
import os
import signal
import subprocess
import sys
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalyclip.errors import AnomalyCLIPError, InputError
from anomalyclip.prediction import Prediction
from anomalyclip.visualize import captioned, overlay
from anomalyclip.writers import PredictionWriter

RAMP = np.tile(np.linspace(0, 1, 8, dtype=np.float32), (8, 1))


def predicted(path, **fields):
    fields = {"pred_score": 0.25, "anomaly_map": RAMP, "image_size": (40, 20), **fields}
    return Prediction(image_path=str(path), **fields).with_threshold(0.5)


def records(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def paths(folder):
    return [record["image_path"] for record in records(folder)]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_line_is_there_as_soon_as_it_is_written_and_in_the_order_of_the_images(tmp_path):
    with PredictionWriter(tmp_path / "out") as writer:
        for name in ("b.png", "a.png", "ü\n.png"):
            writer.write(predicted(name))
            assert paths(tmp_path / "out")[-1] == name
    assert paths(tmp_path / "out") == ["b.png", "a.png", "ü\n.png"]
    assert records(tmp_path / "out")[0] == {**predicted("b.png").to_dict(), "files": {}}


def test_maps_heat_maps_and_masks_lie_under_the_relative_path(tmp_path):
    photograph = tmp_path / "in" / "line 1" / "a.png"
    photograph.parent.mkdir(parents=True)
    Image.new("RGB", (40, 20), "tan").save(photograph)
    out = tmp_path / "out"
    prediction = predicted(photograph)
    with PredictionWriter(out, save=("mask", "map", "heatmap")) as writer:
        record = writer.write(prediction, name="line 1/a.png")
    assert record["files"] == {
        "map": "maps/line 1/a.npy",
        "heatmap": "heatmaps/line 1/a_heatmap.png",
        "mask": "masks/line 1/a_mask.png",
    }
    assert files(out) == sorted([*record["files"].values(), "predictions.jsonl"])
    anomaly_map = np.load(out / record["files"]["map"])
    assert anomaly_map.dtype == np.float32
    assert (anomaly_map == RAMP).all()
    mask = np.asarray(Image.open(out / record["files"]["mask"]))
    assert (mask.dtype, mask.shape) == (np.uint8, (20, 40))
    assert (mask == np.where(np.arange(40) < 20, 0, 255)).all()
    heat = Image.open(out / record["files"]["heatmap"])
    assert heat.tobytes() == captioned(Image.open(photograph), prediction).tobytes()


def test_the_drawing_of_heat_maps_can_be_chosen(tmp_path):
    image = Image.new("RGB", (40, 20), "tan")
    draw = partial(overlay, alpha=0.0, contour=False)
    with PredictionWriter(tmp_path, save=["heatmap"], draw=draw) as writer:
        record = writer.write(predicted("memory.png"), image=image)
    assert Image.open(tmp_path / record["files"]["heatmap"]).tobytes() == image.tobytes()


def test_images_of_one_name_do_not_overwrite_each_other(tmp_path):
    with PredictionWriter(tmp_path, save=["map"]) as writer:
        names = {
            path: writer.write(predicted(path), name=name)["files"]["map"]
            for path, name in [("a.png", None), ("a.jpg", None), ("x/a.png", "a.png"), ("A.png", None)]
        }
    assert names == {
        "a.png": "maps/a.npy",
        "a.jpg": "maps/a.jpg.npy",
        "x/a.png": "maps/a.png.npy",
        "A.png": "maps/A.png~2.npy",
    }
    with PredictionWriter(tmp_path, save=["map"], resume=True) as writer:
        assert writer.write(predicted("y/a.png"), name="a.png")["files"]["map"] == "maps/a.png~3.npy"
    assert len(files(tmp_path)) == 6


def test_a_resumed_run_knows_the_names_that_are_taken_whatever_was_saved(tmp_path):
    image = Image.new("RGB", (40, 20))
    with PredictionWriter(tmp_path, save=["mask", "heatmap"]) as writer:
        writer.write(predicted("a.png"), image=image)
    with PredictionWriter(tmp_path, save=["mask", "heatmap"], resume=True) as writer:
        assert writer.write(predicted("a.jpg"), image=image)["files"] == {
            "heatmap": "heatmaps/a.jpg_heatmap.png",
            "mask": "masks/a.jpg_mask.png",
        }


def test_a_name_is_cut_by_an_image_s_ending_alone(tmp_path):
    with PredictionWriter(tmp_path, save=["map"]) as writer:
        for path, file in (
            ("b/x.tif#2", "b/x#2"),
            ("b/x.tif#3", "b/x#3"),
            ("v1.2", "v1.2"),
            ("scan.TIFF", "scan"),
            (".png", ".png"),
            ("b/.png", "b/.png"),
        ):
            assert writer.write(predicted(path))["files"]["map"] == f"maps/{file}.npy"


@pytest.mark.parametrize("path", ["../../x.png", "/x.png", "a/../../../x.png", "..", "/"])
def test_no_file_is_written_outside_the_output_folder(tmp_path, path):
    out = tmp_path / "deep" / "out"
    with PredictionWriter(out, save=["map"]) as writer:
        record = writer.write(predicted(path))
    assert (out / record["files"]["map"]).resolve().is_relative_to(out.resolve() / "maps")
    assert len(files(tmp_path)) == len(files(out)) == 2


def test_predictions_that_are_there_are_not_touched_unless_asked_for(tmp_path):
    with PredictionWriter(tmp_path, save=["map"]) as writer:
        writer.write(predicted("a.png"))
    with pytest.raises(AnomalyCLIPError, match="resume it, overwrite it"):
        PredictionWriter(tmp_path)
    assert paths(tmp_path) == ["a.png"]
    mine = tmp_path / "maps" / "mine.npy"
    mine.touch()
    with PredictionWriter(tmp_path, overwrite=True) as writer:
        assert list((tmp_path / "maps").iterdir()) == [mine], (
            "what the former run wrote is gone, and nothing else"
        )
        assert len(writer.done) == 0
        writer.write(predicted("b.png"))
    assert paths(tmp_path) == ["b.png"]


@pytest.mark.parametrize(
    "named",
    [
        {"map": "settings.json"},
        {"map": "maps/../settings.json"},
        {"map": "maps/notes.txt"},
        {"map": "heatmaps/mine.png"},
        {"report": "maps/mine.npy"},
        {"map": ["maps/mine.npy"]},
        {"map": "maps/mine.npy\0"},
        ["maps/mine.npy"],
    ],
)
def test_a_planted_line_deletes_nothing_that_a_run_does_not_write(named, tmp_path):
    mine = [
        tmp_path / name for name in ("settings.json", "maps/notes.txt", "heatmaps/mine.png", "maps/mine.npy")
    ]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "predictions.jsonl").write_text(json.dumps({"image_path": "a.png", "files": named}) + "\n")
    with PredictionWriter(tmp_path, overwrite=True):
        assert [path for path in mine if not path.exists()] == []


@pytest.mark.parametrize("link", ["maps", "maps/line 1"])
def test_nothing_is_deleted_through_a_link(link, tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    with PredictionWriter(out, save=["map"]) as writer:
        writer.write(predicted("0.png"))
        writer.write(predicted("line 1/a.png"))
    (out / link).rename(elsewhere)
    (out / link).symlink_to(elsewhere)
    before = files(tmp_path)
    with pytest.raises(
        AnomalyCLIPError, match=rf"{link}.* leads through a link to {elsewhere}.*: remove the link"
    ):
        PredictionWriter(out, overwrite=True)
    assert files(tmp_path) == before
    assert len(records(out)) == 2


def test_an_output_folder_may_itself_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    with PredictionWriter(tmp_path / "out", save=["map"]) as writer:
        writer.write(predicted("a.png"))
    with PredictionWriter(tmp_path / "out", overwrite=True):
        assert files(tmp_path / "disk") == ["predictions.jsonl"]


def test_a_resumed_run_goes_on_after_what_is_done_and_tries_failed_images_again(tmp_path):
    with PredictionWriter(tmp_path) as writer:
        writer.write(predicted("a.png"))
        writer.write_error("b.png", InputError("b.png: damaged"))
    assert json.loads((tmp_path / "errors.jsonl").read_text()) == {
        "image_path": "b.png",
        "error": "b.png: damaged",
    }
    with PredictionWriter(tmp_path, resume=True) as writer:
        assert "a.png" in writer.done
        assert "b.png" not in writer.done
        writer.write(predicted("b.png"))
    assert paths(tmp_path) == ["a.png", "b.png"]
    assert not (tmp_path / "errors.jsonl").exists()


def test_a_run_of_any_length_is_resumed_line_by_line(tmp_path):
    line = {"image_path": "", "files": {}, "value_range": None, "padding": "x" * 200_000}
    with (tmp_path / "predictions.jsonl").open("w") as file:
        file.writelines(json.dumps({**line, "image_path": f"{number}.png"}) + "\n" for number in range(50))
        file.write('{"image_path"')
    size = (tmp_path / "predictions.jsonl").stat().st_size
    tracemalloc.start()
    try:
        PredictionWriter(tmp_path, resume=True).close()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "predictions.jsonl").stat().st_size == size - len('{"image_path"')
    assert peak < size / 4


def test_a_torn_last_line_is_dropped(tmp_path):
    with PredictionWriter(tmp_path) as writer:
        writer.write(predicted("a.png"))
        writer.write(predicted("b.png"))
    whole = (tmp_path / "predictions.jsonl").read_bytes()
    (tmp_path / "predictions.jsonl").write_bytes(whole[:-1])  # all but the line's end
    with PredictionWriter(tmp_path, resume=True) as writer:
        assert "a.png" in writer.done
        assert "b.png" not in writer.done
        writer.write(predicted("b.png"))
    assert (tmp_path / "predictions.jsonl").read_bytes() == whole


KILLED = """
import sys
import numpy as np
from anomalyclip.prediction import Prediction
from anomalyclip.writers import PredictionWriter

anomaly_map = np.zeros((64, 64), np.float32)
with PredictionWriter(sys.argv[1], save=["map"]) as writer:
    for i in range(10**9):
        fields = {"pred_score": 0.5, "anomaly_map": anomaly_map, "image_size": (9, 9)}
        writer.write(Prediction(image_path=f"{i}.png", **fields))
        print(i, flush=True)
"""


def test_a_killed_run_keeps_every_line_that_was_written_and_can_be_resumed(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    with process:
        while int(process.stdout.readline()) < 50:
            pass
        os.kill(process.pid, signal.SIGKILL)
        written = 51 + len(process.stdout.read().splitlines())
    stray = tmp_path / "maps" / ".x.npy.1-0.tmp"  # as a kill may leave one
    stray.write_bytes(b"half")
    with PredictionWriter(tmp_path, save=["map"], resume=True) as writer:
        done = len(paths(tmp_path))
        assert f"{done - 1}.png" in writer.done
        assert written <= done <= written + 1
        writer.write(predicted("last.png"))
    assert paths(tmp_path) == [*(f"{i}.png" for i in range(done)), "last.png"]
    assert not stray.exists()
    assert all(np.load(tmp_path / record["files"]["map"]).ndim == 2 for record in records(tmp_path))


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "predictions.jsonl").write_text('{"image_path": "a.png", "files": {}}\n{"ima\n{}\n')
    with pytest.raises(AnomalyCLIPError, match=r"predictions\.jsonl, line 2 is damaged"):
        PredictionWriter(tmp_path, resume=True)


def test_a_run_is_not_resumed_with_files_that_the_first_part_lacks(tmp_path):
    with PredictionWriter(tmp_path, save=["map"]) as writer:
        writer.write(predicted("a.png"))
    with pytest.raises(AnomalyCLIPError, match="without mask files"):
        PredictionWriter(tmp_path, save=["map", "mask"], resume=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_clear_error(tmp_path):
    (tmp_path / "predictions.jsonl").symlink_to("/dev/full")
    with (
        PredictionWriter(tmp_path, overwrite=True) as writer,
        pytest.raises(
            AnomalyCLIPError, match=r"predictions\.jsonl cannot be written: No space left on device"
        ),
    ):
        writer.write(predicted("a.png"))


def test_a_folder_that_cannot_be_written_to_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AnomalyCLIPError, match=r"file/out/predictions\.jsonl cannot be written"):
        PredictionWriter(tmp_path / "file" / "out")
    (tmp_path / "maps").write_text("")
    with (
        PredictionWriter(tmp_path, save=["map"]) as writer,
        pytest.raises(AnomalyCLIPError, match=r"maps/a\.npy cannot be written"),
    ):
        writer.write(predicted("a.png"))
    assert records(tmp_path) == []  # no line without its files


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save": ["maps"]}, "maps.*choose from map, heatmap, mask"),
        ({"resume": True, "overwrite": True}, "cannot be combined"),
    ],
)
def test_unusable_options_are_named(tmp_path, options, message):
    with pytest.raises(AnomalyCLIPError, match=message):
        PredictionWriter(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_written_is_said(tmp_path):
    with PredictionWriter(tmp_path, save=["mask"]) as writer:
        with pytest.raises(AnomalyCLIPError, match="masks need a pixel threshold"):
            writer.write(predicted("a.png").with_threshold(None))
        with pytest.raises(AnomalyCLIPError, match="without image_path"):
            writer.write(Prediction(pred_score=0.5, anomaly_map=RAMP, image_size=(4, 4)))


@pytest.mark.parametrize("save", ["map", "heatmap", "mask"])
def test_a_disk_that_takes_no_more_is_not_taken_for_a_damaged_image(save, tmp_path):
    """NumPy and Pillow say only that something was not written: the system's own word counts, and ends the run."""
    code = (
        "import resource, signal, sys; import numpy as np; from PIL import Image\n"
        "from anomalyclip.prediction import Prediction; from anomalyclip.writers import PredictionWriter\n"
        "from anomalyclip.errors import AnomalyCLIPError, InputError\n"
        "noise = np.random.default_rng(0).random((99, 99), np.float32)\n"
        "prediction = Prediction(pred_score=0.5, anomaly_map=noise, image_size=(99, 99), image_path='a.png')\n"
        "image = Image.fromarray((noise * 255).astype(np.uint8))\n"
        "writer = PredictionWriter(sys.argv[1], save=[sys.argv[2]])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (99, 99))\n"
        "try: writer.write(prediction.with_threshold(0.5), image=image)\n"
        "except AnomalyCLIPError as error: print(type(error) is AnomalyCLIPError, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), save], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("True ")
    assert "cannot be written: File too large. Free" in done.stdout
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["predictions.jsonl"]
