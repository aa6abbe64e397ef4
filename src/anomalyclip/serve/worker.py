"""One model, many callers: their images are gathered into batches at the model's own pace.

Threads decode images, one step of one request at a time in turn, so that no request holds up the others. Lanes are the
threads that use the models: whenever one is free it takes what is waiting, at most a batch. Requests go before jobs.

Lanes do nothing else: predictions become answers in the threads that decode, which do that first. On a CPU there are
two lanes: some steps of a model use one core alone, and the other lane has the rest meanwhile.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from anomalyclip.detector import Detector, Prepared
from anomalyclip.errors import AnomalyCLIPError, InputError
from anomalyclip.prediction import Prediction
from anomalyclip.serve.measures import Measures
from anomalyclip.serve.refusals import without_frames

T = TypeVar("T")

_AHEAD = 4
"""Batches of decoded images that may wait for the model."""


@dataclass(frozen=True)
class Decoded:
    """An image that is ready for the model, and what to do with its prediction."""

    prepared: Prepared
    finish: Callable[[Prediction], None]
    fail: Callable[[InputError], None]


@dataclass(eq=False)
class Ticket:
    """Images of one request or job.

    Parameters
    ----------
    detector : Detector
        What scores them.
    steps : iterator of Decoded or None
        Decodes one image after the other; None is a step that gave no image.
    is_job : bool
        Whether it waits while requests do.
    """

    detector: Detector
    steps: Iterator[Decoded | None]
    is_job: bool = False
    done: "Future[None]" = field(default_factory=Future)
    cancelled: bool = False
    waiting: int = 0
    """Images that are decoded and not finished."""
    ended: bool = False

    def __post_init__(self) -> None:
        self.done.set_running_or_notify_cancel()  # whoever waits for it may stop waiting, but not cancel it

    def cancel(self) -> None:
        """Leave the queue; what is being scored is thrown away."""
        self.cancelled = True

    def next(self) -> Decoded | None:
        """Decode the next image; at the end there is none, and the ticket has ended."""
        if not self.cancelled:
            for decoded in self.steps:
                return decoded
        self.ended, self.steps = True, iter(())
        return None


class Worker:
    """The queue of images, the threads that decode them, and the thread that owns the models.

    Parameters
    ----------
    batch_size : int
        Images per batch at most.
    decoders : int
        Threads that decode images and encode answers.
    measures : Measures
        Told what happens.
    lanes : int
        Batches at once.
    """

    def __init__(self, batch_size: int, decoders: int, measures: Measures, *, lanes: int = 1) -> None:
        self.batch_size, self._measures = batch_size, measures
        lock = threading.Lock()
        self._lock, self._hands = threading.Condition(lock), threading.Condition(lock)
        self._errands: deque[Callable[[], None]] = deque()
        self._runnable: tuple[deque[Ticket], deque[Ticket]] = (deque(), deque())  # requests, jobs
        self._ready: tuple[deque[tuple[Ticket, Decoded]], ...] = (deque(), deque())
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._decoding = 0
        self._stopped = False
        self.pace = 0.0
        """Seconds per image, as of late."""
        named = {"model": (self._run, lanes), "decode": (self._work, decoders)}
        self._threads = [
            threading.Thread(target=run, name=f"{name}_{number}", daemon=True)
            for name, (run, count) in named.items()
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, ticket: Ticket) -> None:
        """Put the images of a ticket into the queue; its `done` ends when all are finished."""
        with self._lock:
            self._runnable[ticket.is_job].append(ticket)
            self._hands.notify()

    def aside(self, function: Callable[[], T]) -> "Future[T]":
        """Call a function in a thread that decodes, before the next image."""
        future: Future[T] = Future()
        self._hand_over([partial(_answer, future, function)])
        return future

    def call(self, function: Callable[[], T]) -> "Future[T]":
        """Call a function in a lane, between two batches."""
        future: Future[T] = Future()
        with self._lock:
            self._calls.append((future, function))
            self._lock.notify_all()
        return future

    def between(self, items: Iterable[T]) -> Iterator[T]:
        """Yield items to a function that `call` runs; what waits for the model is scored before each of them."""
        for item in items:
            self.catch_up()
            yield item

    def catch_up(self) -> None:
        """Score what waits for the model; for functions that `call` runs."""
        while True:
            with self._lock:
                batch = self._take()
            if not batch:
                return
            self._score(batch)

    def waiting(self) -> int:
        """Return how many decoded images wait for the model."""
        return sum(map(len, self._ready))

    def patience(self, requests: int) -> int:
        """Return in how many seconds so many requests will be done, about."""
        return min(60, max(1, math.ceil(requests * self.pace)))

    def stop(self) -> None:
        """End all threads; what is in the queue is given up."""
        with self._lock:
            self._stopped = True
            self._lock.notify_all()
            self._hands.notify_all()
        for thread in self._threads:
            thread.join()

    def _hand_over(self, errands: Iterable[Callable[[], None]]) -> None:
        """Leave errands to the threads that decode."""
        with self._lock:
            before = len(self._errands)
            self._errands.extend(errands)
            self._hands.notify(len(self._errands) - before)

    def _work(self) -> None:
        """Run errands; decode when there are none, and room for an image."""
        while (task := self._next_task()) is not None:
            task()
            del task  # while this thread waits, it keeps nothing of what it has done

    def _next_task(self) -> Callable[[], None] | None:
        """Wait for the next errand or step, and return it; None at the end."""
        with self._lock:
            ticket = None
            while not (self._stopped or self._errands or (ticket := self._next())):
                self._hands.wait()
            if self._stopped:
                return None
            return self._errands.popleft() if ticket is None else partial(self._step, ticket)

    def _next(self) -> Ticket | None:
        """Take the ticket whose turn it is, if there is room for an image. Called with the lock."""
        queue = self._runnable[0] or self._runnable[1]
        if not queue or self._decoding + self.waiting() >= _AHEAD * self.batch_size:
            return None
        self._decoding += 1
        return queue.popleft()

    def _step(self, ticket: Ticket) -> None:
        """Decode one image of a ticket."""
        started = time.perf_counter()
        decoded, error = tried(ticket.next)
        if error is not None:
            ticket.ended = True
        if not ticket.ended:
            self._measures.took("decode", time.perf_counter() - started)
        with self._lock:
            self._decoding -= 1
            if decoded is not None:
                ticket.waiting += 1
                self._ready[ticket.is_job].append((ticket, decoded))
                self._lock.notify()
            if not ticket.ended:
                self._runnable[ticket.is_job].append(ticket)
        self._settle(ticket, error)

    def _settle(self, ticket: Ticket, error: BaseException | None = None) -> None:
        """End a ticket if nothing of it is left."""
        with self._lock:
            if not ticket.done.done() and (error or (ticket.ended and not ticket.waiting)):
                if error is None:
                    ticket.done.set_result(None)
                else:
                    ticket.cancelled = True
                    ticket.done.set_exception(error)

    def _run(self) -> None:
        """Make calls, and score batches."""
        while (task := self._next_batch()) is not None:
            task()
            del task

    def _next_batch(self) -> Callable[[], None] | None:
        """Wait for the next call or batch, and return it; None at the end."""
        with self._lock:
            while not (self._stopped or self._calls or any(self._ready)):
                self._lock.wait()
            if self._stopped:
                return None
            return (
                partial(_answer, *self._calls.popleft())
                if self._calls
                else partial(self._score, self._take())
            )

    def _take(self) -> list[tuple[Ticket, Decoded]]:
        """Take a batch for one model; called with the lock. Images of cancelled tickets are dropped."""
        batch: list[tuple[Ticket, Decoded]] = []
        for queue in self._ready:
            kept: list[tuple[Ticket, Decoded]] = []
            while queue and len(batch) < self.batch_size:
                ticket, decoded = queue.popleft()
                if ticket.cancelled:
                    ticket.waiting -= 1
                    self._errands.append(partial(self._settle, ticket))
                elif batch and batch[0][0].detector is not ticket.detector:
                    kept.append((ticket, decoded))
                else:
                    batch.append((ticket, decoded))
            queue.extendleft(reversed(kept))
        self._hands.notify_all()  # there is room
        return batch

    def _score(self, batch: list[tuple[Ticket, Decoded]]) -> None:
        """Score a batch, and give each image its prediction or its error."""
        if not batch:
            return
        started = time.perf_counter()
        owners = {decoded.prepared.id: (ticket, decoded) for ticket, decoded in batch}
        outcomes, error = tried(partial(self._outcomes, batch))
        if outcomes is None:  # the model does not work: every request says so, and the next may do better
            with self._lock:
                for ticket, _ in batch:
                    ticket.waiting = 0
            self._hand_over([partial(self._settle, ticket, error) for ticket, _ in batch])
            return
        took = time.perf_counter() - started
        self.pace = 0.8 * self.pace + 0.2 * took / len(batch) if self.pace else took / len(batch)
        self._measures.batch(len(batch), took)
        self._hand_over([partial(self._finish, *owners[id], outcome) for id, outcome in outcomes.items()])

    def _outcomes(self, batch: list[tuple[Ticket, Decoded]]) -> dict[str | None, Prediction | InputError]:
        """Return the prediction or the error of each image, by its id."""
        outcomes: dict[str | None, Prediction | InputError] = {}
        for prediction in batch[0][0].detector.score(
            [decoded.prepared for _, decoded in batch],
            batch_size=self.batch_size,
            on_error=lambda id, error: outcomes.update({str(id): without_frames(error)}),
        ):
            outcomes[prediction.image_path] = prediction
        return outcomes

    def _finish(self, ticket: Ticket, decoded: Decoded, outcome: Prediction | InputError) -> None:
        """Hand over an outcome; what that raises is the request's own."""
        error, started = None, time.perf_counter()
        if not ticket.cancelled:
            told = (
                partial(decoded.fail, outcome)
                if isinstance(outcome, InputError)
                else partial(decoded.finish, outcome)
            )
            _, error = tried(told)
        self._measures.took("answer", time.perf_counter() - started)
        with self._lock:
            ticket.waiting -= 1
        self._settle(ticket, error)


def tried(function: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    """Return what a function returns, or the error that it raises.

    Examples
    --------
    >>> tried(lambda: 1 + 1)
    (2, None)
    >>> tried(lambda: 1 / 0)
    (None, ZeroDivisionError('division by zero'))
    """
    try:
        return function(), None
    except BaseException as error:
        # The log needs the frames of an error that nobody foresaw.
        return None, without_frames(error) if isinstance(error, AnomalyCLIPError) else error


def _answer(future: "Future[Any]", function: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    result, error = tried(function)
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
