"""PNG files of large pictures, on all cores: strips are compressed side by side, with the same bytes on any number.

Reference: PNG specification (W3C), sections 5 (chunks), 9 (filters) and 10 (compression).
"""

import os
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import numpy as np
from PIL import Image

_LEVEL = 1
"""Of zlib: a third of the usual level's time, and files that are hardly larger."""

_STRIP = 1 << 21
"""Bytes of rows that are compressed at once.

Pictures of several strips are compressed by runs alone (``Z_RLE``): a fifth faster, and of large photographs, whose
noise never repeats, the file is even smaller. Of small ones it would be up to a half larger.
"""

_COLOUR_TYPES = {"L": 0, "RGB": 2}
_UP = 2  # the filter by which each byte is the difference to the one above it


def write_png(image: Image.Image, file: IO[bytes]) -> None:
    """Write a picture as PNG; its pixels are exactly those of the picture.

    Parameters
    ----------
    image : PIL.Image.Image
        Of 8 bits, gray or RGB; of other modes Pillow writes the file.
    file : binary file

    Examples
    --------
    >>> import io
    >>> file = io.BytesIO()
    >>> write_png(Image.new("RGB", (4, 3), "tan"), file)
    >>> Image.open(file).getcolors()
    [(12, (210, 180, 140))]
    """
    if image.mode not in _COLOUR_TYPES:
        image.save(file, "png", compress_level=_LEVEL)
        return
    header = struct.pack(">IIBBBBB", image.width, image.height, 8, _COLOUR_TYPES[image.mode], 0, 0, 0)
    file.write(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header))
    for part in _compressed(image):
        file.write(_chunk(b"IDAT", part))
    file.write(_chunk(b"IEND", b""))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _compressed(image: Image.Image) -> Iterator[bytes]:
    """Yield the parts of one zlib stream of all rows, filtered."""
    step = max(_STRIP // (image.width * len(image.getbands())), 1)
    starts = range(0, image.height, step)
    strategy = zlib.Z_RLE if len(starts) > 1 else zlib.Z_DEFAULT_STRATEGY

    def strip(start: int) -> tuple[memoryview, bytes]:
        filtered = _filtered(image, start, min(start + step, image.height))
        deflate = zlib.compressobj(_LEVEL, wbits=-zlib.MAX_WBITS, strategy=strategy)
        part = deflate.compress(filtered)
        return filtered, part + deflate.flush(zlib.Z_FINISH if start == starts[-1] else zlib.Z_SYNC_FLUSH)

    check = 1
    yield zlib.compress(b"", _LEVEL)[:2]  # the header of a stream
    with ThreadPoolExecutor(min(os.cpu_count() or 1, len(starts))) as pool:
        for filtered, part in pool.map(strip, starts):
            check = zlib.adler32(filtered, check)
            yield part
    yield struct.pack(">I", check)


def _filtered(image: Image.Image, start: int, stop: int) -> memoryview:
    """Return rows as PNG stores them, (H, 1 + bytes per row): the filter, and the differences to the row above."""
    above = min(start, 1)
    rows = np.asarray(image.crop((0, start - above, image.width, stop))).reshape(stop - start + above, -1)
    found = np.empty((stop - start, 1 + rows.shape[1]), np.uint8)
    found[:, 0] = _UP
    found[0, 1:] = rows[0]  # the first row of a picture has none above it
    np.subtract(rows[1:], rows[:-1], out=found[1 - above :, 1:])
    return found.data
