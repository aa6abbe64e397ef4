"""`index.html`, `predictions.csv` and `sheet.jpg`: a run to look at, bounded, and the same after a kill."""

import csv
import json
import os
import re
import warnings
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from anomalyclip.detector import Detector
from anomalyclip.errors import AnomalyCLIPError, AnomalyCLIPNote, AnomalyCLIPWarning
from anomalyclip.overview import Thumbnails, summarize, write_page, write_table
from anomalyclip.predicting import predict
from anomalyclip.prediction import Prediction, Threshold
from anomalyclip.scorer import Description
from anomalyclip.writers import PredictionWriter

LIMITS = Threshold(score=0.5, pixel=0.5, info={"method": "normal images", "images": 20, "model": "a lamp"})


class Brightness:
    """Scores an image by its mean gray value: what comes out is known beforehand."""

    image_size = 8

    def __call__(self, pixels):
        maps = pixels.mean(axis=3, dtype=np.float32) / 255
        return maps.mean(axis=(1, 2)), maps

    def identity(self):
        return {"method": "brightness"}

    def describe(self):
        return Description("a lamp")


def detector(threshold=LIMITS):
    return Detector(Brightness(), threshold=threshold)


@pytest.fixture
def images(tmp_path):
    """Twelve gray images, the later the brighter."""
    folder = tmp_path / "parts"
    (folder / "left").mkdir(parents=True)
    for number in range(12):
        place = folder / "left" if number % 2 else folder
        Image.new("L", (60, 40), 20 * number).save(place / f"{number:02}.png")
    return folder


class Page(HTMLParser):
    """What a page holds: the paths of its cards in their order, every address in it, its text."""

    def __init__(self, folder):
        super().__init__()
        self.source = (folder / "index.html").read_text(encoding="utf-8")
        self.cards, self.addresses, self.tags, self.text = [], [], set(), ""
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.add(tag)
        if tag == "li" and "title" in values:
            self.cards.append(values["title"])
        self.addresses += [values[name] for name in ("src", "href", "srcset", "action") if name in values]

    def handle_data(self, data):
        self.text += data


def test_the_page_shows_the_most_anomalous_first_with_scores_verdicts_and_the_threshold(images, tmp_path):
    predict(detector(), images, tmp_path / "out", save=["heatmap"])
    page = Page(tmp_path / "out")
    expected = [
        images / ("left" if number % 2 else "") / f"{number:02}.png" for number in reversed(range(12))
    ]
    assert page.cards == [str(path) for path in expected]
    assert "Predictions for " in page.text
    assert f"Images in {images}" in page.text
    assert (
        "0.5000 for images and 0.5000 for pixels (calibrated on 20 normal images, with a lamp)" in page.text
    )
    for text in (
        "12scored",
        "5anomalous",
        "7normal",
        "0.8627anomalous11.png",
        "This page shows all 12 images",
    ):
        assert text in page.text, text
    assert page.source.count('class="bad">anomalous<') == 5
    assert "heatmaps/left/11_heatmap.png" in page.addresses


def test_the_page_needs_nothing_but_itself(images, tmp_path):
    predict(detector(), images, tmp_path / "out")
    page = Page(tmp_path / "out")
    assert {address.partition(",")[0] for address in page.addresses} == {"data:", "data:image/jpeg;base64"}
    assert not re.search(r"https?:|url\(|@import|<link rel=.stylesheet", page.source)
    assert "default-src 'none'" in page.source


def test_what_files_are_called_does_nothing_to_the_page(images, tmp_path):
    names = [
        "<img src=x onerror=alert(1)>.png",
        '"><script>1</script>.png',
        "猫.png",
        os.fsdecode(b"\xff.png"),
        "a#?%&.png",
    ]
    for name in names:
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 250).save(images / name, "png")
    predict(detector(), images, tmp_path / "out", save=["heatmap", "csv"])
    page = Page(tmp_path / "out")
    assert len(page.cards) == 12 + len(names)
    assert page.source.count("<script") == 1
    assert page.source.count("<img") == 12 + len(names)
    assert "onerror=alert(1)&gt;.png" in page.source
    assert str(images / "猫.png") in page.cards
    assert "heatmaps/a%23%3F%25%26_heatmap.png" in page.addresses
    assert "heatmaps/%FF_heatmap.png" in page.addresses
    with open(
        tmp_path / "out" / "predictions.csv", encoding="utf-8", errors="surrogateescape", newline=""
    ) as file:
        assert {str(images / name) for name in names} <= {row["image_path"] for row in csv.DictReader(file)}


def test_of_many_images_the_page_and_the_folder_keep_as_many_pictures_as_are_shown(images, tmp_path):
    out = tmp_path / "out"
    with PredictionWriter(out) as writer:
        thumbnails = Thumbnails(out, shown=3)
        for prediction in detector().stream(sorted(images.rglob("*.png"), key=lambda path: path.name)[::-1]):
            if thumbnails.wants(prediction):
                thumbnails.draw(prediction)
            writer.write(prediction)
            thumbnails.settle(prediction)
            assert len(list((out / ".thumbnails").iterdir())) <= 3
    write_page(out, summarize(out, shown=3))
    page = Page(out)
    assert [path[-6:] for path in page.cards] == ["11.png", "10.png", "09.png"]
    assert page.source.count("data:image/jpeg") == 3
    assert "This page shows the 3 most anomalous of 12 images" in page.text


