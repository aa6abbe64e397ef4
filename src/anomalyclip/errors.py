"""Errors that a user can fix: each message names the file or value, what was expected, and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 2000
"""Maximum length of a message in characters, because the text that it quotes may be as long as a file."""


class AnomalyCLIPError(Exception):
    """An option, file or value cannot be used; the message says which one and why.

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
    """One input (an image, a mask, a sample) cannot be used; the others are not affected."""


class TooLargeError(InputError):
    """One input is larger than is allowed; it was not decoded."""


class UnknownKindError(InputError):
    """One input is not a file of a known kind."""


class NoTextsError(AnomalyCLIPError):
    """A vision-only backbone was given to something that compares images with texts."""


class AnomalyCLIPWarning(UserWarning):
    """Something that the user should know but that does not stop the work; the command line prints it."""


class AnomalyCLIPNote(AnomalyCLIPWarning):
    """Something that is good to know, although nothing is wrong: where a threshold comes from, for example."""


@contextmanager
def concerning(name: object, failed: str) -> Iterator[None]:
    """Turn an unexpected error into an `InputError` for one input, so that the others can continue.

    Parameters
    ----------
    name : object
        The input, by the name that the user knows.
    failed : str
        What failed, such as "cannot be drawn".

    Raises
    ------
    InputError
        In place of any exception that is not already an `AnomalyCLIPError`.

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
    """Return the message of an error, or its type if it has no message.

    Examples
    --------
    >>> reason(ValueError("odd header")), reason(EOFError()), reason(MemoryError())
    ('odd header', 'EOFError', 'not enough memory')
    """
    if isinstance(error, MemoryError):
        return "not enough memory"
    return str(error).strip() or type(error).__name__
