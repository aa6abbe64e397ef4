"""The methods by name: each builds a `Scorer` from a `DetectorSpec`. A new method is one module and one line here.

A method outside this package registers itself (`register`). The command line finds it too if its distribution has an
entry point in the group ``anomalyclip.methods``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from anomalyclip.errors import AnomalyCLIPError, NoTextsError
from anomalyclip.scorer import Scorer
from anomalyclip.spec import FIXED_BY_MODEL, DetectorSpec

ENTRY_POINTS = "anomalyclip.methods"
"""Group of entry points: each maps a method's name to a `Method`, or to anything in the module that registers it."""

_Builder = Callable[[DetectorSpec], Scorer]


@dataclass(frozen=True)
class Method:
    """A way to score images.

    Parameters
    ----------
    name : str
        Its name for ``--method``.
    builder : callable or str
        Makes a scorer from a spec: a function, a class, or ``"package.module:name"``, imported when needed.
    options : frozenset of str
        The fields of `DetectorSpec` that it uses; any other field that is set is an error.
    names_class : bool
        Whether it puts the class's name into sentences. Without one it is only for evaluations, which know the class of
        every image: the builder then gives a scorer with a method ``of_class(name)``.
    keeps_proportions : bool
        Whether images keep their proportions; an exported file takes images of one shape only.
    """

    name: str
    builder: _Builder | str
    options: frozenset[str]
    names_class: bool = False
    keeps_proportions: bool = False

    def __call__(self, spec: DetectorSpec, *, by_class: bool = False) -> Scorer:
        """Return the scorer of a spec.

        Parameters
        ----------
        spec : DetectorSpec
            All options.
        by_class : bool
            Whether the class of every image will be known, so that the spec need not name one.

        Raises
        ------
        AnomalyCLIPError
            The spec sets an option that the method does not use, a value that cannot be used, or no class name where
            the method needs one.
        """
        self.check(spec, by_class=by_class)
        try:
            scorer = self._build(spec)
        except NoTextsError as error:
            raise AnomalyCLIPError(f"method {self.name!r} needs texts: {error}") from None
        if spec.references is None:
            return scorer
        from anomalyclip.remembering import with_references

        return with_references(scorer, spec)

    def check(self, spec: DetectorSpec, *, by_class: bool = False) -> None:
        """Refuse what the method does not use, and a missing class name; nothing is loaded.

        Raises
        ------
        AnomalyCLIPError
            As for a call.
        """
        given = [name for name in spec.changed() if name in FIXED_BY_MODEL]
        if needless := [name for name in given if name != "method" and name not in self.options]:
            said = " and no ".join(name.replace("_", " ") for name in needless)
            it = "it" if len(needless) == 1 else "them"
            able = ", ".join(METHODS.that_take(needless))
            or_else = f", or use another method ({able})" if able else ""
            raise AnomalyCLIPError(
                f"method {self.name!r} has no {said}: leave {it} out{or_else}; options of {self.name}: "
                f"{', '.join(sorted(self.options)) or 'none'}"
            )
        if not by_class and self.lacks_class(spec):
            own = ", or --normal and --abnormal without {}" if "normal" in self.options else ""
            raise AnomalyCLIPError(
                f"method {self.name!r} puts the name of what the images show into its sentences: give --class-name "
                f"NAME{own}"
            )

    def lacks_class(self, spec: DetectorSpec) -> bool:
        """Tell whether the method needs a class name that the spec does not give."""
        own = spec.normal is not None and spec.abnormal is not None
        said = (*(spec.normal or ()), *(spec.abnormal or ()))
        return self.names_class and spec.class_name is None and not (own and not any("{}" in t for t in said))

    @property
    def _build(self) -> _Builder:
        if not isinstance(self.builder, str):
            return self.builder
        module, _, name = self.builder.partition(":")
        return cast(_Builder, getattr(import_module(module), name))


