"""Image files to pixels: the published preprocessing, every colour mode, and errors that name the file."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from anomalyclip.errors import InputError
from anomalyclip.images import as_image, normalise, read_image, read_mask, squash, to_pixels
from tests.conftest import GOLDEN


def test_pixels_of_the_golden_images_equal_the_published_ones(golden):
    for path, published in zip(golden.images, golden.arrays["pixel_values"], strict=True):
        np.testing.assert_allclose(to_pixels(read_image(path), golden.image_size), published, atol=1e-5)


@pytest.mark.parametrize("mode", ["rgb", "gray", "palette", "rgba", "big"])
def test_every_colour_mode_is_preprocessed_as_published(mode):
    published = np.load(GOLDEN / "preprocess.npz")
    pixels = to_pixels(read_image(GOLDEN / f"pre_{mode}.png"), 518)
    np.testing.assert_allclose(pixels[:, ::16, ::16], published[mode], atol=1e-5)
    np.testing.assert_allclose([pixels.mean(), pixels.std()], published[f"{mode}_meanstd"], atol=1e-5)


def test_a_mask_is_resized_and_binarised_as_published():
    assert np.array_equal(
        read_mask(GOLDEN / "pre_mask.png", 518), np.load(GOLDEN / "preprocess.npz")["mask"] > 0
    )


def test_a_batch_is_normalised_as_its_images_are():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    assert normalise(pixels).shape == (2, 3, 4, 4)
    assert np.array_equal(normalise(pixels)[1], normalise(pixels[1]))


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    image.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        for upright in (read_image(tmp_path / "turned.png"), as_image(opened)):
            assert upright.size == (20, 40)
            assert upright.getpixel((10, 5)) == (255, 255, 255)
            assert upright.getpixel((10, 35)) == (0, 0, 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"])
def test_every_mode_becomes_three_channels(mode):
    image = Image.new("RGB", (8, 6), (200, 30, 90)).convert("L" if mode == "LAB" else mode)
    assert squash(as_image(image), 4).shape == (4, 4, 3)


@pytest.mark.parametrize(
    ("white", "values"),
    [(255, [0, 128, 255]), (1023, [0, 512, 1023]), (4095, [0, 2048, 4095]), (65535, [0, 32768, 65535])],
)
def test_deep_grayscale_is_scaled_by_its_true_range(white, values, tmp_path):
    """A 12-bit X-ray in a 16-bit file is not black, and a 16-bit one is not clipped at 255."""
    Image.fromarray(np.array([values], dtype=np.uint16)).save(tmp_path / "deep.png")
    opened = read_image(tmp_path / "deep.png")
    assert opened.mode == "L"
    assert np.asarray(opened).tolist() == [[0, 128, 255]]


def test_a_float_image_within_zero_and_one_is_scaled_and_an_impossible_one_refused(tmp_path):
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)).save(tmp_path / "unit.tiff")
    assert np.asarray(read_image(tmp_path / "unit.tiff")).tolist() == [[0, 128, 255]]
    for name, value in (("nan", np.nan), ("negative", -3.0), ("huge", 1e6)):
        Image.fromarray(np.array([[0.0, value]], dtype=np.float32)).save(tmp_path / f"{name}.tiff")
        with pytest.raises(InputError, match=rf"{name}.tiff: gray values .* expected finite values within"):
            read_image(tmp_path / f"{name}.tiff")


def test_a_mask_keeps_every_value_above_zero_even_in_sixteen_bits(tmp_path):
    Image.fromarray(np.array([[0, 1, 65535]], dtype=np.uint16)).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").tolist() == [[False, True, True]]


def test_a_mask_is_squashed_to_the_square_with_the_defect_on_its_side(tmp_path):
    mask = np.zeros((20, 28), dtype=np.uint8)
    mask[:, :14] = 1  # one is enough: every pixel above zero is defect
    Image.fromarray(mask).save(tmp_path / "mask.png")
    expected = np.zeros((14, 14), dtype=bool)
    expected[:, :7] = True
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", 14), expected, strict=True)


def test_an_array_is_taken_as_rgb():
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(as_image(array)), array)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_an_array_of_another_kind_is_refused(array):
    with pytest.raises(InputError, match="array of"):
        as_image(array)


def test_unusable_files_are_refused_by_name(tmp_path):
    good = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(good, "PNG")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "truncated.png").write_bytes(good.getvalue()[:2000])
    (tmp_path / "folder.png").mkdir()
    for name, says in (
        ("empty.png", "empty file"),
        ("text.png", "not an image of a known format"),
        ("truncated.png", "damaged image"),
        ("folder.png", "is a folder"),
        ("missing.png", "no such file"),
    ):
        with pytest.raises(InputError, match=f"{name}: {says}"):
            read_image(tmp_path / name)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_header(100_000, 100_000))
    with pytest.raises(InputError, match="bomb.png: image too large"):
        read_image(tmp_path / "bomb.png")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    format=st.sampled_from(["PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP"]),
    cut=st.integers(0, 3000),
    flips=st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 255)), max_size=5),
)
def test_a_damaged_file_is_an_image_or_an_input_error_never_a_crash(format, cut, flips, tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(
        buffer, format
    )
    content = bytearray(buffer.getvalue()[: max(0, len(buffer.getvalue()) - cut)])
    for position, change in flips:
        if position < len(content):
            content[position] ^= change
    path = tmp_path / "damaged.img"
    path.write_bytes(content)
    said, shape = str(path), (14, 14, 3)
    try:
        shape = squash(read_image(path), 14).shape
    except InputError as error:
        said = str(error)
    assert str(path) in said
    assert shape == (14, 14, 3)


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 40), height=st.integers(1, 40), size=st.sampled_from([1, 14, 28]))
def test_an_image_of_any_shape_is_squashed_to_a_square(width, height, size):
    image = Image.new("RGB", (width, height), (10, 200, 77))
    assert np.unique(squash(image, size).reshape(-1, 3), axis=0).tolist() == [[10, 200, 77]]


def test_a_truncated_image_in_memory_and_another_type_are_input_errors(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
        tmp_path / "a.png"
    )
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:2000])
    with Image.open(tmp_path / "cut.png") as lazy, pytest.raises(InputError, match="damaged image"):
        as_image(lazy)
    with pytest.raises(InputError, match="int: expected a path, a PIL image or an array"):
        as_image(5)
