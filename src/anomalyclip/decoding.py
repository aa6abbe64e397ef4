"""Decoding ahead of the model: threads prepare images in bounded memory, and return them in order."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from typing import Generic, TypeVar

from anomalyclip.errors import InputError, concerning
from anomalyclip.readers import Frame, Source, frames

T = TypeVar("T")

Prepare = Callable[[Source, Frame], T]
"""From a source and a frame of it to the item that `decode` yields."""
OnError = Callable[[Source, InputError], None]


def decode(sources: Iterable[Source], prepare: Prepare[T], *, on_error: OnError | None = None) -> Iterator[T]:
    """Yield the result of `prepare` for every frame of every source, one after the other, in this thread.

    Parameters
    ----------
    sources : iterable of Source
        May be endless; it is read only as far as it is needed.
    prepare : callable
        Called with each source and frame; returns the item to yield. Its exceptions concern only that source.
    on_error : callable, optional
        Called with each source that cannot be used, and the error; the others continue. None: the error is raised.

    Yields
    ------
    T
    """
    for source in sources:
        try:
            yield from _prepared(source, prepare)
        except InputError as error:
            if on_error is None:
                raise
            on_error(source, error)


def _prepared(source: Source, prepare: Prepare[T]) -> Iterator[T]:
    def one(frame: Frame) -> T:
        with concerning(name_of(source, frame.id), "cannot be made ready for the model"):
            return prepare(source, frame)

    return map(one, frames(source))  # nothing here holds a frame while the next one is decoded


def name_of(source: Source, id: str | None = None) -> str:
    """Return what an image is called in messages: its id, its path, or what kind of object it is.

    Examples
    --------
    >>> name_of("parts/a.png"), name_of(b"..."), name_of("scan.tif", "scan.tif#2")
    ('parts/a.png', 'bytes in memory', 'scan.tif#2')
    """
    if id is not None:
        return id
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    return f"{type(source).__name__} in memory"


class _Opened(Generic[T]):
    """A source whose first frame is prepared; the others are prepared when they are requested."""

    def __init__(self, source: Source, prepare: Prepare[T]) -> None:
        self._prepared = _prepared(source, prepare)
        self._first = list(next(zip(self._prepared, strict=False), ()))

    def __iter__(self) -> Iterator[T]:
        yield from self._first
        yield from self._prepared


def decode_ahead(
    sources: Iterable[Source],
    prepare: Prepare[T],
    *,
    depth: int,
    workers: int | None = None,
    on_error: OnError | None = None,
) -> Iterator[T]:
    """As `decode`, with threads that are at most `depth` sources ahead.

    Each item is yielded as soon as it is ready: the source may be slower than the model. All threads end with the
    iteration.

    Parameters
    ----------
    sources, prepare, on_error
        As for `decode`; if `on_error` is None, the error is raised after the items before it.
    depth : int
        Number of sources that may be opened but not consumed yet.
    workers : int, optional
        Number of threads. None: one per core, at most four.

    Yields
    ------
    T
    """
    pool = ThreadPoolExecutor(workers or min(4, os.cpu_count() or 1), thread_name_prefix="decode")
    waiting: SimpleQueue[tuple[Source, Future[_Opened[T]]] | BaseException | None] = SimpleQueue()
    room, stopped = Semaphore(depth), Event()

    def read_sources() -> None:
        end: BaseException | None = None
        try:
            for source in sources:
                room.acquire()
                if stopped.is_set():
                    return
                waiting.put((source, pool.submit(_Opened, source, prepare)))
        except BaseException as error:
            end = error
        finally:
            waiting.put(end)

    # A daemon: a source that waits for input must not keep the program alive.
    Thread(target=read_sources, name="decode source", daemon=True).start()
    try:
        while (entry := waiting.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            source, future = entry
            try:
                yield from future.result()
            except InputError as error:
                if on_error is None:
                    raise
                on_error(source, error)
            finally:
                room.release()
    finally:
        stopped.set()
        room.release()
        pool.shutdown(cancel_futures=True)
