"""Pictures of predictions: the scale is fixed, what is normal stays as it was, every size is drawn."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.prediction import Prediction
from anomalyclip.visualize import COLORMAPS, captioned, contact_sheet, heat_map, overlay, overlays, png
from anomalyclip.visualize.fonts import lettering
from anomalyclip.visualize.sheet import Cell, sheet_of

BLOB = np.exp(-((np.arange(64)[:, None] - 20) ** 2 + (np.arange(64) - 40) ** 2) / 60).astype(np.float32)


def photograph(size, mode="RGB"):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(noise).convert(mode)


def predicted(anomaly_map, size, **fields):
    return Prediction(
        **{
            "pred_score": 0.9,
            "anomaly_map": anomaly_map,
            "image_size": size,
            "image_path": "x/1.png",
            **fields,
        }
    )


def lightness(picture):
    return np.asarray(picture.convert("L"), int)[0]


@pytest.mark.parametrize("colormap", ["inferno", "gray"])
def test_a_higher_value_is_never_darker(colormap):
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[None]
    steps = np.diff(lightness(heat_map(ramp, colormap=colormap)))
    assert steps.min() >= 0
    assert steps.sum() > 200


@pytest.mark.parametrize("colormap", COLORMAPS)
def test_zero_is_dark_in_every_colour_map(colormap):
    assert lightness(heat_map(np.zeros((1, 1), np.float32), colormap=colormap))[0] < 40


def test_a_flawless_image_does_not_glow():
    faint = heat_map(BLOB * 0.09)
    assert np.asarray(faint.convert("L")).max() < 20


def test_a_map_of_whole_numbers_is_drawn_like_one_of_fractions():
    whole = np.eye(4, dtype=np.uint8)
    assert (
        heat_map(whole, scale=(0, 1)).tobytes() == heat_map(whole.astype(np.float32), scale=(0, 1)).tobytes()
    )


def test_values_beyond_the_scale_get_the_colours_of_its_ends():
    values = np.array([[0, 0.25, 0.5, 0.75]], np.float32)
    assert lightness(heat_map(values, colormap="gray", scale=(0.25, 0.5))).tolist() == [0, 0, 255, 255]


def test_without_a_threshold_an_overlay_changes_what_is_not_in_the_lowest_tenth_of_the_scale():
    image = photograph((90, 60))
    drawn = overlay(image, predicted(BLOB, image.size))
    before, after = np.asarray(image, int), np.asarray(drawn, int)
    at_size = predicted(BLOB, image.size).map_at()
    assert (before[at_size < 0.09] == after[at_size < 0.09]).all()
    assert (before[at_size > 0.3] != after[at_size > 0.3]).any(axis=1).mean() > 0.95


@pytest.mark.parametrize("colormap", ["inferno", "turbo"])
@pytest.mark.parametrize("threshold", [0.03, 0.5, 0.97, 1.0])
def test_with_a_pixel_threshold_the_colour_begins_where_the_contour_runs(threshold, colormap):
    image = Image.new("RGB", (90, 60), (120, 120, 120))
    prediction = predicted(BLOB, image.size).with_threshold(threshold)
    drawn = np.asarray(overlay(image, prediction, colormap=colormap, contour=False), int)
    changed = (np.abs(drawn - 120) > 8).any(axis=2)
    assert (changed == prediction.mask_at()).all()


def test_a_scale_of_ones_own_goes_before_the_threshold():
    image = Image.new("RGB", (64, 64), "white")
    prediction = predicted(BLOB, image.size)
    own = overlay(image, prediction.with_threshold(0.5), scale=(0, 1), contour=False)
    assert own.tobytes() == overlay(image, prediction).tobytes()


@pytest.mark.parametrize("size", [(64, 64), (640, 480), (37, 800)])
def test_the_overlay_of_a_flawless_image_is_the_photograph(size):
    image = photograph(size)
    assert overlay(image, predicted(BLOB * 0.09, size).with_threshold(0.5)).tobytes() == image.tobytes()


def test_an_overlay_has_the_same_pixels_in_one_block_and_in_several_on_any_number_of_cores(monkeypatch):
    prediction = predicted(BLOB, (70, 90))
    found = set()
    for columns, cores in ((256, None), (1, 1), (7, 2), (30, 16)):
        monkeypatch.setattr(overlays, "_COLUMNS", columns)
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        found.add(overlay(photograph((70, 90), "CMYK"), prediction).tobytes())
    assert len(found) == 1


def test_alpha_says_how_much_of_the_photograph_the_strongest_colour_covers():
    white = Image.new("RGB", (8, 8), "white")
    prediction = predicted(np.ones((8, 8), np.float32), white.size)
    strongest = heat_map(np.ones((1, 1), np.float32)).getpixel((0, 0))
    assert overlay(white, prediction, alpha=1).getpixel((4, 4)) == strongest
    assert overlay(white, prediction, alpha=0).getpixel((4, 4)) == (255, 255, 255)
    assert overlay(white, prediction, alpha=0.5).getpixel((4, 4))[2] == pytest.approx(
        (strongest[2] + 255) / 2, abs=1
    )


def test_the_contour_runs_along_the_edge_of_the_mask():
    half = np.zeros((64, 64), np.float32)
    half[:, 32:] = 1
    image = Image.new("RGB", (640, 640), (100, 100, 100))
    drawn = overlay(image, predicted(half, image.size).with_threshold(0.5), alpha=0)
    changed = np.flatnonzero((np.asarray(drawn) != 100).any(axis=(0, 2)))
    assert 4 <= len(changed) <= 8
    assert changed.mean() == pytest.approx(319.5, abs=0.51)
    assert np.asarray(drawn)[300, 319:321].min() == 255
    plain = overlay(image, predicted(half, image.size).with_threshold(0.5), alpha=0, contour=False)
    assert plain.tobytes() == image.tobytes()


def test_boxes_stand_where_the_regions_are_even_on_a_smaller_copy():
    square = np.zeros((10, 10), np.float32)
    square[2:5, 4:8] = 1
    image = Image.new("RGB", (100, 50), (100, 100, 100))
    prediction = predicted(square, (200, 100)).with_threshold(0.5)
    assert prediction.regions[0].box == (80, 20, 160, 50)
    drawn = np.asarray(overlay(image, prediction, alpha=0, contour=False, boxes=True))
    rows, columns = np.nonzero((drawn == 255).all(axis=2))
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (40, 10, 80, 25)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "I;16"])
@pytest.mark.parametrize("size", [(64, 64), (300, 1), (1, 1), (400, 40)])
def test_every_mode_and_shape_is_drawn_at_its_own_size(mode, size):
    image = photograph(size, "L").convert("I;16") if mode == "I;16" else photograph(size, mode)
    drawn = overlay(image, predicted(BLOB, size).with_threshold(0.5), boxes=True)
    assert (drawn.mode, drawn.size) == ("RGB", size)


def test_a_photograph_with_exif_orientation_is_drawn_upright():
    image = photograph((40, 20))
    image.getexif()[274] = 6  # turned by a quarter
    assert overlay(image, predicted(BLOB, (20, 40))).size == (20, 40)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colormap": "jet"}, "'jet'.*inferno"),
        ({"scale": (0.5, 0.5)}, "0.5 to 0.5"),
        ({"alpha": 2}, "alpha is 2"),
    ],
)
def test_unusable_options_are_named(options, message):
    with pytest.raises(AnomalyCLIPError, match=message):
        overlay(photograph((8, 8)), predicted(BLOB, (8, 8)), **options)


def test_a_caption_hides_nothing_and_leaves_the_picture_at_its_size():
    image = photograph((400, 300))
    prediction = predicted(BLOB, image.size).with_threshold(0.5)
    whole = captioned(image, prediction)
    assert whole.crop((0, 0, 400, 300)).tobytes() == overlay(image, prediction).tobytes()
    assert whole.width == 400
    assert 15 <= whole.height - 300 <= 40


def test_a_caption_says_anomalous_in_red_and_normal_in_green():
    image = Image.new("L", (400, 300))

    def strip(threshold):
        pixels = np.asarray(captioned(image, predicted(BLOB * 0, image.size).with_threshold(threshold)), int)[
            300:
        ]
        red, green = pixels[..., 0] - pixels[..., 1], pixels[..., 1] - pixels[..., 0]
        return bool((red[:, :300] > 90).any()), bool((green[:, :300] > 70).any())

    assert strip(0.5) == (True, False)
    assert strip(0.95) == (False, True)
    assert strip(None) == (False, False)


@pytest.mark.parametrize("threshold", [None, 0.5])
@pytest.mark.parametrize("size", [(1, 1), (28, 28), (8, 2000), (2000, 8), (150, 100), (4000, 3000)])
def test_a_caption_is_whole_at_every_size(size, threshold):
    """Nothing of the text touches the edges of the strip below the black picture."""
    image = Image.new("RGB", size)
    whole = np.asarray(captioned(image, predicted(BLOB * 0, size).with_threshold(threshold)))
    strip = whole[np.flatnonzero((whole == 0).all(axis=2).any(axis=1))[-1] + 1 :]
    ink = np.argwhere((strip != whole[-1, 0]).any(axis=2))
    (top, left), (bottom, right) = ink.min(axis=0), ink.max(axis=0)
    assert min(top, left, strip.shape[0] - 1 - bottom, strip.shape[1] - 1 - right) >= 2
    assert bottom - top >= 8


def test_a_contact_sheet_has_as_many_columns_as_asked_for_and_equal_cells():
    cells = [(Image.new("RGB", (40, 30), "blue"), predicted(BLOB * 0, (40, 30))) for _ in range(5)]
    sheet = contact_sheet(cells, columns=2, tile_size=80, beside=False)
    blue = (np.asarray(sheet) == (0, 0, 255)).all(axis=2)
    assert blue.sum() == 5 * 80 * 60
    starts_of_columns = np.flatnonzero(np.diff(blue.any(axis=0).astype(int)) == 1)
    starts_of_rows = np.flatnonzero(np.diff(blue.any(axis=1).astype(int)) == 1)
    assert (len(starts_of_columns), len(starts_of_rows)) == (2, 3)


def test_a_contact_sheet_says_anomalous_in_red_normal_in_green_and_nothing_without_a_threshold():
    image = Image.new("RGB", (40, 30))

    def colours(threshold):
        prediction = predicted(BLOB * 0, image.size).with_threshold(threshold)
        pixels = np.asarray(contact_sheet([(image, prediction)], scale=(0, 1), colormap="gray"), int)
        red, green = pixels[..., 0] - pixels[..., 1], pixels[..., 1] - pixels[..., 0]
        return bool((red > 90).any()), bool((green > 70).any())

    assert colours(0.5) == (True, False)
    assert colours(0.95) == (False, True)
    assert colours(None) == (False, False)


def test_a_contact_sheet_takes_pictures_of_any_shape_and_long_names():
    sizes = [(64, 64), (500, 1), (1, 500), (1, 1), (300, 200)]
    cells = [
        (
            photograph(size),
            predicted(BLOB, size, image_path="folder/" + "long" * 60 + ".png").with_threshold(0.5),
        )
        for size in sizes
    ]
    sheet = contact_sheet((cell for cell in cells), title="Any shape " * 40)
    white = (255, 255, 255)
    assert {sheet.getpixel((sheet.width - 1, y)) for y in range(sheet.height)} == {
        white
    }  # nothing runs off the page


@pytest.mark.parametrize(
    "name", ["größe.png", "деталь.png", "猫.png", "\ue000.png", "a\nb.png", "\udcff.png"]
)
def test_a_name_in_any_script_is_drawn_or_spelled_out(name):
    text, font = lettering(name, 20)
    assert text in (
        name,
        name[:-4].encode("unicode_escape").decode() + ".png",
        name.encode("unicode_escape").decode(),
    )
    box = bytes(font.getmask("\uffff"))
    assert all(bytes(font.getmask(char)) != box for char in text)
    sheet_of([Cell([photograph((64, 64))], name, 0.5, None)])


def test_a_contact_sheet_of_nothing_is_refused():
    with pytest.raises(AnomalyCLIPError, match="at least one"):
        contact_sheet([])
    with pytest.raises(AnomalyCLIPError, match="columns is 0"):
        contact_sheet([], columns=0)


# --- files --------------------------------------------------------------------------------------------------


def written(image):
    file = io.BytesIO()
    png.write_png(image, file)
    return file.getvalue()


@pytest.mark.parametrize("size", [(1, 1), (7, 1), (1, 9), (61, 47)])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1", "I;16"])
@pytest.mark.parametrize("strip", [1, 1000, 1 << 21])
def test_a_png_has_the_pixels_of_the_picture(size, mode, strip, monkeypatch):
    """Row by row, in several strips, and in one; of other modes Pillow writes the file."""
    monkeypatch.setattr(png, "_STRIP", strip)
    image = photograph(size, "I").convert(mode) if mode == "I;16" else photograph(size, mode)
    found = Image.open(io.BytesIO(written(image)))
    found.load()
    assert found.mode == mode
    np.testing.assert_array_equal(np.asarray(found), np.asarray(image))


def test_a_png_has_the_same_bytes_on_any_number_of_cores(monkeypatch):
    monkeypatch.setattr(png, "_STRIP", 1000)
    image, files = photograph((61, 47)), set()
    for cores in (1, 2, 16, None):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        files.add(written(image))
    assert len(files) == 1


def test_the_strips_of_a_png_are_one_stream_with_right_checksums(monkeypatch):
    monkeypatch.setattr(png, "_STRIP", 1000)
    image = photograph((61, 47))
    content = written(image)
    stream = b"".join(part for kind, part in chunks(content) if kind == b"IDAT")
    rows = np.frombuffer(zlib.decompress(stream), np.uint8).reshape(47, 1 + 61 * 3)
    assert set(rows[:, 0]) == {2}
    np.testing.assert_array_equal(
        rows[:, 1:].cumsum(axis=0, dtype=np.uint8), np.asarray(image).reshape(47, -1)
    )


def chunks(content):
    """Yield the kind and the content of each chunk of a PNG; their checksums are right."""
    place = 8
    while place < len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        kind, part = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        assert int.from_bytes(content[place + 8 + length : place + 12 + length], "big") == zlib.crc32(
            kind + part
        )
        yield kind, part
        place += 12 + length
