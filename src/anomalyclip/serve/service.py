"""`Service`: what all routes share, and how they wait for the model."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response

from anomalyclip.detector import Detector
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.prediction import Prediction
from anomalyclip.serve.bodies import ClientGoneError, Held
from anomalyclip.serve.measures import Measures
from anomalyclip.serve.models import Models
from anomalyclip.serve.refusals import Refusal, without_folders
from anomalyclip.serve.scoring import Entries, Scoring
from anomalyclip.serve.settings import ServeSettings
from anomalyclip.serve.uploads import Sent
from anomalyclip.serve.wanted import Wanted
from anomalyclip.serve.worker import Ticket, Worker
from anomalyclip.spec import DetectorSpec

T = TypeVar("T")

log = logging.getLogger("anomalyclip.serve")


@dataclass
class Service:
    """The models, their queue and the limits.

    Parameters
    ----------
    settings : ServeSettings
    models : Models
    worker : Worker
    measures : Measures
    """

    settings: ServeSettings
    models: Models
    worker: Worker
    measures: Measures
    held: Held = field(init=False)
    scoring: Scoring = field(init=False)
    requests: int = 0
    """Requests that wait for the model."""
    ready: bool = False

    def __post_init__(self) -> None:
        self._loading = ThreadPoolExecutor(1, thread_name_prefix="loading")
        self.held = Held(self.settings.held_bytes)
        self.scoring = Scoring(self.settings, self.measures)

    async def warm(self) -> None:
        """Score an image, so that the first caller does not wait for what is done only once."""
        own = self.models.own.detector
        await asyncio.wrap_future(self.worker.call(lambda: own.predict(np.zeros((8, 8, 3), np.uint8))))
        self.ready = True

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request that waits for the model.

        Raises
        ------
        Refusal
            Too many of them wait already.
        """
        if self.requests >= self.settings.queue:
            raise Refusal(
                429,
                f"{self.requests} requests wait already; try again later",
                retry_after=self.worker.patience(self.requests),
            )
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    async def scored(
        self,
        request: Request,
        detector: Detector,
        files: list[Sent],
        wanted: Wanted,
        *,
        keep: Callable[[int, Prediction], None] | None = None,
        leave_out: Callable[[Image.Image], str | None] = lambda image: None,
    ) -> Entries:
        """Return the entries of an answer, once all images are scored; see `Scoring.ticket`.

        Raises
        ------
        Refusal
            It takes too long.
        ClientGoneError
            The caller does not wait.
        """
        entries = Entries(self.settings.request_bytes)
        ticket = self.scoring.ticket(detector, files, wanted, entries, keep=keep, leave_out=leave_out)
        await self.finished(request, ticket)
        return entries

    async def finished(self, request: Request, ticket: Ticket) -> None:
        """Wait until a ticket is done; whoever leaves or takes too long leaves the queue."""
        self.worker.submit(ticket)
        try:
            await self.waited_for(request, ticket.done)
        finally:
            ticket.cancel()

    async def waited_for(self, request: Request, future: "Future[T]") -> T:
        """Return the result of a future.

        Raises
        ------
        Refusal
            It takes too long.
        ClientGoneError
            The caller does not wait.
        """
        waiting: asyncio.Future[T] = asyncio.wrap_future(future)
        leaving = asyncio.ensure_future(_left(request))
        both: set[asyncio.Future[Any]] = {waiting, leaving}
        try:
            done, _ = await asyncio.wait(
                both, timeout=self.settings.time_limit, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            leaving.cancel()
        if waiting in done:
            return waiting.result()
        waiting.cancel()
        if leaving in done:
            raise ClientGoneError
        raise Refusal(
            503,
            f"no answer within {self.settings.time_limit:g} seconds; send fewer images at once, or start a job",
            retry_after=self.worker.patience(self.requests),
        )

    async def loaded(self, request: Request, spec: DetectorSpec) -> Detector:
        """Return the detector of a spec, loaded beside the work.

        Raises
        ------
        Refusal
            It cannot be loaded.
        """
        try:
            return await self.waited_for(request, self._loading.submit(spec.load))
        except AnomalyCLIPError as error:
            raise refusal_of(request, error) from None

    async def aside(self, function: Callable[[], T]) -> T:
        """Return what a function returns, called in a thread that decodes images."""
        return await asyncio.wrap_future(self.worker.aside(function))

    async def json(self, content: Any, status: int = 200, *, large: bool = False) -> Response:
        """Return an answer; a large one is written aside."""

        def written() -> bytes:
            return json.dumps(content, allow_nan=False).encode()

        body = await self.aside(written) if large else written()
        return Response(body, status, media_type="application/json")


def refusal_of(request: Request, error: AnomalyCLIPError, *, more: dict[str, Any] | None = None) -> Refusal:
    """Return what a caller is told of an error: no folder of this machine. The log has those, under the request's id.

    Parameters
    ----------
    request : Request
    error : AnomalyCLIPError
        A refusal is returned as it is.
    more : dict, optional
        As for `Refusal`.
    """
    if isinstance(error, Refusal):
        return error
    said = without_folders(error)
    if said != str(error):  # other messages are about what the caller sent, which no log has
        fields = {"id": request.scope["request_id"], "error": str(error)}
        log.warning("a request cannot be answered", extra={"fields": fields})
    return Refusal(422, said, more=more)


def service_of(request: Request) -> Service:
    """Return the service that a request has come to."""
    service: Service = request.app.state.service
    return service


async def _left(request: Request) -> None:
    """Return when the caller closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
