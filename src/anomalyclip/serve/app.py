"""The application: routes, errors, and the guard around them."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

import anomalyclip
from anomalyclip.detector import Detector
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.serve import jobs, label_studio, learning, oip, v1
from anomalyclip.serve.bodies import ClientGoneError
from anomalyclip.serve.guard import GONE, Guard
from anomalyclip.serve.measures import Measures
from anomalyclip.serve.models import Models
from anomalyclip.serve.openapi import describing
from anomalyclip.serve.refusals import Refusal, without_frames
from anomalyclip.serve.service import Service, refusal_of, service_of
from anomalyclip.serve.settings import ServeSettings
from anomalyclip.serve.worker import Worker

PAGE = Path(__file__).parent / "page"
"""Folder of the page's files."""


def build(detector: Detector, settings: ServeSettings) -> Guard:
    """Return the service of a detector, as an ASGI application.

    Parameters
    ----------
    detector : Detector
    settings : ServeSettings

    Raises
    ------
    AnomalyCLIPError
        The key cannot be used.
    """
    # Pillow refuses images of more than twice this, before it decodes them; so do the other readers.
    Image.MAX_IMAGE_PIXELS = int(settings.max_pixels * 1_000_000 / 2)
    measures = Measures()
    on_cpu = str(getattr(detector.scorer, "device", "")).lower() == "cpu"
    worker = Worker(settings.batch_size, min(4, os.cpu_count() or 1), measures, lanes=2 if on_cpu else 1)
    models = Models(detector, most=settings.models, offered=settings.offer or ())
    service = Service(settings, models, worker, measures)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.warm()
        yield
        service.ready = False
        kept.end()
        worker.stop()

    app = FastAPI(
        title="AnomalyCLIP",
        version=anomalyclip.__version__,
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.state.jobs = kept = jobs.Jobs(settings.jobs)
    for routes in (v1, learning, jobs, oip, label_studio):
        app.include_router(routes.router)
    _add_page(app)
    _add_errors(app)
    key = settings.key()
    app.openapi = describing(app, has_key=key is not None)  # type: ignore[method-assign]
    hosts: Sequence[str] = settings.allowed_host or ()
    return Guard(app, key=key, hosts=[*hosts, settings.host], measures=measures)


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html")

    @app.get("/metrics", include_in_schema=False)
    async def metrics(request: Request) -> Response:
        service = service_of(request)
        service.measures.waiting.set(service.worker.waiting())
        service.measures.requests_waiting.set(service.requests)
        service.measures.held.set(service.held.count)
        return Response(service.measures.text(), media_type="text/plain; version=0.0.4")

    app.mount("/page", StaticFiles(directory=PAGE, check_dir=False))


def _add_errors(app: FastAPI) -> None:
    def answer(request: Request, refusal: Refusal) -> Response:
        without_frames(refusal)
        content = refusal.content(request.scope["request_id"], request.url.path)
        return JSONResponse(content, refusal.status, headers=refusal.headers())

    async def refused(request: Request, error: Any) -> Response:
        return answer(request, error)

    async def unknown(request: Request, error: Any) -> Response:
        said = {404: "there is nothing here; see /openapi.json", 405: "another method is expected here"}
        return answer(request, Refusal(error.status_code, said.get(error.status_code, str(error.detail))))

    async def invalid(request: Request, error: Any) -> Response:
        return answer(request, Refusal(422, "; ".join(str(one.get("msg")) for one in error.errors())))

    async def gone(request: Request, error: Any) -> Response:
        without_frames(error)
        return Response(status_code=GONE)

    async def unforeseen(request: Request, error: Any) -> Response:
        id = request.scope["request_id"]  # the guard logs the error
        return answer(request, Refusal(500, f"an error nobody foresaw; the log has it under {id}"))

    async def impossible(request: Request, error: Any) -> Response:
        return answer(request, refusal_of(request, without_frames(error)))

    app.add_exception_handler(Exception, unforeseen)
    app.add_exception_handler(AnomalyCLIPError, impossible)
    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(HTTPException, unknown)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(ClientGoneError, gone)
