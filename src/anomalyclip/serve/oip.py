"""The Open Inference Protocol, version 2, for clients of KServe and Triton, with its extension for binary tensors.

Inputs, one of them: ``image``, BYTES (B), each an encoded image file (in JSON as base64); or ``pixels``, UINT8
(B, height, width, 3). Outputs: ``score``, FP32 (B); ``map``, FP32 (B, S, S); with a threshold ``label``, BOOL (B).

References
----------
https://github.com/kserve/open-inference-protocol and, for binary tensors, Triton's ``extension_binary_data.md``.
"""

import asyncio
import io
import json
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from PIL import Image
from starlette.responses import Response

import anomalyclip
from anomalyclip.prediction import Prediction
from anomalyclip.serve.bodies import as_object, beside, from_base64, whole
from anomalyclip.serve.models import Served
from anomalyclip.serve.openapi import ANYWHERE, SCORING, refused
from anomalyclip.serve.refusals import Refusal
from anomalyclip.serve.schemas import ProtocolErrorOut, takes_json
from anomalyclip.serve.service import service_of
from anomalyclip.serve.settings import ServeSettings
from anomalyclip.serve.uploads import Sent, Upload
from anomalyclip.serve.wanted import Wanted

router = APIRouter(
    prefix="/v2", tags=["Open Inference Protocol"], responses=refused(*ANYWHERE, form=ProtocolErrorOut)
)

