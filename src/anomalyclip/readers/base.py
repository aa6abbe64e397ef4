"""The base class of readers: a reader opens one kind of file and yields the images in it, one by one."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from PIL import Image

from anomalyclip.depth import Deep
from anomalyclip.errors import InputError
from anomalyclip.readers.selection import Selection


@dataclass(frozen=True)
class Frame:
    """One image of a source, decoded.

    Attributes
    ----------
    id : str or None
        The `image_path` of the image's prediction, which `anomalyclip.readers.open_image` can open again: the path as
        it was given if the file holds one image, ``PATH#K`` if it holds several (pages, slices, video frames; K
        counts from 1). None for an image in memory.
    image : PIL.Image.Image or Deep
        Loaded and upright; a PIL image of at most 8 bits per channel in any colour mode, or all bits of a deeper image
        (`anomalyclip.depth`).
    time : float or None
        For a frame of a video: seconds from its start, by its time stamp.
    """

    id: str | None
    image: Image.Image | Deep
    time: float | None = None


class Reader(Protocol):
    r"""Opens one kind of file.

    A new kind of file needs one subclass with `suffixes` and `frames`, registered by `anomalyclip.readers.register`.
    `open` and `size` have default implementations that use `frames`; override them if the format allows a faster way.

    A reader does not need to convert the exceptions of its decoder: any exception that is not an `AnomalyCLIPError`
    becomes an `InputError` that names the file.

    Attributes
    ----------
    suffixes : frozenset of str
        File extensions, in lower case and with their dot, that count as images when a folder is listed.

    Examples
    --------
    >>> class Flags(Reader):
    ...     "A file of colour names: each line is an image."
    ...     suffixes = frozenset({".flags"})
    ...
    ...     def frames(self, path):
    ...         with open(path) as lines:
    ...             for number, line in enumerate(lines, start=1):
    ...                 yield Frame(f"{path}#{number}", Image.new("RGB", (4, 3), line.strip()))
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "two.flags")
    ...     _ = path.write_text("red\nblue\n")
    ...     Flags().open(str(path), 2).getpixel((0, 0))
    (0, 0, 255)
    """

    suffixes: frozenset[str]

    def frames(self, path: str) -> Iterator[Frame]:
        """Yield the images of a file in order; each is decoded only when it is requested."""
        ...

    def recognises(self, path: str) -> bool:
        """Return whether a file without a known extension is of this kind, by its first bytes; by default it is not."""
        return False

    def members(self, path: str) -> list[str]:
        """Return the files that a file lists, if it is an index of others; by default the file itself."""
        return [path]

    def select(self, path: str, selection: Selection) -> str:
        """Return the path of the images that are wanted of a file with many; by default all of them are."""
        return path

    def open(self, path: str, number: int = 1) -> Image.Image | Deep:
        """Return one image of a file, counted from 1.

        Raises
        ------
        InputError
            The file holds fewer images.
        """
        frame = next(islice(self.frames(path), number - 1, None), None)
        if frame is None:
            raise InputError(f"{path}#{number}: the file holds fewer images")
        return frame.image

    def size(self, path: str, number: int = 1) -> tuple[int, int]:
        """Return (width, height) of one image of a file, counted from 1, as `open` would return it."""
        return self.open(path, number).size


def is_unnamed(path: str) -> bool:
    """Return whether the name of a file does not say what is in it: DICOM files are called IM0001 or 1.2.840.113.

    Examples
    --------
    >>> is_unnamed("study/IM0001"), is_unnamed("1.2.840.113"), is_unnamed("a.png")
    (True, True, False)
    """
    _, extension = os.path.splitext(path)
    return not extension or extension[1:].isdigit()
