"""Zip and tar archives, read without unpacking: ``photos.zip/line 1/a.png`` is the id of an image in ``photos.zip``.

An archive is read only where it is named itself, not where a folder has one. Its content is not trusted: names that
lead out of it, links, encrypted members and archives in it are refused one by one, and no member may be larger than
`LARGEST`.
"""

import os
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import PurePosixPath
from typing import IO

from PIL import Image

from anomalyclip.depth import Deep
from anomalyclip.errors import InputError
from anomalyclip.readers.base import Frame, Reader, is_unnamed

LARGEST = 1 << 30
"""Bytes that a member of an archive has at most."""

MOST = 1_000_000
"""Members that an archive has at most."""

_ZIP, _TAR = (".zip",), (".tar",)
_PACKED_TAR = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
ARCHIVES = (*_ZIP, *_TAR, *_PACKED_TAR, ".7z", ".rar")
_CHUNK = 1 << 20
_BEGINNING = 1024
"""Bytes from which a member without an extension is recognised."""


@dataclass(frozen=True)
class _Member:
    """A file in an archive: its size when it is unpacked, why it is not read, and where it begins in a tar."""

    size: int
    why_not: str | None
    start: int


@dataclass(frozen=True)
class _Archive:
    """Members by name; a zip stays open, so that its list is not read for each of them (threads may share it)."""

    members: dict[str, _Member]
    zip: zipfile.ZipFile | None


class ArchiveReader(Reader):
    """Reads the images in zip and tar archives, one member at a time through a temporary file.

    Parameters
    ----------
    reader_for : callable
        Returns the reader for a file.
    endings : callable
        Returns the extensions of images.
    is_image : callable
        Returns whether a file without an extension is an image.
    """

    suffixes: frozenset[str] = frozenset()

    def __init__(
        self,
        reader_for: Callable[[str], Reader],
        endings: Callable[[], frozenset[str]],
        is_image: Callable[[str], bool],
    ) -> None:
        self._reader_for, self._endings, self._is_image = reader_for, endings, is_image

    def recognises(self, path: str) -> bool:
        """Return whether a path is an archive, or leads into one."""
        return split(path) is not None

    def members(self, path: str) -> list[str]:
        """Return the ids of the images in an archive; those that will be refused are among them."""
        archive, inner = self._split(path)
        if inner:
            return [path]
        wanted = (*self._endings(), *ARCHIVES)
        found = [
            f"{path}/{name}"
            for name, member in _members(archive).items()
            if name.lower().endswith(wanted) or self._is_unnamed_image(archive, name, member)
        ]
        if not found:
            raise InputError(f"{path}: no images in this archive")
        return found

    def frames(self, path: str) -> Iterator[Frame]:
        """Yield the images of one member, or of all."""
        _, inner = self._split(path)
        for member in [path] if inner else self.members(path):
            with self._unpacked(member) as file:
                for frame in self._reader_for(file).frames(file):
                    yield replace(frame, id=str(frame.id).replace(file, member))

    def open(self, path: str, number: int = 1) -> Image.Image | Deep:
        """Return one image of a member."""
        with self._unpacked(path) as file:
            return self._reader_for(file).open(file, number)

    def size(self, path: str, number: int = 1) -> tuple[int, int]:
        """Return (width, height) of one image of a member."""
        with self._unpacked(path) as file:
            return self._reader_for(file).size(file, number)

    def _is_unnamed_image(self, archive: str, name: str, member: _Member) -> bool:
        """Return whether a member without a real extension begins like an image."""
        inner = PurePosixPath(name).name
        if (
            not is_unnamed(inner)
            or inner.startswith(".")
            or inner.upper() == "DICOMDIR"
            or member.why_not is not None
        ):
            return False
        with tempfile.TemporaryDirectory(prefix="anomalyclip-") as folder:
            file = os.path.join(folder, "member")
            try:
                _copy(archive, name, replace(member, size=min(member.size, _BEGINNING)), file)
            except Exception:  # damaged: nobody said that it is an image
                return False
            return self._is_image(file)

    def _split(self, path: str) -> tuple[str, str]:
        found = split(path)
        if found is None:
            raise InputError(f"{path}: no such archive")
        return found

    @contextmanager
    def _unpacked(self, path: str) -> Iterator[str]:
        """Give a member as a temporary file; errors name the member."""
        archive, inner = self._split(path)
        member = _members(archive).get(inner)
        if member is None:
            raise InputError(f"{path}: the archive has no such member")
        if member.why_not is not None:
            raise InputError(f"{path}: {member.why_not}")
        with tempfile.TemporaryDirectory(prefix="anomalyclip-") as folder:
            file = os.path.join(folder, f"member{os.path.splitext(inner)[1]}")
            try:
                _copy(archive, inner, member, file)
                yield file
            except InputError as error:
                raise InputError(str(error).replace(file, path)) from None


