"""Several processes on one machine, each with its own copy of the model, that score images as one detector.

Images go out in small parts, and predictions come back in the order of the images. The parts of a process that was
killed are given to another.
"""

import os
import signal
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, NoReturn

from anomalyclip.decoding import OnError
from anomalyclip.depth import Range, RangeWanted, Scale
from anomalyclip.detector import Detector
from anomalyclip.errors import AnomalyCLIPError, AnomalyCLIPWarning, InputError
from anomalyclip.loading import load_one_of_several, measured
from anomalyclip.prediction import Prediction, Threshold, as_threshold
from anomalyclip.readers import Source, holder
from anomalyclip.scorer import Description
from anomalyclip.spec import DetectorSpec

_PART = 8
"""Images that a process is given at a time, if a batch has no more."""

_AHEAD = 2
"""Parts that a process has: the one that it scores, and the next."""

_DEATHS = 3
"""Processes that may die on the same part."""


class Workers:
    """A detector that works in several processes; use it in a ``with`` block.

    The results are those of one process. With batches of several images, scores may differ in the last digits where a
    batch is composed differently: after an image that cannot be used, or a file that holds several images.

    Parameters
    ----------
    spec : DetectorSpec
        What each process loads. With several GPUs, the processes are spread over them.
    processes : int
        How many; each has its share of the CPU's cores.
    threshold : float, Threshold or path, optional
        As for `DetectorSpec.load`.

    Attributes
    ----------
    threshold : Threshold or None
        The threshold in use.
    spec : DetectorSpec
        As loaded.

    Raises
    ------
    AnomalyCLIPError
        A value cannot be used. Entering the block raises what loading the spec raises.

    Notes
    -----
    Processes are spawned: a script that uses this needs ``if __name__ == "__main__":`` around what it does.

    Examples
    --------
    >>> Workers(DetectorSpec("micro"), 0)
    Traceback (most recent call last):
    anomalyclip.errors.AnomalyCLIPError: 0 processes: expected 1 or more
    """

    def __init__(
        self,
        spec: DetectorSpec,
        processes: int,
        *,
        threshold: float | Threshold | str | os.PathLike[str] | None = None,
    ) -> None:
        if processes < 1:
            raise AnomalyCLIPError(f"{processes} processes: expected 1 or more")
        self.spec = measured(spec)
        self._given = as_threshold(threshold)
        self._count = processes
        self._workers: list[_Worker] = []
        self._said: set[str] = set()
        self._numbers = 0
        self._loaded: _Loaded | None = None

    def __enter__(self) -> "Workers":
        try:
            with _unheard_interrupts():
                self._workers = [self._start(place) for place in range(self._count)]
            self._await_first()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.end()
        self._workers = []

    @property
    def threshold(self) -> Threshold | None:
        """The threshold in use."""
        return self._first.threshold

    @property
    def has_own_threshold(self) -> bool:
        """Whether the threshold is that of the exported file."""
        return self._first.has_own_threshold

    def identity(self) -> dict[str, Any]:
        """Return what decides the scores; see `Detector.identity`."""
        return dict(self._first.identity)

    def describe(self) -> Description:
        """Return the description of the scorer for reports."""
        return self._first.description

    def reference_pictures(self) -> tuple[bytes, ...]:
        """Return small JPEG pictures of the references; see `Detector.reference_pictures`."""
        return self._first.reference_pictures

    def scale(self, *, assumed: Range | None = None, strict: bool = False) -> Scale:
        """Return the scale for the images of a run; see `Detector.scale`."""
        return Scale(self._first.value_range, assumed=assumed, strict=strict)

    def observations(self) -> list[str]:
        """Return warnings for the user about the images scored since the last call, each once."""
        found: list[str] = []
        for worker in self._workers:
            with suppress(EOFError, OSError):
                if worker.is_ready:
                    worker.connection.send(_Observe())
                    while not isinstance(answer := worker.connection.recv(), list):
                        pass
                    found += answer
        return list(dict.fromkeys(found))

    def stream(
        self,
        images: Iterable[Source],
        *,
        batch_size: int = 1,
        on_error: OnError | None = None,
        skip: Callable[[str], bool] | None = None,
        scale: Scale | None = None,
    ) -> Iterator[Prediction]:
        """Score any number of images in order, in bounded memory; see `Detector.stream`.

        Raises
        ------
        AnomalyCLIPError
            As `Detector.stream`; or processes that scored the same images were killed, one after the other.
        """
        if batch_size < 1:
            raise AnomalyCLIPError(f"batch size {batch_size}: expected 1 or more")
        run = _Run(self, batch_size, on_error, skip, scale or self.scale())
        yield from run.results(images)

    @property
    def _first(self) -> "_Loaded":
        if self._loaded is None:
            raise AnomalyCLIPError("the processes are not running: use Workers in a with block")
        return self._loaded

    def _start(self, place: int) -> "_Worker":
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        share = max(1, _cores() // self._count)
        job = _Job(self.spec, self._given, place, share, tell=self._loaded is None and place == 0)
        process = context.Process(target=_serve, args=(theirs, job), name=f"worker {place + 1}", daemon=True)
        process.start()
        theirs.close()
        return _Worker(place, process, ours)

    def _replace(self, worker: "_Worker") -> None:
        """Start another process in the place of one that died.

        Raises
        ------
        AnomalyCLIPError
            It died before it was ready.
        """
        worker.end()
        if not worker.is_ready:
            raise AnomalyCLIPError(
                f"{worker.process.name} ended while it loaded the model ({worker.how_it_ended()}); if memory is short, "
                "use fewer processes"
            )
        warnings.warn(
            f"{worker.process.name} was lost ({worker.how_it_ended()}): its images are scored again",
            AnomalyCLIPWarning,
            stacklevel=2,
        )
        with _unheard_interrupts():
            self._workers[worker.place] = self._start(worker.place)

    def _await_first(self) -> None:
        first = self._workers[0]
        while self._loaded is None:
            try:
                answer = first.connection.recv()
            except (EOFError, OSError):
                self._replace(first)
            else:
                self._heard(first, answer)

    def _heard(self, worker: "_Worker", answer: Any) -> None:
        """Take what a process says besides results."""
        if isinstance(answer, _Failed):
            answer.reraise()
        if isinstance(answer, _Remark):
            if answer.text not in self._said:
                self._said.add(answer.text)
                warnings.warn(answer.text, answer.kind, stacklevel=2)
        elif isinstance(answer, _Loaded):
            worker.is_ready = True
            self._loaded = self._loaded or answer


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _unheard_interrupts() -> Iterator[None]:
    """Start processes that do not hear Ctrl-C, which reaches all processes of a terminal: the parent ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass
class _Worker:
    """A process, and the way to it."""

    place: int
    process: BaseProcess
    connection: "Connection[Any, Any]"
    is_ready: bool = False
    parts: "list[_Part]" = field(default_factory=list)

    def end(self) -> None:
        self.connection.close()  # an idle process ends by itself
        self.process.join(0.1)
        self.process.terminate()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def how_it_ended(self) -> str:
        code = self.process.exitcode or 0
        if code < 0:
            with suppress(ValueError):
                return signal.Signals(-code).name
        return f"exit code {code}"


@dataclass
class _Part:
    """Some images that one process scores."""

    number: int
    sources: list[tuple[Source, int]]
    """Each with how many images of the file are done."""
    deaths: int = 0
    wants_scale: bool = False
    result: "_Result | None" = None


class _Run:
    """One call of `Workers.stream`."""

    def __init__(
        self,
        workers: Workers,
        batch_size: int,
        on_error: OnError | None,
        skip: Callable[[str], bool] | None,
        scale: Scale,
    ) -> None:
        self.workers, self.on_error, self.skip, self.scale = workers, on_error, skip, scale
        self.batch_size = batch_size
        self.size = batch_size * max(1, _PART // batch_size)
        self.window = 2 * _AHEAD * workers._count
        self.queue: deque[Source] = deque()
        self.parts: dict[int, _Part] = {}
        """Parts without a result that was taken, by number."""
        self.waiting: list[_Part] = []
        """Those that no process has, lowest number first."""

    def results(self, images: Iterable[Source]) -> Iterator[Prediction]:
        """Yield the predictions in order."""
        feed = _Feed(images, self.size * (self.window + 1))
        try:
            while not (feed.ended and not self.queue and not self.parts):
                self._hand_out(feed.ended)
                busy = {worker.connection: worker for worker in self.workers._workers}
                for ready in wait([*busy, *([] if feed.ended else [feed.connection])]):
                    if ready is feed.connection:
                        self.queue.extend(feed.take())
                    else:
                        self._hear(busy[ready])  # type: ignore[index]
                yield from self._in_order(feed)
        finally:
            feed.close()
            for worker in self.workers._workers:
                worker.parts.clear()
        feed.raise_error()

    def _hand_out(self, ended: bool) -> None:
        for worker in self.workers._workers:
            while worker.is_ready and len(worker.parts) < _AHEAD:
                part = self._next_part(ended, idle=not worker.parts)
                if part is None:
                    break
                worker.parts.append(part)
                may_assume = part.wants_scale and part is self._first_part()
                scale = self.scale.of_a_part(may_assume=may_assume)
                task = _Task(part.number, part.sources, self.batch_size, scale)
                with suppress(OSError):  # it died, which is heard next
                    worker.connection.send(task)

    def _first_part(self) -> _Part | None:
        return next(iter(self.parts.values()), None)

    def _next_part(self, ended: bool, *, idle: bool) -> _Part | None:
        """Return the next part that can be scored; None: there is none yet."""
        for part in self.waiting:
            if not part.wants_scale or self.scale.assumed is not None or part is self._first_part():
                self.waiting.remove(part)
                return part
        if len(self.parts) >= self.window:
            return None
        size = min(self.size, len(self.queue))
        if size < self.size and not ended:
            if not idle:
                return None
            size -= size % self.batch_size
        if size == 0:
            return None
        sources = [self.queue.popleft() for _ in range(size)]
        part = _Part(self.workers._numbers, [(source, self._done(source)) for source in sources])
        self.workers._numbers += 1
        self.parts[part.number] = part
        return part

    def _done(self, source: Source) -> int:
        """Return how many images of a file, from the first, are done: they need not be scored again."""
        count = 0
        if self.skip is not None and isinstance(source, str | os.PathLike):
            home = holder(os.fspath(source))
            while self.skip(f"{home}#{count + 1}"):
                count += 1
        return count

    def _hear(self, worker: _Worker) -> None:
        try:
            answer = worker.connection.recv()
        except (EOFError, OSError):
            self._lost(worker)
            return
        if not isinstance(answer, _Result):
            self.workers._heard(worker, answer)
            return
        part = next((part for part in worker.parts if part.number == answer.number), None)
        if part is None:  # of an earlier call that was not read to its end
            return
        worker.parts.remove(part)
        if answer.wants_scale:
            part.wants_scale = True
            self._wait(part)
        else:
            part.result = answer

    def _wait(self, part: _Part) -> None:
        self.waiting.append(part)
        self.waiting.sort(key=lambda part: part.number)

    def _lost(self, worker: _Worker) -> None:
        parts, worker.parts = worker.parts, []
        for part in parts:
            self._wait(part)
        self.workers._replace(worker)
        if not parts:
            return
        parts[0].deaths += 1  # the others had not begun
        if parts[0].deaths == _DEATHS:
            names = ", ".join(str(source) for source, _ in parts[0].sources)
            raise AnomalyCLIPError(
                f"{_DEATHS} processes were lost ({worker.how_it_ended()}) while they scored the same images ({names}): "
                "if memory is short, use fewer processes or smaller batches; otherwise leave these images out"
            )

    def _in_order(self, feed: "_Feed") -> Iterator[Prediction]:
        while (part := self._first_part()) is not None and part.result is not None:
            result = part.result
            if result.scale.assumed is not None and self.scale.assumed is None:
                self.scale.take_over(result.scale)
            del self.parts[part.number]
            feed.release(len(part.sources))
            while result.items:
                item = result.items.popleft()
                if isinstance(item, Prediction):
                    if self.skip is not None and item.image_path is not None and self.skip(item.image_path):
                        continue
                    if self.scale.value_range is None and item.value_range and self.scale.is_second():
                        warnings.warn(self.scale.remark(), AnomalyCLIPWarning, stacklevel=4)
                    yield item
                elif self.on_error is None:
                    raise item[1]
                else:
                    self.on_error(*item)
            if result.failed is not None:
                result.failed.reraise()


class _Feed:
    """Reads the images in a thread: the source may be slower than the model, and may wait for input."""

    def __init__(self, images: Iterable[Source], room: int) -> None:
        self.connection, self._sender = Pipe(duplex=False)
        self.ended = False
        self._room = threading.Semaphore(room)
        self._stopped = threading.Event()
        self._items: deque[Source] = deque()
        self._error: BaseException | None = None
        threading.Thread(target=self._read, args=(images,), name="image source", daemon=True).start()

    def _read(self, images: Iterable[Source]) -> None:
        try:
            for image in images:
                self._room.acquire()
                if self._stopped.is_set():
                    return
                self._items.append(image)
                self._sender.send_bytes(b"1")
        except BaseException as error:
            self._error = error
        finally:
            with suppress(OSError):
                self._sender.close()

    def take(self) -> Iterator[Source]:
        """Yield the images that are there."""
        try:
            self.connection.recv_bytes()
        except (EOFError, OSError):
            self.ended = True
        else:
            yield self._items.popleft()

    def release(self, count: int) -> None:
        """Let it read as many more."""
        self._room.release(count)

    def raise_error(self) -> None:
        """Raise what the source raised."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the thread when its source gives the next image."""
        self._stopped.set()
        self._room.release()
        self.connection.close()


@dataclass(frozen=True)
class _Job:
    """What a process is started with."""

    spec: DetectorSpec
    threshold: Threshold | None
    place: int
    threads: int
    tell: bool
    """Whether it tells its identity, for which a gigabyte may have to be hashed."""


@dataclass(frozen=True)
class _Loaded:
    """What a process says when it is ready."""

    identity: dict[str, Any]
    description: Description
    threshold: Threshold | None
    has_own_threshold: bool
    value_range: Range | None
    reference_pictures: tuple[bytes, ...]


@dataclass(frozen=True)
class _Remark:
    """A warning."""

    text: str
    kind: type[Warning]


class _ElsewhereError(Exception):
    """Where in another process an error was raised."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@dataclass(frozen=True)
class _Failed:
    """An error that ends the work."""

    error: Exception
    trace: str

    @classmethod
    def of(cls, error: Exception) -> "_Failed":
        return cls(error, "".join(traceback.format_exception(error)))

    def reraise(self) -> NoReturn:
        if isinstance(self.error, AnomalyCLIPError):
            raise self.error
        raise self.error from _ElsewhereError(self.trace)


@dataclass(frozen=True)
class _Task:
    """A part, as it is handed out."""

    number: int
    sources: list[tuple[Source, int]]
    batch_size: int
    scale: Scale


class _Observe:
    """Asks for observations."""


@dataclass
class _Result:
    """What became of a part."""

    number: int
    scale: Scale
    items: deque[Prediction | tuple[Source, InputError]] = field(default_factory=deque)
    failed: _Failed | None = None
    wants_scale: bool = False


def _serve(connection: "Connection[Any, Any]", job: _Job) -> None:
    """Score parts until the parent has no more, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lock = threading.Lock()

    def tell(what: Any) -> None:
        with lock:
            connection.send(what)

    def tell_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, AnomalyCLIPWarning):
            tell(_Remark(str(message), category))

    with suppress(EOFError, OSError), warnings.catch_warnings():
        warnings.simplefilter("always", AnomalyCLIPWarning)
        warnings.showwarning = tell_warning
        try:
            detector = load_one_of_several(job.spec, job.threshold, threads=job.threads, place=job.place)
            identity = detector.identity() if job.tell else {}
        except Exception as error:
            tell(_Failed.of(error))
            return
        tell(
            _Loaded(
                identity,
                detector.describe(),
                detector.threshold,
                detector.has_own_threshold,
                detector.value_range,
                detector.reference_pictures(),
            )
        )
        while True:
            task = connection.recv()
            tell(
                detector.observations()
                if isinstance(task, _Observe)
                else _scored(detector, task, job.threads)
            )


def _scored(detector: Detector, task: _Task, threads: int) -> _Result:
    result = _Result(task.number, task.scale)
    done = {
        f"{holder(os.fspath(source))}#{number + 1}"
        for source, count in task.sources
        if isinstance(source, str | os.PathLike)
        for number in range(count)
    }
    predictions = detector.stream(
        [source for source, _ in task.sources],
        batch_size=task.batch_size,
        workers=min(4, threads),
        on_error=lambda source, error: result.items.append((source, error)),
        skip=done.__contains__,
        scale=task.scale,
    )
    try:
        result.items.extend(predictions)
    except RangeWanted:
        return _Result(task.number, task.scale, wants_scale=True)
    except Exception as error:
        result.failed = _Failed.of(error)
    return result
