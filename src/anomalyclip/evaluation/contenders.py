"""The methods to compare: named specs, made from methods and option values, loaded so that they share backbones."""

import itertools
import json
import time
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from anomalyclip.data.meta import SampleList
from anomalyclip.depth import Range
from anomalyclip.detector import VALUE_RANGE
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.evaluation.joint import JointScorer
from anomalyclip.loading import in_pytorch, require_references
from anomalyclip.methods import METHODS
from anomalyclip.scorer import Scorer
from anomalyclip.settings import item_of
from anomalyclip.spec import FIXED_BY_MODEL, OPTIONS, DetectorSpec

_NOT_VARIED = ("method", "model", "provider", "threads", "device", "engine", "tile", "overlap", "compiled")


def variants(
    spec: DetectorSpec | Mapping[str, Any] | None = None,
    methods: Sequence[str] = (),
    vary: Mapping[str, Sequence[Any]] | Sequence[str] = (),
) -> list[DetectorSpec]:
    """Return the specs of several methods, each with every combination of the values that it takes.

    Parameters
    ----------
    spec : DetectorSpec or mapping of str to value, optional
        Common options; each method gets those that it takes. As a mapping they need to be complete only together with
        `vary`.
    methods : sequence of str
        Names, each with its own options after commas: ``"words"``, ``"words,templates=imagenet"``. None: the spec's
        method.
    vary : mapping of str to sequence, or sequence of str
        Values to try, by option: ``{"sigma": [2, 4]}`` or ``["sigma=2,4"]``. Several options give
        every combination. In text, several items of one value are joined by ``+``: ``layers=6,6+12``.

    Raises
    ------
    AnomalyCLIPError
        A method or option is unknown, a value is invalid, or no method takes an option.

    Examples
    --------
    >>> [spec.sigma for spec in variants(DetectorSpec("micro"), vary=["sigma=2,4"])]
    [2.0, 4.0]
    """
    axes = _axes(vary)
    if isinstance(spec, Mapping):
        spec = DetectorSpec(**{**spec, **{name: values[0] for name, values in axes.items()}})
    base = spec or DetectorSpec()
    found = [_of_method(text, base) for text in methods or [base.method]]
    for name in [*(name for name in base.changed() if name in FIXED_BY_MODEL and name != "method"), *axes]:
        if not any(_takes(one.method, name) for one in found):
            known = ", ".join(dict.fromkeys(one.method for one in found))
            raise AnomalyCLIPError(f"{name.replace('_', ' ')}: none of the methods has this option ({known})")
    return [one for each in found for one in _combined(each, axes)]


def _axes(vary: Mapping[str, Sequence[Any]] | Sequence[str]) -> dict[str, Sequence[Any]]:
    axes: dict[str, Sequence[Any]] = dict(vary) if isinstance(vary, Mapping) else {}
    if not isinstance(vary, Mapping):
        for text in vary:
            name, equals, listed = text.partition("=")
            if not (equals and listed.strip(",")):
                raise AnomalyCLIPError(f"--vary {text}: expected OPTION=VALUE,VALUE, such as sigma=2,4,8")
            axes[_option(name)] = [parsed(_option(name), value) for value in listed.split(",") if value]
    for name, values in axes.items():
        if name not in OPTIONS or name in _NOT_VARIED:
            able = ", ".join(one for one in OPTIONS if one not in _NOT_VARIED)
            raise AnomalyCLIPError(f"vary {name!r}: expected one of {able}")
        if not values or len({repr(value) for value in values}) < len(values):
            raise AnomalyCLIPError(f"vary {name}: expected different values")
    return axes


def _option(text: str) -> str:
    return text.strip().lstrip("-").replace("-", "_")


