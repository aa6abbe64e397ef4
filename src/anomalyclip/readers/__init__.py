"""Paths, bytes, open files, PIL images and arrays to images. All inputs are opened here.

A file may hold many images. Each has an id, and the id alone is enough to open the image again.
The kind of a file is recognised by its extension, or else by its first bytes; a file that no other reader handles is
read as a photograph.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from io import UnsupportedOperation
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomalyclip.addresses import Address, as_address, fetched, masked
from anomalyclip.depth import Deep, Range
from anomalyclip.errors import AnomalyCLIPError, InputError
from anomalyclip.files import require_regular
from anomalyclip.images import decode_image, decode_in_memory, decoding
from anomalyclip.readers.archive import ArchiveReader
from anomalyclip.readers.base import Frame, Reader, is_unnamed
from anomalyclip.readers.dicom import DicomReader
from anomalyclip.readers.live import Live, LiveReader
from anomalyclip.readers.nifti import NiftiReader
from anomalyclip.readers.photograph import PhotographReader
from anomalyclip.readers.selection import Selection, holder
from anomalyclip.readers.video import VideoReader

__all__ = [
    "READERS",
    "Frame",
    "Live",
    "Reader",
    "Selection",
    "Source",
    "exists",
    "frames",
    "here",
    "holder",
    "is_unnamed_image",
    "locate",
    "open_deep",
    "open_image",
    "reader_for",
    "recognised",
    "register",
    "size_of",
    "suffixes",
]

Source = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[np.uint8]
"""A path (or the id of one image in a file), an `anomalyclip.addresses.Address`, the content of an image file as bytes,
a file open in binary mode, a PIL image, or an (H, W, 3) or (H, W) uint8 array."""

READERS: list[Reader] = [PhotographReader(), DicomReader(), NiftiReader(), VideoReader(), LiveReader()]
"""In the order of their registration; the first reads all files that no other reader handles."""

_NUMBERED = re.compile(r"(.+)#([1-9][0-9]{0,9})", re.DOTALL)


def register(reader: Reader) -> None:
    """Add a reader; for file extensions that it shares with earlier readers, it replaces them.

    Raises
    ------
    AnomalyCLIPError
        A file extension has no dot or is not in lower case, so that no file could match it.

    Examples
    --------
    >>> class Shouting(PhotographReader):
    ...     suffixes = frozenset({".PNG"})
    >>> register(Shouting())
    Traceback (most recent call last):
    anomalyclip.errors.AnomalyCLIPError: Shouting: invalid file extension '.PNG'; expected lower case and a dot: '.png'
    """
    for suffix in sorted(reader.suffixes):
        expected = "." + suffix.lower().lstrip(".")
        if suffix != expected:
            raise AnomalyCLIPError(
                f"{type(reader).__name__}: invalid file extension {suffix!r}; expected lower case and a dot: "
                f"{expected!r}"
            )
    READERS.append(reader)


def suffixes() -> frozenset[str]:
    """Return the file extensions (lower case) that count as images when a folder is listed.

    Examples
    --------
    >>> ".png" in suffixes(), ".txt" in suffixes()
    (True, False)
    """
    return frozenset().union(*(reader.suffixes for reader in READERS))


def reader_for(path: str) -> Reader:
    """Return the reader for a file's extension: the longest match (".nii.gz" before ".gz"), then the latest reader.

    A file with an extension that no reader has is read by the latest one that recognises its content.

    Examples
    --------
    >>> type(reader_for("unknown.xyz")).__name__
    'PhotographReader'
    """
    matches = [
        (len(suffix), position)
        for position, reader in enumerate(READERS)
        for suffix in reader.suffixes
        if path.lower().endswith(suffix)
    ]
    if matches and os.path.isfile(path):
        return READERS[max(matches)[1]]
    if matches:  # it is missing, or in an archive
        return recognised(path) or READERS[max(matches)[1]]
    return recognised(path) or READERS[0]


def recognised(path: str) -> Reader | None:
    """Return the reader that recognises a file by its content, whatever its name; None: there is none."""
    return next((reader for reader in reversed(READERS) if reader.recognises(path)), None)


def is_unnamed_image(path: str) -> bool:
    """Return whether a file that has no real extension is an image, by its content; an index of others is none.

    Examples
    --------
    >>> is_unnamed_image("missing"), is_unnamed_image("notes.txt")
    (False, False)
    """
    reader = recognised(path) if is_unnamed(path) and os.path.isfile(path) else None
    return reader is not None and reader.members(path) == [path]


def locate(id: str | os.PathLike[str]) -> tuple[str, int | None]:
    """Return the file that an id belongs to and the number of the image in it; None if the id is a path.

    If a file with the whole id as its name exists, the id is that file's path.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("scan.tif", "part#7"):
    ...         Path(folder, name).touch()
    ...     found = [locate(f"{folder}/{name}") for name in ("scan.tif", "scan.tif#2", "part#7")]
    ...     [(Path(path).name, number) for path, number in found]
    [('scan.tif', None), ('scan.tif', 2), ('part#7', None)]
    """
    path = os.fspath(id)
    if isinstance(path, Address):
        numbered = _NUMBERED.fullmatch(f".{path.inner}")
        return (path, None) if numbered is None else (Address(path.url, numbered[1][1:]), int(numbered[2]))
    numbered = _NUMBERED.fullmatch(path)
    if numbered and not os.path.lexists(path) and exists(numbered[1]):
        return numbered[1], int(numbered[2])
    return path, None


def exists(path: str) -> bool:
    """Return whether a path leads to a file or folder, or into an archive that is there.

    Examples
    --------
    >>> exists("missing.zip/a.png")
    False
    """
    return os.path.lexists(path) or recognised(path) is not None


def frames(source: Source) -> Iterator[Frame]:
    """Yield the images of a source in order; each is decoded only when it is requested.

    Parameters
    ----------
    source : path, bytes, open binary file, PIL image or uint8 array
        See `Source`. An open file is read from its beginning. The id of one image in a file yields only that image.

    Yields
    ------
    Frame

    Raises
    ------
    InputError
        The source cannot be used; raised when the image that fails is requested.

    Examples
    --------
    >>> [(frame.id, frame.image.size) for frame in frames(np.zeros((3, 4, 3), np.uint8))]
    [(None, (4, 3))]
    """
    if not isinstance(source, str | os.PathLike):
        yield Frame(None, _in_memory(source))
        return
    with decoding(source), here(source, again=True) as (file, address):
        if address is None:
            yield from _frames(file)
        else:
            yield from map(partial(_in_object, file, address), _frames(file))


def _frames(id: str) -> Iterator[Frame]:
    path, number = locate(id)
    _refuse_special(path)
    if number is None:
        yield from _all_frames(path)
    else:
        yield Frame(id, reader_for(path).open(path, number))


@contextmanager
def here(id: str | os.PathLike[str], *, again: bool = False) -> Iterator[tuple[str, Address | None]]:
    """Give an id that is on this machine: of a copy, if it is an address, which is given too; errors name it."""
    path = os.fspath(id)
    if not isinstance(path, Address):
        yield path, None
        return
    with fetched(path, again=again) as (file, reading):
        try:
            yield file + reading.inner, reading
        except InputError as error:
            raise InputError(str(error).replace(file, reading.object)) from None


def _in_object(file: str, address: Address, frame: Frame) -> Frame:
    """Return a frame of an object's copy as one of the object."""
    copy = file[: len(file) - len(address.inner)]
    return replace(frame, id=Address(address.url, str(frame.id)[len(copy) :]))


