"""Pages and frames: a TIFF, GIF or WebP file may hold many images."""

import numpy as np
import pytest
from PIL import Image

from anomalyclip import Detector, DetectorSpec, predicting
from anomalyclip.errors import InputError
from anomalyclip.readers import frames, open_image, size_of
from tests.toy_methods import Bright

tifffile = pytest.importorskip("tifffile")

SHADES = [40, 120, 200]


def pages(kind="L", **options):
    first, *others = [Image.new(kind, (8, 6 + number), shade) for number, shade in enumerate(SHADES)]
    return first, {"save_all": True, "append_images": others, **options}


def saved(path, image, options):
    image.save(path, **options)
    return str(path)


def shade(image):
    return np.asarray(image.convert("L")).mean()


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
def test_the_pages_of_a_tiff_file_are_images_of_their_own_size(compression, tmp_path):
    path = saved(tmp_path / "scan.tif", *pages(compression=compression))
    found = list(frames(path))
    assert [frame.id for frame in found] == [f"{path}#{number}" for number in (1, 2, 3)]
    assert [shade(frame.image) for frame in found] == SHADES  # also the first, after the others were read
    for number, size in ((1, (8, 6)), (3, (8, 8))):
        assert open_image(f"{path}#{number}").size == size_of(f"{path}#{number}") == size
        assert shade(open_image(f"{path}#{number}")) == SHADES[number - 1]
    with pytest.raises(InputError, match=r"scan.tif#4: the file holds fewer images"):
        open_image(f"{path}#4")


@pytest.mark.parametrize("name", ["moving.gif", "moving.webp"])
def test_the_frames_of_an_animation_are_whole_images(name, tmp_path):
    """A GIF keeps what changes from frame to frame; the image is all of it."""
    images = []
    for number in range(4):
        image = Image.new("RGB", (16, 16), (30, 30, 30))
        image.paste((200, 30, 30), (4 * number, 0, 4 * number + 4, 16))
        images.append(image)
    options = {"lossless": True} if name.endswith("webp") else {}
    images[0].save(tmp_path / name, save_all=True, append_images=images[1:], duration=50, **options)
    found = list(frames(tmp_path / name))
    assert len(found) == 4
    for frame, image in zip(found, images, strict=True):
        assert abs(np.asarray(frame.image.convert("RGB")).astype(int) - np.asarray(image)).max() <= 4
        np.testing.assert_array_equal(np.asarray(open_image(frame.id)), np.asarray(frame.image))


def test_a_file_with_one_page_keeps_its_name(tmp_path):
    for name in ("a.tif", "a.gif", "a.webp", "a.png"):
        Image.new("L", (4, 3), 9).save(tmp_path / name)
        assert [frame.id for frame in frames(str(tmp_path / name))] == [str(tmp_path / name)]


def test_a_smaller_copy_of_a_page_is_no_page(tmp_path):
    path = str(tmp_path / "pyramid.tif")
    with tifffile.TiffWriter(path) as file:
        for number, value in enumerate((10, 20, 10)):  # a page, its thumbnail, another page
            side = 4 if number == 1 else 16
            file.write(np.full((side, side), value, np.uint8), subfiletype=int(number == 1))
    assert [frame.image.size for frame in frames(path)] == [(16, 16)] * 2
    assert open_image(f"{path}#2").size == (16, 16)


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_pages_have_all_their_bits(kind, tmp_path):
    path = str(tmp_path / "deep.tif")
    stack = np.arange(2 * 6 * 5 * 3).reshape(2, 6, 5, 3).astype(kind)
    tifffile.imwrite(path, stack, photometric="rgb")
    found = list(frames(path))
    for frame, values in zip(found, stack, strict=True):
        np.testing.assert_array_equal(frame.image.values, values)


def test_a_run_scores_every_page_and_goes_on_where_it_stopped(tmp_path):
    path = saved(tmp_path / "scan.tif", *pages())
    detector = Detector(Bright(DetectorSpec(image_size=8)))
    run = predicting.predict(detector, path, tmp_path / "out", save=["heatmap"], draw=lambda image, _: image)
    assert run.scored == 3
    assert sorted(file.name for file in (run.folder / "heatmaps").iterdir()) == sorted(
        f"scan#{number}_heatmap.png" for number in (1, 2, 3)
    )
    again = predicting.predict(detector, path, tmp_path / "out", save=["heatmap"], resume=True)
    assert (again.scored, again.skipped) == (0, 3)


def test_a_damaged_page_is_named_and_those_before_it_are_scored(tmp_path):
    path = saved(tmp_path / "scan.tif", *pages())
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[1].tags["StripOffsets"].overwrite(10_000_000)  # far behind the end of the file
    failed = []
    detector = Detector(Bright(DetectorSpec(image_size=8)))
    found = list(detector.stream([path], on_error=lambda image, error: failed.append(str(error))))
    assert [prediction.image_path for prediction in found] == [f"{path}#1"]
    assert len(failed) == 1
    assert failed[0].startswith(path)
