"""Run folders: they never overwrite each other, and a resumed run goes on with the settings it began with."""

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anomalyclip.errors import AnomalyCLIPError, AnomalyCLIPWarning
from anomalyclip.files import replacing, writing
from anomalyclip.identity import differences

SETTINGS = "settings.json"
LOCK = ".lock"


class RunFolder:
    """Where a run leaves its results: checked at once, locked and marked when it begins.

    Parameters
    ----------
    command : str
        Whose run it is.
    output : path, optional
        The folder. None: a new one, ``runs/<command>-1``, ``-2``, ..., made when the run begins.
    resume, overwrite : bool
        What to do with results that are there; without either they are refused. None: cannot be overwritten.
    results : str
        What in the folder shows that there are results: a name or a pattern.

    Attributes
    ----------
    output : Path or None
        The folder; of a new one, once it is made.

    Raises
    ------
    AnomalyCLIPError
        There is no folder to resume in, or one with results that are neither to be resumed nor overwritten.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> with RunFolder("predict", folder, results="predictions.jsonl").begin({"sigma": 4.0}) as here:
    ...     _ = (here / "predictions.jsonl").write_text("{}")
    >>> RunFolder("predict", folder, overwrite=False, results="predictions.jsonl")
    Traceback (most recent call last):
    anomalyclip.errors.AnomalyCLIPError: ... has results already: give --resume, --overwrite or another --output
    """

    def __init__(
        self,
        command: str,
        output: str | os.PathLike[str] | None,
        *,
        resume: bool = False,
        overwrite: bool | None = None,
        results: str,
    ) -> None:
        self.command, self.resume, self.overwrite = command, resume, overwrite
        self.output = None if output is None else Path(output)
        if resume and overwrite:
            raise AnomalyCLIPError("--resume and --overwrite exclude each other: give one of them")
        if self.output is None:
            if resume:
                raise AnomalyCLIPError("--resume needs the folder of the run: give --output FOLDER")
            return
        there = any(self.output.glob(results))
        if there and not (resume or overwrite):
            ways = "--resume or" if overwrite is None else "--resume, --overwrite or"
            raise AnomalyCLIPError(f"{self.output} has results already: give {ways} another --output")
        if there and resume and not (self.output / SETTINGS).exists():
            raise AnomalyCLIPError(
                f"{self.output} does not say how it began ({SETTINGS} is missing): start again in another folder"
            )

    @contextmanager
    def begin(self, settings: Mapping[str, Any], *, about: Mapping[str, Any] | None = None) -> Iterator[Path]:
        """Give the folder, locked until the block ends; see `alone` and `begin`."""
        self.output = folder = self.output or new_folder(self.command)
        with alone(folder):
            if not begin(folder, self.command, settings, resume=self.resume, about=about) and self.resume:
                warnings.warn(
                    f"{folder} holds no run to resume: this one starts at the beginning",
                    AnomalyCLIPWarning,
                    stacklevel=3,
                )
            yield folder


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


def begin(
    folder: Path,
    command: str,
    settings: Mapping[str, Any],
    *,
    resume: bool,
    about: Mapping[str, Any] | None = None,
) -> bool:
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
    about : mapping, optional
        JSON-ready; written beside the settings and not compared.

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
    before.pop("about", None)
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
        content = now if about is None else {**now, "about": dict(about)}
        temporary.write_text(json.dumps(content, indent=1) + "\n")
    return there


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError):
        raise AnomalyCLIPError(f"{path}: damaged; begin anew in another folder") from None
