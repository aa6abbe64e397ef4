"""REST, version 1: ``/v1/predict`` and ``/v1/models``."""

from typing import Any, get_type_hints

from fastapi import APIRouter, Request
from pydantic import TypeAdapter
from starlette.responses import Response

from anomalyclip.detector import Detector
from anomalyclip.prediction import Threshold
from anomalyclip.serve.bodies import read_form, read_json
from anomalyclip.serve.models import CHOOSABLE, Served, with_threshold
from anomalyclip.serve.openapi import ANYWHERE, SCORING, UPLOADING, refused
from anomalyclip.serve.refusals import Refusal, error_content
from anomalyclip.serve.schemas import (
    FailedPredictionsOut,
    ModelOut,
    ModelsOut,
    PredictionsOut,
    takes,
    takes_json,
)
from anomalyclip.serve.service import service_of
from anomalyclip.serve.wanted import FIELDS, Wanted
from anomalyclip.spec import DetectorSpec

router = APIRouter(prefix="/v1", tags=["models"], responses=refused(*ANYWHERE))

_FEW = 8
"""Entries without maps that are written at once."""

_HINTS = get_type_hints(DetectorSpec)

_CHOICE = {
    "properties": {
        **{name: TypeAdapter(_HINTS[name]).json_schema() for name in CHOOSABLE},
        "threshold": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
    },
    "additionalProperties": False,
}

_UNSCORED = dict.fromkeys((413, 415, 422), FailedPredictionsOut)
"""What these statuses of ``/v1/predict`` have besides the error."""


@router.post(
    "/predict",
    response_model=PredictionsOut,
    responses=refused(*SCORING, more=_UNSCORED),
    openapi_extra=takes(*FIELDS),
)
async def predict(request: Request) -> Response:
    """Score images: a form with `files`, or JSON with `images` as base64.

    An image that cannot be used has an entry with `error`, and does not fail the others; only if none could be used,
    the status is an error.
    """
    service = service_of(request)
    with service.held.lease() as lease:
        form = await read_form(request, service.settings, lease)
        wanted = Wanted.of(form.fields)
        if not form.files:
            raise Refusal(422, "no images: send them as 'files' of a form, or as 'images' in JSON")
        served = service.models[wanted.model]
        with service.admitted():
            detector = await detector_for(request, served, wanted)
            entries = await service.scored(request, detector, form.files, wanted)
    answer: dict[str, Any] = {"model": served.id, "predictions": entries.in_order()}
    status = entries.status()
    if status != 200:
        said = error_content(status, str(entries.failures[0]), request.scope["request_id"])
        answer = {**said, **answer}
    large = wanted.map != "none" or wanted.preview or len(entries.found) > _FEW
    return await service.json(answer, status, large=large)


async def detector_for(request: Request, served: Served, wanted: Wanted) -> Detector:
    """Return the detector that a request asks for."""
    service, detector = service_of(request), served.detector
    if wanted.class_name is not None:
        spec = service.models.of_class(served, wanted.class_name)
        known = service.models.found(spec, served.detector.threshold)
        if known is None:
            known = service.models.add(
                with_threshold(await service.loaded(request, spec), served.detector.threshold)
            )
        detector = known.detector
    judged = wanted.threshold is not None or (detector.threshold and detector.threshold.pixel is not None)
    if wanted.map == "rle" and not judged:
        raise Refusal(422, "map rle is the mask, which needs a threshold: send one as 'threshold'")
    return detector


@router.get("/models", response_model=ModelsOut)
async def models(request: Request) -> dict[str, Any]:
    """List the models that are here, and what others may be made of."""
    kept = service_of(request).models
    return {"models": [served.describe() for served in kept.all()], "offers": kept.offers()}


@router.post(
    "/models",
    status_code=201,
    response_model=ModelOut,
    responses={200: {"model": ModelOut, "description": "It was here already."}, **refused(*UPLOADING, 503)},
    openapi_extra=takes_json(_CHOICE),
)
async def choose(request: Request) -> Response:
    """Make a model: a JSON object with some of backbone, method, prompts, normal, abnormal, ... and threshold."""
    service = service_of(request)
    with service.held.lease() as lease:
        content = await read_json(request, service.settings, lease)
    threshold = Wanted.of({"threshold": content.pop("threshold", None)}).threshold
    spec = service.models.chosen(content)
    known = service.models.found(spec)
    limits = None if threshold is None else Threshold(score=threshold, pixel=threshold)
    if known is not None:
        if limits is not None:
            known = service.models.judged(known, limits)
        return await service.json(known.describe(), 200 if limits is None else 201)
    with service.admitted():
        detector = with_threshold(await service.loaded(request, spec), limits)
    return await service.json(service.models.add(detector).describe(), 201)


@router.delete("/models/{id}", status_code=204, responses=refused(404, 409))
async def forget(id: str, request: Request) -> Response:
    """Forget a model that was made here."""
    service_of(request).models.forget(id)
    return Response(status_code=204)
