"""`anomalyclip demo`: the main job out of the box, without any network."""

import json
import socket

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
    right = [line["pred_label"] == ("good" not in line["image_path"]) for line in lines]
    assert sum(right) >= 9
    assert "--backbone micro" in done.out
    assert "ViT-L-14-336" in done.out


def test_the_demo_leaves_its_pictures_heat_maps_and_one_sheet(done, tmp_path):
    folder = tmp_path / "demo"
    pictures = sorted(path.name for path in (folder / "pictures").iterdir())
    assert len(pictures) == 12
    assert sorted(path.name for path in (folder / "heatmaps").iterdir()) == [
        f"{name}.png" for name in pictures
    ]
    with Image.open(folder / "demo.png") as sheet:
        assert sheet.width > 600
        assert sheet.height > 800


def test_the_pictures_that_it_leaves_score_the_same_when_they_are_predicted(done, cli, tmp_path):
    options = ["--backbone", "micro", "--threshold", "demo/threshold.json"]
    again = cli("predict", "demo/pictures", *options, "--output", "again")
    assert (again.code, again.err) == (0, "")

    def scores(name):
        lines = (tmp_path / name / "predictions.jsonl").read_text().splitlines()
        return {
            line["image_path"]: (line["pred_score"], line["pred_label"]) for line in map(json.loads, lines)
        }

    again, before = scores("again"), scores("demo")
    assert again.keys() == before.keys()
    for path, (score, label) in again.items():
        assert (score, label) == (pytest.approx(before[path][0], abs=1e-6), before[path][1])