def _of_method(text: str, base: DetectorSpec) -> DetectorSpec:
    """Return the spec of a method, with the common options that it takes and its own."""
    name, *own = (part.strip() for part in text.split(","))
    method = METHODS[name]
    given = {}
    for part in own:
        key, equals, value = part.partition("=")
        if not equals or _option(key) not in method.options:
            known = ", ".join(sorted(method.options))
            raise AnomalyCLIPError(
                f"--method {text}: {part!r} is not an option of {name}; expected OPTION=VALUE with one of {known}"
            )
        given[_option(key)] = parsed(_option(key), value)
    dropped = {
        field: OPTIONS[field].default
        for field in FIXED_BY_MODEL
        if field != "method" and field not in method.options
    }
    return replace(base, **{**dropped, **given, "method": name})


def _takes(method: str, option: str) -> bool:
    return option in METHODS[method].options


def _combined(spec: DetectorSpec, axes: Mapping[str, Sequence[Any]]) -> Iterable[DetectorSpec]:
    own = {name: values for name, values in axes.items() if _takes(spec.method, name)}
    for values in itertools.product(*own.values()):
        yield replace(spec, **dict(zip(own, values, strict=True)))


def parsed(name: str, text: str) -> Any:
    """Return the value of an option from text, by the type of its field.

    Raises
    ------
    AnomalyCLIPError
        The option is unknown, or the text is not a valid value.

    Examples
    --------
    >>> parsed("layers", "6+12"), parsed("sigma", "2"), parsed("ln_post", "yes"), parsed("prompts", "visa")
    ((6, 12), 2.0, True, 'visa')
    """
    if name not in OPTIONS:
        raise AnomalyCLIPError(f"{name!r}: unknown detector option; expected one of {', '.join(OPTIONS)}")
    kind = OPTIONS[name].type
    if (item := item_of(kind)) is not None:
        return tuple(_converted(name, item, part.strip()) for part in text.split("+"))
    return _converted(
        name, next(one for one in (*typing.get_args(kind), kind) if one is not type(None)), text
    )


def _converted(name: str, kind: Any, text: str) -> Any:
    try:
        if kind is bool:
            return {"yes": True, "true": True, "no": False, "false": False}[text.lower()]
        return kind(text)
    except (ValueError, KeyError):
        expected = {bool: "yes or no", int: "a whole number", float: "a number"}.get(kind, "a value")
        raise AnomalyCLIPError(f"{name.replace('_', ' ')} {text!r}: expected {expected}") from None


def named(specs: Iterable[DetectorSpec]) -> dict[str, DetectorSpec]:
    """Return specs by name: the method, and the options in which those of one method differ.

    Raises
    ------
    AnomalyCLIPError
        There are fewer than two, or two are the same.

    Examples
    --------
    >>> list(named(variants(DetectorSpec("micro"), vary={"sigma": [2.0, 4.0]})))
    ['anomalyclip, sigma 2', 'anomalyclip, sigma 4']
    """
    several = list(specs)
    found: dict[str, DetectorSpec] = {}
    for spec in several:
        siblings = [other for other in several if other.method == spec.method]
        differ = [
            one.name
            for one in fields(spec)
            if len({repr(getattr(other, one.name)) for other in siblings}) > 1
        ]
        name = ", ".join([spec.method, *(_said(field, spec, siblings) for field in differ)])
        if name in found:
            raise AnomalyCLIPError(f"{name} is given twice: the methods must differ in an option")
        found[name] = spec
    if len(found) < 2:
        raise AnomalyCLIPError(
            "nothing to compare with: give two or more methods, or values of an option (--vary sigma=2,4)"
        )
    return found


def _said(field: str, spec: DetectorSpec, siblings: Iterable[DetectorSpec]) -> str:
    value = getattr(spec, field)
    if isinstance(value, bool):
        value = "yes" if value else "no"
    elif isinstance(value, float):
        value = f"{value:g}"
    elif value is not None and field in _PATHS:
        value = tail(value, [str(getattr(other, field)) for other in siblings])
    shown = "default" if value is None else "+".join(map(str, value)) if isinstance(value, tuple) else value
    return f"{field.replace('_', ' ')} {shown}"


_PATHS = ("backbone", "prompts", "trained", "templates")
"""Options that may be paths, of which a name has no more than it needs."""


