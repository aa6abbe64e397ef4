"""Live sources: cameras and streams that the user names. What comes too fast is dropped, not queued.

A source is known only while it is open (`Live`): an address in a list, an archive or a file is never followed.
"""

import os
import re
from collections import OrderedDict, deque
from collections.abc import Iterator
from threading import Condition, Thread
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from anomalyclip.depth import Deep
from anomalyclip.errors import AnomalyCLIPError, InputError, reason
from anomalyclip.readers.base import Frame, Reader
from anomalyclip.readers.selection import Selection
from anomalyclip.readers.video import FORMATS, Decoding, library, picture, said_by

SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "tcp", "udp", "srt")

QUEUE = 4
"""Frames that wait for the model; when one more comes, the oldest is dropped."""

_OPTIONS = {
    "protocol_whitelist": "rtsp,rtsps,rtp,rtmp,rtmps,http,https,httpproxy,tcp,udp,tls,srt",
    "format_whitelist": f"rtsp,mpjpeg,mjpeg,{FORMATS}",
    "rtsp_transport": "tcp",
}
_UNSTAMPED = ("mpjpeg", "mjpeg")
"""Formats of pictures without time stamps; FFmpeg would count them. Their times are those at which they arrive."""

_CAMERA = re.compile(r"/dev/video[0-9]+")
_SECONDS = (10.0, 10.0)
"""For the connection, and for the next packet."""

_open: dict[str, "Live"] = {}


class Live:
    """A camera or stream; in a ``with`` block its `name` can be scored like the path of a video.

    Parameters
    ----------
    address : str
        ``rtsp://...``, another of `SCHEMES`, or ``/dev/video0`` (a USB camera on Linux).
    every : str, optional
        As for `Selection`. None: all frames, as far as the model keeps up.
    keep : int
        Frames that can be opened again after they were given out: at least the size of a batch and two.

    Attributes
    ----------
    name : str
        What it is called in results: the address without user, password and query.
    dropped : int
        Frames that came too fast and were dropped.
    damaged : int
        Frames that came damaged and were left out.

    Raises
    ------
    AnomalyCLIPError
        The address is none, or a source of this name is open.

    Examples
    --------
    >>> Live("rtsp://user:secret@camera.local/line1?token=5").name
    'rtsp://camera.local/line1'
    """

    def __init__(self, address: str, *, every: str | None = None, keep: int = 10) -> None:
        self._address, self._selection, self._keep = address, Selection(every=every), max(keep, 1)
        self.name = _public(address)
        self.dropped = self.damaged = 0
        self._waiting: deque[Frame] = deque()
        self._given: OrderedDict[int, Image.Image | Deep] = OrderedDict()
        self._changed = Condition()
        self._stopped = self._ended = False
        self._error: str | None = None

    def __enter__(self) -> "Live":
        if self.name in _open:
            raise AnomalyCLIPError(f"{self.name}: is open already")
        _open[self.name] = self
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        del _open[self.name]

    def stop(self) -> None:
        """End the source: `frames` ends after the frames that wait. A signal handler may call it."""
        self._stopped = True

    def wait(self) -> None:
        """Wait until the source has ended; frames that wait can still be taken."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended)

    def frames(self) -> Iterator[Frame]:
        """Yield the frames until the source ends or is stopped.

        Raises
        ------
        InputError
            It cannot be opened, or is interrupted.
        """
        Thread(target=self._read, name="live source", daemon=True).start()
        while (frame := self._next()) is not None:
            self._given[_number_of(frame)] = frame.image
            while len(self._given) > self._keep:
                self._given.popitem(last=False)
            yield frame
        if self._error is not None and not self._stopped:
            raise InputError(self._error)

    def again(self, number: int) -> Image.Image | Deep:
        """Return a frame that was given out a moment ago."""
        try:
            return self._given[number]
        except KeyError:
            raise InputError(f"{self.name}#{number}: is gone, for the source is live") from None

    def _next(self) -> Frame | None:
        """Return the next frame; None at the end. It waits in short steps, so that a signal handler can run."""
        while True:
            with self._changed:
                if self._waiting:
                    return self._waiting.popleft()
                if self._ended or self._stopped:
                    return None
                self._changed.wait(0.1)

    def _read(self) -> None:
        """Decode in a thread of its own, as fast as the source is."""
        try:
            self._decode()
        except InputError as error:
            self._error = str(error)
        except Exception as error:
            self._error = f"{self.name}: cannot be read ({self._said(error)})"
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _decode(self) -> None:
        wanted = self._selection.picker(self.name)
        with self._connect() as container:
            decoding = Decoding(container, self.name)
            unstamped = container.format.name in _UNSTAMPED
            first, time = None, 0.0
            for number, stamp, frame in decoding:
                if self._stopped:
                    return
                self.damaged = decoding.damaged
                now = monotonic() if unstamped else stamp
                first = now if first is None else first
                time = round(now - first, 6)
                if wanted(number - 1, time):
                    self._put(Frame(f"{self.name}#{number}", picture(frame, decoding.stream), time))
            if decoding.broken:
                raise InputError(f"{self.name}: was interrupted after {time:.2f} s ({decoding.broken})")

    def _said(self, error: Exception) -> str:
        if isinstance(error, library(self.name).error.ExitError):
            return f"nothing came for {_SECONDS[1]:g} seconds"
        said = said_by(error) if isinstance(error, OSError) else reason(error)
        return said.replace(self._address, self.name)

    def _put(self, frame: Frame) -> None:
        with self._changed:
            if len(self._waiting) == QUEUE:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append(frame)
            self._changed.notify_all()

    def _connect(self) -> Any:
        av = library(self.name)
        if _CAMERA.fullmatch(self._address):
            return av.open(self._address, format="v4l2", timeout=_SECONDS)
        return av.open(self._address, container_options=_OPTIONS, timeout=_SECONDS, metadata_errors="replace")


class LiveReader(Reader):
    """Reads the live sources that are open.

    Examples
    --------
    >>> LiveReader().recognises("rtsp://camera.local/line1")
    False
    """

    suffixes: frozenset[str] = frozenset()

    def recognises(self, path: str) -> bool:
        """Return whether a path is the name of an open source."""
        return path in _open

    def frames(self, path: str) -> Iterator[Frame]:
        """Yield the frames of an open source until it ends."""
        yield from _open[path].frames()

    def open(self, path: str, number: int = 1) -> Image.Image | Deep:
        """Return a frame that was given out a moment ago."""
        return _open[path].again(number)


def _number_of(frame: Frame) -> int:
    return int(str(frame.id).rpartition("#")[2])


def _public(address: str) -> str:
    """Return the name of a source, without what only its owner should know."""
    if _CAMERA.fullmatch(address):
        return f"camera:{os.path.basename(address)}"
    try:
        parts = urlsplit(address)
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:
        parts, port = urlsplit(""), ""
    if parts.scheme.lower() not in SCHEMES or not parts.hostname:
        raise AnomalyCLIPError(
            f"live source {re.sub('//.*@', '//', address)}: expected an address such as rtsp://camera/stream (one of "
            f"{', '.join(SCHEMES)}), or a camera such as /dev/video0"
        )
    return f"{parts.scheme.lower()}://{parts.hostname}{port}{parts.path}"
