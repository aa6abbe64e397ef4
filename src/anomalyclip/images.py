"""Encoded images to pixels and masks: colour modes, EXIF orientation, limits, and errors that name the file.

Inputs are opened through `anomalyclip.readers`, which knows the kinds of files; the functions here work on one image.

The preprocessing is the published one: the image is squashed to S x S in its own colour mode (bicubic, antialiased),
then converted to RGB, then normalised. One thing differs on purpose: EXIF orientation is applied.
"""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from anomalyclip.errors import AnomalyCLIPError, InputError, reason
from anomalyclip.files import require_regular

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
"""Formats that are opened, recognised by content. Pillow knows more formats, and some of them start programs (EPS)."""

_READ = "PNG, JPEG, BMP, TIFF, WebP, GIF, PPM, PGM"

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
"""Per-channel mean of CLIP's training images, RGB, for values in [0, 1] (openai/CLIP, ``clip.py``)."""
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
"""Per-channel standard deviation, from the same source."""

# Pillow warns above its limit and refuses images above twice that limit (179 megapixels). The refusal is enough.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

_ROWS = 256
"""Number of rows of a deep grayscale image that are converted at once."""

_ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
_QUARTER_TURNS = (5, 6, 7, 8)

_DEEP_GRAY = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_STRAIGHT = {"La": "LA", "RGBa": "RGBA"}
"""Modes whose colours are multiplied by their alpha (TIFF's associated alpha), and what Pillow converts them to."""


def read_image(source: str | os.PathLike[str] | bytes, *, name: str | None = None) -> Image.Image:
    """Decode an image completely, upright, in its own colour mode.

    Deep grayscale (16-bit, 32-bit, float) is scaled to 8 bits. Its range is guessed from this image alone: the smallest
    of 8, 10, 12, 14 and 16 bits that holds its brightest pixel, or [0, 1] if all values are floats in [0, 1].

    Parameters
    ----------
    source : path-like or bytes
        A file, or the content of one: PNG, JPEG, BMP, TIFF (first page), WebP, GIF (first frame), PPM or PGM.
    name : str, optional
        Name of the image in error messages. None: the path, or the number of bytes.

    Returns
    -------
    PIL.Image.Image
        Loaded, EXIF orientation applied.

    Raises
    ------
    InputError
        The file is missing, empty, truncated, not in one of these formats, not a regular file, or larger than Pillow's
        decompression bomb limit (twice ``PIL.Image.MAX_IMAGE_PIXELS``, 179 megapixels by default).

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (4, 3), "red").save(f"{folder}/red.png")
    ...     content = Path(folder, "red.png").read_bytes()
    ...     read_image(f"{folder}/red.png").size, read_image(content).getpixel((0, 0))
    ((4, 3), (255, 0, 0))
    """
    if name is None:
        name = f"bytes of {len(source)} B" if isinstance(source, bytes) else os.fspath(source)
    image = _load(source, name)
    with decoding(name):
        return eight_bit(image, name=name) if image.mode in _DEEP_GRAY else image


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return (width, height) of an image file, upright, from its header alone.

    Raises
    ------
    InputError
        As for `read_image`, but damage after the header is not noticed.
    """
    with _opened(path, path) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(_ORIENTATION) in _QUARTER_TURNS else (width, height)


def _load(source: str | os.PathLike[str] | bytes, name: object) -> Image.Image:
    with _opened(source, name) as image:
        return upright(image)


@contextmanager
def _opened(source: str | os.PathLike[str] | bytes, name: object) -> Iterator[Image.Image]:
    with decoding(name):
        if (len(source) if isinstance(source, bytes) else require_regular(source)) == 0:
            raise InputError(f"{name}: empty file; expected an image")
        content = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(content, formats=FORMATS) as image:
            yield image


@contextmanager
def decoding(name: object) -> Iterator[None]:
    """Turn any exception raised while an image is decoded into one `InputError` that names the image.

    Examples
    --------
    >>> with decoding("scan.xyz"):
    ...     raise ValueError("odd header")
    Traceback (most recent call last):
    anomalyclip.errors.InputError: scan.xyz: damaged image: odd header
    """
    try:
        yield
    except AnomalyCLIPError:
        raise
    except PermissionError:
        raise InputError(f"{name}: no permission to read it") from None
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except UnidentifiedImageError:
        raise InputError(f"{name}: not an image of a known format ({_READ})") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: image too large: {error}; scale it down or cut it into parts") from None
    except Exception as error:  # on damaged files, decoders raise nearly any type of exception
        if isinstance(error, OSError) and error.errno:  # a system error: name too long, failing disk
            raise InputError(f"{name}: cannot be read ({error.strerror})") from None
        raise InputError(f"{name}: damaged image: {reason(error)}") from None


def upright(image: Image.Image) -> Image.Image:
    """Return an image loaded and with its EXIF orientation applied; an image that is upright is returned itself."""
    image.load()
    # Pillow's own function would copy an upright image, and a copy may take a gigabyte.
    turned = image if image.getexif().get(_ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)
    return turned.convert(_STRAIGHT[turned.mode]) if turned.mode in _STRAIGHT else turned


def eight_bit(image: Image.Image, *, name: str) -> Image.Image:
    """Return a deep grayscale image (mode I, I;16 or F) as mode L, scaled by its own range; see `read_image`."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 65535:  # also catches NaN: if there is one, minimum and maximum are NaN
        raise InputError(
            f"{name}: gray values from {low:g} to {high:g}; expected finite values within [0, 65535]: rescale the image"
        )
    if image.mode == "F" and high <= 1:
        white = 1.0
    else:
        white = next(2.0**bits - 1 for bits in (8, 10, 12, 14, 16) if high <= 2**bits - 1)
    gray = np.empty(values.shape, np.uint8)
    # Converted all at once, the float64 values would take sixteen times the memory of the result.
    for start in range(0, len(values), _ROWS):
        gray[start : start + _ROWS] = np.round(values[start : start + _ROWS] * (255 / white))
    return Image.fromarray(gray)


