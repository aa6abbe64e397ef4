"""What decoders say of damaged files on their way past the caller: heard, and said again with the file's name.

libtiff writes to standard error, and its lines name no file. It calls a function for each line, in the thread that
decodes, which can be replaced.
"""

import ctypes
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from PIL import UnidentifiedImageError, _imaging

from anomalyclip.errors import AnomalyCLIPWarning, InputError, reason

_here = threading.local()
_LONGEST = 300


@contextmanager
def attributed(name: object) -> Iterator[None]:
    """Give what a decoder says in this thread, until the block ends, the name of the file that it decodes.

    What it says becomes part of the error if there is one, and an `AnomalyCLIPWarning` if there is none: the pixels are
    there, but some of them may be wrong.

    Parameters
    ----------
    name : object
        The file. The block must not give control away, as a generator does.

    Raises
    ------
    InputError
        Instead of an error in the block of which the decoder has said something.
    """
    _hear_libtiff()
    lines: list[str] = []
    outer, _here.lines = getattr(_here, "lines", None), lines
    try:
        yield
    except UnidentifiedImageError:
        raise
    except (OSError, ValueError, SyntaxError) as error:
        if not lines or getattr(error, "errno", None):
            raise
        raise InputError(f"{name}: damaged image: {reason(error)} ({_said(lines)})") from None
    else:
        if lines and not getattr(_here, "unsaid", False):
            warnings.warn(
                f"{name}: read, but damaged in places ({_said(lines)})", AnomalyCLIPWarning, stacklevel=3
            )
    finally:
        _here.lines = outer


@contextmanager
def unsaid() -> Iterator[None]:
    """Drop what decoders say in this thread until the block ends: it is said where the file is decoded to be scored."""
    outer = getattr(_here, "lines", None), getattr(_here, "unsaid", False)
    _here.lines, _here.unsaid = [], True
    try:
        yield
    finally:
        _here.lines, _here.unsaid = outer


def heard(text: str) -> bool:
    """Take down what a decoder says; return whether a file is being decoded in this thread."""
    lines = getattr(_here, "lines", None)
    if lines is None:
        return False
    lines.append(text)
    return True


def _said(lines: list[str]) -> str:
    more = f"; and {len(lines) - 1} more such lines" if len(lines) > 1 else ""
    return f"{lines[0].strip()[:_LONGEST]}{more}"


@cache
def _hear_libtiff() -> Any:
    """Replace the function that libtiff calls with its errors, once; where that cannot be done, it writes as before.

    Returns
    -------
    object
        The new function: it has to live as long as the program.
    """
    function = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
    try:
        libtiff = ctypes.CDLL(_imaging.__file__)  # what Pillow is linked to is found through it
        libc = ctypes.CDLL(None)
        libtiff.TIFFSetErrorHandler.argtypes, libtiff.TIFFSetErrorHandler.restype = (
            [function],
            ctypes.c_void_p,
        )
        libc.vsnprintf.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p]
    except (OSError, AttributeError, TypeError):  # linked statically, or a system without
        return None

    def hear(module: bytes | None, form: bytes, values: int) -> None:
        buffer = ctypes.create_string_buffer(_LONGEST)
        libc.vsnprintf(buffer, _LONGEST, form, values)
        what = [part.decode("utf-8", "replace") for part in (module or b"", buffer.value) if part]
        heard(f"libtiff: {': '.join(what)}")

    handler = function(hear)
    libtiff.TIFFSetErrorHandler(handler)
    return handler