def tail(path: str, others: Iterable[str]) -> str:
    """Return the last parts of a path, as many as tell it apart from others.

    Examples
    --------
    >>> tail("runs/a/prompts.pth", ["runs/a/prompts.pth", "visa"]), tail("a/1.pth", ["a/1.pth", "b/1.pth"])
    ('prompts.pth', 'a/1.pth')
    """
    whole = Path(path).parts
    differ = [Path(other).parts for other in others if other != path]
    for count in range(1, len(whole)):
        if all(whole[-count:] != other[-count:] for other in differ):
            return "/".join(whole[-count:])
    return path


@runtime_checkable
class ByClass(Protocol):
    """A scorer that depends on the name of the class."""

    def of_class(self, name: str) -> Scorer:
        """Return the scorer of a class."""
        ...


@dataclass(frozen=True)
class Lineup:
    """Everything that is compared, ready to score.

    Parameters
    ----------
    specs : mapping of str to DetectorSpec
        By name; the others are compared with the first.
    scorers : mapping of str to Scorer
    texts : mapping of str to float
        Seconds to prepare one class, for those that depend on the class name.
    value_range : (float, float), optional
        See `DetectorSpec.value_range`; the same for all.
    """

    specs: Mapping[str, DetectorSpec]
    scorers: Mapping[str, Scorer]
    texts: Mapping[str, float] = field(default_factory=dict)
    value_range: Range | None = None

    @property
    def names(self) -> list[str]:
        """Names, the reference first."""
        return list(self.specs)

    def of_class(self, name: str) -> dict[str, Scorer]:
        """Return the scorers of a class: those that depend on its name are made for it."""
        return {
            key: scorer.of_class(name) if isinstance(scorer, ByClass) else scorer
            for key, scorer in self.scorers.items()
        }

    def joint(self, class_name: str) -> JointScorer:
        """Return a scorer that scores images of a class with all of them."""
        return JointScorer(self.of_class(class_name), self.maps())

    def identities(self) -> dict[str, dict[str, Any]]:
        """Return what determines the scores of each; see `anomalyclip.scorer.Scorer.identity`."""
        scale = {} if self.value_range is None else {VALUE_RANGE: list(self.value_range)}
        return {name: {**scorer.identity(), **scale} for name, scorer in self.scorers.items()}

    def maps(self) -> dict[str, str]:
        """Return, by name, the first scorer with the same maps: they may differ only in the image score."""
        first: dict[str, str] = {}
        found = {}
        for name, identity in self.identities().items():
            key = json.dumps({**identity, "image_score": None}, sort_keys=True)
            found[name] = first.setdefault(key, name)
        return found


def line_up(specs: Mapping[str, DetectorSpec], sets: Mapping[str, SampleList]) -> Lineup:
    """Load everything that is compared; within `shared_backbones` each backbone is read once.

    Raises
    ------
    AnomalyCLIPError
        Lists everything that cannot be used, and why.
    """
    scorers: dict[str, Scorer] = {}
    texts: dict[str, float] = {}
    wrong = []
    ranges: set[Range | None] = set()
    for name, spec in specs.items():
        try:
            if spec.tile is not None:
                raise AnomalyCLIPError("images are compared whole: leave out the tile size")
            detector = in_pytorch(spec, by_class=True)
            require_references(detector)
            scorers[name] = detector.scorer
            ranges.add(detector.value_range)
            if isinstance(scorer := scorers[name], ByClass):
                texts[name] = _try_classes(scorer, sets)
        except AnomalyCLIPError as error:
            wrong.append(f"{name}: {error}")
    if len(ranges) > 1:
        wrong.append("images are shown to all in one scale: give all the same --range")
    if wrong:
        raise AnomalyCLIPError("cannot compare; nothing was scored:\n" + "\n".join(wrong))
    return Lineup(specs, scorers, texts, *ranges)


def _try_classes(scorer: ByClass, sets: Mapping[str, SampleList]) -> float:
    """Refuse a class name that the method cannot use; return the seconds per class."""
    names = [name for samples in sets.values() for name in samples.classes]
    start = time.perf_counter()
    for name in names:
        scorer.of_class(name)
    return (time.perf_counter() - start) / len(names)
