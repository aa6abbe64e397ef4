"""What callers send, opened in memory: no file is written, and no name or address of theirs is ever opened.

Readers open paths. On Linux a file in memory has one (`os.memfd_create`), so that every reader works on uploads too.
"""

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
from anomalyclip.errors import InputError, TooLargeError
from anomalyclip.images import decode_pages, decoding
from anomalyclip.readers import READERS, Frame, Reader, suffixes
from anomalyclip.readers.archive import ARCHIVES

LONGEST_NAME = 255

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
    """One image of an upload: its file's name, its number there, its pixels, and for a video its time in seconds."""

    name: str
    index: int
    image: Image.Image | Deep
    time: float | None = None


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


def images_of(sent: Sent, *, unpacked: int) -> Iterator[Uploaded]:
    """Yield the images of an upload in order; each is decoded only when it is requested.

    Parameters
    ----------
    sent : Sent
    unpacked : int
        Bytes of an archive's members at most.

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
        for index, frame in enumerate(_pages(member), start=1):
            found = True
            yield Uploaded(member.name, index, frame.image, frame.time)
    if not found:
        raise InputError(f"{upload.name}: no images in this archive")


def _pages(upload: Upload) -> Iterator[Frame]:
    reader = _reader_of(upload)
    if reader is READERS[0]:  # photographs are decoded from bytes on every system
        yield from (Frame(None, image) for image in decode_pages(upload.content, name=upload.name))
        return
    with _in_memory(upload) as path, decoding(upload.name):
        try:
            yield from reader.frames(path)
        except InputError as error:
            raise InputError(str(error).replace(path, upload.name)) from None


def _reader_of(upload: Upload) -> Reader:
    """Return the reader for a file's content; its name only decides between those that do not look at content."""
    if upload.content[128:132] == b"DICM":
        return next(reader for reader in READERS if ".dcm" in reader.suffixes)
    matches = [
        (len(suffix), position)
        for position, reader in enumerate(READERS)
        for suffix in reader.suffixes
        if upload.name.lower().endswith(suffix)
    ]
    return READERS[max(matches)[1]] if matches else READERS[0]


@contextmanager
def _in_memory(upload: Upload) -> Iterator[str]:
    """Give the path of a file that is in memory alone."""
    if sys.platform != "linux":
        raise InputError(f"{upload.name}: this kind of file can be uploaded only to a service on Linux")
    file = os.memfd_create("upload")
    try:
        with open(file, "wb", closefd=False) as target:
            target.write(upload.content)
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


def _bounded(member: IO[bytes], name: str, left: int, unpacked: int) -> bytes:
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
