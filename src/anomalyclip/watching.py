"""`watch`: scores the images that arrive in a folder, each once, for as long as nobody stops it."""

import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from anomalyclip.alerts import Alerts, Hook
from anomalyclip.detector import Detector
from anomalyclip.errors import AnomalyCLIPError, InputError
from anomalyclip.inputs import ImageFile, absolute, files_below, is_image, relative
from anomalyclip.loading import as_detector
from anomalyclip.overview.summary import records
from anomalyclip.predicting import PredictionRun, Results, Scoring, scoring
from anomalyclip.readers import Selection, holder, locate, reader_for
from anomalyclip.readers.selection import parted
from anomalyclip.runs import RunFolder
from anomalyclip.settings import Settings, option
from anomalyclip.spec import DetectorSpec
from anomalyclip.writers import PREDICTIONS

_REFRESHING = 0.05
"""Share of the time that may be spent on renewing the page."""


@dataclass(frozen=True)
class Pace(Settings):
    """How often a folder is looked into, and for how long.

    Parameters
    ----------
    interval : float
        Seconds between two looks into the folder; a look that takes longer is followed by a pause as long as itself.
    until_idle : float, optional
        End when nothing has changed in the folder for so many seconds. None: never.
    """

    interval: float = option(1.0, "Seconds between two looks into the folder.", minimum=0.01)
    until_idle: float | None = option(
        None, "End when nothing has changed in the folder for so many seconds. Default: never.", minimum=0
    )


@dataclass(frozen=True)
class _State:
    """What tells whether a file still changes."""

    size: int
    written: int
    file: tuple[int, int]
    placed: bool

    @classmethod
    def of(cls, path: str) -> "_State | None":
        try:
            status = os.stat(path)
        except OSError:  # it is gone
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        # Whoever writes sets both times alike; a rename, or setting the time after a copy, changes the later one alone.
        placed = os.name == "posix" and status.st_ctime_ns > status.st_mtime_ns
        return cls(status.st_size, status.st_mtime_ns, (status.st_dev, status.st_ino), placed)


