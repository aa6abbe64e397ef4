"""Run folders: they never overwrite each other, and a run can be resumed only with the settings it started with."""

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from anomalyclip.addresses import Address, as_address
from anomalyclip.errors import AnomalyCLIPError, AnomalyCLIPWarning
from anomalyclip.files import parse_json, replacing, writing
from anomalyclip.identity import differences

SETTINGS = "settings.json"
LOCK = ".lock"


class RunFolder:
    """The folder for a run's results. It is checked at once, and locked when the run starts.

    Parameters
    ----------
    command : str
        The command that runs.
    output : path, optional
        The folder. None: a new one, ``runs/<command>-1``, ``-2``, ..., created when the run starts.
    resume, overwrite : bool
        What to do with existing results; without either, a folder with results is refused. `overwrite` None: the
        command cannot overwrite.
    results : str
        Name or pattern of a file or folder that shows that the folder holds results.
    earlier : callable, optional
        Returns the files of an earlier run in a folder, which `overwrite` deletes; it raises if one must stay, and all
        stay then. They are deleted before the new settings are written and after the old ones are: a run that is killed
        in between leaves no settings under which the old results could be resumed.

    Attributes
    ----------
    output : Path or None
        The folder; None until a new one is created.

    Raises
    ------
    AnomalyCLIPError
        There is no folder to resume, or the folder holds results and neither `resume` nor `overwrite` is set.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> with RunFolder("predict", folder, results="predictions.jsonl").begin({"sigma": 4.0}) as here:
    ...     _ = (here / "predictions.jsonl").write_text("{}")
    >>> RunFolder("predict", folder, overwrite=False, results="predictions.jsonl")
    Traceback (most recent call last):
    anomalyclip.errors.AnomalyCLIPError: ... already has results: use --resume, --overwrite or another --output
    """

    def __init__(
        self,
        command: str,
        output: str | os.PathLike[str] | None,
        *,
        resume: bool = False,
        overwrite: bool | None = None,
        results: str,
        earlier: Callable[[Path], Iterable[Path]] | None = None,
    ) -> None:
        self.command, self.resume, self.overwrite = command, resume, overwrite
        self._earlier = earlier
        self.output = None if output is None else Path(output)
        if output is not None and (address := as_address(output)) is not None:
            raise AnomalyCLIPError(
                f"{address}: this run writes to a folder of this machine only (anomalyclip {command}); give "
                "one, and copy the results"
            )
        if resume and overwrite:
            raise AnomalyCLIPError("--resume and --overwrite cannot be combined: choose one of them")
        if self.output is None:
            if resume:
                raise AnomalyCLIPError("--resume needs the folder of the run: give --output FOLDER")
            return
        self._check(
            self.output, any(self.output.glob(results)), has_settings=(self.output / SETTINGS).exists()
        )

    def _check(self, place: object, there: bool, *, has_settings: bool) -> None:
        if there and not (self.resume or self.overwrite):
            ways = "--resume or" if self.overwrite is None else "--resume, --overwrite or"
            raise AnomalyCLIPError(f"{place} already has results: use {ways} another --output")
        if there and self.resume and not has_settings:
            raise AnomalyCLIPError(
                f"{place} cannot be resumed: its settings are unknown ({SETTINGS} is missing); start again "
                f"{'' if self.overwrite is None else 'with --overwrite or '}in another folder"
            )

    @property
    def place(self) -> Path | Address | None:
        """Where the results are; None until a new folder is created."""
        return self.output

    def told(self) -> dict[str, Any]:
        """Return what the run that is in the folder tells beside its settings; nothing if there is none."""
        if self.output is None or not (self.output / SETTINGS).is_file():
            return {}
        return told(self.output)

    def note(self, record: dict[str, Any]) -> None:
        """Take note of a line of results; here they are where they belong already."""

    def keep_maps(self) -> None:
        """Have the maps of volumes at hand when the run ends; here they are anyway."""

    @contextmanager
    def begin(self, settings: Mapping[str, Any], *, about: Mapping[str, Any] | None = None) -> Iterator[Path]:
        """Yield the folder, locked until the block ends; see `alone` and `begin`."""
        self.output = folder = self.output or new_folder(self.command)
        earlier = self._earlier if self.overwrite else None
        with alone(folder):
            there = begin(folder, self.command, settings, resume=self.resume, about=about, earlier=earlier)
            if self.resume and not there:
                warnings.warn(
                    f"{folder} has no run to resume: starting from the beginning",
                    AnomalyCLIPWarning,
                    stacklevel=3,
                )
            yield folder


