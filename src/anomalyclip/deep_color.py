"""Pixels of which Pillow keeps 8 bits or none: 16-bit colour of PNG, TIFF and PPM, and floats in TIFF."""

import io
import math
import os
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


def all_bits(image: Image.Image, content: Content, *, name: str) -> Deep:
    """Return the pixels of an image that Pillow has opened and would cut; see `loses_bits`. Alpha is left out."""
    if image.format == "TIFF":
        return read_tiff(content, name=name)
    if image.format == "PPM":
        return _read_ppm(image, content, name)
    codecs = _library("imagecodecs", f"{name}: 16-bit colour")
    values = codecs.png_decode(_bytes(content))
    return Deep(values[..., 0] if values.shape[2] == 2 else values[..., :3])


def read_tiff(content: Content, *, name: str) -> Deep:
    """Return the first page of a TIFF file with gray or RGB pixels of any depth."""
    tifffile = _library("tifffile", f"{name}: TIFF with such pixels")
    _library("imagecodecs", f"{name}: TIFF with such pixels")  # decodes most compressions
    with tifffile.TiffFile(io.BytesIO(content) if isinstance(content, bytes) else content) as file:
        page = file.pages.first
        limit = 2 * (Image.MAX_IMAGE_PIXELS or math.inf)
        if page.imagewidth * page.imagelength > limit:
            raise Image.DecompressionBombError(f"{page.imagewidth} x {page.imagelength} pixels")
        kind = page.photometric.name if page.photometric is not None else "no photometric interpretation"
        gray = kind in ("MINISBLACK", "MINISWHITE") and page.samplesperpixel == 1
        if not gray and not (kind == "RGB" and page.samplesperpixel in (3, 4)):
            raise InputError(
                f"{name}: TIFF of {page.samplesperpixel} channels ({kind}); expected gray or RGB"
            )
        values = page.asarray(maxworkers=1).reshape(
            (-1, page.imagelength, page.imagewidth) if page.planarconfig == 2 else page.shape
        )
    if not gray and page.planarconfig == 2:
        values = np.moveaxis(values, 0, -1)
    if values.dtype.kind not in "uif":
        raise InputError(f"{name}: TIFF with pixels of type {values.dtype}; expected numbers")
    return Deep(values.reshape(values.shape[-2:]) if gray else values[..., :3], inverted=kind == "MINISWHITE")


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
