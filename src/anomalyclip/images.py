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
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from anomalyclip.addresses import Address, on_disk
from anomalyclip.decoders import attributed, unsaid
from anomalyclip.depth import Deep, color
from anomalyclip.errors import AnomalyCLIPError, InputError, TooLargeError, UnknownKindError, reason
from anomalyclip.files import require_regular

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
"""Formats that are opened, recognised by content. Pillow knows more formats, and some of them start programs (EPS)."""

_READ = "PNG, JPEG, BMP, TIFF, WebP, GIF, PPM, PGM"

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Per-channel mean of CLIP's training images, RGB, for values in [0, 1] (openai/CLIP, ``clip.py``)."""
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
"""Per-channel standard deviation, from the same source."""

MEAN = np.array(OPENAI_MEAN, dtype=np.float32)
STD = np.array(OPENAI_STD, dtype=np.float32)

# Pillow warns above its limit and refuses images above twice that limit (179 megapixels). The refusal is enough.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

_ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
_SUBFILE = 0x00FE  # the TIFF tag; bit 0: a smaller copy of another page
_PAGED = ("TIFF", "GIF", "WEBP")
_SEVERAL = (b"II", b"MM", b"GIF", b"RIFF")
"""How files of these formats begin."""
_PHOTOMETRIC = 0x0106  # the TIFF tag; 0: white is zero
_QUARTER_TURNS = (5, 6, 7, 8)
# After the quarter turn, if any:
_UPSIDE_DOWN = (3, 4, 7, 8)
_MIRRORED = (2, 3, 6, 7)

_DEEP_GRAY = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_STRAIGHT = {"La": "LA", "RGBa": "RGBA"}
"""Modes whose colours are multiplied by their alpha (TIFF's associated alpha), and what Pillow converts them to."""


def read_image(source: str | os.PathLike[str] | bytes, *, name: str | None = None) -> Image.Image:
    """Decode an image completely, upright, in its own colour mode, with at most 8 bits per channel.

    More bits are scaled by this image alone: by what the file says, else by a range guessed from its brightest pixel
    (`Deep.assumed`). For many images use one scale for all, as `anomalyclip.detector.Detector` does.

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
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (4, 3), "red").save(f"{folder}/red.png")
    ...     content = Path(folder, "red.png").read_bytes()
    ...     read_image(f"{folder}/red.png").size, read_image(content).getpixel((0, 0))
    ((4, 3), (255, 0, 0))
    """
    name = _name_of(source) if name is None else name
    image = decode_image(source, name=name)
    if not isinstance(image, Deep):
        return image
    with decoding(name):
        return image.eight_bit(name=name)


def decode_image(source: str | os.PathLike[str] | bytes, *, name: str | None = None) -> Image.Image | Deep:
    """Decode an image as `read_image` does, but keep all bits of one with more than 8 per channel.

    Raises
    ------
    InputError
        As for `read_image`.
    """
    return next(decode_pages(source, name=name))


def decode_pages(
    source: str | os.PathLike[str] | bytes, *, name: str | None = None, first: int = 1
) -> Iterator[Image.Image | Deep]:
    """Yield the pages of a TIFF file, or the frames of a GIF or animated WebP; one image for other formats.

    Pages that are smaller copies of others (TIFF's reduced resolution) are left out.

    Parameters
    ----------
    source, name
        As for `read_image`.
    first : int
        Number of the first page that is decoded, counted from 1.

    Yields
    ------
    PIL.Image.Image or Deep
        As from `decode_image`.
    """
    name = _name_of(source) if name is None else name
    with decoding(name):
        content = _checked(source, name)
        try:
            with attributed(name):
                opened = Image.open(content, formats=FORMATS)
        except UnidentifiedImageError:
            if not color.is_tiff(source):
                raise
            for index in islice(color.tiff_pages(source, name=name), first - 1, None):
                yield color.read_tiff(source, name=name, page=index)
            return
        with opened as image:
            for index in islice(_pages(image), first - 1, None):
                with attributed(name):
                    page = _decoded(image, source, index, name)
                yield page


def has_pages(path: str | os.PathLike[str]) -> bool:
    """Return whether a file has several images that `decode_pages` yields; the first is not decoded for it."""
    with decoding(path), unsaid():
        _checked(path, path)
        with open(path, "rb") as file:
            if not file.read(4).startswith(_SEVERAL):
                return False
        try:
            with Image.open(path, formats=FORMATS) as image:
                pages = _pages(image)
                next(pages)
                try:
                    return next(pages, None) is not None
                except Exception:  # a damaged second page is one too
                    return True
        except UnidentifiedImageError:
            if not color.is_tiff(path):
                raise
            return next(islice(color.tiff_pages(path, name=os.fspath(path)), 1, None), None) is not None


def _pages(image: Image.Image) -> Iterator[int]:
    """Yield the indices of the pages of an opened image, and go to each."""
    yield 0
    for index in count(1):
        try:
            image.seek(index)
        except EOFError:
            return
        tags = getattr(image, "tag_v2", {})
        if not tags.get(_SUBFILE, 0) & 1:
            yield index