@contextmanager
def begun(
    folder: RunFolder | None,
    settings: Callable[[], Mapping[str, Any]],
    *,
    about: Callable[[], Mapping[str, Any]],
) -> Iterator[Path]:
    """Yield the folder of a run as `RunFolder.begin` does, or a temporary one if there is none.

    Parameters
    ----------
    folder : RunFolder, optional
        None: nothing is kept.
    settings, about : callable
        Return what `RunFolder.begin` takes; called only if there is a folder, since settings may hash large files.
    """
    if folder is None:
        with TemporaryDirectory(prefix="anomalyclip-") as name:
            yield Path(name)
        return
    with folder.begin(settings(), about=about()) as place:
        yield place


def new_folder(kind: str, *, parent: str | os.PathLike[str] = "runs") -> Path:
    """Create and return the first of ``runs/<kind>-1``, ``runs/<kind>-2``, ... that does not exist yet.

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
                f"{folder}: cannot be created ({error.strerror}); choose a folder with --output FOLDER"
            ) from None
        else:
            return folder


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Lock a run's folder against other processes until the block ends; the folder is created if it is missing.

    The operating system releases the lock when the process ends, even if it is killed.

    Raises
    ------
    AnomalyCLIPError
        Another process is working in the folder.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise AnomalyCLIPError(
            f"{folder}: another process is working in this folder; wait until it ends, or choose another folder"
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
    earlier: Callable[[Path], Iterable[Path]] | None = None,
) -> bool:
    """Write a run's settings into its folder; a run that is resumed must have been started with the same settings.

    Parameters
    ----------
    folder : Path
        The run's folder.
    command : str
        The command that runs: two commands in one folder would overwrite each other's files.
    settings : mapping
        JSON-ready; everything that changes the results, and nothing else.
    resume : bool
        Whether the run is resumed.
    about : mapping, optional
        JSON-ready; written with the settings, but not compared.
    earlier : callable, optional
        Returns the files of an earlier run, which are deleted, in this order; the settings of that run are deleted
        before.

    Returns
    -------
    bool
        Whether the folder already held a run.

    Raises
    ------
    AnomalyCLIPError
        The folder belongs to another command or to another program, or the run was started with other settings; the
        message says which.
    """
    path = folder / SETTINGS
    now = {"command": command, **json.loads(json.dumps(settings))}
    there = path.is_file()
    before = _read(path) if there else now
    before.pop("about", None)
    if "command" not in before:
        raise AnomalyCLIPError(
            f"{path} was not written by anomalyclip and would be overwritten: choose another folder"
        )
    if before["command"] != command:
        raise AnomalyCLIPError(
            f"{folder} holds results of `anomalyclip {before['command']}`: choose another folder"
        )
    if resume and (differ := differences(before, now)):
        raise AnomalyCLIPError(
            f"{folder} was started with other settings ({'; '.join(differ)}): resume with the same settings, or choose "
            "another folder"
        )
    if earlier is not None:
        for old in [path, *earlier(folder)]:
            with writing(old):
                old.unlink(missing_ok=True)
    with writing(path), replacing(path) as temporary:
        content = now if about is None else {**now, "about": dict(about)}
        temporary.write_text(json.dumps(content, indent=1) + "\n")
    return there


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of the run in a folder, its command and what it tells beside them.

    Raises
    ------
    AnomalyCLIPError
        There are none, or they are damaged.
    """
    path = folder / SETTINGS
    if not path.is_file():
        raise AnomalyCLIPError(f"{folder}: there is no run in this folder ({SETTINGS} is missing)")
    return _read(path)


def told(folder: Path) -> dict[str, Any]:
    """Return what the run in a folder tells beside its settings; see `read_settings`."""
    about = read_settings(folder).get("about")
    return about if isinstance(about, dict) else {}


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(parse_json(path.read_text()))
    except (ValueError, TypeError):
        raise AnomalyCLIPError(f"{path}: damaged file; start again in another folder") from None
