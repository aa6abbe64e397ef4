"""Writing files completely or not at all, and digests of their content."""

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

from anomalyclip.addresses import Address, delete, exists, put
from anomalyclip.addresses.writing import check_can_be_written
from anomalyclip.errors import AnomalyCLIPError, InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def replacing(path: str | os.PathLike[str] | Address) -> Iterator[Path]:
    """Yield a temporary path next to `path`, which is renamed to `path` when the block ends without an error.

    Missing parent folders are created. After an error the temporary file is deleted, and an existing file is unchanged.
    Temporary files that a killed process left there are deleted too. A file for an `Address` is written on this machine
    and sent when it is whole.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(f"{folder}/a/b.txt") as temporary:
    ...         _ = temporary.write_text("whole")
    ...     Path(f"{folder}/a/b.txt").read_text()
    'whole'
    """
    if isinstance(path, Address):
        check_can_be_written(path)
        with tempfile.TemporaryDirectory(prefix="anomalyclip-") as folder:
            yield (file := Path(folder, "file"))
            put(file, path)
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _claimed(path.parent, _make_file) as temporary:
        yield temporary
        os.replace(temporary, path)


@contextmanager
def staging(parent: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder in `parent`, for files that are moved to their places when all of them are complete.

    When the block ends, the folder is deleted with everything left in it. Temporary folders that a killed process left
    there are deleted too.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     with staging(parent) as folder:
    ...         _ = (folder / "part").write_text("whole")
    ...         os.replace(folder / "part", f"{parent}/part")
    ...     os.listdir(parent)
    ['part']
    """
    parent = Path(parent)
    parent.mkdir(parents=True, exist_ok=True)
    with _claimed(parent, Path.mkdir) as folder:
        yield folder


_TEMPORARY = re.compile(r"\.[0-9]+-[0-9a-f]{8}\.tmp")
_swept: set[str] = set()
"""Folders in which this process has already deleted the temporary files of killed processes."""


@contextmanager
def _claimed(parent: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """Yield a new file or folder with a temporary name, locked while it is in use."""
    _sweep(parent)
    path, lock = _claim(parent, make)
    try:
        yield path
    finally:
        _delete(path)
        if lock is not None:
            os.close(lock)


def _claim(parent: Path, make: Callable[[Path], None]) -> tuple[Path, int | None]:
    while True:
        path = parent / f".{os.getpid()}-{secrets.token_hex(4)}.tmp"
        make(path)
        lock = _lock(path, wait=True)
        if path.exists():  # otherwise another process deleted it before it was locked
            return path, lock
        if lock is not None:
            os.close(lock)


def _make_file(path: Path) -> None:
    path.touch(exist_ok=False)


def _lock(path: Path, *, wait: bool) -> int | None:
    """Return the descriptor that keeps a file or folder locked; None if it cannot be locked.

    The system releases the lock when the process ends, even if it was killed.
    """
    if fcntl is None:  # Windows
        return None
    try:
        lock = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(lock)
        return None
    return lock


def _sweep(parent: Path) -> None:
    """Delete the temporary files of killed processes in a folder: those that no process has locked."""
    if str(parent) in _swept:
        return
    _swept.add(str(parent))
    with suppress(OSError):
        for name in os.listdir(parent):
            if _TEMPORARY.fullmatch(name) and (lock := _lock(parent / name, wait=False)) is not None:
                _delete(parent / name)
                os.close(lock)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class _Output:
    """A file with `write` and `flush` alone, which keeps the error if the system refuses to write.

    NumPy, Pillow and PyTorch write to real files in their own ways, which say that something was not written, but not
    why: a full disk looks like a damaged image.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.refused: OSError | None = None

    def write(self, content: Any) -> int:
        """Write bytes; return how many."""
        try:
            return self._file.write(content)
        except OSError as error:
            self.refused = error
            raise

    def flush(self) -> None:
        """Give everything to the system."""
        try:
            self._file.flush()
        except OSError as error:
            self.refused = error
            raise


@contextmanager
def open_output(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file that a library is to write; a system error is raised unchanged, even if the library hides it.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with open_output(f"{folder}/a.bin") as file:
    ...         _ = file.write(b"content")
    ...     Path(folder, "a.bin").read_bytes()
    b'content'
    """
    with open(path, "wb") as file:
        output = _Output(file)
        try:
            yield cast("IO[bytes]", output)  # as much of one as writing takes
            output.flush()
        except Exception as error:
            if output.refused is None or output.refused is error:
                raise
            raise output.refused from error


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an `OSError` (full disk, no permission, ...) in the block into one error message that names `path`.

    Raises
    ------
    AnomalyCLIPError
        Instead of the `OSError`.

    Examples
    --------
    >>> with writing("map.npy"):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
    anomalyclip.errors.AnomalyCLIPError: map.npy cannot be written: No space left on device. ...
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # not of the system: an encoder's
            raise InputError(f"{path} cannot be written: {error}") from error
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(
                f"{path} cannot be written: the name is too long; shorten the image's name"
            ) from error
        if error.errno in (errno.EEXIST, errno.ENOTDIR):
            raise AnomalyCLIPError(
                f"{path} cannot be written: a file is in the place of one of its folders; choose another path"
            ) from error
        raise AnomalyCLIPError(
            f"{path} cannot be written: {error.strerror or error}. "
            "Free some disk space, or choose a folder that is writable."
        ) from error


def linked(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, or a copy of it where the file system has no hard links.

    Files that are only ever replaced as a whole (`replacing`) may share their content.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.txt").write_text("content")
    ...     linked(Path(folder, "a.txt"), Path(folder, "b.txt"))
    ...     Path(folder, "b.txt").read_text()
    'content'
    """
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def check_writable(path: str | os.PathLike[str] | Address, *, overwrite: bool) -> None:
    """Check early that a result file can be written later, and create its folder.

    At an `Address` a small object with another name is written and deleted.

    Raises
    ------
    AnomalyCLIPError
        The file exists and `overwrite` is not set, or its folder is not writable.
    """
    there = exists(path) if isinstance(path, Address) else Path(path).exists()
    if there and not overwrite:
        raise AnomalyCLIPError(f"{path} exists: give --overwrite to replace it, or another --output")
    if isinstance(path, Address):
        check_can_be_written(path)
        probe = path.parent / f".{secrets.token_hex(4)}.tmp"
        with tempfile.NamedTemporaryFile() as empty:
            put(empty.name, probe)
        delete(probe)
        return
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


def require_regular(path: str | os.PathLike[str]) -> int:
    """Return the size in bytes of a regular file; refuse anything else without opening it.

    Opening a pipe or a device may block forever, and a device may react to being opened.

    Raises
    ------
    InputError
        It is a folder, a pipe, a socket or a device.
    OSError
        The file does not exist, or its status cannot be read.

    Examples
    --------
    >>> require_regular(os.devnull)
    Traceback (most recent call last):
    anomalyclip.errors.InputError: /dev/null: is a device; expected a file
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "not a regular file")
        raise InputError(f"{path}: is {kind}; expected a file")
    return status.st_size


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


_DEEPEST = 100
_LONGEST = 20


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text; values that would cause errors later are refused.

    Refused are NaN and infinite numbers, integers of more than 20 digits, and more than 100 levels of nesting.
    They would cause errors when the values are used or written again.

    Raises
    ------
    ValueError
        It is not such JSON, or not text.

    Examples
    --------
    >>> parse_json('{"score": 0.5}')
    {'score': 0.5}
    >>> parse_json('[NaN]')
    Traceback (most recent call last):
    ValueError: NaN is not a JSON number
    """
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_moderate)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return value
    raise ValueError("nested too deeply")


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    return number if math.isfinite(number := float(text)) else _refuse(text[:_LONGEST])


def _moderate(text: str) -> int:
    if len(text) > _LONGEST:
        raise ValueError(f"{text[:_LONGEST]}... has {len(text)} digits")
    return int(text)


def file_digest(path: Path, kind: str) -> str:
    """Return the digest of a file's content.

    Parameters
    ----------
    path : Path
        The file.
    kind : {"sha256", "git"}
        SHA-256, or git's blob id: SHA-1 over ``blob <size>``, a zero byte, and the content.

    Returns
    -------
    str
        ``<kind>:<hex digits>``.

    Examples
    --------
    >>> import tempfile
    >>> empty = Path(tempfile.mkstemp()[1])
    >>> file_digest(empty, "git")  # the id that git gives every empty file
    'git:e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    >>> empty.unlink()
    """
    if kind == "git":
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return f"{kind}:{digest.hexdigest()}"


def in_one_order(content: bytes) -> bytes:
    """Return a safetensors file with its header sorted: the library writes several entries in random order."""
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # the tensors stay aligned
    return len(header).to_bytes(8, "little") + header + content[8 + length :]
