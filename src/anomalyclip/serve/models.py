"""The models of a service: its own, which stays, and a few that callers have chosen, the least used of which goes."""

import secrets
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from anomalyclip.detector import Detector
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.loading import needs_references
from anomalyclip.prediction import Threshold
from anomalyclip.serve.choices import choices
from anomalyclip.serve.refusals import Refusal
from anomalyclip.spec import DEFAULT_METHOD, MAX_PATCHES, TEMPLATES, DetectorSpec

OWN = "default"
"""Id of the model that the service was started with."""

_WORDS = ("normal", "abnormal")
_NAMED = ("backbone", "method", "prompts", "templates")
_PLAIN = (
    *("class_name", "image_size", "layers", "dpam_layers", "sigma", "image_score", "local_attention"),
    *(
        "feature_surgery",
        "windows",
        "window_stride",
        "window_rule",
        "ln_post",
        "activation",
        "tile",
        "overlap",
    ),
)
CHOOSABLE = (*_NAMED, *_WORDS, *_PLAIN)
"""Fields of `DetectorSpec` that callers may choose; none of them may be a path."""

_OPTIONS = tuple(name for name in ("templates", *_PLAIN) if name not in ("class_name", "image_size", "tile"))
"""Those of them that a model's description has under ``options``."""

_LARGEST_SIDE = 1024
_SMALLEST_TILE, _MOST_OVERLAP = 128, 0.5
_MOST_WORDS, _LONGEST_WORD = 50, 200


@dataclass(eq=False)
class Served:
    """A model that is ready.

    Parameters
    ----------
    id : str
    detector : Detector
    references : tuple of str
        Names of the flawless images it compares with.
    """

    id: str
    detector: Detector
    references: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """Return what callers are told about it, JSON-ready; no path of this machine is in it."""
        spec = self.detector.spec or DetectorSpec()
        described = self.detector.describe()
        exported = spec.model is not None
        return {
            "id": self.id,
            "title": described.title if not exported else PurePath(str(spec.model)).name,
            "backbone": described.facts.get("backbone") if exported else PurePath(spec.backbone).name,
            "method": described.facts.get("method", DEFAULT_METHOD) if exported else spec.method,
            "prompts": None if spec.prompts is None else PurePath(spec.prompts).name,
            "normal": None if spec.normal is None else list(spec.normal),
            "abnormal": None if spec.abnormal is None else list(spec.abnormal),
            "class_name": spec.class_name,
            "image_size": self.detector.scorer.image_size,
            "tile": spec.tile,
            "options": {} if exported else _options(spec),
            "references": list(self.references),
            "exported": exported,
            "needs_references": needs_references(self.detector),
            "threshold": threshold_content(self.detector.threshold),
            "loaded": True,
        }


def threshold_content(threshold: Threshold | None) -> dict[str, Any] | None:
    """Return a threshold and where it comes from, JSON-ready.

    Examples
    --------
    >>> threshold_content(Threshold(score=0.5, pixel=0.5))
    {'score': 0.5, 'pixel': 0.5, 'origin': 'given', 'says': []}
    """
    if threshold is None:
        return None
    return {
        "score": threshold.score,
        "pixel": threshold.pixel,
        "origin": threshold.origin or "given",
        "says": list(threshold.info.get("says", [])),
    }


