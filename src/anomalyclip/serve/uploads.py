"""What callers send, opened in memory: no file is written, and no name or address of theirs is ever opened.

Readers open paths. On Linux a file in memory has one (`os.memfd_create`), so that every reader works on uploads too.
"""

import gzip
import io
import os
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from PIL import Image

from anomalyclip.depth import Deep
from anomalyclip.errors import InputError, TooLargeError, UnknownKindError
from anomalyclip.images import decode_pages, decoding
from anomalyclip.readers import Frame, recognised, suffixes
from anomalyclip.readers.archive import ARCHIVES
from anomalyclip.readers.selection import Selection

LONGEST_NAME = 255

ALL = Selection()
"""Every image of a file."""

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PHOTOGRAPHS = (b"\x89PNG", b"\xff\xd8", b"BM", b"GIF8", b"P2", b"P3", b"P5", b"P6", *_TIFF)
"""How files begin that Pillow reads; WebP says so later, and so does DICOM, which may begin as any of them."""

_GZIP = b"\x1f\x8b"
_ZIP, _TAR_AT, _TAR = b"PK\x03\x04", 257, b"ustar"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Upload:
    """A file that was sent.

    Parameters
    ----------
    name : str
        What the caller calls it; only ever shown, see `shown_name`.
    content : bytes
    """

    name: str
    content: bytes


class Sent(Protocol):
    """A file that was sent: its name, and its content, which may lie on disk until it is asked for."""

    @property
    def name(self) -> str:
        """What the caller calls it."""
        ...

    @property
    def content(self) -> bytes:
        """All of it."""
        ...


@dataclass(frozen=True)
class Stored:
    """A file that was sent, kept on disk because the operator allows it.

    Parameters
    ----------
    name : str
        What the caller calls it.
    path : Path
        Where it is; it does not contain the name.
    """

    name: str
    path: Path

    @property
    def content(self) -> bytes:
        """All of it."""
        return self.path.read_bytes()


@dataclass(frozen=True)
class Uploaded:
    """One image of an upload: name of its file, number there, seconds of a video's frame, and pixels."""

    name: str
    index: int
    time: float | None
    image: Image.Image | Deep


def shown_name(name: object, number: int) -> str:
    r"""Return a caller's name of a file as it is shown and kept: one line of text, without folders.

    Examples
    --------
    >>> shown_name("../../etc/passwd", 1), shown_name("C:\\parts\\a.png", 1), shown_name("", 3)
    ('passwd', 'a.png', 'image-3')
    """
    last = str(name).replace("\\", "/").rsplit("/", 1)[-1]
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in last).strip()
    return text[-LONGEST_NAME:] if text not in ("", ".", "..") else f"image-{number}"


def images_of(sent: Sent, *, unpacked: int, selection: Selection = ALL) -> Iterator[Uploaded]:
    """Yield the images of an upload in order; each is decoded only when it is requested.

    Parameters
    ----------
    sent : Sent
    unpacked : int
        Bytes of an archive's members at most.
    selection : Selection
        Which images of a video or a volume are wanted.

    Raises
    ------
    InputError
        The image that was requested cannot be used. In an archive, the members after it are lost.
    """
    upload = Upload(sent.name, sent.content)
    if not upload.content:
        raise InputError(f"{upload.name}: empty file; expected an image")
    if upload.content.startswith(_ZIP):
        members = _zip_members(upload, unpacked)
    elif upload.content[_TAR_AT:].startswith(_TAR):
        members = _tar_members(upload, unpacked)
    else:
        members = iter([upload])
    found = False
    for member in members:
        for count, frame in enumerate(_frames(member, selection, unpacked), start=1):
            found = True
            number = str(frame.id).rpartition("#")[2]  # of those that were left out too
            index = int(number) if number.isdecimal() else count
            yield Uploaded(member.name, index, frame.time, frame.image)
            del frame  # a large one is not held while the next one is decoded
    if not found:
        raise InputError(f"{upload.name}: no images in this archive")


def _frames(upload: Upload, selection: Selection, unpacked: int) -> Iterator[Frame]:
    """Yield the images of a file that is no archive; its content alone says what kind of file it is."""
    content = upload.content
    is_photograph = content.startswith(_PHOTOGRAPHS) or content[8:12] == b"WEBP"
    if is_photograph and content[128:132] != b"DICM":  # it is decoded from bytes, on every system
        for image in decode_pages(content, name=upload.name):
            yield Frame(None, image)
        return
    if content.startswith(_GZIP):
        with decoding(upload.name), gzip.open(io.BytesIO(content)) as packed:
            content = _bounded(packed, upload.name, unpacked, unpacked)
    with _in_memory(content) as path, decoding(upload.name):
        reader = None if path is None else recognised(path)
        if path is None or reader is None:
            raise UnknownKindError(f"{upload.name}: not an image of a known format")
        try:
            yield from reader.frames(reader.select(path, selection))
        except InputError as error:
            raise type(error)(str(error).replace(path, upload.name)) from None


@contextmanager
def _in_memory(content: bytes) -> Iterator[str | None]:
    """Give the path of a file that is in memory alone; None on systems that have no such files."""
    if sys.platform != "linux":
        yield None
        return
    file = os.memfd_create("upload")
    try:
        with open(file, "wb", closefd=False) as target:
            target.write(content)
        yield f"/proc/self/fd/{file}"
    finally:
        os.close(file)


def _zip_members(upload: Upload, unpacked: int) -> Iterator[Upload]:
    with decoding(upload.name), zipfile.ZipFile(io.BytesIO(upload.content)) as archive:
        left = unpacked
        for info in archive.infolist():
            if info.is_dir() or not _is_wanted(info.filename):
                continue
            name = f"{upload.name}/{shown_name(info.filename, 1)}"
            if info.flag_bits & 1:
                raise InputError(f"{name}: encrypted")
            with archive.open(info) as member:
                content = _bounded(member, name, left, unpacked)
            left -= len(content)
            yield Upload(name, content)


def _tar_members(upload: Upload, unpacked: int) -> Iterator[Upload]:
    with decoding(upload.name), tarfile.open(fileobj=io.BytesIO(upload.content), mode="r:") as archive:
        left = unpacked
        for info in archive:
            archive.members = []  # type: ignore[attr-defined] # not kept: there may be millions
            if not info.isreg() or info.sparse or not _is_wanted(info.name):
                continue
            name = f"{upload.name}/{shown_name(info.name, 1)}"
            member = archive.extractfile(info)
            assert member is not None
            content = _bounded(member, name, left, unpacked)
            left -= len(content)
            yield Upload(name, content)


def _is_wanted(name: str) -> bool:
    """Return whether a member of an archive is an image; archives in archives are not read."""
    lower = PurePosixPath(name.replace("\\", "/")).name.lower()
    return lower.endswith(tuple(suffixes())) and not lower.endswith(ARCHIVES) and not lower.startswith("._")


def _bounded(member: IO[bytes] | gzip.GzipFile, name: str, left: int, unpacked: int) -> bytes:
    """Return the content of a member, and read no more of it than is left."""
    parts: list[bytes] = []
    while chunk := member.read(min(_CHUNK, left + 1)):
        left -= len(chunk)
        if left < 0:
            raise TooLargeError(
                f"{name}: the archive has more than {unpacked} bytes when it is unpacked; send its files one by one"
            )
        parts.append(chunk)
    return b"".join(parts)
