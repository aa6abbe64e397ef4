"""Run folders: they never overwrite each other, and a resumed run goes on with the settings it began with."""

import json
import os
import re
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


def begin(folder: Path, command: str, settings: Mapping[str, Any], *, resume: bool) -> bool:
    """Write what changes the results into a run's folder; a run that is resumed must have begun with the same.

    Parameters
    ----------
    folder : Path
        Of the run.
    command : str
        Whose run it is: two commands in one folder would write over each other's files.
    settings : mapping
        JSON-ready; what changes the results, and nothing else.
    resume : bool
        Whether the run goes on.

    Returns
    -------
    bool
        Whether there was something to go on with.

    Raises
    ------
    AnomalyCLIPError
        The folder is another command's or somebody else's, or the run began with other settings; the message says
        which.
    """
    path = folder / SETTINGS
    now = {"command": command, **json.loads(json.dumps(settings))}
    there = path.is_file()
    before = _read(path) if there else now
    if "command" not in before:
        raise AnomalyCLIPError(
            f"{path} is not of an anomalyclip run and would be lost: choose another folder"
        )
    if before["command"] != command:
        raise AnomalyCLIPError(
            f"{folder} holds results of `anomalyclip {before['command']}`: choose another folder"
        )
    if resume and (differ := differences(before, now)):
        raise AnomalyCLIPError(
            f"{folder} began with other settings ({'; '.join(differ)}): resume with the same, or choose another folder"
        )
    with writing(path), replacing(path) as temporary:
        temporary.write_text(json.dumps(now, indent=1) + "\n")
    return there


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError):
        raise AnomalyCLIPError(f"{path}: damaged; begin anew in another folder") from None


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return in words which values differ, however deep they are; hashes are shortened.

    Examples
    --------
    >>> differences({"scoring": {"sigma": 4.0, "layers": [24]}}, {"scoring": {"sigma": 2.0, "layers": [24]}})
    ['scoring.sigma: 4.0 then, 2.0 now']
    """
    then, later = dict(_leaves(before)), dict(_leaves(now))
    return [
        f"{name}: {_shown(then.get(name))} then, {_shown(later.get(name))} now"
        for name in dict.fromkeys([*then, *later])
        if then.get(name) != later.get(name)
    ]


def _shown(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{text[:8]}..." if re.fullmatch("[0-9a-f]{16,}", text) else text


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for number, inner in enumerate(value, start=1):
            yield from _leaves(inner, f"{name} {number}")
    else:
        yield name, value