_MISSING = refused(404, form=ProtocolErrorOut)
_INFERS: dict[str, Any] = {
    "responses": {
        200: {
            "description": "The outputs.",
            "content": {
                "application/json": {"schema": {"type": "object"}},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        },
        **refused(*SCORING, form=ProtocolErrorOut),
    },
    "response_class": Response,
    "openapi_extra": takes_json(),
}

_VERSION = "1"
_HEADER = "inference-header-content-length"
_OUTPUTS = ("score", "map", "label")


@router.get("")
async def server() -> dict[str, Any]:
    """Describe the server."""
    return {"name": "anomalyclip", "version": anomalyclip.__version__, "extensions": ["binary_tensor_data"]}


@router.get("/health/live")
async def live() -> dict[str, bool]:
    """Say that the service runs."""
    return {"live": True}


@router.get("/health/ready", responses={503: {"description": "It is not warm yet."}})
async def ready(request: Request) -> Response:
    """Say whether the service's own model is warm: 200, or 503."""
    is_ready = service_of(request).ready
    return Response(json.dumps({"ready": is_ready}), 200 if is_ready else 503, media_type="application/json")


@router.get("/models/{model}", responses=_MISSING)
@router.get("/models/{model}/versions/{version}", responses=_MISSING)
async def describe(model: str, request: Request, version: str = _VERSION) -> dict[str, Any]:
    """Describe a model: its inputs and outputs."""
    served = _model(request, model, version)
    side = served.detector.scorer.image_size if served.detector.tiling is None else -1
    outputs = [_about("score", "FP32", [-1]), _about("map", "FP32", [-1, side, side])]
    if _judges(served):
        outputs.append(_about("label", "BOOL", [-1]))
    return {
        "name": served.id,
        "versions": [_VERSION],
        "platform": "anomalyclip",
        "inputs": [_about("image", "BYTES", [-1]), _about("pixels", "UINT8", [-1, -1, -1, 3])],
        "outputs": outputs,
    }


@router.get("/models/{model}/ready", responses=_MISSING)
@router.get("/models/{model}/versions/{version}/ready", responses=_MISSING)
async def model_ready(model: str, request: Request, version: str = _VERSION) -> dict[str, Any]:
    """Say that a model is ready."""
    return {"name": _model(request, model, version).id, "ready": True}


@router.post("/models/{model}/infer", **_INFERS)
@router.post("/models/{model}/versions/{version}/infer", **_INFERS)
async def infer(model: str, request: Request, version: str = _VERSION) -> Response:
    """Score a batch of images."""
    service, served = service_of(request), _model(request, model, version)
    predictions: dict[int, Prediction] = {}
    with service.held.lease() as lease:
        body = await whole(request, service.settings, lease)
        lease.take(beside(body))
        asked = await asyncio.to_thread(Asked.of, body, request.headers.get(_HEADER))
        files = await service.aside(lambda: asked.files(service.settings))
        outputs = asked.outputs(_judges(served))
        with service.admitted():
            entries = await service.scored(
                request, served.detector, files, Wanted(), keep=predictions.__setitem__
            )
    if entries.failures:
        raise Refusal(entries.failure(), str(entries.failures[0]))
    if len(predictions) != len(files):
        raise Refusal(
            422, "a file with several images cannot be an element of a tensor; send its images one by one"
        )
    in_order = [one for _, one in sorted(predictions.items())]
    id = {"id": asked.id} if asked.id else {}
    about = {"model_name": served.id, "model_version": _VERSION, **id}
    return await service.aside(lambda: answer(about, in_order, outputs))


def _model(request: Request, model: str, version: str) -> Served:
    if version != _VERSION:
        raise Refusal(404, f"version {version[:50]!r} is not here; the only one is {_VERSION}")
    return service_of(request).models[model]


def _judges(served: Served) -> bool:
    return served.detector.threshold is not None and served.detector.threshold.score is not None


def _about(name: str, kind: str, shape: list[int]) -> dict[str, Any]:
    return {"name": name, "datatype": kind, "shape": shape}


@dataclass(frozen=True)
class Asked:
    """What a request asks for: the JSON, and the binary tensors behind it.

    Parameters
    ----------
    content : dict
    tensors : bytes
    """

    content: dict[str, Any]
    tensors: bytes

    @classmethod
    def of(cls, body: bytes, header_length: str | None) -> "Asked":
        """Return what a body asks for.

        Raises
        ------
        Refusal
            It is damaged.
        """
        if header_length is None:
            return cls(as_object(body), b"")
        if not header_length.isdecimal() or len(header_length) > 18 or int(header_length) > len(body):
            raise Refusal(400, "Inference-Header-Content-Length: expected the length of the JSON in the body")
        return cls(as_object(body[: int(header_length)]), body[int(header_length) :])

    @property
    def id(self) -> str | None:
        """The caller's name of the request."""
        id = self.content.get("id")
        return id[:200] if isinstance(id, str) else None

    def files(self, settings: ServeSettings) -> list[Sent]:
        """Return the images as files.

        Raises
        ------
        Refusal
            The input is none of the two, or damaged.
        """
        inputs = self.content.get("inputs")
        if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
            raise Refusal(422, "inputs: expected one, 'image' (BYTES) or 'pixels' (UINT8)")
        (given,) = inputs
        name, kind, shape = given.get("name"), given.get("datatype"), _shape(given.get("shape"))
        if shape[0] > settings.max_files:
            raise Refusal(413, f"{shape[0]} images; expected at most {settings.max_files} in a request")
        data = self._data(given)
        if (name, kind) == ("image", "BYTES"):
            if math.prod(shape) != shape[0]:
                raise Refusal(422, "image: expected the shape [B] or [B, 1]")
            return [Upload(str(n), content) for n, content in enumerate(_texts(data, shape[0]), start=1)]
        if (name, kind) == ("pixels", "UINT8"):
            return [Upload(str(n), _bitmap(one)) for n, one in enumerate(_pixels(data, shape), start=1)]
        raise Refusal(
            422, f"input {str(name)[:50]!r} of {str(kind)[:50]}: expected 'image' (BYTES) or 'pixels' (UINT8)"
        )

    def _data(self, given: dict[str, Any]) -> Any:
        """Return the data of an input: bytes, or what the JSON has."""
        parameters = given.get("parameters")
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        if size is None:
            return given.get("data")
        if size != len(self.tensors) or isinstance(size, bool):
            raise Refusal(
                400, f"binary_data_size {str(size)[:50]}: the body has {len(self.tensors)} bytes for it"
            )
        return self.tensors

    def outputs(self, judges: bool) -> dict[str, bool]:
        """Return the names of the outputs that are wanted, and whether each is binary.

        Raises
        ------
        Refusal
            There is no such output.
        """
        known = [name for name in _OUTPUTS if judges or name != "label"]
        parameters = self.content.get("parameters")
        binary = isinstance(parameters, dict) and parameters.get("binary_data_output") is True
        asked = self.content.get("outputs")
        if asked is None or asked == []:
            return dict.fromkeys(known, binary)
        if not isinstance(asked, list) or not all(isinstance(one, dict) for one in asked):
            raise Refusal(422, "outputs: expected a list of {'name': NAME}")
        found = {}
        for one in asked:
            if one.get("name") not in known:
                raise Refusal(
                    422, f"output {str(one.get('name'))[:50]!r}: expected one of {', '.join(known)}"
                )
            own = one.get("parameters")
            said = own.get("binary_data") if isinstance(own, dict) else None
            found[str(one["name"])] = binary if said is None else said is True
        return found


def _shape(given: Any) -> list[int]:
    if (
        not isinstance(given, list)
        or not 1 <= len(given) <= 4
        or not all(
            isinstance(side, int) and not isinstance(side, bool) and 1 <= side < 2**31 for side in given
        )
    ):
        raise Refusal(422, "shape: expected a list of sizes, the first of them the number of images")
    return given


def _texts(data: Any, count: int) -> list[bytes]:
    """Return the elements of a tensor of bytes."""
    if isinstance(data, bytes):
        found: list[bytes] = []
        at = 0
        while at < len(data) and len(found) < count:
            if at + 4 > len(data):
                break
            (size,) = struct.unpack_from("<I", data, at)
            found.append(data[at + 4 : at + 4 + size])
            at += 4 + size
        if at != len(data) or len(found) != count:
            raise Refusal(400, "image: the binary tensor is damaged")
        return found
    flat = _flat(data)
    if len(flat) != count or not all(isinstance(one, str) for one in flat):
        raise Refusal(422, f"image: expected {count} texts in base64")
    return [from_base64(one, f"image {number}") for number, one in enumerate(flat, start=1)]


def _flat(data: Any) -> list[Any]:
    """Return the elements of nested lists in order."""
    flat = data if isinstance(data, list) else [data]
    while any(isinstance(one, list) for one in flat):
        flat = [inner for one in flat for inner in (one if isinstance(one, list) else [one])]
    return flat


def _pixels(data: Any, shape: list[int]) -> NDArray[np.uint8]:
    """Return a tensor of pixels."""
    if len(shape) != 4 or shape[3] != 3:
        raise Refusal(422, "pixels: expected the shape [B, height, width, 3]")
    if isinstance(data, bytes):
        if len(data) != math.prod(shape):
            raise Refusal(422, f"pixels: {len(data)} bytes for the shape {shape}")
        return np.frombuffer(data, np.uint8).reshape(shape)
    flat = _flat(data)
    whole = all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one <= 255 for one in flat)
    if len(flat) != math.prod(shape) or not whole:
        raise Refusal(422, f"pixels: expected {math.prod(shape)} whole numbers from 0 to 255")
    return np.array(flat, np.uint8).reshape(shape)


