"""Options that several commands share: one spelling, one meaning.

The model's options are the fields of `DetectorSpec`, and those of training and evaluation the fields of their settings.
A command takes them by a parameter of that type and the decorator `with_options`; nothing else repeats them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomalyclip.cli.flattening import Command, flattened
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.spec import EXPORTED, FIXED_BY_MODEL, OPTIONS, DetectorSpec

if TYPE_CHECKING:
    from anomalyclip.readers import Selection


def with_options(command: Command) -> Command:
    """Give a command the options of each of its parameters that is a dataclass; see `flattened`.

    The command also has the parameter ``context`` (typer's).
    """
    return flattened(command, check=_check)


def _check(kind: type, context: typer.Context, values: dict[str, Any]) -> None:
    if kind is DetectorSpec:
        _refuse_ignored(context, values)


def _refuse_ignored(context: typer.Context, values: dict[str, Any]) -> None:
    """Refuse what an exported file has decided, and what would be ignored."""
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
    if "references" in values and not values["references"]:
        refuse(context, ("augment", "max_patches"), "is for references: give --references PATH too")
    if "tile" in values and values["tile"] is None:
        refuse(context, ("overlap",), "is for tiles: give --tile SIZE too")


def refuse(context: typer.Context, names: Sequence[str], why: str) -> None:
    """Refuse options that would be ignored, if any of them is on the command line.

    Raises
    ------
    AnomalyCLIPError
        Naming them, and why.
    """
    present = given(context)
    if needless := [spelled(name) for name in names if name in present]:
        raise AnomalyCLIPError(f"{', '.join(needless)} {why}")


def given(context: typer.Context) -> set[str]:
    """Return the names of the parameters that are on the command line."""
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
        help="Scores from this value on are anomalous: a number from 0 to 1, for images and pixels, or a threshold "
        "file written by `anomalyclip calibrate`. Without it there is no verdict.",
        show_default=False,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        help="Folder for the results. Default: a new one in runs/, named after the command and numbered.",
        show_default=False,
        file_okay=False,
    ),
]

Every = Annotated[
    str | None,
    typer.Option(
        help="Which frames of videos and slices of volumes to score: 0.5s is one every half second of a video, 10 is "
        "every tenth frame or slice. Default: all.",
        metavar="STEP",
        show_default=False,
    ),
]
Axis = Annotated[
    str | None,
    typer.Option(
        help="How NIfTI volumes are cut into slices: axial, coronal or sagittal. Default: axial.",
        metavar="AXIS",
        show_default=False,
    ),
]


def selection(every: str | None, axis: str | None) -> "Selection | None":
    """Return which images of videos and volumes are wanted; None if nothing is said."""
    if every is None and axis is None:
        return None
    from anomalyclip.readers import Selection

    return Selection(every=every, axis=axis)
