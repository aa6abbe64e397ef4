"""Errors that a user can mend: each message names the file or value, what was expected, and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 2000
"""Characters of a message; what it quotes may be as long as a file."""


class AnomalyCLIPError(Exception):
    """Something that the user gave cannot be used; the message says what and why.

    Examples
    --------
    >>> len(str(AnomalyCLIPError("name " + "x" * 5000 + " is too long")))
    2005
    """

    def __init__(self, message: object = "") -> None:
        text = str(message)
        half = LONGEST // 2
        super().__init__(text if len(text) <= LONGEST else f"{text[:half]} ... {text[-half:]}")


class InputError(AnomalyCLIPError):
    """One input (an image, a mask, a sample) cannot be used; others may go on."""


class AnomalyCLIPWarning(UserWarning):
    """Something that a user should know, and that does not stop the work; the command line prints it."""


@contextmanager
def concerning(name: object, failed: str) -> Iterator[None]:
    """Turn an error that nobody foresaw into an `InputError` of one input, so that the others go on.

    Parameters
    ----------
    name : object
        The input, as its user knows it.
    failed : str
        What could not be done with it.

    Raises
    ------
    InputError
        Instead of any exception that is not an `AnomalyCLIPError` already.

    Examples
    --------
    >>> with concerning("scan.tif", "cannot be drawn"):
    ...     raise ValueError("odd colours")
    Traceback (most recent call last):
    anomalyclip.errors.InputError: scan.tif: cannot be drawn: odd colours
    """
    try:
        yield
    except AnomalyCLIPError:
        raise
    except Exception as error:
        raise InputError(f"{name}: {failed}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Return what an error says; where it says nothing, its type.

    Examples
    --------
    >>> reason(ValueError("odd header")), reason(EOFError()), reason(MemoryError())
    ('odd header', 'EOFError', 'not enough memory')
    """
    if isinstance(error, MemoryError):
        return "not enough memory"
    return str(error).strip() or type(error).__name__
