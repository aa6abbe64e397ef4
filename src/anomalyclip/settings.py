"""Options as values: a frozen dataclass whose fields carry what the library and the command line need.

A field made by `option` is an option of every command that takes the dataclass (`anomalyclip.cli.options`), and a
keyword of every function that takes it (`chosen`). So an option is declared once.
"""

import math
import os
import typing
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from anomalyclip.errors import AnomalyCLIPError

Some = TypeVar("Some", bound="Settings")


def option(
    default: Any,
    help: str,
    *,
    group: str | None = None,
    flag: str | None = None,
    minimum: float | None = None,
    choices: tuple[str, ...] | None = None,
    single: bool = True,
    **more: Any,
) -> Any:
    """Return a field of a dataclass that is an option.

    Parameters
    ----------
    default
        The default value.
    help : str
        The text in ``--help``.
    group : str, optional
        Heading in ``--help``. None: "Options".
    flag : str, optional
        Name on the command line. None: the field's name, with hyphens.
    minimum : float, optional
        The smallest value.
    choices : tuple of str, optional
        The allowed values.
    single : bool
        Whether the only text or path of a sequence may be given without the sequence.
    **more
        Further metadata of the field.
    """
    about = {
        "help": help,
        "group": group,
        "flag": flag,
        "minimum": minimum,
        "choices": choices,
        "single": single,
    }
    return field(default=default, metadata=about | more)


def options_of(kind: type) -> dict[str, "Field[Any]"]:
    """Return the fields of a dataclass that are options, by name."""
    return {one.name: one for one in fields(kind) if "help" in one.metadata}


@dataclass(frozen=True)
class Settings:
    """Base of such a dataclass: brings values into one form and refuses invalid ones.

    Paths may be given as text and text as paths, a sequence as any iterable; an empty one is the default None.

    Raises
    ------
    AnomalyCLIPError
        A value is not of its field's type, below its minimum, not finite, or not one of the choices.
    """

    def __post_init__(self) -> None:
        for name, one in options_of(type(self)).items():
            value = _formed(one.type, getattr(self, name), single=one.metadata["single"])
            object.__setattr__(self, name, value)
            _check(name, value, one)


def _formed(kind: Any, value: Any, *, single: bool) -> Any:
    """Return a value converted to a field's type, as far as it can be."""
    kinds = typing.get_args(kind) or (kind,)
    is_path = isinstance(value, os.PathLike)
    if (item := item_of(kind)) is not None:
        if isinstance(value, str) or is_path:
            return (_formed(item, value, single=single),) if single else value
        if isinstance(value, Iterable) and not isinstance(value, bytes):
            several = tuple(_formed(item, one, single=single) for one in value)
            return several or (None if type(None) in kinds else ())
    elif Path in kinds and (is_path or isinstance(value, str)):
        return Path(value)
    elif str in kinds and is_path:
        return os.fspath(value)
    return value


def item_of(kind: Any) -> Any:
    """Return X if a field's type is ``tuple[X, ...]``, optional or not; else None.

    Examples
    --------
    >>> item_of(tuple[int, ...] | None), item_of(int), item_of(tuple[float, float])
    (<class 'int'>, None, None)
    """
    for one in (kind, *typing.get_args(kind)):
        if typing.get_origin(one) is tuple and (items := typing.get_args(one))[-1] is Ellipsis:
            return items[0]
    return None


_KINDS: dict[Any, tuple[str, str]] = {
    str: ("text", "texts"),
    bool: ("True or False", "True and False"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    Path: ("a path", "paths"),
}
"""Types that are checked, and how one and several of their values are called in messages."""


def _check(name: str, value: Any, one: "Field[Any]") -> None:
    """Refuse a value that is not what its field declares."""
    kinds = typing.get_args(one.type) or (one.type,)
    if value is None and type(None) in kinds:
        return
    item, words = item_of(one.type), name.replace("_", " ")
    if item is not None and not isinstance(value, tuple):
        raise AnomalyCLIPError(f"{words} {value!r}: expected a list of {_KINDS[item][1]}")
    kind = item or next((kind for kind in kinds if kind in _KINDS), None)
    for each in value if item is not None else (value,):
        if kind is not None and (expected := _unmet(kind, each, one.metadata)):
            raise AnomalyCLIPError(f"{words} {each!r}: expected {expected}")


def _unmet(kind: Any, value: Any, about: Mapping[str, Any]) -> str | None:
    """Return what is expected instead of a value, if it cannot be used."""
    choices, minimum = about["choices"], about["minimum"]
    if choices is not None:
        return None if value in choices else f"one of {', '.join(choices)}"
    if minimum is not None:
        return None if _is(kind, value) and minimum <= value < math.inf else f"{minimum} or more"
    return None if _is(kind, value) else _KINDS[kind][0]


def _is(kind: Any, value: Any) -> bool:
    """Tell whether a value has a type; a whole number is a number too, and a truth value is none."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def chosen(kind: type[Some], settings: Some | None, given: Mapping[str, Any]) -> Some:
    """Return settings with some values replaced by a function's keywords.

    Parameters
    ----------
    kind : type of Settings
    settings : Settings or None
        What to start from. None: the defaults.
    given : mapping of str to value

    Raises
    ------
    AnomalyCLIPError
        A name is unknown, or a value is invalid.

    Examples
    --------
    >>> @dataclass(frozen=True)
    ... class Painting(Settings):
    ...     layers: int = option(1, "Layers of paint.", minimum=1)
    >>> chosen(Painting, None, {"layers": 2})
    Painting(layers=2)
    >>> chosen(Painting, None, {"layers": 0})
    Traceback (most recent call last):
    anomalyclip.errors.AnomalyCLIPError: layers 0: expected 1 or more
    >>> chosen(Painting, None, {"colour": "red"})
    Traceback (most recent call last):
    anomalyclip.errors.AnomalyCLIPError: colour: unknown option; expected some of layers
    """
    known = [one.name for one in fields(kind)]
    if unknown := [name for name in given if name not in known]:
        raise AnomalyCLIPError(
            f"{', '.join(unknown)}: unknown option; expected some of {', '.join(sorted(known))}"
        )
    return replace(settings or kind(), **given)