class _Methods(Mapping[str, Method]):
    """The registry: methods that are built in, registered, or found by entry point."""

    def __init__(self) -> None:
        self._known: dict[str, Method] = {}

    def add(self, method: Method) -> None:
        self._known[method.name] = method

    def remove(self, name: str) -> None:
        del self._known[name]

    def that_take(self, options: Iterable[str]) -> list[str]:
        """Return which of the methods that are loaded have all of these options."""
        return [name for name, method in self._known.items() if method.options.issuperset(options)]

    def __getitem__(self, name: str) -> Method:
        if name not in self._known:
            for found in entry_points(group=ENTRY_POINTS, name=name):
                self._known[name] = self._loaded(found)
        if name not in self._known:
            raise AnomalyCLIPError(f"method {name!r} is not known; expected one of {', '.join(self)}")
        return self._known[name]

    def _loaded(self, found: EntryPoint) -> Method:
        """Return the method an entry point refers to, or the one its module registered under the entry point's name."""
        try:
            method = found.load()
        except Exception as error:  # third-party code can raise anything
            raise AnomalyCLIPError(
                f"method {found.name!r} ({found.value}) cannot be loaded: {error}"
            ) from error
        method = self._known.get(found.name, method)
        if not isinstance(method, Method):
            raise AnomalyCLIPError(
                f"method {found.name!r} ({found.value}): expected an anomalyclip.methods.Method, got {method!r}"
            )
        return method

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def __iter__(self) -> Iterator[str]:
        return iter(
            dict.fromkeys([*self._known, *(found.name for found in entry_points(group=ENTRY_POINTS))])
        )

    def __len__(self) -> int:
        return len(list(iter(self)))


METHODS = _Methods()
"""All methods by name; ``METHODS[name](spec)`` returns a scorer."""


def register(
    name: str,
    builder: Any = None,
    *,
    options: Iterable[str],
    names_class: bool = False,
    keeps_proportions: bool = False,
) -> Any:
    """Register a method under a name; also usable as a decorator of a class or function that takes a spec.

    Parameters
    ----------
    name : str
        For ``DetectorSpec(method=...)`` and ``--method``.
    builder : callable or str, optional
        As in `Method`. Without it, `register` returns a decorator.
    options : iterable of str
        As in `Method`.
    names_class, keeps_proportions : bool
        As in `Method`.

    Examples
    --------
    >>> import numpy as np
    >>> from anomalyclip import DetectorSpec
    >>> from anomalyclip.scorer import Description
    >>> @register("dark", options=["image_size"])
    ... class Dark:
    ...     def __init__(self, spec):
    ...         self.image_size = spec.image_size or 64
    ...
    ...     def __call__(self, pixels):
    ...         maps = 1 - pixels.mean(axis=3, dtype=np.float32) / 255
    ...         return maps.max(axis=(1, 2)), maps
    ...
    ...     def identity(self):
    ...         return {"method": "dark", "image_size": self.image_size}
    ...
    ...     def describe(self):
    ...         return Description("dark pixels")
    >>> DetectorSpec(method="dark").load().predict(np.full((9, 9, 3), 51, np.uint8)).pred_score
    0.8...
    >>> METHODS.remove("dark")
    """
    as_method = partial(
        Method,
        name,
        options=frozenset(options),
        names_class=names_class,
        keeps_proportions=keeps_proportions,
    )
    return partial(_registered, as_method) if builder is None else _registered(as_method, builder)


def _registered(as_method: Callable[..., Method], builder: Any) -> Any:
    METHODS.add(as_method(builder=builder))
    return builder


_COMMON = ("backbone", "image_size", "sigma", "image_score", "precision", "compiled")
_REFERENCES = ("references", "augment", "max_patches")

register(
    "anomalyclip",
    "anomalyclip.methods.anomalyclip:build",
    options=[*_COMMON, "prompts", "layers", "dpam_layers", "local_attention", *_REFERENCES],
)

_WORDS = ("normal", "abnormal", "templates", "class_name", "activation")

register(
    "clip",
    "anomalyclip.methods.words:clip",
    options=[*_COMMON, *_WORDS, *_REFERENCES, "layers", "ln_post"],
    names_class=True,
)
register(
    "clip-ac",
    "anomalyclip.methods.words:clip_ac",
    options=[*_COMMON, *_WORDS, *_REFERENCES, "layers", "ln_post"],
    names_class=True,
)
register(
    "words",
    "anomalyclip.methods.words:words",
    options=[
        *_COMMON,
        *_WORDS,
        *_REFERENCES,
        "layers",
        "ln_post",
        "dpam_layers",
        "local_attention",
        "feature_surgery",
    ],
)
register(
    "winclip",
    "anomalyclip.methods.winclip:build",
    options=[*_COMMON, *_WORDS, *_REFERENCES, "windows", "window_stride", "window_rule"],
    names_class=True,
)
register(
    "april-gan",
    "anomalyclip.methods.april_gan:build",
    options=[*_COMMON, *_WORDS, *_REFERENCES, "trained"],
    names_class=True,
)
register(
    "anomalydino",
    "anomalyclip.methods.anomalydino:build",
    options=[
        "backbone",
        "image_size",
        "sigma",
        "precision",
        "compiled",
        "layers",
        "foreground",
        *_REFERENCES,
    ],
    keeps_proportions=True,
)
register(
    "coop",
    "anomalyclip.methods.coop:build",
    options=[*_COMMON, "layers", "ln_post", "class_name", "activation", "trained"],
    names_class=True,
)
