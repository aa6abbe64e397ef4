"""Options that several commands share: one spelling, one meaning.

The model's options are the fields of `DetectorSpec`. A command takes them by a parameter ``spec`` and the decorator
`with_spec`; nothing else repeats them.
"""

import inspect
import typing
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.spec import EXPORTED, FIXED_BY_MODEL, OPTIONS, DetectorSpec

Command = Callable[..., None]


def with_spec(
    *, only: Sequence[str] | None = None, without: Sequence[str] = ()
) -> Callable[[Command], Command]:
    """Give a command the options of a `DetectorSpec`.

    The command has the parameters ``context`` (typer's) and ``spec`` (a `DetectorSpec`) beside its own.

    Parameters
    ----------
    only : sequence of str, optional
        The fields that the command takes. None: all.
    without : sequence of str
        Fields that it does not take.
    """
    names = [name for name in (OPTIONS if only is None else only) if name not in without]

    def decorate(command: Command) -> Command:
        @wraps(command)
        def with_options(**given: Any) -> None:
            values = {name: given.pop(name) for name in names}
            command(**given, spec=_spec(given["context"], values))

        own = [p for name, p in inspect.signature(command).parameters.items() if name != "spec"]
        parameters = [*own, *map(_parameter, names)]
        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
        with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return with_options

    return decorate


def _parameter(name: str) -> inspect.Parameter:
    """Return a field of the spec as typer wants an option."""
    option, about = OPTIONS[name], OPTIONS[name].metadata
    declared = typer.Option(
        *([about["flag"]] if about["flag"] else []),
        help=about["help"],
        rich_help_panel=about["group"],
        min=about["minimum"],
        show_default=option.default not in (None, False),
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=option.default,
        annotation=Annotated[_listed(option.type), declared],
    )


def _listed(kind: Any) -> Any:
    """Return the type of a field with lists in place of tuples, which typer takes for options that are repeated."""
    parts = typing.get_args(kind)
    if any(typing.get_origin(part) is tuple for part in parts):
        item = next(typing.get_args(part)[0] for part in parts if typing.get_origin(part) is tuple)
        return list[item] | None  # type: ignore[valid-type]
    return kind


def _spec(context: typer.Context, values: dict[str, Any]) -> DetectorSpec:
    """Return what the user asked for; refuse what an exported file has decided, and what would be ignored."""
    model = values.get("model")
    if model is None:
        refuse(context, ("provider", "threads"), "is for exported files: give --model FILE too")
    else:
        refuse(context, ("device",), "is PyTorch's: with --model use --provider")
        refuse(
            context,
            FIXED_BY_MODEL,
            f"cannot be changed with --model: {model} fixes it; export another file instead",
        )
    if "tile" in values and values["tile"] is None:
        refuse(context, ("overlap",), "is for tiles: give --tile SIZE too")
    return DetectorSpec(**values)


def refuse(context: typer.Context, names: Sequence[str], why: str) -> None:
    """Refuse options that would be ignored, if any of them stands on the command line.

    Raises
    ------
    AnomalyCLIPError
        Naming them, and why.
    """
    present = given(context)
    if needless := [spelled(name) for name in names if name in present]:
        raise AnomalyCLIPError(f"{', '.join(needless)} {why}")


def given(context: typer.Context) -> set[str]:
    """Return the names of the parameters that stand on the command line."""
    return {
        name for name in context.params if str(context.get_parameter_source(name)).endswith("COMMANDLINE")
    }


def spelled(name: str) -> str:
    """Return a parameter as the user writes it.

    Examples
    --------
    >>> spelled("image_size"), spelled("compiled")
    ('--image-size', '--compile')
    """
    flag = OPTIONS[name].metadata["flag"] if name in OPTIONS else None
    return str(flag or f"--{name.replace('_', '-')}")


def part(text: str | None) -> tuple[int, int] | None:
    """Return which part of the work a process does: ``I/N`` as numbers; None is all of it."""
    if text is None:
        return None
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise AnomalyCLIPError(f"--shard {text}: expected I/N with I from 1 to N, such as 1/4")
    return int(index), int(count)


ALL = tuple(OPTIONS)
"""Every option of a model."""

OF_EXPORTED = tuple(name for name in OPTIONS if OPTIONS[name].metadata["group"] == EXPORTED)
"""Options for exported files."""

BatchSize = Annotated[int, typer.Option(help="Images per batch.", min=1)]
Threshold = Annotated[
    str | None,
    typer.Option(
        help="Scores at or above this are anomalous: a number from 0 to 1 for images and pixels alike, or a threshold "
        "file. Without it there is no verdict.",
        show_default=False,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        help="Folder for the results. Default: a new one, runs/COMMAND-1, -2, ...",
        show_default=False,
        file_okay=False,
    ),
]