class Models:
    """The models by id.

    Parameters
    ----------
    own : Detector
        Stays, with the id `OWN`.
    most : int
        Others that are kept at most.
    offered : sequence of str
        Backbones that callers may choose besides the embedded ones and the service's own.
    """

    def __init__(self, own: Detector, *, most: int, offered: tuple[str, ...] = ()) -> None:
        self.own = Served(OWN, own, _names_of(own.spec))
        self._most, self._offered = most, offered
        self._others: OrderedDict[str, Served] = OrderedDict()

    def __getitem__(self, id: str | None) -> Served:
        """Return a model, and count that as a use.

        Raises
        ------
        Refusal
            There is none with this id.
        """
        if id is None or id == OWN:
            return self.own
        if id not in self._others:
            raise self._missing(id)
        self._others.move_to_end(id)
        return self._others[id]

    def all(self) -> list[Served]:
        """Return all models, the service's own first."""
        return [self.own, *reversed(self._others.values())]

    def add(self, detector: Detector, references: tuple[str, ...] = ()) -> Served:
        """Keep a model; the one that was not used for the longest time makes room."""
        served = Served(f"m-{secrets.token_hex(6)}", detector, references)
        self._others[served.id] = served
        while len(self._others) > self._most:
            self._others.popitem(last=False)
        return served

    def judged(self, served: Served, threshold: Threshold) -> Served:
        """Return a copy of a model with another threshold, kept as one more model."""
        return self.add(with_threshold(served.detector, threshold), served.references)

    def forget(self, id: str) -> None:
        """Forget a model.

        Raises
        ------
        Refusal
            There is none with this id, or it is the service's own.
        """
        if id == OWN:
            raise Refusal(409, "the service's own model stays")
        if self._others.pop(id, None) is None:
            raise self._missing(id)

    def _missing(self, id: str) -> Refusal:
        return Refusal(
            404,
            f"model {id[:100]!r} is not here (any more). Besides the service's own, {self._most} are kept until it "
            "stops, and the one that was not used for the longest time makes room. Make it again, as it was made: POST "
            "/v1/models, /v1/memories or /v1/calibrate; GET /v1/models lists those that are here",
        )

    def found(self, spec: DetectorSpec, threshold: Threshold | None = None) -> Served | None:
        """Return the model of a spec and a threshold, if it is here; the service's own is also found without its own.

        Memories and thresholds that callers have made share the spec of the model they were made of, and are not it.
        """
        for served in self.all():
            is_own = served is self.own and threshold is None
            is_plain = not served.references and served.detector.threshold == threshold
            if served.detector.spec == spec and (is_own or is_plain):
                return self[served.id]
        return None

    def of_class(self, served: Served, name: str) -> DetectorSpec:
        """Return the spec of a model for images of this class.

        Raises
        ------
        Refusal
            Its method does not name what images show, or it was made of more than its spec.
        """
        from anomalyclip.methods import METHODS

        spec = served.detector.spec
        if spec is None or spec.model is not None or "class_name" not in METHODS[spec.method].options:
            raise Refusal(422, "class_name: this model's method does not name what images show; leave it out")
        if served.references:
            raise Refusal(422, "class_name: this model has references, which were compared without one")
        return replace(spec, class_name=name)

    def offers(self) -> dict[str, Any]:
        """Return what callers may choose from."""
        from anomalyclip.clip.registry import BACKBONES, PROMPTS
        from anomalyclip.methods import METHODS

        own = self.own.detector.spec
        embedded = [name for name, entry in BACKBONES.items() if isinstance(entry, PurePath)]
        is_named = own is not None and own.model is None and own.backbone in BACKBONES
        named = [*([own.backbone] if own is not None and is_named else []), *self._offered, *embedded]
        backbones = list(dict.fromkeys(named))
        return {
            "backbones": backbones,
            "methods": list(METHODS),
            "prompts": [name for name, prompts in PROMPTS.items() if prompts.backbone in backbones],
            "templates": list(TEMPLATES),
            "choices": choices(own, backbones),
        }

    def chosen(self, content: Mapping[str, Any]) -> DetectorSpec:
        """Return the spec that a caller has chosen; what is not said is as in the service's own model.

        Raises
        ------
        Refusal
            A field is unknown or may not be chosen, a name is not offered, or a value cannot be used.
        """
        if unknown := sorted(set(content) - set(CHOOSABLE)):
            raise Refusal(422, f"{', '.join(unknown)[:200]}: expected some of {', '.join(CHOOSABLE)}")
        offers = self.offers()
        for name in _NAMED:
            known = offers["methods" if name == "method" else name if name.endswith("s") else f"{name}s"]
            if (value := content.get(name)) is not None and value not in known:
                raise Refusal(
                    422,
                    f"{name} {str(value)[:100]!r} is not offered here; expected one of {', '.join(known)}",
                )
        for name in _WORDS:
            _check_words(name, content.get(name))
        if isinstance(size := content.get("image_size"), int) and size > _LARGEST_SIDE:
            raise Refusal(422, f"image_size {size}: at most {_LARGEST_SIDE} here")
        if isinstance(tile := content.get("tile"), (int, float)) and tile < _SMALLEST_TILE:
            raise Refusal(422, f"tile {tile}: at least {_SMALLEST_TILE} pixels here")
        if isinstance(overlap := content.get("overlap"), (int, float)) and overlap > _MOST_OVERLAP:
            raise Refusal(422, f"overlap {overlap}: at most {_MOST_OVERLAP} here")
        base = self.own.detector.spec
        if base is None or base.model is not None:
            base = DetectorSpec(offers["backbones"][0])
        else:
            base = replace(base, references=None, augment=False, max_patches=MAX_PATCHES)
        kept = {
            name: getattr(base, name) for name in ("device", "precision", "tile", "overlap", "value_range")
        }
        if content.get("backbone", base.backbone) == base.backbone:
            kept |= {"backbone": base.backbone}
            if content.get("method", base.method) == base.method:
                kept |= base.to_dict()
        try:
            return DetectorSpec.from_dict(kept | dict(content))
        except AnomalyCLIPError as error:
            raise Refusal(422, str(error)) from None


def with_threshold(detector: Detector, threshold: Threshold | None) -> Detector:
    """Return a detector with another threshold."""
    return Detector(
        detector.scorer,
        threshold=threshold,
        tiling=detector.tiling,
        spec=detector.spec,
        value_range=detector.value_range,
    )


def _options(spec: DetectorSpec) -> dict[str, Any]:
    """Return what callers may choose besides what a model is described with, where it differs from the default."""
    given = spec.to_dict()
    chosen = {name: given[name] for name in spec.changed() if name in _OPTIONS}
    if "templates" in chosen:
        chosen["templates"] = PurePath(chosen["templates"]).name
    return chosen


def _names_of(spec: DetectorSpec | None) -> tuple[str, ...]:
    return () if spec is None else tuple(PurePath(path).name for path in spec.references or ())


def _check_words(name: str, words: Any) -> None:
    if words is None:
        return
    if not isinstance(words, list) or len(words) > _MOST_WORDS:
        raise Refusal(422, f"{name}: expected a list of at most {_MOST_WORDS} texts")
    if not all(isinstance(text, str) and len(text) <= _LONGEST_WORD for text in words):
        raise Refusal(422, f"{name}: expected texts of at most {_LONGEST_WORD} characters")
