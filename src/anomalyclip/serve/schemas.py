"""The answers of REST v1 as types, for OpenAPI; the tests compare what the service sends with them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RegionOut(_Answer):
    """A connected anomalous area, in pixels of the original image."""

    box: tuple[int, int, int, int]
    area: int
    peak_score: Share
    peak_position: tuple[int, int]


class MapOut(_Answer):
    """The anomaly map: base64 of a PNG or of NumPy's npy, or the runs of the mask."""

    format: Literal["png", "npy", "rle"]
    width: int
    height: int
    data: str | list[int]


class PreviewOut(_Answer):
    """A small JPEG of the image, as base64."""

    format: Literal["jpeg"]
    width: int
    height: int
    data: str


class NearestOut(_Answer):
    """The most anomalous place, and the place of a reference that is most like it; boxes are shares of the images."""

    reference: str
    number: int
    box: tuple[float, float, float, float]
    reference_box: tuple[float, float, float, float]
    distance: float


class EntryOut(_Answer):
    """What is said of one image; without a score, `error` says why."""

    name: str
    index: int
    time: float | None
    pred_score: Share | None
    pred_label: bool | None
    threshold: Share | None
    pixel_threshold: Share | None
    image_size: tuple[int, int] | None
    value_range: tuple[float, float] | None = None
    nearest: NearestOut | None = None
    regions: list[RegionOut]
    map: MapOut | None
    preview: PreviewOut | None
    error: str | None


class PredictionsOut(_Answer):
    """The model, and an entry for each image in order."""

    model: str
    predictions: list[EntryOut]


class ErrorAbout(_Answer):
    """What is wrong and what to do; the log has the request under its id."""

    code: str
    message: str
    request_id: str


class ErrorOut(_Answer):
    """An error."""

    error: ErrorAbout


class FailedPredictionsOut(ErrorOut):
    """An error; with the model and the predictions if every image of the request failed."""

    model: str | None = None
    predictions: list[EntryOut] = []


class ProtocolErrorOut(_Answer):
    """An error in the form of the Open Inference Protocol."""

    error: str


class ThresholdOut(_Answer):
    """A threshold and where it comes from."""

    score: Share | None
    pixel: Share | None
    origin: str
    says: list[str]


class ModelOut(_Answer):
    """A model that is ready."""

    id: str
    title: str
    backbone: str | None
    method: str
    prompts: str | None
    normal: list[str] | None
    abnormal: list[str] | None
    class_name: str | None
    image_size: int
    tile: int | None
    options: dict[str, Any]
    """What else differs from the default of its method."""
    references: list[str]
    exported: bool
    needs_references: bool
    threshold: ThresholdOut | None
    loaded: bool


class ChoiceOut(_Answer):
    """A backbone (null: the service's own, a file) and a method that work together, and what they take."""

    backbone: str | None
    method: str
    class_name: Literal["needed", "optional", "none"]
    words: bool


class OffersOut(_Answer):
    """What models can be made of."""

    backbones: list[str]
    methods: list[str]
    prompts: list[str]
    templates: list[str]
    choices: list[ChoiceOut]


class ModelsOut(_Answer):
    """The models that are here, the service's own first."""

    models: list[ModelOut]
    offers: OffersOut


class FailedOut(_Answer):
    """A file that could not be used."""

    name: str
    error: str


class FailedMemoryOut(ErrorOut):
    """An error; with the files that could not be used."""

    failed: list[FailedOut] = []


class MemoryOut(ModelOut):
    """The new model, and the files that could not be used."""

    failed: list[FailedOut]


class CalibrationOut(_Answer):
    """A threshold, a model that uses it, and what its images can guarantee (95 % confidence)."""

    model: str
    threshold: ThresholdOut
    images: int
    false_alarm_rate: dict[str, float]
    false_pixel_share: dict[str, float]
    images_with_false_pixels: dict[str, float]
    failed: list[FailedOut]


class JobOut(_Answer):
    """A job's state and progress."""

    id: str
    model: str
    state: Literal["queued", "running", "done", "failed"]
    files: int
    files_begun: int
    images_done: int
    images_failed: int
    error: str | None


_KINDS: dict[str, dict[str, Any]] = {
    "model": {"type": "string", "description": "Id of a model. Default: the service's own."},
    "threshold": {"type": "number", "minimum": 0, "maximum": 1},
    "map": {"type": "string", "enum": ["none", "png", "npy", "rle"], "default": "none"},
    "map_size": {"type": "integer", "minimum": 0, "description": "Longest side; 0: as the model made it."},
    "class_name": {"type": "string"},
    "preview": {"type": "boolean", "default": False},
    "every": {"type": "string", "description": "Which frames or slices: 10, or 0.5s."},
    "axis": {"type": "string", "enum": ["axial", "coronal", "sagittal"]},
    "augment": {"type": "boolean", "default": False},
    "false_alarm_rate": {"type": "number", "default": 0.01},
    "false_pixel_share": {"type": "number", "default": 0.001},
}
"""Fields of forms by name."""


def takes(*fields: str) -> dict[str, Any]:
    """Return the part of OpenAPI that describes the body of a route: files and these fields.

    Examples
    --------
    >>> list(takes("model")["requestBody"]["content"])
    ['multipart/form-data', 'application/json']
    """
    given = {name: _KINDS[name] for name in fields}
    binary = {"type": "array", "items": {"type": "string", "format": "binary"}}
    data = {"type": "string", "format": "byte"}
    named = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "data": data},
        "required": ["data"],
        "additionalProperties": False,
    }
    image = {"anyOf": [named, data]}
    bodies = {
        "multipart/form-data": {"files": binary},
        "application/json": {"images": {"type": "array", "items": image}},
    }
    content = {
        kind: {"schema": {"type": "object", "properties": {**files, **given}}}
        for kind, files in bodies.items()
    }
    return {"requestBody": {"required": True, "content": content}}


def takes_json(schema: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the part of OpenAPI that describes the body of a route that takes a JSON object."""
    content = {"application/json": {"schema": {"type": "object", **(schema or {})}}}
    return {"requestBody": {"required": True, "content": content}}
