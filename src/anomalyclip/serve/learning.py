"""``/v1/memories`` and ``/v1/calibrate``: a model that knows flawless images, and a threshold made of them."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from PIL import Image
from starlette.responses import Response

from anomalyclip.depth import Scale
from anomalyclip.detector import Detector
from anomalyclip.errors import AnomalyCLIPError, InputError
from anomalyclip.prediction import Prediction, Threshold
from anomalyclip.serve.bodies import Form, read_form
from anomalyclip.serve.models import Served, with_threshold
from anomalyclip.serve.openapi import SCORING, refused
from anomalyclip.serve.refusals import Refusal
from anomalyclip.serve.schemas import CalibrationOut, FailedMemoryOut, MemoryOut, takes
from anomalyclip.serve.scoring import check_tiles
from anomalyclip.serve.service import Service, refusal_of, service_of
from anomalyclip.serve.settings import ServeSettings
from anomalyclip.serve.uploads import Sent, images_of
from anomalyclip.serve.wanted import Wanted, share, truth
from anomalyclip.serve.worker import Worker

router = APIRouter(prefix="/v1", tags=["learning"], responses=refused(*SCORING))


@router.post(
    "/memories",
    status_code=201,
    response_model=MemoryOut,
    responses=refused(422, form=FailedMemoryOut),
    openapi_extra=takes("model", "augment"),
)
async def remember(request: Request) -> Response:
    """Make a model that compares images with flawless ones (few-shot).

    A form with `files`: flawless images; optional fields `model`, the model that is given a memory, and `augment` (1:
    the product has no fixed orientation). The answer is the new model; `failed` lists files that could not be used.
    """
    service = service_of(request)
    with service.held.lease() as lease:
        form = await read_form(request, service.settings, lease)
        _check(form, ("model", "augment"))
        if not form.files:
            raise Refusal(422, "no images: send flawless ones as 'files'")
        served = service.models[Wanted.of(_only(form.fields, "model")).model]
        augment = truth(form.fields, "augment")
        with service.admitted():
            made = await _made(request, service, served, form.files, augment)
    return await service.json(made, 201)


async def _made(
    request: Request, service: Service, served: Served, files: list[Sent], augment: bool
) -> dict[str, Any]:
    """Return what is said of the new model."""
    from anomalyclip.fitting import fit
    from anomalyclip.loading import in_pytorch
    from anomalyclip.remembering import remember

    flawless = Flawless(service.settings, served.detector)

    def fitted() -> Any:
        detector = in_pytorch(with_threshold(served.detector, None))  # it was made for other scores
        images = service.worker.between(flawless.of(files))
        return remember(detector, fit(detector, images, augment=augment))

    try:
        detector = await service.waited_for(request, service.worker.call(fitted))
    except AnomalyCLIPError as error:
        if not isinstance(error, Refusal) and flawless.failed and not flawless.names:
            error = InputError(flawless.failed[0]["error"])
        raise refusal_of(request, error, more={"failed": flawless.failed}) from None
    finally:
        flawless.caller.left.set()
    return {**service.models.add(detector, tuple(flawless.names)).describe(), "failed": flawless.failed}


@dataclass(frozen=True)
class Caller:
    """Whoever waits for what is learned.

    Attributes
    ----------
    left : threading.Event
        Set when nobody waits any more.
    """

    left: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Stop what is done for nobody.

        Raises
        ------
        Refusal
            The caller has left.
        """
        if self.left.is_set():
            raise Refusal(503, "nobody waits for this any more")


@dataclass(frozen=True)
class Flawless:
    """Flawless images of a request. One is decoded at a time: together they may be many times as large as their files.

    Parameters
    ----------
    settings : ServeSettings
        The limits of a request.
    detector : Detector
        The model that is given a memory.

    Attributes
    ----------
    names : list of str
        Of the images that can be used.
    failed : list of dict
        Names and errors of files that cannot be used.
    caller : Caller
        Who waits for the model.
    """

    settings: ServeSettings
    detector: Detector
    names: list[str] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    caller: Caller = field(default_factory=Caller)

    def of(self, files: Iterable[Sent]) -> Iterator[Image.Image]:
        """Yield the images of uploads.

        Raises
        ------
        Refusal
            They are too many, or nobody waits for them any more.
        """
        scale = Scale(self.detector.value_range, strict=True)
        for file in files:
            try:
                for found in images_of(file, unpacked=self.settings.unpacked_bytes):
                    self._check(found.name)
                    image, _ = scale(found.image, name=found.name)
                    check_tiles(self.detector.tiling, found.name, image.size)
                    image.filename = found.name  # type: ignore[attr-defined] # fit takes it for the reference's name
                    self.names.append(found.name)
                    yield image
            except InputError as error:
                self.failed.append({"name": file.name, "error": str(error)})

    def _check(self, name: str) -> None:
        self.caller.check()
        if len(self.names) >= self.settings.max_images:
            raise Refusal(413, f"{name}: more than {self.settings.max_images} images; send fewer")