def split(path: str) -> tuple[str, str] | None:
    """Return an archive and the name of a member in it (empty: the archive itself); None: the path leads into none.

    Examples
    --------
    >>> split("parts/a.png")
    """
    lower = path.lower()
    for ending in (*_ZIP, *_TAR, *_PACKED_TAR):
        at = lower.find(ending)
        while at >= 0:
            end = at + len(ending)
            if path[end : end + 1] in ("", "/") and os.path.isfile(path[:end]):
                return path[:end], path[end + 1 :]
            at = lower.find(ending, end)
    return None


def _members(archive: str) -> dict[str, _Member]:
    """Return the files of an archive by name."""
    return _opened(archive).members


def _opened(archive: str) -> _Archive:
    """Return an archive with its list of members, which is kept until the archive changes."""
    status = os.stat(archive)
    return _read_list(archive, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _read_list(archive: str, changed: int, size: int) -> _Archive:
    if archive.lower().endswith(_PACKED_TAR):
        raise InputError(
            f"{archive}: a compressed tar cannot be read in any order; make it a zip, or a tar that is not compressed"
        )
    file = zipfile.ZipFile(archive) if archive.lower().endswith(_ZIP) else None
    members: dict[str, _Member] = {}
    for name, member in _listed_tar(archive) if file is None else _listed_zip(file):
        if len(members) == MOST:
            raise InputError(f"{archive}: more than {MOST} members; split it")
        members[name] = _checked(name, member)
    return _Archive(members, file)


def _checked(name: str, member: _Member) -> _Member:
    """Return a member with the reason why it is not read, if there is one."""
    why = member.why_not
    if name.startswith(("/", "\\")) or ".." in PurePosixPath(name.replace("\\", "/")).parts or "\0" in name:
        why = "its name leads out of the archive"
    elif name.lower().endswith(ARCHIVES):
        why = "an archive in an archive is not read; take it out first"
    elif why is None and member.size > LARGEST:
        why = f"{member.size} bytes when unpacked; expected at most {LARGEST}"
    return replace(member, why_not=why)


def _listed_zip(file: zipfile.ZipFile) -> Iterator[tuple[str, _Member]]:
    for info in file.infolist():
        if info.is_dir():
            continue
        kind = stat.S_IFMT(info.external_attr >> 16)
        why = "a link, or no regular file" if kind not in (0, stat.S_IFREG) else None
        if info.flag_bits & 1:
            why = "encrypted"
        yield info.filename, _Member(info.file_size, why, 0)


def _listed_tar(archive: str) -> Iterator[tuple[str, _Member]]:
    with tarfile.open(archive, "r:") as file:
        for info in file:
            file.members = []  # type: ignore[attr-defined] # not kept: there may be millions
            if info.isdir():
                continue
            why = None if info.isreg() and not info.sparse else "a link, or no regular file"
            yield info.name, _Member(info.size, why, info.offset_data)


def _copy(archive: str, inner: str, member: _Member, file: str) -> None:
    """Write a member to a file, and no more of it than it may have."""
    with ExitStack() as stack, open(file, "wb") as target:
        packed = _opened(archive).zip
        if packed is not None:
            source: IO[bytes] = stack.enter_context(packed.open(inner))
        else:
            source = stack.enter_context(open(archive, "rb"))
            source.seek(member.start)
        left = member.size
        while left and (chunk := source.read(min(left, _CHUNK))):
            target.write(chunk)
            left -= len(chunk)
    if left:
        raise InputError(f"{file}: {left} bytes of {member.size} are missing")
