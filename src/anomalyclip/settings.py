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
    **more
        Further metadata of the field.
    """
    about = {"help": help, "group": group, "flag": flag, "minimum": minimum, "choices": choices, **more}
    return field(default=default, metadata=about)


def options_of(kind: type) -> dict[str, "Field[Any]"]:
    """Return the fields of a dataclass that are options, by name."""
    return {one.name: one for one in fields(kind) if "help" in one.metadata}


@dataclass(frozen=True)
class Settings:
    """Base of such a dataclass: converts values to their types and refuses invalid ones.

    Paths may be given as text, and a sequence as any iterable or as its only item.

    Raises
    ------
    AnomalyCLIPError
        A value is below its minimum, not finite, or not one of the choices.
    """

    def __post_init__(self) -> None:
        for name, one in options_of(type(self)).items():
            value = _formed(one.type, getattr(self, name))
            object.__setattr__(self, name, value)
            _check(name, value, one.metadata)


def _formed(kind: Any, value: Any) -> Any:
    """Return a value converted to a field's type."""
    kinds = typing.get_args(kind) or (kind,)
    if value is None:
        return None
    if Path in kinds and isinstance(value, str | os.PathLike):
        return Path(value)
    if item_of(kind) is not None and isinstance(value, Iterable):
        return (value,) if isinstance(value, str) else tuple(value) or (None if type(None) in kinds else ())
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


def _check(name: str, value: Any, about: Mapping[str, Any]) -> None:
    words = name.replace("_", " ")
    choices, minimum = about["choices"], about["minimum"]
    for one in value if isinstance(value, tuple) else (value,):
        if choices is not None and one not in choices:
            raise AnomalyCLIPError(f"{words} {one!r}: expected one of {', '.join(choices)}")
        if minimum is None or value is None:
            continue
        if not isinstance(one, int | float) or not math.isfinite(one) or one < minimum:
            raise AnomalyCLIPError(f"{words} {one!r}: expected {minimum} or more")


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
