"""``/v1/jobs``: many files at once, scored while no request waits; status, progress, results, and cancelling."""

import json
import logging
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import staging
from anomalyclip.serve.bodies import Held, JobLimits, Lease, read_form
from anomalyclip.serve.openapi import ANYWHERE, SCORING, refused
from anomalyclip.serve.refusals import Refusal, without_folders, without_frames
from anomalyclip.serve.schemas import JobOut, takes
from anomalyclip.serve.scoring import Entries
from anomalyclip.serve.service import Service, service_of
from anomalyclip.serve.uploads import Sent, Upload
from anomalyclip.serve.v1 import detector_for
from anomalyclip.serve.wanted import FIELDS, Wanted
from anomalyclip.serve.worker import Ticket

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=refused(*ANYWHERE))

log = logging.getLogger("anomalyclip.serve")

_LINES = 1000
"""Results in an answer at most."""


_RESULTS: dict[str, Any] = {
    "description": "A line of JSON for each image, as in the predictions of `/v1/predict`.",
    "headers": {
        "x-next-offset": {"schema": {"type": "integer"}, "description": "More may follow from here on."}
    },
    "content": {"application/x-ndjson": {"schema": {"$ref": "#/components/schemas/EntryOut"}}},
}


class JobEntries(Entries):
    """Entries of a job as JSON lines, counted against what the service may hold."""

    def __init__(self, held: Held) -> None:
        super().__init__(held.limit)
        self.lines: dict[int, bytes] = {}
        self.failed = 0
        self._lease, self._lock = held.lease(), threading.Lock()

    def add(self, position: int, said: dict[str, Any]) -> None:
        """Take the entry of an image."""
        line = json.dumps(said, allow_nan=False).encode() + b"\n"
        with self._lock:
            self._lease.take(len(line))
            self.failed += said["error"] is not None
            self.lines[position] = line

    def release(self) -> None:
        """Forget all of them."""
        with self._lock:
            self.lines.clear()
            self._lease.release()


@dataclass(eq=False)
class Job:
    """Files that are scored while no request waits.

    Parameters
    ----------
    id, model : str
    files : int
    entries : JobEntries
    kept : ExitStack
        Gives back what its files take.
    """

    id: str
    model: str
    files: int
    entries: JobEntries
    kept: ExitStack
    ticket: Ticket | None = None
    begun: int = 0
    """Files that were taken."""

    def uploads(self, files: list[Sent], lease: Lease) -> Iterator[Sent]:
        """Yield its files, and let go of each when the next one is taken."""
        for number in range(len(files)):
            file, files[number] = files[number], None  # type: ignore[call-overload]
            self.begun += 1
            size = len(file.content) if isinstance(file, Upload) else 0
            yield file
            del file
            lease.give(size)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be scored."""
        return self.ticket is not None and (self.ticket.done.done() or self.ticket.cancelled)

    def describe(self) -> dict[str, Any]:
        """Return its state and progress, JSON-ready."""
        error = None
        state = "queued" if not self.begun else "running"
        if self.ticket is not None and self.ticket.done.done():
            problem = self.ticket.done.exception()
            if isinstance(problem, AnomalyCLIPError):
                error = without_folders(problem)
            elif problem is not None:
                error = f"an internal error; the log has it under {self.id}"
            state = "done" if problem is None else "failed"
        return {
            "id": self.id,
            "model": self.model,
            "state": state,
            "files": self.files,
            "files_begun": self.begun,
            "images_done": len(self.entries.lines),
            "images_failed": self.entries.failed,
            "error": error,
        }

    def settle(self, done: "Future[None]") -> None:
        """Give back what its files take, and log an error that nobody foresaw. Called when its ticket is done."""
        self.kept.close()
        problem = done.exception()
        if problem is not None and not isinstance(problem, AnomalyCLIPError):
            log.error("a job failed", exc_info=problem, extra={"fields": {"id": self.id}})
            without_frames(problem)

    def end(self) -> None:
        """Cancel it and give back all that it holds."""
        if self.ticket is not None:
            self.ticket.cancel()
            self.ticket = None  # it leads back here; its model is free now
        self.kept.close()
        self.entries.release()


class Jobs:
    """The jobs that are kept.

    Parameters
    ----------
    most : int
        Jobs that are kept at most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._jobs: dict[str, Job] = {}

    def __getitem__(self, id: str) -> Job:
        if id not in self._jobs:
            raise Refusal(404, f"job {id[:100]!r} is not here (any more)")
        return self._jobs[id]

    def make_room(self) -> None:
        """Forget the oldest finished job if there are too many.

        Raises
        ------
        Refusal
            None of them is finished.
        """
        if len(self._jobs) < self._most:
            return
        over = next((id for id, job in self._jobs.items() if job.is_over), None)
        if over is None:
            raise Refusal(429, f"{len(self._jobs)} jobs run already; try again later", retry_after=30)
        self.forget(over)

    def add(self, job: Job) -> None:
        """Keep a job."""
        self._jobs[job.id] = job

    def forget(self, id: str) -> None:
        """Cancel a job and forget it."""
        self[id].end()
        del self._jobs[id]

    def end(self) -> None:
        """Cancel and forget all, and log those that are not over."""
        for id, job in list(self._jobs.items()):
            if not job.is_over:
                fields = {"id": id, "images_done": len(job.entries.lines)}
                log.warning("a job was given up", extra={"fields": fields})
            self.forget(id)


