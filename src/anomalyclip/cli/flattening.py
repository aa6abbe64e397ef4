"""Dataclasses as options: a command takes one value, and the command line has an option for each of its fields."""

import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, is_dataclass
from functools import wraps
from typing import Annotated, Any

import typer

from anomalyclip.settings import item_of, options_of

Command = Callable[..., None]
Check = Callable[[type, typer.Context, dict[str, Any]], None]


class Fields:
    """Which fields of a dataclass a command takes, in ``Annotated[DetectorSpec, Fields(only=...)]``.

    Fields `source` of another class come as they are, in ``Annotated[dict[str, Any], Fields(source=DetectorSpec)]``.
    """

    def __init__(
        self, *, only: Sequence[str] | None = None, without: Sequence[str] = (), source: type | None = None
    ) -> None:
        self.only, self.without, self.source = only, without, source

    def of(self, kind: type) -> dict[str, "Field[Any]"]:
        """Return them by name."""
        declared = options_of(kind)
        names = declared if self.only is None else self.only
        return {name: declared[name] for name in names if name not in self.without}


@dataclass(frozen=True)
class _Flattened:
    """A parameter whose value is made of several options."""

    kind: type
    fields: dict[str, "Field[Any]"]

    def value(self, given: dict[str, Any], check: Check) -> Any:
        """Return the value; what it is made of is taken out of what was given."""
        values = {name: _plain(given.pop(name)) for name in self.fields}
        check(self.kind, given["context"], values)
        return self.kind(**values)


def flattened(command: Command, *, check: Check) -> Command:
    """Give a command the options of each of its parameters that is a dataclass.

    The help lists the options where the parameter is in the signature.

    Parameters
    ----------
    command : callable
        It has the parameter ``context`` (typer's) in addition to its own. To take only some fields of a dataclass, it
        writes ``Annotated[TheDataclass, Fields(only=[...])]``.
    check : callable
        Called with a dataclass, the context and the values of its options, to refuse what does not go together on the
        command line.
    """
    parameters: list[inspect.Parameter] = []
    compound: dict[str, _Flattened] = {}
    for parameter in inspect.signature(command).parameters.values():
        if (found := _as_options(parameter.annotation)) is None:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        else:
            compound[parameter.name] = found
            parameters += map(_parameter, found.fields.values())

    @wraps(command)
    def with_values(**given: Any) -> None:
        values = {name: one.value(given, check) for name, one in compound.items()}
        command(**given, **values)

    with_values.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_values.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_values


def _as_options(annotation: Any) -> _Flattened | None:
    kind, *marks = typing.get_args(annotation) if hasattr(annotation, "__metadata__") else (annotation,)
    chosen = next((mark for mark in marks if isinstance(mark, Fields)), Fields())
    source = chosen.source or kind
    if not (isinstance(source, type) and is_dataclass(source)):
        return None
    return _Flattened(kind, chosen.of(source))


def _parameter(one: "Field[Any]") -> inspect.Parameter:
    """Return a field as typer wants an option."""
    about, default = one.metadata, one.default
    declared = typer.Option(
        *_flags(one),
        help=about["help"],
        rich_help_panel=about["group"],
        min=about["minimum"],
        metavar=about.get("metavar") or "|".join(about["choices"] or ()) or None,
        show_default=default not in (None, False, ()),
        file_okay=about.get("file_okay", True),
    )
    return inspect.Parameter(
        one.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=list(default) if isinstance(default, tuple) else default,
        annotation=Annotated[_kind(one), declared],
    )


def _flags(one: "Field[Any]") -> list[str]:
    """Return how a field is spelled, where that is not its name."""
    if one.type is bool or one.metadata["flag"]:  # or typer adds --no-NAME
        return [one.metadata["flag"] or f"--{one.name.replace('_', '-')}"]
    return []


def _kind(one: "Field[Any]") -> Any:
    """Return the type of a field as typer wants it: lists for options that are repeated."""
    item = item_of(one.type)
    return one.type if item is None else list[item] | None  # type: ignore[valid-type]


def _plain(value: Any) -> Any:
    """Return a value as the dataclass has it: tuples for lists."""
    return tuple(value) if isinstance(value, list) else value
