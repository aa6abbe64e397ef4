"""Files that appear whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anomalyclip.errors import AnomalyCLIPError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; it takes that name when the block ends without an error.

    Missing parent folders are made. After an error nothing is left behind and a former file is untouched.

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
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an `OSError` (full disk, no permission, ...) of the block into one message that names `path`.

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
        raise AnomalyCLIPError(
            f"{path} cannot be written: {error.strerror or error}. "
            "Free some space, or choose a folder that can be written to."
        ) from error
