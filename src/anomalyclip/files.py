"""Writing files completely or not at all, and digests of their content."""

import errno
import hashlib
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anomalyclip.errors import AnomalyCLIPError, InputError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path next to `path`, which is renamed to `path` when the block ends without an error.

    Missing parent folders are created. After an error the temporary file is deleted, and an existing file is unchanged.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(f"{folder}/a/b.txt") as temporary:
    ...         _ = temporary.write_text("whole")
    ...     Path(f"{folder}/a/b.txt").read_text()
    'whole'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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


def check_writable(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Check early that a result file can be written later, and create its folder.

    Raises
    ------
    AnomalyCLIPError
        The file exists and `overwrite` is not set, or its folder is not writable.
    """
    path = Path(path)
    with writing(path):
        if path.exists() and not overwrite:
            raise AnomalyCLIPError(f"{path} exists: give --overwrite to replace it, or another --output")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


def require_regular(path: str | os.PathLike[str]) -> int:
    """Return the size in bytes of a regular file; refuse anything else without opening it.

    To open a pipe or a device may wait for ever, and a device may act on it.

    Raises
    ------
    InputError
        It is a folder, a pipe, a socket or a device.
    OSError
        There is no such file, or it cannot be looked up.

    Examples
    --------
    >>> require_regular(os.devnull)
    Traceback (most recent call last):
    anomalyclip.errors.InputError: /dev/null: is a device; expected a file
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no regular file")
        raise InputError(f"{path}: is {kind}; expected a file")
    return status.st_size


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


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
