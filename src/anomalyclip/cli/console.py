"""What the commands print with: results go to standard output, everything else to standard error."""

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@cache
def out() -> "Console":
    """Return the console for results (standard output)."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


@cache
def err() -> "Console":
    """Return the console for progress, warnings and errors (standard error)."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def warn(message: str) -> None:
    """Print a warning to standard error."""
    err().print(f"warning: {message}", style="yellow", markup=False)


def fail(message: str) -> None:
    """Print an error to standard error."""
    err().print(f"error: {message}", style="red", markup=False)
