"""The metadata of an exported file, written by the export and read by the runtime. Needs no PyTorch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from anomalyclip.depth import Range, require_range
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import parse_json
from anomalyclip.framing import Framing
from anomalyclip.prediction import Threshold
from anomalyclip.tiling import Tiling

KEY = "anomalyclip"
"""Name of the metadata entry, in ONNX's ``metadata_props`` or OpenVINO's ``rt_info``. Its value is JSON."""

VERSION = 3
"""Version of inputs, outputs and card; raised with every change that an older runtime would get wrong."""


_WITHOUT_SHAPES = 2
"""The version whose files take squares alone; those are still written as such."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Everything about an exported detector except its weights.

    Attributes
    ----------
    image_size : int
        Side S of the images that the file takes.
    precision : {"fp32", "fp16", "int8"}
        Precision of the weights.
    identity : mapping
        The scorer's identity, as returned by `anomalyclip.scorer.Scorer.identity`, with this file's precision.
    title : str
    facts, training : mapping
        As in `anomalyclip.scorer.Description`.
    tile, overlap : int and float, optional
        How images are cut into tiles; None: they are not.
    value_range : (float, float), optional
        The values that become black and white in images of more than 8 bits.
    threshold : mapping, optional
        ``score``, ``pixel``, ``info``, as in a threshold file.
    patch, shape : int and (int, int), optional
        For methods that keep the proportions of images: the number of which both sides are multiples, and the rows and
        columns that the file takes. None: it takes S x S, to which images are squashed.
    labels : tuple of str
        Names for ``pred_label`` False and True.
    made_with : mapping
        Versions of the packages that wrote the file.
    version : int
        Version of the format.

    Examples
    --------
    >>> card = ModelCard(image_size=518, precision="fp32", threshold={"score": 0.5, "pixel": None, "info": {}})
    >>> ModelCard.from_json(card.to_json(), name="model.onnx").limits.score
    0.5
    """

    image_size: int
    precision: str
    identity: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, str] = field(default_factory=dict)
    tile: int | None = None
    overlap: float | None = None
    value_range: Range | None = None
    threshold: Mapping[str, Any] | None = None
    patch: int | None = None
    shape: tuple[int, int] | None = None
    labels: tuple[str, ...] = ("normal", "anomalous")
    made_with: Mapping[str, str] = field(default_factory=dict)
    version: int = VERSION

    @property
    def limits(self) -> Threshold | None:
        """The threshold stored in the file."""
        return None if self.threshold is None else Threshold(**self.threshold)

    @property
    def framing(self) -> Framing:
        """How images become the file's input."""
        return Framing(self.image_size, self.patch, self.shape)

    @property
    def tiling(self) -> Tiling | None:
        """How images are cut into tiles."""
        return None if self.tile is None else Tiling(self.tile, overlap=self.overlap or 0.0)

    def to_json(self) -> str:
        """Return the card as the value of the metadata entry; only one with a shape needs the newest runtime."""
        content = asdict(self)
        if self.shape is None:
            content = {name: v for name, v in content.items() if name not in ("shape", "patch")} | {
                "version": min(self.version, _WITHOUT_SHAPES)
            }
        return json.dumps(content, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | None, *, name: object) -> "ModelCard":
        """Read a card.

        Parameters
        ----------
        text : str or None
            The value of the metadata entry; None if the file has none.
        name : object
            The file's name in messages.

        Raises
        ------
        AnomalyCLIPError
            The card is missing, damaged or of a newer format.
        """
        if text is None:
            raise AnomalyCLIPError(
                f"{name}: a model, but not one written by `anomalyclip export`: its metadata has no {KEY!r} entry"
            )
        try:
            content = dict(parse_json(text))
            version = int(content["version"])
        except (ValueError, TypeError, KeyError):
            raise AnomalyCLIPError(
                f"{name}: its {KEY!r} metadata is damaged; export the model again"
            ) from None
        if version > VERSION:
            made_with = content.get("made_with")
            maker = made_with.get("anomalyclip") if isinstance(made_with, dict) else None
            raise AnomalyCLIPError(
                f"{name}: export format {version}, made by anomalyclip {maker or '(unknown)'}; this version reads up "
                f"to format {VERSION}: update anomalyclip, or export the model again with this version"
            )
        try:
            if version == 1:
                content = _from_version_1(content)
            if content.get("shape") is not None:
                rows, columns = map(int, content["shape"])
                content["shape"] = rows, columns
            content["value_range"] = require_range(content.get("value_range"))
            card = cls(**{**content, "labels": tuple(content["labels"])})
            card._check()
        except (TypeError, KeyError, AttributeError, AnomalyCLIPError) as error:
            raise AnomalyCLIPError(
                f"{name}: its {KEY!r} metadata is damaged ({error}); export it again"
            ) from None
        return card

    def _check(self) -> None:
        """Raise TypeError for values that would make the runtime fail later."""
        if not isinstance(self.image_size, int):
            raise TypeError(f"image_size is {self.image_size!r}")
        for part in (self.identity, self.facts, self.training, self.made_with):
            if not isinstance(part, Mapping):
                raise TypeError(f"{part!r} instead of names and values")
        _ = self.limits, self.tiling  # creating them checks their values


def _from_version_1(content: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the content of a card of format 1, whose hashes covered only the image tower and the texts."""
    known = {name: content[name] for name in ("image_size", "precision", "threshold", "labels", "made_with")}
    backbone, prompts = content["backbone"], dict(content["prompts"])
    names = {"backbone": backbone.get("name", "exported"), "prompts": prompts.pop("name", "default")}
    hashes = {"visual_sha256": backbone["sha256"], "text_features_sha256": content["text_features"]}
    size = {"image_size": content["image_size"], "precision": content["precision"]}
    return {
        **known,
        "identity": {"method": "anomalyclip", **content["settings"], **size, **hashes},
        "title": "{backbone}, prompts {prompts}".format(**names),
        "facts": names | {"trained_on": prompts.get("trained_on")},
        "training": prompts,
        "version": VERSION,
    }