def test_of_many_lines_counts_and_the_most_anomalous_are_kept(tmp_path):
    record = {**detector().predict(np.zeros((8, 8), np.uint8)).to_dict(), "image_path": "a.png", "files": {}}
    lines = "".join(
        json.dumps(record | {"pred_score": (i + 0.5) / 2000, "image_path": f"x/{i}.png"}) + "\n"
        for i in range(2000)
    )
    (tmp_path / "predictions.jsonl").write_text(lines)
    summary = summarize(tmp_path, shown=5)
    assert (summary.scored, len(summary.top), summary.folder) == (2000, 5, "x")
    assert [entry.image_path for entry in summary.top[:2]] == ["x/1999.png", "x/1998.png"]
    assert summary.normal_scores == [40] * 50


def test_a_run_that_was_killed_and_resumed_ends_with_the_page_of_the_whole_run(images, tmp_path):
    saved = ["csv", "sheet"]
    predict(detector(), images, tmp_path / "whole", save=saved)

    def killed(path, error):
        raise SystemExit

    (images / "05x.png").write_bytes(b"torn")
    with pytest.raises(SystemExit):
        predict(detector(), images, tmp_path / "killed", save=saved, on_error=killed)
    assert not (tmp_path / "killed" / "index.html").exists()
    (tmp_path / "killed" / ".thumbnails" / ("0" * 24 + ".jpg")).write_bytes(b"of an image without a line")
    (images / "05x.png").unlink()
    run = predict(detector(), images, tmp_path / "killed", save=saved, resume=True)
    assert 0 < run.scored < 12
    for name in ("index.html", "predictions.csv", "sheet.jpg"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    thumbnails = sorted(path.name for path in (tmp_path / "killed" / ".thumbnails").iterdir())
    assert thumbnails == sorted(path.name for path in (tmp_path / "whole" / ".thumbnails").iterdir())


def test_a_picture_that_cannot_be_drawn_again_is_missing_and_nothing_else(images, tmp_path):
    def odd(image, prediction):
        if prediction.pred_score > 0.85:
            raise ValueError("odd colours")
        return image

    run = predict(detector(), images, tmp_path / "out", draw_small=odd)
    assert (run.scored, run.failed) == (12, 0)
    page = Page(tmp_path / "out")
    assert (len(page.cards), page.source.count("<img"), page.text.count("no picture")) == (12, 11, 1)
    next((tmp_path / "out" / ".thumbnails").iterdir()).write_bytes(b"changed by somebody")
    predict(detector(), images, tmp_path / "out", save=["sheet"], resume=True)
    assert Page(tmp_path / "out").text.count("no picture") == 2


def test_what_failed_is_on_the_page(images, tmp_path):
    for number in range(103):
        (images / f"{number:03}b.png").write_bytes(b"torn")
    predict(detector(), images, tmp_path / "out")
    page = Page(tmp_path / "out")
    assert "103 images could not be used" in page.text
    assert f"{images}/000b.png: " in page.text
    assert "... and 3 more in errors.jsonl" in page.text


def test_a_page_that_is_somebody_else_s_is_not_lost(images, tmp_path):
    (tmp_path / "index.html").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(AnomalyCLIPError, match=r"index\.html is not from `anomalyclip predict`"):
            predict(detector(), images, tmp_path, overwrite=overwrite)
    assert (tmp_path / "index.html").read_text() == "precious"
    predict(detector(), images, tmp_path / "out")
    predict(detector(), images / "left", tmp_path / "out", overwrite=True)
    assert len(Page(tmp_path / "out").cards) == 6


def test_the_table_has_a_row_for_each_line_and_no_cell_is_a_formula(images, tmp_path, monkeypatch):
    monkeypatch.chdir(images)
    (images / "11=cmd.png").write_bytes((images / "left" / "11.png").read_bytes())
    with PredictionWriter(tmp_path / "out", save=["map"]) as writer:
        for path in ("00.png", "11=cmd.png"):
            writer.write(detector().predict(path))
        whole = np.ones((8, 8), np.float32)
        fields = {"pred_score": 1.0, "anomaly_map": whole, "image_size": (60, 40)}
        writer.write(Prediction(image_path="=1+1.png", **fields).with_threshold(0.5))
    write_table(tmp_path / "out")
    with open(tmp_path / "out" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image_path"] for row in rows] == ["00.png", "11=cmd.png", "./=1+1.png"]
    assert [row["map"] for row in rows] == ["maps/00.npy", "maps/11=cmd.npy", "maps/=1+1.npy"]
    assert (rows[0]["pred_score"], rows[0]["pred_label"], rows[0]["regions"]) == ("0.0", "False", "0")
    assert [rows[2][name] for name in ("pred_label", "width", "height", "regions", "largest_region")] == [
        *("True", "60", "40", "1", "2400")
    ]


def remarks(*arguments, **options):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        predict(*arguments, **options)
    found = [entry for entry in told if issubclass(entry.category, AnomalyCLIPWarning)]
    return [str(entry.message) for entry in found if not issubclass(entry.category, AnomalyCLIPNote)]


def test_it_is_said_when_model_or_threshold_do_not_suit_the_images(images, tmp_path):
    assert remarks(detector(), images, tmp_path / "good") == []
    low = Threshold(score=0.05, pixel=0.5)
    (said,) = remarks(detector(low), images, tmp_path / "all")
    assert said.startswith(
        "11 of 12 images are anomalous. Unless most of them are defective, the threshold or the model"
    )
    assert "does not suit these images" in unescape(Page(tmp_path / "all").text)
    for number in range(12):
        Image.new("L", (8, 8), 250).save(next(images.rglob(f"{number:02}.png")))
    (said,) = remarks(detector(None), images, tmp_path / "high")
    assert said.startswith("12 of 12 scores are above 0.9.")
    for number in range(12):
        Image.new("L", (8, 8), 100).save(next(images.rglob(f"{number:02}.png")))
    (said,) = remarks(detector(), images, tmp_path / "alike")
    assert said.startswith(
        "all 12 scores lie between 0.3922 and 0.3922: the model hardly tells these images apart"
    )
