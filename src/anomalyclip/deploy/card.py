"""What an exported file says of itself. Written by the export, read by the runtime, free of PyTorch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.prediction import Threshold

KEY = "anomalyclip"
"""Name of the one metadata entry: of ONNX's ``metadata_props``, of OpenVINO's ``rt_info``. Its value is JSON."""

VERSION = 1
"""Of inputs, outputs and card; a change that an older runtime would get wrong raises it."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Everything about an exported detector but its weights.

    Attributes
    ----------
    image_size : int
        Side S of the images that the file takes.
    precision : {"fp32", "fp16", "int8"}
        Of the weights.
    settings : mapping
        What else determines the scores: layers, dpam_layers, sigma.
    backbone : mapping
        ``name`` as it was given, ``sha256`` of the image tower's tensors (`fingerprint`).
    prompts : mapping
        ``name`` as it was given, and what the prompts say of their making (``trained_on``, ...).
    text_features : str
        SHA-256 of the two text features, float32.
    threshold : mapping, optional
        ``score``, ``pixel``, ``info``, as in a threshold file.
    labels : tuple of str
        What ``pred_label`` False and True mean.
    made_with : mapping
        Versions of the packages that wrote the file.
    version : int
        Of the format.

    Examples
    --------
    >>> card = ModelCard(image_size=518, precision="fp32", threshold={"score": 0.5, "pixel": None, "info": {}})
    >>> ModelCard.from_json(card.to_json(), name="model.onnx") == card
    True
    """

    image_size: int
    precision: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    backbone: Mapping[str, str] = field(default_factory=dict)
    prompts: Mapping[str, str] = field(default_factory=dict)
    text_features: str = ""
    threshold: Mapping[str, Any] | None = None
    labels: tuple[str, ...] = ("normal", "anomalous")
    made_with: Mapping[str, str] = field(default_factory=dict)
    version: int = VERSION

    @property
    def limits(self) -> Threshold | None:
        """The threshold that was baked in."""
        return None if self.threshold is None else Threshold(**self.threshold)

    def to_json(self) -> str:
        """Return the card as the metadata entry's value."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | None, *, name: object) -> "ModelCard":
        """Read a card.

        Parameters
        ----------
        text : str or None
            The metadata entry's value; None if the file has none.
        name : object
            The file, for messages.

        Raises
        ------
        AnomalyCLIPError
            There is no card, it is damaged, or it is of a newer format.
        """
        if text is None:
            raise AnomalyCLIPError(
                f"{name}: a model, but not one that `anomalyclip export` wrote: its metadata has no {KEY!r} entry"
            )
        try:
            content = dict(json.loads(text))
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
            card = cls(**{**content, "labels": tuple(content["labels"])})
            card._check()
        except (TypeError, KeyError, AttributeError) as error:
            raise AnomalyCLIPError(
                f"{name}: its {KEY!r} metadata is damaged ({error}); export it again"
            ) from None
        return card

    def _check(self) -> None:
        """Raise TypeError where the runtime would stumble later."""
        if not isinstance(self.image_size, int):
            raise TypeError(f"image_size is {self.image_size!r}")
        for part in (self.settings, self.backbone, self.prompts, self.made_with):
            if not isinstance(part, Mapping):
                raise TypeError(f"{part!r} where names and values belong")
        _ = self.limits  # a threshold checks itself
