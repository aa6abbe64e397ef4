"""Pixels of which Pillow keeps 8 bits or none: 16-bit colour of PNG, TIFF and PPM, and floats in TIFF."""

import io
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomalyclip.depth import Deep
from anomalyclip.errors import InputError

_BITS = 258  # the TIFF tag: bits per sample
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

Content = str | os.PathLike[str] | bytes


def is_tiff(content: Content) -> bool:
    """Return whether a file begins as TIFF and BigTIFF do.

    Examples
    --------
    >>> is_tiff(b"II*..."), is_tiff(b"MM" + bytes([0, 42])), is_tiff(b"GIF89a")
    (False, True, False)
    """
    if isinstance(content, bytes):
        return content.startswith(_TIFF)
    with open(content, "rb") as file:
        return file.read(4) in _TIFF


def loses_bits(image: Image.Image) -> bool:
    """Return whether Pillow would cut the channels of an image that it has opened to 8 bits, or scale them.

    Examples
    --------
    >>> loses_bits(Image.new("RGB", (4, 3)))
    False
    """
    if image.format == "TIFF":
        bits = image.tag_v2.get(_BITS, (1,))  # type: ignore[attr-defined]
        return len(bits) > 1 and max(bits) > 8
    if image.format == "PNG":
        return image.mode in ("RGB", "RGBA", "LA") and any(";16B" in str(tile[3]) for tile in _tiles(image))
    return image.format == "PPM" and _highest(image) > 255


def all_bits(image: Image.Image, content: Content, *, name: str, page: int = 0) -> Deep:
    """Return the pixels of an image that Pillow has opened and would cut; see `loses_bits`. Alpha is left out."""
    if image.format == "TIFF":
        return read_tiff(content, name=name, page=page)
    if image.format == "PPM":
        return _read_ppm(image, content, name)
    codecs = _library("imagecodecs", f"{name}: 16-bit colour")
    values = codecs.png_decode(_bytes(content))
    return Deep(values[..., 0] if values.shape[2] == 2 else values[..., :3])


def read_tiff(content: Content, *, name: str, page: int = 0) -> Deep:
    """Return a page of a TIFF file, counted from 0, with gray or RGB pixels of any depth."""
    with _tiff(content, name) as file:
        one = file.pages[page]
        limit = 2 * (Image.MAX_IMAGE_PIXELS or math.inf)
        if one.imagewidth * one.imagelength > limit:
            raise Image.DecompressionBombError(f"{one.imagewidth} x {one.imagelength} pixels")
        kind = one.photometric.name if one.photometric is not None else "no photometric interpretation"
        gray = kind in ("MINISBLACK", "MINISWHITE") and one.samplesperpixel == 1
        if not gray and not (kind == "RGB" and one.samplesperpixel in (3, 4)):
            raise InputError(f"{name}: TIFF of {one.samplesperpixel} channels ({kind}); expected gray or RGB")
        size = (one.imagelength, one.imagewidth)
        values = one.asarray(maxworkers=1).reshape((-1, *size) if one.planarconfig == 2 else one.shape)
        planar = not gray and one.planarconfig == 2
    if planar:
        values = np.moveaxis(values, 0, -1)
    if values.dtype.kind not in "uif":
        raise InputError(f"{name}: TIFF with pixels of type {values.dtype}; expected numbers")
    return Deep(values.reshape(values.shape[-2:]) if gray else values[..., :3], inverted=kind == "MINISWHITE")


def tiff_pages(content: Content, *, name: str) -> Iterator[int]:
    """Yield the indices of the pages of a TIFF file that are not smaller copies of others."""
    with _tiff(content, name) as file:
        for index in range(len(file.pages)):
            if index == 0 or not file.pages[index].subfiletype & 1:
                yield index


def _tiff(content: Content, name: str) -> Any:
    tifffile = _library("tifffile", f"{name}: TIFF with such pixels")
    _library("imagecodecs", f"{name}: TIFF with such pixels")  # decodes most compressions
    return tifffile.TiffFile(io.BytesIO(content) if isinstance(content, bytes) else content)


def _tiles(image: Image.Image) -> list[Any]:
    """Return how Pillow would decode an image: codec, box, offset, arguments."""
    return list(getattr(image, "tile", []))


def _highest(image: Image.Image) -> int:
    """Return the value that is white in a PPM or PGM file that needs scaling."""
    return max(
        (
            tile[3][1]
            for tile in _tiles(image)
            if tile[0].startswith("ppm") and isinstance(tile[3], tuple) and isinstance(tile[3][1], int)
        ),
        default=0,
    )


def _read_ppm(image: Image.Image, content: Content, name: str) -> Deep:
    """Return the values themselves: Pillow scales gray to 16 bits, and colour to 8."""
    highest = _highest(image)
    own = (0.0, float(highest))
    if image.mode == "I":
        scaled = np.asarray(image, np.float64)
        return Deep(np.round(scaled * (highest / 65535)).astype(np.uint16), own=own)
    codec, _, start, _ = _tiles(image)[0]
    if codec != "ppm":
        raise InputError(f"{name}: plain PPM of more than 8 bits; expected binary PPM (P6)")
    width, height = image.size
    values: NDArray[Any] = np.frombuffer(_bytes(content), ">u2", width * height * 3, start)
    return Deep(values.reshape(height, width, 3), own=own)


def _bytes(content: Content) -> bytes:
    if isinstance(content, bytes):
        return content
    with open(content, "rb") as file:
        return file.read()


def _library(name: str, what: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"{what} needs {name}: pip install 'anomalyclip[deep]'") from None
