"""Image files to pixels and masks: colour modes, EXIF orientation, limits, and errors that name the file.

What the model sees is the published preprocessing: the image is squashed to S x S in its own colour mode (bicubic,
antialiased), then converted to RGB, then normalised. One thing differs on purpose: EXIF orientation is applied.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from anomalyclip.errors import InputError

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
"""Per-channel mean of CLIP's training images, RGB, of values in [0, 1] (openai/CLIP, ``clip.py``)."""
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
"""Per-channel standard deviation, likewise."""

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"}
)
"""File name endings (lower case) that are taken for images when a folder is listed."""

# Pillow warns from its limit on and refuses from twice that on (179 megapixels); the refusal is the one that matters.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

_ROWS = 256
"""Rows of a deep grayscale image that are converted at once."""

ORIENTATION = 0x0112
"""The EXIF tag; 1 is upright, 5 to 8 turn by a quarter."""

_DEEP_GRAY = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read an image file completely, upright, in its own colour mode.

    Deep grayscale (16-bit, 32-bit, float) becomes 8-bit by a range guessed from this image alone: the smallest of 8,
    10, 12, 14 and 16 bits that holds its brightest pixel, or [0, 1] for floats within it.

    Parameters
    ----------
    path : path-like
        Anything that Pillow reads; of an animation, the first frame.

    Returns
    -------
    PIL.Image.Image
        Loaded, EXIF orientation applied.

    Raises
    ------
    InputError
        The file is missing, empty, truncated, no image, or larger than Pillow's decompression bomb limit
        (twice ``PIL.Image.MAX_IMAGE_PIXELS``, 179 megapixels unless changed).

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (4, 3), "red").save(f"{folder}/red.png")
    ...     open_image(f"{folder}/red.png").size
    (4, 3)
    """
    image = _read(path)
    return eight_bit(image, name=path) if image.mode in _DEEP_GRAY else image


def _read(path: str | os.PathLike[str]) -> Image.Image:
    try:
        if Path(path).stat().st_size == 0:
            raise InputError(f"{path}: the file is empty; expected an image")
        with Image.open(path) as image:
            return upright(image)
    except InputError:
        raise
    except PermissionError:
        raise InputError(f"{path}: no permission to read it") from None
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; expected an image file") from None
    except UnidentifiedImageError:
        raise InputError(
            f"{path}: not an image that Pillow can read (PNG, JPEG, BMP, TIFF, WebP, ...)"
        ) from None
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path}: refused as too large: {error}; scale it down or cut it into parts"
        ) from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        if (
            isinstance(error, OSError) and error.errno
        ):  # of the system: a name that is too long, a failing disk
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        raise InputError(f"{path}: damaged image: {error or type(error).__name__}") from None


def upright(image: Image.Image) -> Image.Image:
    """Return an image loaded and turned as its EXIF orientation says: the image itself if it is upright."""
    image.load()
    # Pillow's own function copies an upright image, which may be a gigabyte.
    return image if image.getexif().get(ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)


def eight_bit(image: Image.Image, *, name: object = "image") -> Image.Image:
    """Return a deep grayscale image (mode I, I;16 or F) as mode L by its own range; see `open_image`."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 65535:  # nor is a NaN, which is both its array's minimum and maximum
        raise InputError(
            f"{name}: gray values from {low:g} to {high:g}; expected finite values within [0, 65535]: rescale the image"
        )
    if image.mode == "F" and high <= 1:
        white = 1.0
    else:
        white = next(2.0**bits - 1 for bits in (8, 10, 12, 14, 16) if high <= 2**bits - 1)
    gray = np.empty(values.shape, np.uint8)
    for start in range(
        0, len(values), _ROWS
    ):  # in float64 all at once, it would take sixteen times the result
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
                f"array of {image.dtype} with shape {image.shape}; expected uint8 RGB of shape (height, width, 3)"
            )
        if image.size == 0:
            raise InputError(f"array of shape {image.shape} holds no pixels")
        return Image.fromarray(image)
    if not isinstance(image, str | os.PathLike):
        raise InputError(f"{type(image).__name__}: expected a path, a PIL image or an array")
    return open_image(image)


def _loaded(image: Image.Image) -> Image.Image:
    """Return an image in memory as `open_image` returns a file: complete, upright, at most 8 bits a channel."""
    try:
        turned = upright(image)
    except Exception as error:  # as when a file is read: Pillow's decoders raise nearly anything
        raise InputError(f"damaged image: {error or type(error).__name__}") from None
    return eight_bit(turned) if turned.mode in _DEEP_GRAY else turned


def squash(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Return an image as (S, S, 3) uint8 RGB, squashed, not cropped (the published order: resize, then RGB).

    Examples
    --------
    >>> squash(Image.new("L", (640, 480), 7), 2).tolist()
    [[[7, 7, 7], [7, 7, 7]], [[7, 7, 7], [7, 7, 7]]]
    """
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC).convert("RGB"))


def normalise(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return uint8 RGB (..., S, S, 3) as the model's float32 (..., 3, S, S): [0, 1], minus mean, over deviation."""
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
    """Read a defect mask: every pixel above zero is defect.

    Parameters
    ----------
    path : path-like
        A mask image; its gray value counts.
    size : int, optional
        Side S to resize to by the published rule (bilinear, antialiased, at least half defect); None keeps the size.

    Returns
    -------
    ndarray of bool
        (S, S), or (height, width) of the file.

    Raises
    ------
    InputError
        As `open_image`.
    """
    image = _read(path)
    # Of deep grayscale the values count as they are: scaling to 8 bits would round small ones to zero.
    gray = np.asarray(image if image.mode in _DEEP_GRAY else image.convert("L")) > 0
    if size is None:
        return gray
    binary = Image.fromarray(gray.astype(np.uint8) * np.uint8(255))
    return np.asarray(binary.resize((size, size), Image.Resampling.BILINEAR)) > 127
