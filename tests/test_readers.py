"""Whatever a user hands over becomes images, one by one, and each can be opened again by its id."""

import io
import json
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalyclip import Detector, DetectorSpec, calibrate, predicting
from anomalyclip.errors import AnomalyCLIPError, InputError
from anomalyclip.inputs import find_images
from anomalyclip.readers import (
    READERS,
    Frame,
    Reader,
    frames,
    locate,
    open_image,
    reader_for,
    register,
    size_of,
    suffixes,
)
from tests.generated_sets import make_set
from tests.toy_methods import Bright


class ToyReader(Reader):
    """A file of colour names, a line an image; it remembers which lines it has decoded."""

    suffixes = frozenset({".toy"})

    def __init__(self):
        self.decoded = []

    def frames(self, path):
        with open(path) as lines:
            for number, color in enumerate(lines, start=1):
                self.decoded.append(number)
                yield Frame(f"{path}#{number}", Image.new("RGB", (4, 3), color.strip()))


@pytest.fixture(autouse=True)
def registry():
    """Whatever a test registers is gone after it."""
    before = list(READERS)
    yield
    READERS[:] = before


@pytest.fixture
def toy():
    reader = ToyReader()
    register(reader)
    return reader


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, with two images in x.toy."""
    (tmp_path / "x.toy").write_text("red\nblue\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def photograph(here):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))
    image.save("part.png")
    return image


def only(source):
    (frame,) = frames(source)
    return frame


def color(image):
    return image.convert("RGB").getpixel((0, 0))


def test_path_bytes_file_image_and_array_give_the_same_pixels(photograph):
    content = Path("part.png").read_bytes()
    array = np.asarray(photograph)
    with open("part.png", "rb") as file, Image.open("part.png") as lazy:
        for source in ("part.png", Path("part.png"), content, file, io.BytesIO(content), lazy, array):
            np.testing.assert_array_equal(np.asarray(only(source).image), array)


def test_the_id_of_a_photograph_is_its_path_as_it_was_given(photograph, here):
    assert only("./part.png").id == "./part.png"
    assert only(here / "part.png").id == str(here / "part.png")


def test_what_is_in_memory_has_no_id(photograph):
    content = Path("part.png").read_bytes()
    for source in (content, io.BytesIO(content), photograph, np.asarray(photograph)):
        assert only(source).id is None


def test_an_open_file_is_read_from_its_beginning_wherever_it_stands(photograph):
    buffer = io.BytesIO()
    photograph.save(buffer, "PNG")  # leaves it at its end
    for _ in range(2):
        assert only(buffer).image.size == (32, 24)


def test_a_stream_that_cannot_be_wound_back_is_read_from_where_it_stands(photograph):
    class Pipe(io.RawIOBase):
        """What is left of a file."""

        def __init__(self, content):
            self.content = content

        def read(self, size=-1):
            return self.content

    assert only(Pipe(Path("part.png").read_bytes())).image.size == (32, 24)


def test_every_way_in_applies_the_orientation_and_the_range_of_deep_grayscale(here):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.array([[0, 2048, 4095]], np.uint16)).save("deep.png", exif=exif)
    content = Path("deep.png").read_bytes()
    with Image.open("deep.png") as lazy:
        for source in ("deep.png", content, io.BytesIO(content), lazy):
            image = only(source).image.eight_bit(name="deep.png")
            assert np.asarray(image).tolist() == [[0], [128], [255]]
    assert size_of("deep.png") == (1, 3)


def test_a_file_with_several_images_gives_them_in_order_with_numbered_ids(toy, here):
    given = list(frames("x.toy"))
    assert [frame.id for frame in given] == ["x.toy#1", "x.toy#2"]
    assert [color(frame.image) for frame in given] == [(255, 0, 0), (0, 0, 255)]


def test_an_image_is_decoded_only_when_it_is_asked_for(toy, here):
    given = frames("x.toy")
    assert toy.decoded == []
    next(given)
    assert toy.decoded == [1]
    next(given)
    assert toy.decoded == [1, 2]


def test_an_image_that_is_done_with_is_not_held_while_others_follow(toy, here):
    given = frames("x.toy")
    assert [weakref.ref(next(given).image)() for _ in range(2)] == [None, None]


def test_an_image_is_opened_again_by_its_id(toy, here):
    for frame in frames(here / "x.toy"):
        assert color(open_image(frame.id)) == color(frame.image)
    assert color(open_image("x.toy#2")) == (0, 0, 255)
    assert size_of("x.toy#2") == (4, 3)


def test_the_path_of_a_file_with_several_images_opens_the_first(toy, here):
    assert color(open_image("x.toy")) == (255, 0, 0)
    assert toy.decoded == [1]


def test_an_id_is_a_source_of_that_one_image(toy, here):
    frame = only("x.toy#2")
    assert (frame.id, color(frame.image)) == ("x.toy#2", (0, 0, 255))


def test_a_reader_may_open_one_image_without_going_through_the_others(toy, here, monkeypatch):
    monkeypatch.setattr(toy, "open", lambda path, number=1: Image.new("RGB", (number, number)), raising=False)
    assert open_image("x.toy#2").size == (2, 2)
    assert toy.decoded == []


@pytest.mark.parametrize("name", ["a#1.png", "part#7", "#3", "x.toy#2"])
def test_a_file_that_exists_under_the_name_is_meant_itself(name, toy, here):
    Image.new("RGB", (5, 6), "lime").save(here / name, "PNG")
    assert locate(name) == (name, None)
    assert color(open_image(name)) == (0, 255, 0)
    assert size_of(name) == (5, 6)
    assert only(name).id == name


@pytest.mark.parametrize(
    ("id", "says"),
    [
        ("x.toy#3", "x.toy#3: the file holds fewer images"),
        ("part.png#2", "part.png#2: the file holds fewer images"),
        ("gone.toy#2", "gone.toy#2: no such file"),
        ("x.toy#0", "x.toy#0: no such file"),
        ("x.toy#99999999999999999999", "x.toy#99999999999999999999: no such file"),
    ],
)
def test_an_id_of_no_image_is_one_error_that_names_it(id, says, toy, photograph):
    for use in (open_image, size_of, only):
        with pytest.raises(InputError, match=f"^{says}$"):
            use(id)


def test_damage_in_any_reader_is_one_error_that_names_the_file_after_the_images_before_it(toy, here):
    Path("bad.toy").write_text("red\nno colour\n")
    given = frames("bad.toy")
    assert color(next(given).image) == (255, 0, 0)
    with pytest.raises(InputError, match="^bad.toy: damaged image: unknown color specifier"):
        next(given)
    with pytest.raises(InputError, match="^bad.toy#2: damaged image"):
        open_image("bad.toy#2")


def test_a_file_that_holds_no_image_is_an_error_and_not_passed_over(toy, here):
    Path("none.toy").touch()
    with pytest.raises(InputError, match="^none.toy: no images in this file$"):
        list(frames("none.toy"))


def test_a_readers_own_message_stays_as_it_is(here):
    class NeedsMore(Reader):
        """A reader whose extra is not installed."""

        suffixes = frozenset({".toy"})

        def frames(self, path):
            raise AnomalyCLIPError("pip install anomalyclip[toy]")
            yield

    register(NeedsMore())
    with pytest.raises(AnomalyCLIPError, match=r"^pip install anomalyclip\[toy\]$"):
        list(frames("x.toy"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty file; expected an image"),
        (b"not an image", "not an image of a known format"),
    ],
)
def test_unusable_content_is_refused_as_a_file_is(content, says, here):
    (here / "odd.png").write_bytes(content)
    with open("odd.png", "rb") as file:
        for source, name in ((content, f"bytes of {len(content)} B"), (file, "odd.png"), ("odd.png",) * 2):
            with pytest.raises(InputError, match=f"^{name}: {says}"):
                only(source)


def test_truncated_content_is_damaged(photograph):
    content = Path("part.png").read_bytes()[:1000]
    with pytest.raises(InputError, match="^bytes of 1000 B: damaged image"):
        only(content)
    with pytest.raises(InputError, match="^BytesIO: damaged image"):
        only(io.BytesIO(content))


def test_a_file_that_cannot_be_read_as_bytes_says_how_to_open_it(photograph):
    with open("part.png") as text, pytest.raises(InputError, match="^part.png: cannot be read .*binary mode"):
        only(text)
    with pytest.raises(
        InputError, match=r"^StringIO: cannot be read \(read\(\) returned str, not bytes\); .*binary mode"
    ):
        only(io.StringIO("red"))
    closed = io.BytesIO()
    closed.close()
    with pytest.raises(InputError, match=r"^BytesIO: cannot be read \(I/O operation on closed file"):
        only(closed)


@pytest.mark.parametrize("source", [5, None, ["part.png"], {"path": "part.png"}])
def test_another_type_is_one_error_that_names_it_and_what_was_expected(source):
    expected = "expected a path, the bytes of an image file, a file open in binary mode, a PIL image or a"
    with pytest.raises(InputError, match=f"^{type(source).__name__}: {expected}"):
        only(source)


def test_what_no_reader_claims_is_tried_as_a_photograph(photograph, here):
    (here / "part.png").rename("part.xyz")
    assert only("part.xyz").image.size == (32, 24)


def test_a_folder_lists_the_endings_of_all_readers(toy, photograph, here):
    assert {".toy", ".png", ".jpg"} <= suffixes()
    Path("notes.txt").touch()
    assert [image.name for image in find_images([here])] == ["part.png", "x.toy"]


def test_without_its_reader_an_ending_is_not_listed(photograph, here):
    assert ".toy" not in suffixes()
    assert [image.name for image in find_images([here])] == ["part.png"]


def test_the_longest_ending_decides_and_then_the_latest_reader(toy):
    longer, later = ToyReader(), ToyReader()
    longer.suffixes = frozenset({".big.toy"})
    assert reader_for("scan.big.toy") is toy
    register(longer)
    register(later)
    assert reader_for("scan.BIG.toy") is longer
    assert reader_for("scan.toy") is later


@pytest.mark.parametrize("suffix", ["toy", ".TOY", ""])
def test_an_ending_that_would_match_no_file_is_refused(suffix):
    reader = ToyReader()
    reader.suffixes = frozenset({suffix})
    with pytest.raises(AnomalyCLIPError, match="ToyReader: invalid file extension"):
        register(reader)
    assert reader not in READERS


# --- several images in a file, through everything


@pytest.fixture
def detector():
    """Scores an image by its brightness."""
    return Detector(Bright(DetectorSpec()))


@pytest.fixture
def folder(toy, tmp_path):
    """A folder with a gray and a silver image in x.toy, and a black photograph after it."""
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "x.toy").write_text("gray\nsilver\n")
    Image.new("RGB", (4, 3), "black").save(folder / "y.png")
    return folder


GRAY, SILVER = 128 / 255, 192 / 255


def lines(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_a_list_gives_all_images_of_a_file_and_a_file_alone_is_one_clear_error(detector, folder):
    x = folder / "x.toy"
    predictions = detector.predict([folder / "y.png", x])
    assert [prediction.image_path for prediction in predictions] == [f"{folder}/y.png", f"{x}#1", f"{x}#2"]
    assert [prediction.pred_score for prediction in predictions] == pytest.approx([0, GRAY, SILVER])
    with pytest.raises(InputError, match=r"x\.toy.*2 images.*predict\(\["):
        detector.predict(x)
    assert detector.predict(f"{x}#2").pred_score == pytest.approx(SILVER)
    (folder / "x.toy").write_text("gray\n")
    assert detector.predict(x).pred_score == pytest.approx(GRAY)


def test_a_stream_and_a_calibration_have_every_image_of_a_file(detector, folder):
    x = folder / "x.toy"
    assert [round(p.pred_score, 3) for p in detector.stream([x, folder / "y.png"])] == [0.502, 0.753, 0]
    threshold = calibrate(detector, folder, false_alarm_rate=0.5)
    assert threshold.info["images"] == 3
    assert GRAY < threshold.score <= SILVER


def test_predict_writes_a_line_and_a_heat_map_for_every_image_of_a_file(cli, folder, tmp_path):
    out = tmp_path / "out"
    done = cli(
        "predict", folder, "--backbone", "micro", "--save", "heatmap", "--save", "map", "--output", out
    )
    assert (done.code, done.complaints) == (0, [])
    records = lines(out)
    assert [record["image_path"] for record in records] == [
        f"{folder}/{name}" for name in ("x.toy#1", "x.toy#2", "y.png")
    ]
    files = [record["files"]["heatmap"] for record in records]
    assert files == [f"heatmaps/{name}_heatmap.png" for name in ("x#1", "x#2", "y")]
    assert {str(path.relative_to(out)) for path in (out / "heatmaps").iterdir()} == set(files)
    assert len(list((out / "maps").iterdir())) == 3


def test_a_heat_map_is_drawn_over_the_image_that_it_is_of(detector, folder, tmp_path):
    run = predicting.predict(
        detector, folder, tmp_path / "out", save=["heatmap"], draw=lambda image, prediction: image
    )
    drawn = [color(open_image(run.folder / record["files"]["heatmap"])) for record in lines(run.folder)]
    assert drawn == [(128, 128, 128), (192, 192, 192), (0, 0, 0)]


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_run_that_was_killed_within_a_file_goes_on_with_the_next_image_of_it(
    kept, detector, folder, tmp_path
):
    whole = predicting.predict(detector, folder, tmp_path / "out", save=["heatmap"]).folder
    before = lines(whole)
    content = (whole / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (whole / "predictions.jsonl").write_bytes(b"".join(content[:kept]))
    for record in before[kept:]:
        (whole / record["files"]["heatmap"]).unlink()
    run = predicting.predict(detector, folder, whole, save=["heatmap"], resume=True)
    assert lines(whole) == before
    assert all((whole / record["files"]["heatmap"]).is_file() for record in before)
    assert (run.scored, run.skipped, run.failed) == (3 - kept, kept, 0)


def test_a_file_of_several_images_alone_may_be_resumed_when_all_is_done(detector, folder, tmp_path):
    x = folder / "x.toy"
    predicting.predict(detector, x, tmp_path / "out")
    run = predicting.predict(detector, x, tmp_path / "out", resume=True)
    assert (run.scored, run.skipped, run.failed) == (0, 2, 0)
    assert len(lines(tmp_path / "out")) == 2


def test_damage_within_a_file_keeps_the_images_before_it_and_is_named(cli, folder, tmp_path):
    (folder / "x.toy").write_text("gray\nno colour\n")
    done = cli("predict", folder, "--backbone", "micro", "--output", tmp_path / "out")
    assert (done.code, done.err.count("error: ")) == (1, 1)
    assert "x.toy" in done.err
    assert [record["image_path"] for record in lines(tmp_path / "out")] == [
        f"{folder}/x.toy#1",
        f"{folder}/y.png",
    ]


@pytest.mark.parametrize("command", ["test", "calibrate"])
def test_a_file_of_several_images_in_a_data_set_is_named_and_the_rest_counts(command, cli, toy, tmp_path):
    """There is one mask and one label per file: which image they are of cannot be known."""
    root = make_set(tmp_path / "parts", classes=("nut",), normal=2, anomalous=2, side=56)
    (root / "nut" / "test" / "good" / "x.toy").write_text("gray\nsilver\n")
    options = {"test": [root, "--format", "json"], "calibrate": ["--labelled", root]}[command]
    done = cli(command, *options, "--backbone", "micro", "--output", tmp_path / "out")
    assert done.code == 1, done.err
    assert "x.toy" in done.err
    assert "several images" in done.err
    assert "Traceback" not in done.err
    content = json.loads((tmp_path / "out" / ("results.json" if command == "test" else "")).read_text())
    if command == "test":
        assert len(content["results"][0]["classes"][0]["failed"]) == 1
    else:
        assert content["info"]["images"] == 4