class Arrivals:
    """Finds the complete files that are new in a folder, one look after the other.

    Looking again and again also works on network shares, where the system tells nothing of what other computers write.
    A file is complete when size and time were the same in two looks, or at the first look if it was renamed into place.
    An empty file is not complete. Files that were found once are not even looked at again.

    Parameters
    ----------
    folder : path
    known : iterable of str
        Absolute paths of files that have been found before.
    skipped : Counter, optional
        Counts files that are no images, by file extension.

    Attributes
    ----------
    waiting : int
        Files that were not complete at the last look.
    changed : bool
        Whether the last look found anything that the one before did not.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> arrivals = Arrivals(folder)
    >>> _ = (folder / "a.png").write_bytes(b"...")
    >>> arrivals.look()
    []
    >>> [image.name for image in arrivals.look()], arrivals.look()
    (['a.png'], [])
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        known: Iterable[str] = (),
        *,
        skipped: Counter[str] | None = None,
    ) -> None:
        self._folder = os.fspath(folder)
        top = os.path.join(os.path.abspath(folder), "")
        self._found = {os.path.join(self._folder, path[len(top) :]) for path in known if path.startswith(top)}
        self._seen: dict[str, _State] = {}
        self._failed: dict[str, _State] = {}
        self._last: dict[str, _State] = {}
        self._skipped = Counter() if skipped is None else skipped
        self.waiting, self.changed = 0, False

    def look(self) -> list[ImageFile]:
        """Return the images that are complete and new, in the order in which they were written.

        Raises
        ------
        OSError
            The folder, or one in it, cannot be read.
        """
        before, now = self._seen, self._look()
        complete = [
            path
            for path, state in now.items()
            if state.size and (state.placed or before.get(path) == state) and self._failed.get(path) != state
        ]
        complete.sort(key=lambda path: (now[path].written, path))
        self._found.update(complete)
        images = [path for path in complete if self._is_image(path)]
        self._seen = {path: state for path, state in now.items() if path not in self._found}
        self.waiting = sum(self._failed.get(path) != state for path, state in self._seen.items())
        self.changed = bool(complete) or self._seen != {path: before.get(path) for path in self._seen}
        self._last = {path: now[path] for path in images}
        return [ImageFile(path, relative(path, self._folder)) for path in images]

    def failed(self, path: str) -> None:
        """Take note that an image of the last look could not be used: it comes again when it has changed."""
        if (state := self._last.get(path)) is not None:
            self._found.discard(path)
            self._failed[path] = self._seen[path] = state

    def _look(self) -> dict[str, _State]:
        paths = (path for path in files_below(self._folder, _raise) if path not in self._found)
        return {path: state for path in paths if (state := _State.of(path)) is not None}

    def _is_image(self, path: str) -> bool:
        if is_image(path):
            return True
        name = os.path.basename(path)
        self._skipped[os.path.splitext(name)[1].lower() or name] += 1
        return False


def _raise(error: OSError) -> None:
    raise error


def watch(
    detector: Detector | DetectorSpec,
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    results: Results | None = None,
    pace: Pace | None = None,
    hooks: Sequence[Hook] = (),
    selection: Selection | None = None,
    stop: Event | None = None,
    skipped: Counter[str] | None = None,
    on_scored: Callable[[dict[str, Any]], None] | None = None,
    tell: Callable[[str], None] = print,
) -> PredictionRun:
    """Score the images that arrive in a folder, and those that are there already, as `predict` does.

    A run in `output` goes on: images that have a line are not scored again. An image that cannot be used is tried again
    when its file changes.

    Parameters
    ----------
    detector : Detector or DetectorSpec
        Hooks need a threshold.
    folder : path
        It is searched recursively.
    output : path
        The run's folder; see `anomalyclip.predicting.predict`.
    results : Results, optional
        What to save, images per batch, and how to draw.
    pace : Pace, optional
    hooks : sequence of Hook
        What to call for each anomalous image: `anomalyclip.alerts.Command`, `Webhook`.
    selection : Selection, optional
        Which images of videos and volumes are scored. None: all.
    stop : Event, optional
        Ends the watching: the images in hand are finished first.
    skipped : Counter, optional
        Counts files that are no images, by file extension.
    on_scored : callable, optional
        Called with the record of each image.
    tell : callable
        Called with a message for an image that cannot be used, a hook that failed, a folder that cannot be read.

    Returns
    -------
    PredictionRun

    Raises
    ------
    AnomalyCLIPError
        There is no such folder, or as `predict`.

    Examples
    --------
    >>> import tempfile
    >>> from anomalyclip.demo import PICTURES
    >>> run = watch(
    ...     DetectorSpec("micro"), PICTURES, tempfile.mkdtemp(), pace=Pace(0.01, until_idle=0)
    ... )
    >>> run.scored
    12
    """
    place, pace, stop = run_folder(folder, output), pace or Pace(), stop or Event()
    detector = as_detector(detector)
    if hooks and (detector.threshold is None or detector.threshold.score is None):
        raise AnomalyCLIPError("hooks are called for anomalous images: set a threshold, for example 0.5")
    watched = _Watch(folder, pace, selection, stop, skipped, on_scored, tell)
    with scoring(
        detector, place, results or Results(), on_error=watched.failed, on_scored=watched.scored
    ) as work:
        watched.alerts = Alerts(work.folder, hooks, tell) if hooks else None
        with watched.alerts or nullcontext():
            watched.go_on(work)
    return work.run


def run_folder(folder: str | os.PathLike[str], output: str | os.PathLike[str]) -> RunFolder:
    """Return the folder of a run that watches a folder; a run that is there goes on.

    Raises
    ------
    AnomalyCLIPError
        There is no folder to watch, or it is the one that is written to.
    """
    if not os.path.isdir(folder):
        raise AnomalyCLIPError(f"{folder}: no such folder; create it, or name one that exists")
    if os.path.realpath(folder) == os.path.realpath(output):
        raise AnomalyCLIPError(f"{output}: results cannot be written into the folder that is watched itself")
    resume = (Path(output) / PREDICTIONS).exists()
    return RunFolder("watch", output, resume=resume, results=PREDICTIONS)


class _Watch:
    """A folder that is watched."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        pace: Pace,
        selection: Selection | None,
        stop: Event,
        skipped: Counter[str] | None,
        on_scored: Callable[[dict[str, Any]], None] | None,
        tell: Callable[[str], None],
    ) -> None:
        self._folder, self._pace, self._stop, self._skipped = os.fspath(folder), pace, stop, skipped
        self._selection, self._on_scored, self._tell = selection, on_scored, tell
        self._arrivals = Arrivals(folder)
        self._errors: dict[str, list[str]] = {}
        self._unreadable = False
        self.alerts: Alerts | None = None

    def scored(self, record: dict[str, Any]) -> None:
        """Take note of an image that was scored."""
        if self.alerts is not None:
            self.alerts.add(record)
        if self._on_scored is not None:
            self._on_scored(record)

    def failed(self, path: str, error: InputError) -> None:
        """Take note of an image that could not be used: it is tried again when its file changes."""
        file, _ = parted(locate(path)[0])
        self._errors.setdefault(file, []).append(path)
        self._arrivals.failed(file)
        self._tell(str(error))

    def go_on(self, work: Scoring) -> None:
        """Score what arrives until somebody stops it, or nothing does."""
        done = records(work.folder / PREDICTIONS, lambda record: absolute(record["image_path"]))
        self._arrivals = Arrivals(self._folder, done, skipped=self._skipped)
        refreshed = changed = time.monotonic()
        stale, cost = True, 0.0
        while not self._stop.is_set():
            began = time.monotonic()
            if images := self._look():
                self._score(work, images)
                stale = True
            if images or self._arrivals.changed:
                changed = time.monotonic()
            if stale and (now := time.monotonic()) - refreshed >= cost / _REFRESHING:
                work.refresh()
                refreshed, stale = time.monotonic(), False
                cost = refreshed - now
            if self._is_idle(time.monotonic() - changed):
                break
            self._stop.wait(max(self._pace.interval, time.monotonic() - began if not images else 0))
        if self.alerts is not None:
            self.alerts.close(finish=not self._stop.is_set())
            if left := self.alerts.left:
                self._tell(f"{left} alerts have not been sent; the same command sends them")
        work.finish()

    def _look(self) -> list[ImageFile]:
        """Look into the folder; if it cannot be read, say so once: a network share may come back."""
        try:
            images = self._arrivals.look()
        except OSError as error:
            if not self._unreadable:
                where = error.filename or self._folder
                self._tell(f"{where}: cannot be read ({error.strerror or error}); trying again")
            self._unreadable = True
            return []
        self._unreadable = False
        return images

    def _score(self, work: Scoring, images: list[ImageFile]) -> None:
        for image in images:
            for path in self._errors.pop(image.path, ()):
                work.withdraw_error(path)
        work.score(self._selected(image) for image in images if not self._stop.is_set())

    def _selected(self, image: ImageFile) -> ImageFile:
        if self._selection is None:
            return image
        wanted = reader_for(image.path).select(image.path, self._selection)
        return ImageFile(wanted, relative(holder(wanted), self._folder))

    def _is_idle(self, seconds: float) -> bool:
        longest = self._pace.until_idle
        return longest is not None and not self._arrivals.changed and seconds >= longest
