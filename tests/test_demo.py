"""`anomalyclip demo`: the main job out of the box, without any network."""

import json
import socket
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def done(cli, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the demo must not touch the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    return cli("demo")


def test_the_demo_tells_most_flawless_pictures_from_most_defective_ones(done, tmp_path):
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in (tmp_path / "demo" / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    flawless = [line for line in lines if "good" in line["image_path"]]
    defective = [line for line in lines if "good" not in line["image_path"]]
    assert (len(flawless), len(defective)) == (5, 7)
    alarms = {Path(line["image_path"]).stem for line in flawless if line["pred_label"]}
    assert alarms <= {"honeycomb_good"}, "no other false alarm than the one in the README's picture"
    found = {Path(line["image_path"]).stem for line in defective if line["pred_label"]}
    assert found >= {
        "chipboard_hole",
        "corduroy_stain",
        "linen_cut",
        "snakeskin_contamination",
        "wicker_thread",
    }
    assert "--backbone micro" in done.out
    assert "ViT-L-14-336" in done.out


def test_the_demo_leaves_its_pictures_heat_maps_and_one_sheet(done, tmp_path):
    folder = tmp_path / "demo"
    pictures = sorted(path.name for path in (folder / "pictures").iterdir())
    assert len(pictures) == 12
    assert sorted(path.name for path in (folder / "heatmaps").iterdir()) == [
        f"{Path(name).stem}_heatmap.png" for name in pictures
    ]
    page = (folder / "index.html").read_text()
    assert page.count("data:image/jpeg") == 12
    assert all(f"heatmaps/{Path(name).stem}_heatmap.png" in page for name in pictures)
    assert "To look at them, open demo/index.html" in done.out
    with Image.open(folder / "demo.png") as sheet:
        assert sheet.width > 600
        assert sheet.height > 800


def test_the_pictures_that_it_leaves_score_the_same_when_they_are_predicted(done, cli, tmp_path):
    options = ["--backbone", "micro", "--threshold", "demo/threshold.json"]
    again = cli("predict", "demo/pictures", *options, "--output", "again")
    assert again.code == 0
    notes = again.err.splitlines()
    assert len(notes) == 2
    assert notes[0].startswith(
        "note: threshold: score 0.6953, pixel 0.5643 (calibrated on 600 generated images"
    )
    assert notes[1].startswith("note: the micro backbone is small, and has only seen defects that were drawn")

    def scores(name):
        lines = (tmp_path / name / "predictions.jsonl").read_text().splitlines()
        return {
            line["image_path"]: (line["pred_score"], line["pred_label"]) for line in map(json.loads, lines)
        }

    again, before = scores("again"), scores("demo")
    assert again.keys() == before.keys()
    for path, (score, label) in again.items():
        assert (score, label) == (pytest.approx(before[path][0], abs=1e-6), before[path][1])


def test_results_that_are_not_of_a_demo_are_not_overwritten(cli, tmp_path):
    mine = tmp_path / "demo" / "threshold.json"
    mine.parent.mkdir()
    mine.write_text("precious")
    done = cli("demo", "--output", mine.parent)
    assert done.code == 2
    assert f"{mine.parent} was not made by the demo, but has threshold.json" in done.err.replace("\n", " ")
    assert [path.name for path in mine.parent.iterdir()] == ["threshold.json"]
    assert mine.read_text() == "precious"


@pytest.mark.parametrize("name", ["predictions.jsonl", "errors.jsonl", "demo.png"])
def test_nothing_that_a_demo_would_write_over_is_lost(cli, tmp_path, name):
    (tmp_path / name).write_text("precious")
    done = cli("demo", "--output", tmp_path)
    assert (done.code, f"has {name}" in done.err.replace("\n", " ")) == (2, True)
    assert (tmp_path / name).read_text() == "precious"


@pytest.mark.slow
def test_a_demo_of_another_version_with_other_pictures_is_replaced(done, cli, tmp_path):
    (tmp_path / "demo" / "pictures" / "slate_good.jpg").unlink()
    assert cli("demo").code == 0
    assert (tmp_path / "demo" / "pictures" / "slate_good.jpg").exists()


@pytest.mark.slow
def test_an_earlier_demo_is_replaced_and_a_folder_is_named_as_it_was_given(done, cli, tmp_path):
    assert cli("demo").code == 0
    odd = tmp_path / "a[b] [x]"
    again = cli("demo", "--output", odd)
    assert again.code == 0, again.err
    assert str(odd / "demo.png") in again.out


def test_a_place_that_cannot_be_written_to_is_one_line(cli, tmp_path):
    (tmp_path / "file").touch()
    done = cli("demo", "--output", tmp_path / "file" / "demo")
    assert done.code == 2
    assert "cannot be written" in done.err
    assert "Traceback" not in done.err
