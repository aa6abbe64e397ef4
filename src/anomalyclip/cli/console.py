"""What the commands print with: results go to standard output, everything else to standard error."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


_PLAIN: Any = {"markup": False, "emoji": False}
"""What is printed is text: a file may be called [red] or :warning:."""


_WARNINGS = 20
"""Warnings of a command that are printed."""


@cache
def out() -> "Console":
    """Return the console for results (standard output)."""
    from rich.console import Console

    # In a pipe a table is as wide as it must be: folded paths are of no use to the next program.
    width = None if sys.stdout.isatty() else 1000
    return Console(highlight=False, soft_wrap=True, width=width, **_PLAIN)


@cache
def err() -> "Console":
    """Return the console for progress, warnings and errors (standard error)."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True, **_PLAIN)


def printable(text: str) -> str:
    r"""Return a text whose control characters are spelled out: a file's name must not steer the terminal.

    Examples
    --------
    >>> printable("part\x1b[2J.png")
    'part\\x1b[2J.png'
    """
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode()
        for char in text
    )


def warn(message: str) -> None:
    """Print a warning to standard error."""
    err().print(printable(f"warning: {message}"), style="yellow", markup=False)


def note(message: str) -> None:
    """Print to standard error what is good to know."""
    err().print(printable(f"note: {message}"), style="dim", markup=False)


def fail(message: str) -> None:
    """Print an error to standard error."""
    err().print(printable(f"error: {message}"), style="red", markup=False)


@contextmanager
def track(what: str, total: int | None) -> Iterator[Callable[[], None]]:
    """Show a progress bar on a terminal, nothing in a pipe; give a function that counts one more.

    Parameters
    ----------
    what : str
        What is going on.
    total : int, optional
        How many there will be; None: unknown.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    text = TextColumn("{task.description}", markup=False)  # a data set may be called [/] or {}
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err(), transient=True, disable=not err().is_terminal) as progress:
        task = progress.add_task(printable(what), total=total)
        yield lambda: progress.advance(task)


@contextmanager
def stoppable(message: str | Callable[[], str]) -> Iterator[None]:
    """Say what Ctrl-C left behind, and end with exit code 130."""
    import typer

    try:
        yield
    except KeyboardInterrupt:
        fail(message if isinstance(message, str) else message())
        raise typer.Exit(130) from None


@contextmanager
def warnings_shown() -> Iterator[None]:
    """Print the package's warnings as one line each, whatever the filters say: the first ones, and how many more.

    Other warnings go their usual way; what Pillow says of a file that is being decoded is printed with its name.
    """
    import warnings

    from anomalyclip.errors import AnomalyCLIPNote, AnomalyCLIPWarning

    usual, count = warnings.showwarning, 0

    def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        nonlocal count
        if issubclass(category, AnomalyCLIPNote):
            note(str(message))
        elif issubclass(category, AnomalyCLIPWarning):
            count += 1
            if count <= _WARNINGS:
                warn(str(message))
        elif not _is_of_a_decoder(str(message)):
            usual(message, category, *rest, **named)

    with warnings.catch_warnings():
        warnings.simplefilter("always", AnomalyCLIPWarning)
        warnings.showwarning = show
        try:
            yield
        finally:
            if count > _WARNINGS:
                warn(f"... and {count - _WARNINGS} more warnings")


def _is_of_a_decoder(text: str) -> bool:
    decoders = sys.modules.get("anomalyclip.decoders")  # if nothing has been decoded, it is not loaded
    return decoders is not None and decoders.heard(text)
