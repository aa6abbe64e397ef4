"""A machine-learning backend of Label Studio: pictures come prelabelled with brush masks and boxes.

A task names its picture by an address. None is followed, except those on the one Label Studio that the operator names
(``--label-studio``); otherwise tasks have to contain their pictures as ``data:`` URIs.

References
----------
https://labelstud.io/guide/ml_create and https://labelstud.io/guide/predictions (its published schema).
"""

import asyncio
import re
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

from fastapi import APIRouter, Request
from starlette.responses import Response

from anomalyclip.prediction import Prediction, Region
from anomalyclip.serve.bodies import from_base64, read_json
from anomalyclip.serve.brush import brush
from anomalyclip.serve.openapi import ANYWHERE, UPLOADING, refused
from anomalyclip.serve.refusals import Refusal
from anomalyclip.serve.schemas import takes_json
from anomalyclip.serve.service import service_of
from anomalyclip.serve.settings import ServeSettings
from anomalyclip.serve.uploads import Sent, Upload, shown_name
from anomalyclip.serve.wanted import Wanted

router = APIRouter(tags=["Label Studio"], responses=refused(*ANYWHERE))

_TAKES: dict[str, Any] = {"responses": refused(*UPLOADING), "openapi_extra": takes_json()}

_CONTROLS = ("BrushLabels", "RectangleLabels")
_ANOMALOUS = re.compile(r"anomal|defect|abnormal|damage|fault", re.IGNORECASE)
_LONGEST_CONFIG = 200_000
_FETCH = 20.0
"""Seconds that Label Studio has for a picture."""


@dataclass(frozen=True)
class Control:
    """A tag of a labelling interface that predictions can fill.

    Parameters
    ----------
    kind : str
        ``BrushLabels`` or ``RectangleLabels``.
    name, to_name : str
        Its own name, and that of the picture's tag.
    label : str
        The label that anomalous regions get: the first that sounds like one, otherwise the first.
    value : str
        The name of the picture in the data of a task.
    """

    kind: str
    name: str
    to_name: str
    label: str
    value: str


def controls_of(config: Any) -> list[Control]:
    """Return the controls of a labelling interface.

    Raises
    ------
    Refusal
        It is not XML, or has no brush and no rectangle for a picture.

    Examples
    --------
    >>> controls_of('''<View><Image name="img" value="$photo"/>
    ...   <BrushLabels name="tag" toName="img"><Label value="OK"/><Label value="Defect"/></BrushLabels></View>''')
    [Control(kind='BrushLabels', name='tag', to_name='img', label='Defect', value='photo')]
    """
    text = config if isinstance(config, str) and len(config) <= _LONGEST_CONFIG else "<!"
    if "<!" in re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL):  # declarations can make XML explode
        raise Refusal(422, "label_config: expected the XML of a labelling interface, without declarations")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise Refusal(422, f"label_config: not XML ({error})") from None
    pictures = {tag.get("name"): (tag.get("value") or "").lstrip("$") for tag in root.iter("Image")}
    found = []
    for tag in root.iter():
        labels = [label.get("value") or "" for label in tag.iter("Label")]
        to_name = tag.get("toName")
        if tag.tag in _CONTROLS and to_name in pictures and labels:
            label = next((text for text in labels if _ANOMALOUS.search(text)), labels[0])
            found.append(Control(tag.tag, tag.get("name") or "", to_name or "", label, pictures[to_name]))
    if not found:
        raise Refusal(422, "label_config: expected BrushLabels or RectangleLabels with a Label, for an Image")
    return found


@router.get("/health")
async def health(request: Request) -> dict[str, Any]:
    """Say that the service runs, as Label Studio asks."""
    return {"status": "UP" if service_of(request).ready else "LOADING", "model_class": "AnomalyCLIP"}


@router.post("/setup", **_TAKES)
async def setup(request: Request) -> dict[str, Any]:
    """Check the labelling interface of a project (`schema`)."""
    service = service_of(request)
    with service.held.lease() as lease:
        content = await read_json(request, service.settings, lease)
    if content.get("schema"):
        controls_of(content["schema"])
    return {"model_version": service.models.own.describe()["title"]}


@router.post("/webhook", **_TAKES)
async def webhook(request: Request) -> dict[str, Any]:
    """Take notice of an event; nothing is learned from it."""
    service = service_of(request)
    with service.held.lease() as lease:
        await read_json(request, service.settings, lease)
    return {"status": "ok", "message": "nothing is learned from annotations"}