def as_image(image: str | os.PathLike[str] | Image.Image | NDArray[Any]) -> Image.Image:
    """Return a path, a PIL image or an H x W x 3 (or H x W) uint8 array as a PIL image.

    Raises
    ------
    InputError
        The file cannot be used, or the array is not uint8 of shape (H, W, 3) or (H, W).
    """
    if isinstance(image, Image.Image):
        return _loaded(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
            raise InputError(
                f"array of {image.dtype} with shape {image.shape}; expected uint8 RGB with shape (height, width, 3)"
            )
        if image.size == 0:
            raise InputError(f"array of shape {image.shape} has no pixels")
        return Image.fromarray(image)
    if not isinstance(image, str | os.PathLike):
        raise InputError(f"{type(image).__name__}: expected a path, a PIL image or an array")
    return read_image(image)


def _loaded(image: Image.Image) -> Image.Image:
    """Return an image in memory as `read_image` returns a file: complete, upright, at most 8 bits per channel."""
    name = f"PIL image of {image.width} x {image.height}"
    with decoding(name):
        turned = upright(image)
        return eight_bit(turned, name=name) if turned.mode in _DEEP_GRAY else turned


def squash(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Return an image as (S, S, 3) uint8 RGB, squashed, not cropped (in the published order: resize, then RGB).

    Examples
    --------
    >>> squash(Image.new("L", (640, 480), 7), 2).tolist()
    [[[7, 7, 7], [7, 7, 7]], [[7, 7, 7], [7, 7, 7]]]
    """
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC).convert("RGB"))


def normalise(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return uint8 RGB (..., S, S, 3) as the model's float32 (..., 3, S, S): (pixels / 255 - mean) / deviation."""
    scaled = (pixels.astype(np.float32) / 255 - MEAN) / STD
    return np.ascontiguousarray(np.moveaxis(scaled, -1, -3), dtype=np.float32)


def to_pixels(image: Image.Image, size: int) -> NDArray[np.float32]:
    """Return an image as the model's input, (3, S, S) float32 (see `squash` and `normalise`).

    Examples
    --------
    >>> to_pixels(Image.new("RGB", (640, 480)), 518).shape
    (3, 518, 518)
    """
    return normalise(squash(image, size))


def read_mask(path: str | os.PathLike[str], size: int | None = None) -> NDArray[np.bool_]:
    """Read a defect mask: every pixel above zero is a defect.

    Parameters
    ----------
    path : path-like
        A mask image; colours are converted to gray.
    size : int, optional
        Side S to resize to by the published rule (bilinear, antialiased, at least half defect); None keeps the size.

    Returns
    -------
    ndarray of bool
        (S, S), or (height, width) of the file.

    Raises
    ------
    InputError
        As for `read_image`.
    """
    with decoding(path):
        image = _load(path, path)
        # Deep grayscale is not scaled: scaling to 8 bits would round small values to zero.
        gray = np.asarray(image if image.mode in _DEEP_GRAY else image.convert("L")) > 0
        if size is None:
            return gray
        binary = Image.fromarray(gray.astype(np.uint8) * np.uint8(255))
        return np.asarray(binary.resize((size, size), Image.Resampling.BILINEAR)) > 127
