"""Run folders: they never overwrite each other, and a resumed run goes on with the settings it began with."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import replacing, writing

SETTINGS = "settings.json"
LOCK = ".lock"


def new_folder(kind: str, *, parent: str | os.PathLike[str] = "runs") -> Path:
    """Make and return the first of ``runs/<kind>-1``, ``runs/<kind>-2``, ... that does not exist.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     [new_folder("predict", parent=parent).name for _ in range(2)]
    ['predict-1', 'predict-2']
    """
    number = 1
    while True:
        folder = Path(parent) / f"{kind}-{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise AnomalyCLIPError(
                f"{folder}: cannot be made ({error.strerror}); give --output FOLDER"
            ) from None
        else:
            return folder


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write what changes the results, and nothing else, into a run's folder."""
    with writing(folder / SETTINGS), replacing(folder / SETTINGS) as temporary:
        temporary.write_text(json.dumps(settings, indent=1) + "\n")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder, which is made if it is missing, until the block ends.

    The system lets go of the lock when the process dies, however it dies.

    Raises
    ------
    AnomalyCLIPError
        Another process works in the folder.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise AnomalyCLIPError(
            f"{folder}: another process works in this folder; wait until it ends, or choose another folder"
        ) from None
    except OSError as error:
        raise AnomalyCLIPError(
            f"{folder}: cannot be written ({error.strerror or error}); choose another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


def check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Check that a run which is to be resumed began with the same settings.

    Raises
    ------
    AnomalyCLIPError
        It did not; the message says which differ.
    """
    path = folder / SETTINGS
    if not path.is_file():
        return
    try:
        before = dict(json.loads(path.read_text()))
    except (ValueError, TypeError):
        raise AnomalyCLIPError(f"{path}: damaged; begin anew in another folder") from None
    now = json.loads(json.dumps(settings))
    differ = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if differ:
        changes = "; ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in differ)
        raise AnomalyCLIPError(
            f"{folder} began with other settings ({changes}): resume with the same, or choose another folder"
        )