def open_image(id: str | os.PathLike[str], *, value_range: Range | None = None) -> Image.Image:
    """Open one image by its id, for instance the `image_path` of a prediction.

    Parameters
    ----------
    id : path-like
        The id of a `Frame`, or a path. The path of a file with several images opens the first.
    value_range : (float, float), optional
        The values that become black and white in an image of more than 8 bits. None: what the file says, else guessed
        from this image alone.

    Returns
    -------
    PIL.Image.Image
        Loaded, upright, at most 8 bits per channel.

    Raises
    ------
    InputError
        The file cannot be read, or has no such image.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (4, 3), "red").save(f"{folder}/red.png")
    ...     open_image(f"{folder}/red.png").size
    (4, 3)
    """
    with decoding(id):
        image = open_deep(id)
        return image.eight_bit(value_range, name=str(id)) if isinstance(image, Deep) else image


def open_deep(id: str | os.PathLike[str]) -> Image.Image | Deep:
    """Open one image by its id as `open_image` does, but keep all bits of one with more than 8 per channel."""
    with decoding(id), here(id) as (file, _):
        path, number = locate(file)
        _refuse_special(path)
        return reader_for(path).open(path, number or 1)


def size_of(id: str | os.PathLike[str]) -> tuple[int, int]:
    """Return (width, height) of one image, from the header of its file if the format allows it.

    Raises
    ------
    InputError
        As for `open_image`, but damage after the header may not be noticed.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (4, 3), "red").save(f"{folder}/red.png")
    ...     size_of(f"{folder}/red.png")
    (4, 3)
    """
    with decoding(id), here(id) as (file, _):
        path, number = locate(file)
        _refuse_special(path)
        return reader_for(path).size(path, number or 1)


def _refuse_special(path: str) -> None:
    """Refuse pipes, sockets and devices for every reader, without opening them; what else is wrong, the reader says."""
    if os.path.exists(path) and not os.path.isdir(path):
        require_regular(path)
    elif as_address(path) is not None and not exists(path):  # a live source exists while it is open
        raise InputError(
            f"{masked(path)}: no such file, and a text is not followed as an address: pass "
            "anomalyclip.addresses.Address(...)"
        )


def _all_frames(path: str) -> Iterator[Frame]:
    images = reader_for(path).frames(path)
    try:
        yield next(images)  # not kept in a variable, so that it is freed before the next one is decoded
    except StopIteration:
        raise InputError(f"{path}: no images in this file") from None
    yield from images


def _in_memory(source: bytes | BinaryIO | Image.Image | NDArray[np.uint8]) -> Image.Image | Deep:
    if isinstance(source, Image.Image | np.ndarray):
        return decode_in_memory(source)
    if isinstance(source, bytes):
        return decode_image(source)
    if hasattr(source, "read"):
        return _from_file(source)
    raise InputError(
        f"{type(source).__name__}: expected a path, the bytes of an image file, a file open in binary mode, a PIL "
        "image or a uint8 array"
    )


def _from_file(file: BinaryIO) -> Image.Image | Deep:
    name = getattr(file, "name", None)
    if not isinstance(name, str):  # in memory, or opened by its file descriptor
        name = type(file).__name__
    try:
        with suppress(AttributeError, UnsupportedOperation):  # a pipe is read from its current position
            file.seek(0)
        content = file.read()
        if not isinstance(content, bytes):
            raise TypeError(f"read() returned {type(content).__name__}, not bytes")
    except Exception as error:  # users may pass file objects of their own
        raise InputError(f"{name}: cannot be read ({error}); expected a file open in binary mode") from None
    return decode_image(content, name=name)


register(ArchiveReader(reader_for, suffixes, is_unnamed_image))
