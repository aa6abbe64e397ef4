"""Unexpected errors: exit code 70, and one line that asks for a report."""

import functools
import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import NoReturn

import typer

from anomalyclip.cli.console import fail
from anomalyclip.errors import AnomalyCLIPError, reason

EXIT_CODE = 70
"""EX_SOFTWARE of sysexits.h: an internal error."""

SHOW = "ANOMALYCLIP_TRACEBACK"
"""Environment variable: with it the traceback goes to the terminal."""


class UnforeseenError(Exception):
    """Carries an error out of a command; click would treat some (EOFError) as its own and end with exit code 1."""


def carried(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command whose unforeseen errors arrive as `UnforeseenError`."""

    @functools.wraps(command)
    def run(*arguments: object, **options: object) -> None:
        try:
            command(*arguments, **options)
        except (
            AnomalyCLIPError,
            ModuleNotFoundError,
            typer.Exit,
            typer.Abort,
            typer.BadParameter,
            BrokenPipeError,
        ):
            raise
        except Exception as error:
            raise UnforeseenError from error

    return run


def end(error: BaseException) -> NoReturn:
    """Say what happened in one line, keep the traceback, and end."""
    if _is_out_of_memory(error):
        fail(f"not enough memory ({reason(error)}): use smaller images, --tile or a smaller --batch-size")
        sys.exit(2)
    what = " ".join(f"{type(error).__name__}: {reason(error)}".split())
    fail(f"internal error ({what}); please report it with the traceback: {_traceback(error)}")
    sys.exit(EXIT_CODE)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # PyTorch's, of a GPU


def _traceback(error: BaseException) -> str:
    """Print the traceback if requested, otherwise save it in a file; return where it is."""
    from anomalyclip import __version__

    lines = [
        f"anomalyclip {__version__}, Python {platform.python_version()}, {platform.platform()}\n",
        f"{sys.argv}\n",
        *traceback.format_exception(error),
    ]
    text = "".join(lines)
    if not os.environ.get(SHOW):
        try:
            with tempfile.NamedTemporaryFile(
                "w",
                encoding="utf-8",
                errors="backslashreplace",
                prefix="anomalyclip-error-",
                suffix=".txt",
                delete=False,
            ) as file:
                file.write(text)
        except OSError:
            return f"run the same command with {SHOW}=1"
        return f"it is in {file.name}; {SHOW}=1 shows it here"
    sys.stderr.write(text)
    return "it stands above"