def _jobs_of(request: Request) -> Jobs:
    jobs: Jobs = request.app.state.jobs
    return jobs


@router.post(
    "", status_code=202, response_model=JobOut, responses=refused(*SCORING), openapi_extra=takes(*FIELDS)
)
async def start(request: Request) -> Response:
    """Start a job: a form with many `files`, and the fields of `/v1/predict`."""
    service, jobs = service_of(request), _jobs_of(request)
    jobs.make_room()
    settings = service.settings
    with ExitStack() as stack:
        folder, held = None, service.held
        if settings.jobs_folder is not None:
            folder = stack.enter_context(staging(settings.jobs_folder))
            held = Held(settings.job_bytes)
        lease = stack.enter_context(held.lease())
        limits = JobLimits(settings.max_job_files, settings.job_bytes, folder)
        form = await read_form(request, settings, lease, job=limits)
        wanted = Wanted.of(form.fields)
        if not form.files:
            raise Refusal(422, "no images: send them as 'files'")
        jobs.make_room()  # others may have come meanwhile
        job = await _started(request, service, wanted, form.files, lease, stack)
        jobs.add(job)
    return await service.json(job.describe(), 202)


async def _started(
    request: Request, service: Service, wanted: Wanted, files: list[Sent], lease: Lease, stack: ExitStack
) -> Job:
    served = service.models[wanted.model]
    detector = await detector_for(request, served, wanted)
    entries = JobEntries(service.held)
    job = Job(f"j-{secrets.token_hex(6)}", served.id, len(files), entries, stack.pop_all())
    job.ticket = service.scoring.ticket(
        detector,
        job.uploads(files, lease),
        wanted,
        entries,
        most=service.settings.max_job_images,
        is_job=True,
    )
    job.ticket.done.add_done_callback(job.settle)
    service.worker.submit(job.ticket)
    return job


@router.get("/{id}", response_model=JobOut, responses=refused(404))
async def status(id: str, request: Request) -> dict[str, Any]:
    """Return the state of a job: queued, running, done or failed, and how far it is."""
    return _jobs_of(request)[id].describe()


@router.get("/{id}/results", response_class=Response, responses={200: _RESULTS, **refused(404, 422)})
async def results(id: str, request: Request, offset: int = 0, limit: int = _LINES) -> Response:
    """Return results as JSON lines, in the order of the images, from `offset` on.

    What is not scored yet is missing at the end. The header `x-next-offset` is there as long as more may follow.
    """
    job = _jobs_of(request)[id]
    if offset < 0 or not 1 <= limit <= _LINES:
        raise Refusal(422, f"expected an offset from 0 and a limit from 1 to {_LINES}")
    over, lines = job.is_over, job.entries.lines
    found: list[bytes] = []
    while len(found) < limit and (line := lines.get(offset + len(found))) is not None:
        found.append(line)
    end = offset + len(found)
    more = not over or end in lines
    headers = {"x-next-offset": str(end)} if more else {}
    return Response(b"".join(found), media_type="application/x-ndjson", headers=headers)


@router.delete("/{id}", status_code=204, responses=refused(404))
async def cancel(id: str, request: Request) -> Response:
    """Cancel a job, and forget its files and results."""
    _jobs_of(request).forget(id)
    return Response(status_code=204)
