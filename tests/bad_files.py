"""Files that are not what they seem, for the tests that nothing which comes in can break a run."""

import contextlib
import io
import os
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image


def associated_alpha() -> bytes:
    """A gray TIFF whose gray is multiplied by its alpha (ExtraSamples 1), which Pillow opens in the mode La."""
    file = io.BytesIO()
    Image.new("LA", (16, 12), (100, 128)).save(file, "TIFF")
    before, after = (struct.pack("<HHIHH", 338, 3, 1, kind, 0) for kind in (2, 1))
    assert file.getvalue().count(before) == 1
    return file.getvalue().replace(before, after)


def plant_special(path: Path, kind: str) -> Path:
    """Make a named pipe, a socket, or a link to a device."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        here = Path.cwd()
        os.chdir(path.parent)  # the name of a socket may be 107 bytes long
        try:
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(path.name)
        finally:
            os.chdir(here)
    else:
        path.symlink_to("/dev/zero")
    return path


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """End what waits for ever as a failure; a test that passes never waits."""

    def stop(*_: Any) -> None:
        raise AssertionError(f"not done after {seconds} s")

    usual = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)
