"""Photographs: all formats that Pillow reads, one image per file."""

from collections.abc import Iterator

from anomalyclip.images import read_image, read_size
from anomalyclip.readers.base import Frame, Reader


class PhotographReader(Reader):
    """Reads PNG, JPEG and similar formats; for an animation or a file with pages, the first image.

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
        """Yield the one image of a file."""
        yield Frame(path, read_image(path))

    def size(self, path: str, number: int = 1) -> tuple[int, int]:
        """Return (width, height) from the header alone."""
        return read_size(path) if number == 1 else super().size(path, number)
