"""Standard output and error of the command line: any name can be printed, and a reader that leaves ends the command."""

import io
import os
import sys
from typing import NoReturn

from anomalyclip.errors import AnomalyCLIPError, reason

EXIT_CODE = 141
"""What a shell reports of a program that wrote into a pipe nobody reads (128 + SIGPIPE)."""


class _Stream(io.TextIOWrapper):
    """A stream that ends the program, without a word, when nobody reads any more: ``anomalyclip ... | head``."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._end(error)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._end(error)

    def _end(self, error: OSError) -> NoReturn:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())  # what is still in the buffer goes there when Python ends
        os.close(nowhere)
        if isinstance(error, BrokenPipeError):
            sys.exit(EXIT_CODE)
        raise AnomalyCLIPError(f"cannot print ({reason(error)})") from None


def prepare() -> None:
    """Replace standard output and error; characters that the terminal cannot show are spelled out."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is io.TextIOWrapper:
            encoding, lines = stream.encoding, stream.line_buffering
            setattr(sys, name, _Stream(stream.detach(), encoding, "backslashreplace", line_buffering=lines))
        elif isinstance(stream, io.TextIOWrapper):  # somebody's own, who captures what is printed
            stream.reconfigure(errors="backslashreplace")