def _bitmap(pixels: NDArray[np.uint8]) -> bytes:
    """Return pixels as a file that is quickly written and read."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PPM")
    return file.getvalue()


def answer(about: dict[str, Any], predictions: list[Prediction], outputs: dict[str, bool]) -> Response:
    """Return the answer.

    Parameters
    ----------
    about : dict
        ``model_name`` and so on.
    predictions : list of Prediction
    outputs : dict of str to bool
        The names of the outputs that are wanted, and whether each is binary.

    Raises
    ------
    Refusal
        The maps have different sizes.
    """
    said, tensors = [], []
    for name, binary in outputs.items():
        values = _values(name, predictions)
        one: dict[str, Any] = _about(name, "BOOL" if values.dtype == np.bool_ else "FP32", list(values.shape))
        if binary:
            tensors.append(values.tobytes())
            one["parameters"] = {"binary_data_size": len(tensors[-1])}
        else:
            one["data"] = values.ravel().tolist()
        said.append(one)
    head = json.dumps({**about, "outputs": said}).encode()
    if not tensors:
        return Response(head, media_type="application/json")
    return Response(
        b"".join([head, *tensors]),
        media_type="application/octet-stream",
        headers={"Inference-Header-Content-Length": str(len(head))},
    )


def _values(name: str, predictions: list[Prediction]) -> NDArray[Any]:
    if name == "score":
        return np.array([one.pred_score for one in predictions], np.float32)
    if name == "label":
        return np.array([bool(one.pred_label) for one in predictions])
    maps = [one.anomaly_map for one in predictions]
    if len({one.shape for one in maps}) > 1:
        raise Refusal(
            422, "map: images that are cut into tiles have maps of their own size; send one at a time"
        )
    return np.stack(maps)