def _decoded(
    image: Image.Image, source: str | os.PathLike[str] | bytes, index: int, name: str
) -> Image.Image | Deep:
    """Return the page that an opened image is at."""
    if color.loses_bits(image):
        deep = color.all_bits(image, source, name=name, page=index)
        return replace(deep, values=_turned(deep.values, image.getexif().get(_ORIENTATION, 1)))
    found = as_deep(upright(image), inverted=_white_is_zero(image))
    # The next page replaces the pixels of an image that stays open; a single one needs no copy.
    return found.copy() if found is image and image.format in _PAGED else found


def _name_of(source: str | os.PathLike[str] | bytes) -> str:
    return f"bytes of {len(source)} B" if isinstance(source, bytes) else os.fspath(source)


def as_deep(image: Image.Image, *, inverted: bool = False) -> Image.Image | Deep:
    """Return a loaded PIL image as `Deep` if it has more than 8 bits per channel, otherwise itself.

    Examples
    --------
    >>> as_deep(Image.new("I;16", (4, 3), 1000)).values.max()
    np.uint16(1000)
    """
    return Deep(np.asarray(image), inverted=inverted) if image.mode in _DEEP_GRAY else image


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
    with _opened(source, name) as image, attributed(name):
        return upright(image)


def _white_is_zero(image: Image.Image) -> bool:
    """Return whether gray TIFF pixels are stored as ink; Pillow turns those of 8 bits around, but no deeper ones."""
    return image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0  # type: ignore[attr-defined]


def _turned(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Apply an EXIF orientation, as Pillow's ``exif_transpose`` does."""
    if orientation in _QUARTER_TURNS:
        values = values.swapaxes(0, 1)
    if orientation in _UPSIDE_DOWN:
        values = values[::-1]
    return values[:, ::-1] if orientation in _MIRRORED else values


@contextmanager
def _opened(source: str | os.PathLike[str] | bytes, name: object) -> Iterator[Image.Image]:
    with decoding(name), Image.open(_checked(source, name), formats=FORMATS) as image:
        yield image


def _checked(source: str | os.PathLike[str] | bytes, name: object) -> io.BytesIO | str | os.PathLike[str]:
    """Return what Pillow opens: a regular file or bytes, not empty."""
    if (len(source) if isinstance(source, bytes) else require_regular(source)) == 0:
        raise InputError(f"{name}: empty file; expected an image")
    return io.BytesIO(source) if isinstance(source, bytes) else source


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
        raise UnknownKindError(f"{name}: not an image of a known format ({_READ})") from None
    except Image.DecompressionBombError as error:
        raise TooLargeError(f"{name}: image too large: {error}; scale it down or cut it into parts") from None
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


def as_image(image: str | os.PathLike[str] | Image.Image | NDArray[Any]) -> Image.Image:
    """Return a path, a PIL image or an H x W x 3 (or H x W) uint8 array as a PIL image of at most 8 bits per channel.

    Raises
    ------
    InputError
        The file cannot be used, or the array is not uint8 of shape (H, W, 3) or (H, W).
    """
    if isinstance(image, Image.Image | np.ndarray):
        name = _name_in_memory(image)
        loaded = decode_in_memory(image)
        with decoding(name):
            return loaded.eight_bit(name=name) if isinstance(loaded, Deep) else loaded
    if not isinstance(image, str | os.PathLike):
        raise InputError(f"{type(image).__name__}: expected a path, a PIL image or an array")
    return read_image(image)


def decode_in_memory(image: Image.Image | NDArray[Any]) -> Image.Image | Deep:
    """Return an image in memory as `decode_image` returns a file: complete, upright, with all bits.

    Raises
    ------
    InputError
        As for `as_image`.
    """
    if isinstance(image, Image.Image):
        with decoding(_name_in_memory(image)):
            return as_deep(upright(image))
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise InputError(
            f"array of {image.dtype} with shape {image.shape}; expected uint8 RGB with shape (height, width, 3)"
        )
    if image.size == 0:
        raise InputError(f"array of shape {image.shape} has no pixels")
    return Image.fromarray(image)


def _name_in_memory(image: Image.Image | NDArray[Any]) -> str:
    return f"PIL image of {image.width} x {image.height}" if isinstance(image, Image.Image) else "array"


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


def read_mask(
    path: str | os.PathLike[str] | Address, size: int | tuple[int, int] | None = None
) -> NDArray[np.bool_]:
    """Read a defect mask: every pixel above zero is a defect.

    Parameters
    ----------
    path : path-like or Address
        A mask image; colours are converted to gray.
    size : int or (int, int), optional
        Side S, or rows and columns, to resize to by the published rule (bilinear, antialiased, at least half defect);
        None keeps the size.

    Returns
    -------
    ndarray of bool
        (S, S), (rows, columns), or (height, width) of the file.

    Raises
    ------
    InputError
        As for `read_image`.
    """
    with decoding(path), on_disk(path if isinstance(path, Address) else Path(path)) as file:
        image = _load(file, path)
        # Deep grayscale is not scaled: scaling to 8 bits would round small values to zero.
        gray = np.asarray(image if image.mode in _DEEP_GRAY else image.convert("L")) > 0
        if size is None:
            return gray
        binary = Image.fromarray(gray.astype(np.uint8) * np.uint8(255))
        rows, columns = (size, size) if isinstance(size, int) else size
        return np.asarray(binary.resize((columns, rows), Image.Resampling.BILINEAR)) > 127
