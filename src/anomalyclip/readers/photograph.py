"""Photographs: all formats that Pillow reads, with the pages of TIFF and the frames of GIF and WebP."""

import os
from collections.abc import Iterator

from PIL import Image

from anomalyclip.depth import Deep
from anomalyclip.errors import InputError
from anomalyclip.images import decode_image, decode_pages, has_pages, read_size
from anomalyclip.readers.base import Frame, Reader

RAW = frozenset(
    {
        ".3fr",
        ".arw",
        ".cr2",
        ".cr3",
        ".crw",
        ".dng",
        ".erf",
        ".nef",
        ".nrw",
        ".orf",
        ".pef",
        ".raf",
        ".rw2",
        ".srw",
    }
)
"""Cameras' raw files. Some are TIFF inside, and what Pillow finds there is a thumbnail."""


class PhotographReader(Reader):
    """Reads PNG, JPEG and similar formats, and each page or frame of TIFF, GIF and WebP.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = f"{folder}/red.png"
    ...     Image.new("RGB", (4, 3), "red").save(path)
    ...     [(frame.id == path, frame.image.size) for frame in PhotographReader().frames(path)]
    [(True, (4, 3))]
    """

    suffixes = frozenset(
        {".png", ".jpg", ".jpeg", ".jpe", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"}
    )

    def frames(self, path: str) -> Iterator[Frame]:
        """Yield the images of a file; those of several are numbered."""
        _refuse_raw(path)
        if not has_pages(path):
            yield Frame(path, decode_image(path))
            return
        for number, image in enumerate(decode_pages(path), start=1):
            yield Frame(f"{path}#{number}", image)

    def open(self, path: str, number: int = 1) -> Image.Image | Deep:
        """Return one image of a file, counted from 1."""
        _refuse_raw(path)
        image = next(decode_pages(path, first=number), None)
        if image is None:
            raise InputError(f"{path}#{number}: the file holds fewer images")
        return image

    def size(self, path: str, number: int = 1) -> tuple[int, int]:
        """Return (width, height), from the header alone if Pillow knows it."""
        _refuse_raw(path)
        return read_size(path) if number == 1 else super().size(path, number)


def _refuse_raw(path: str) -> None:
    if os.path.splitext(path)[1].lower() in RAW:
        raise InputError(
            f"{path}: a camera's raw file, which has no fixed colours yet; develop it to a 16-bit TIFF (for example "
            "with RawTherapee or darktable), with the same settings for all images"
        )