@router.post("/predict", responses=refused(*UPLOADING, 503), openapi_extra=takes_json())
async def predict(request: Request) -> Response:
    """Prelabel tasks: a brush mask and boxes for each, and the score. Regions need a threshold."""
    service = service_of(request)
    found: dict[int, Prediction] = {}
    with service.held.lease() as lease:
        content = await read_json(request, service.settings, lease)
        controls = controls_of(content.get("label_config"))
        tasks = tasks_of(content)
        if len(tasks) > service.settings.max_files:
            raise Refusal(413, f"{len(tasks)} tasks; expected at most {service.settings.max_files}")
        with service.admitted():
            files: list[Sent] = []
            for task in tasks:
                picture = await asyncio.to_thread(picture_of, task, controls, service.settings)
                lease.take(len(picture.content))
                files.append(picture)
            own = service.models.own
            entries = await service.scored(request, own.detector, files, Wanted(), keep=found.__setitem__)
    if entries.failures:
        raise Refusal(entries.failure(), str(entries.failures[0]))
    if len(found) != len(files):
        raise Refusal(422, "a picture with several pages cannot be prelabelled; make one of each page")
    version = own.describe()["title"]

    def results() -> list[dict[str, Any]]:
        return [
            {"result": result_of(one, controls), "score": one.pred_score, "model_version": version}
            for _, one in sorted(found.items())
        ]

    return await service.json({"results": await service.aside(results)}, large=True)


def tasks_of(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tasks of a request.

    Raises
    ------
    Refusal
        There are none.
    """
    tasks = content.get("tasks")
    if not isinstance(tasks, list) or not tasks or not all(isinstance(task, dict) for task in tasks):
        raise Refusal(422, "tasks: expected a list of tasks")
    return tasks


def picture_of(task: Mapping[str, Any], controls: list[Control], settings: ServeSettings) -> Upload:
    """Return the picture of a task.

    Raises
    ------
    Refusal
        There is none, or its address may not be opened.
    """
    data = task.get("data")
    value = data.get(controls[0].value) if isinstance(data, dict) else None
    if not isinstance(value, str):
        raise Refusal(422, f"a task has no picture under {controls[0].value!r} in its data")
    if value.startswith("data:"):
        return Upload("picture", from_base64(value, "a task's picture"))
    if settings.label_studio is None:
        raise Refusal(
            422,
            "a task names its picture by an address, and none is opened: start the service with --label-studio "
            "ADDRESS, or put pictures into tasks as data: URIs",
        )
    return Upload(shown_name(urlsplit(value).path, 1), fetched(value, settings))


def fetched(value: str, settings: ServeSettings) -> bytes:
    """Return a picture from the Label Studio that the operator has named.

    Raises
    ------
    Refusal
        It is elsewhere, too large, or cannot be fetched.
    """
    origin = str(settings.label_studio).rstrip("/")
    path = value.removeprefix(origin)
    if not re.fullmatch(r"/[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*", path) or path.startswith("//"):
        raise Refusal(422, f"a task's picture is not on {origin}; only that address is opened")
    headers = {}
    if settings.label_studio_token is not None:
        try:
            headers["Authorization"] = (
                f"Token {settings.label_studio_token.read_text(encoding='ascii').strip()}"
            )
        except (OSError, ValueError):
            raise Refusal(503, "the token for Label Studio cannot be read") from None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects)
    try:
        with opener.open(urllib.request.Request(origin + path, headers=headers), timeout=_FETCH) as answer:
            content: bytes = answer.read(settings.request_bytes + 1)
    except (OSError, ValueError) as error:  # all of urllib's are
        raise Refusal(422, f"a task's picture cannot be fetched from {origin} ({error})") from None
    if len(content) > settings.request_bytes:
        raise Refusal(413, f"a task's picture has more than {settings.request_bytes} bytes")
    return content


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """An answer that leads elsewhere is an error."""

    def redirect_request(self, *args: Any, **named: Any) -> None:
        return None


def result_of(prediction: Prediction, controls: list[Control]) -> list[dict[str, Any]]:
    """Return the regions of a prediction as Label Studio's results.

    Parameters
    ----------
    prediction : Prediction
        Without a pixel threshold there are none.
    controls : list of Control
        What they are shown with: one brush mask for all regions, one box for each.
    """
    found: list[dict[str, Any]] = []
    width, height = prediction.image_size
    about = {"original_width": width, "original_height": height, "image_rotation": 0}
    for control in controls:
        names = {"from_name": control.name, "to_name": control.to_name, "type": control.kind.lower()}
        label = {control.kind.lower(): [control.label]}
        if control.kind == "RectangleLabels":
            for number, one in enumerate(prediction.regions, start=1):
                value = {**_box(one, width, height), **label}
                found.append(
                    {"id": f"box{number}", **names, **about, "value": value, "score": one.peak_score}
                )
        elif prediction.regions:
            mask = prediction.mask_at()
            assert mask is not None
            drawn = {"format": "rle", "rle": brush(mask), **label}
            score = prediction.regions[0].peak_score
            found.append({"id": "mask", **names, **about, "value": drawn, "score": score})
    return found


def _box(region: Region, width: int, height: int) -> dict[str, float]:
    """Return a box in per cent of the picture."""
    x0, y0, x1, y1 = region.box
    return {
        "x": 100 * x0 / width,
        "y": 100 * y0 / height,
        "width": 100 * (x1 - x0) / width,
        "height": 100 * (y1 - y0) / height,
        "rotation": 0,
    }