@router.post(
    "/calibrate",
    response_model=CalibrationOut,
    openapi_extra=takes("model", "false_alarm_rate", "false_pixel_share"),
)
async def calibrate(request: Request) -> Response:
    """Find a threshold, at a false-alarm rate of your choice, and make a model that uses it.

    A form with `files`: normal images; references of the model among them are left out, and listed in `failed`. Without
    files, the references of a memory are each compared with the others. Optional fields: `model`, `false_alarm_rate`
    (0.01), `false_pixel_share` (0.001).
    """
    service = service_of(request)
    with service.held.lease() as lease:
        form = await read_form(request, service.settings, lease)
        _check(form, ("model", "false_alarm_rate", "false_pixel_share"))
        served = service.models[Wanted.of(_only(form.fields, "model")).model]
        rate = share(form.fields, "false_alarm_rate")
        pixels = share(form.fields, "false_pixel_share")
        rates = 0.01 if rate is None else rate, 0.001 if pixels is None else pixels
        failed: list[dict[str, Any]] = []
        with service.admitted():
            try:
                threshold = await _threshold(request, service, served, form.files, rates, failed)
            except AnomalyCLIPError as error:
                raise refusal_of(request, error) from None
    judged = service.models.judged(served, threshold)
    said = {"model": judged.id, "threshold": judged.describe()["threshold"], "failed": failed}
    return await service.json({**said, **_evidence(threshold.info)})


async def _threshold(
    request: Request,
    service: Service,
    served: Served,
    files: list[Sent],
    rates: tuple[float, float],
    failed: list[dict[str, Any]],
) -> Threshold:
    from anomalyclip.evaluation.calibration import NormalScores
    from anomalyclip.evaluation.calibration import calibrate as of_references
    from anomalyclip.evaluation.leaks import OWN_REFERENCE, reference_test

    if not files:
        if not served.references:
            raise Refusal(422, "no images: send normal ones as 'files', or name a model that has references")
        caller = Caller()

        @contextmanager
        def track(what: str, total: int | None) -> Iterator[Callable[[], None]]:
            yield partial(next_reference, caller, service.worker)

        try:
            found = service.worker.call(
                lambda: of_references(
                    served.detector, false_alarm_rate=rates[0], false_pixel_share=rates[1], track=track
                )
            )
            return await service.waited_for(request, found)
        finally:
            caller.left.set()
    normals, lock = NormalScores(), threading.Lock()

    def keep(_: int, prediction: Prediction) -> None:
        with lock:
            normals.add(prediction.pred_score, prediction.anomaly_map, prediction.value_range)

    is_reference = reference_test(served.detector.scorer, served.detector.tiling)

    def leave_out(image: Image.Image) -> str | None:
        return OWN_REFERENCE if is_reference is not None and is_reference(image) else None

    entries = await service.scored(request, served.detector, files, Wanted(), keep=keep, leave_out=leave_out)
    failed += [
        {"name": said["name"], "error": said["error"]}
        for said in entries.in_order()
        if said["error"] is not None
    ]
    if failed and not len(normals):
        raise Refusal(422, f"no normal image could be scored: {failed[0]['error']}")
    return await service.aside(lambda: normals.threshold(served.detector, *rates))


def next_reference(caller: Caller, worker: Worker) -> None:
    """Let others have the model between two references, and stop when the caller has left."""
    caller.check()
    worker.catch_up()


def _evidence(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a caller is told about the images that a threshold was made of."""
    names = ("images", "false_alarm_rate", "false_pixel_share", "images_with_false_pixels")
    return {name: info[name] for name in names}


def _check(form: Form, known: tuple[str, ...]) -> None:
    if unknown := sorted(set(form.fields) - set(known)):
        raise Refusal(422, f"{', '.join(unknown)[:200]}: unknown field; expected some of {', '.join(known)}")


def _only(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {name: fields[name]} if name in fields else {}
