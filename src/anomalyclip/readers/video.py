"""Videos: their frames upright, with the times that the stream gives them.

Times are the stream's own time stamps, in seconds from its start as players show them; they are never counted from a
frame rate, which cameras change. Files are decoded by PyAV (FFmpeg). What is in a file cannot lead anywhere else: no
playlists are opened, and no other files or addresses.
"""

import math
import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from anomalyclip.depth import Deep
from anomalyclip.errors import InputError
from anomalyclip.readers.base import Frame, Reader
from anomalyclip.readers.selection import Selection, parted
from anomalyclip.readers.spacing import square, square_size

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,asf,flv,ogg"
"""FFmpeg's names of the kinds of files that are opened; playlists are not among them, for they name other files."""

_SAFE = {"protocol_whitelist": "file", "format_whitelist": FORMATS}

_PICTURES = (b"avif", b"avis", b"heic", b"heix", b"heif", b"mif1", b"msf1", b"jpx ", b"jp2 ")
"""Brands of files that begin like videos."""

_BEGINNINGS = (b"\x1a\x45\xdf\xa3", b"\0\0\1\xba", b"FLV\1", b"\x30\x26\xb2\x75")
"""Matroska and WebM, MPEG, Flash, Windows Media."""

_SYNC = 0x47
"""With which every packet of an MPEG transport stream begins."""

_PACKETS = ((0, 188), (4, 192))
"""Where the first packet begins, and how long packets are: broadcast, and discs and camcorders."""

_MEASURED = ("mpegts", "mpeg")
"""Formats that do not say how long they are: FFmpeg guesses it from the end of the file."""

_MICRO = 1_000_000
"""FFmpeg's units of a file's times per second."""


class VideoReader(Reader):
    """Reads the frames of videos; which ones, ``#every=0.5s`` or ``#every=10`` in the path says.

    Examples
    --------
    >>> VideoReader().recognises("missing.mp4#every=10")
    False
    """

    suffixes = frozenset(
        {
            ".mp4",
            ".m4v",
            ".mov",
            ".mkv",
            ".webm",
            ".avi",
            ".mpg",
            ".mpeg",
            ".mts",
            ".m2ts",
            ".wmv",
            ".flv",
            ".ogv",
        }
    )

    def __init__(self) -> None:
        self._cursor: _Cursor | None = None
        self._lock = Lock()

    def recognises(self, path: str) -> bool:
        """Return whether a path selects frames of a video, or a file begins as one does."""
        file, selection = parted(path)
        named = file.lower().endswith(tuple(self.suffixes))
        if selection != Selection() and named:
            return os.path.isfile(file)
        try:
            with open(file, "rb") as content:
                return _begins_as_video(content.read(400))
        except OSError:
            return False

    def select(self, path: str, selection: Selection) -> str:
        """Return the path of the frames that are wanted of a video."""
        if parted(path)[1] != Selection():
            return path
        return f"{path}{Selection(every=selection.every)}"

    def frames(self, path: str) -> Iterator[Frame]:
        """Yield the frames of a file in order; what is damaged is left out and said at the end."""
        file, selection = parted(path)
        if selection.axis is not None:
            raise InputError(f"{path}: a video has no axis; expected every=10 or every=0.5s")
        wanted = selection.picker(file)
        with opened(file) as container:
            decoding = Decoding(container, file)
            for number, time, frame in decoding:
                if wanted(number - 1, time):
                    yield Frame(f"{file}#{number}", picture(frame, decoding.stream), time)
            decoding.complain()

    def open(self, path: str, number: int = 1) -> Image.Image | Deep:
        """Return one frame; the next ones are opened fastest in their order."""
        file, _ = parted(path)
        with self._lock:
            if self._cursor is None or not self._cursor.reaches(file, number):
                self._cursor = _Cursor(file)
            image = self._cursor.go_to(number)
        if image is None:
            raise InputError(f"{path}#{number}: the file holds fewer images")
        return image

    def size(self, path: str, number: int = 1) -> tuple[int, int]:
        """Return (width, height) of one frame."""
        return self.open(path, number).size


class _Cursor:
    """A video that is open at a frame, for whoever opens one frame after the other."""

    def __init__(self, file: str) -> None:
        self._version = _version(file)
        self._decoded = _decoded(file)
        self._number = 0
        self._image: Image.Image | Deep | None = None

    def reaches(self, file: str, number: int) -> bool:
        return self._version == _version(file) and number >= self._number

    def go_to(self, number: int) -> Image.Image | Deep | None:
        """Return a frame that is not before the one before; None if there is none."""
        while self._number < number:
            found = next(self._decoded, None)
            if found is None:
                return None
            self._number, self._draw = found
            self._image = None
        if self._number > number:  # it was damaged
            return None
        if self._image is None:
            self._image = self._draw()
        return self._image


def _version(file: str) -> tuple[str, int, int]:
    status = os.stat(file)
    return file, status.st_mtime_ns, status.st_size


def _decoded(file: str) -> Iterator[tuple[int, Callable[[], Image.Image | Deep]]]:
    with opened(file) as container:
        decoding = Decoding(container, file)
        for number, _, frame in decoding:
            yield number, partial(picture, frame, decoding.stream)


class Decoding:
    """The frames of an opened video or stream that are not damaged, with their numbers (from 1) and times.

    Parameters
    ----------
    container : av.container.InputContainer
        See `opened`.
    name : str
        Of the video, for messages.

    Attributes
    ----------
    stream : av.video.stream.VideoStream
        What is decoded.
    damaged : int
        Packets and frames that were left out so far.
    seconds : float
        Time of the last frame.
    broken : str
        Why nothing more can be read; empty if the end was reached, or is still to come.

    Raises
    ------
    InputError
        There are no pictures in it.
    """

    def __init__(self, container: Any, name: str) -> None:
        self.stream = container.streams.best("video")
        if self.stream is None:
            raise InputError(f"{name}: no pictures in this video, or it is cut off before its index")
        self._container, self._name = container, name
        size = self.stream.codec_context.width, self.stream.codec_context.height
        _require_moderate(*size)
        limit = 2 * (Image.MAX_IMAGE_PIXELS or math.inf)
        if math.isfinite(limit):
            self.stream.codec_context.options = {"max_pixels": str(int(limit))}
        start = container.start_time
        self._start = None if start is None else Fraction(start, _MICRO)
        self._end = Fraction(0)
        self.seconds, self._first_damaged, self.broken = 0.0, 0.0, ""
        self.damaged = 0

    def __iter__(self) -> Iterator[tuple[int, float, Any]]:
        number = 0
        for packet in self._packets():
            for frame in self._frames_of(packet):
                number += 1
                if frame.is_corrupt:
                    self._leave_out()
                    continue
                self.seconds = self._time_of(frame)
                yield number, self.seconds, frame

    def complain(self) -> None:
        """Say what was left out, and whether the end is missing.

        Raises
        ------
        InputError
            Something was.
        """
        said = []
        if self.damaged:
            what = "1 damaged frame was" if self.damaged == 1 else f"{self.damaged} damaged frames were"
            said.append(f"{what} left out, the first near {self._first_damaged:.2f} s")
        measured = self._container.format.name in _MEASURED
        promised = Fraction(0 if measured else self._container.duration or 0, _MICRO)
        missing = promised - (self._end - (self._start or 0))
        if self.broken or missing > min(Fraction(1), promised / 10) + Fraction(1, 10):
            why = f"its header says {float(promised):.2f} s" if not self.broken else self.broken
            said.append(
                f"it is cut off or damaged after {self.seconds:.2f} s ({why}); the frames before were read"
            )
        if said:
            raise InputError(f"{self._name}: {'; '.join(said)}")

    def _packets(self) -> Iterator[Any]:
        """Yield the packets of the stream; the times of all streams tell how long the file is."""
        packets = self._container.demux()
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except OSError as error:  # of FFmpeg too
                self.broken = said_by(error)
                return
            if packet.pts is not None:
                end = (packet.pts + (packet.duration or 0)) * packet.time_base
                self._end = max(self._end, end)
            if packet.stream_index == self.stream.index:
                if packet.is_corrupt:
                    self._leave_out()
                else:
                    yield packet

    def _frames_of(self, packet: Any) -> list[Any]:
        try:
            return list(packet.decode())
        except (OSError, ValueError) as error:
            if isinstance(error, EOFError):
                return []
            self._leave_out()
            return []

    def _leave_out(self) -> None:
        if not self.damaged:
            self._first_damaged = self.seconds
        self.damaged += 1

    def _time_of(self, frame: Any) -> float:
        stamp = (
            frame.dts if frame.pts is None else frame.pts
        )  # in MPEG files only some pictures have the first
        if stamp is None or frame.time_base is None:
            raise InputError(
                f"{self._name}: its frames have no time stamps; put it into a file that has them, for example MP4"
            )
        moment = stamp * frame.time_base
        if self._start is None:
            self._start = moment
        return round(float(moment - self._start), 6)


@contextmanager
def opened(file: str) -> Iterator[Any]:
    """Open a video file, and nothing that it names.

    Raises
    ------
    InputError
        It cannot be opened.
    """
    av = library(file)
    try:
        container = av.open(f"file:{file}", container_options=_SAFE, metadata_errors="replace")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file}: no video that can be opened, or cut off before its index ({said_by(error)})"
        ) from None
    with container:
        yield container


def picture(frame: Any, stream: Any) -> Image.Image | Deep:
    """Return a decoded frame upright, with square pixels; gray of more than 8 bits keeps all of them."""
    _require_moderate(frame.width, frame.height)
    ratio = stream.sample_aspect_ratio
    aspect = 1.0 if not ratio or ratio < 0 else float(1 / ratio)
    transposed, mirrored, upside_down = _orientation(frame)
    name = frame.format.name
    if name.startswith("gray") and name[4:6] in ("10", "12", "14", "16"):
        values = square(frame.to_ndarray(), aspect)
        values = values.swapaxes(0, 1) if transposed else values
        values = values[:: -1 if upside_down else 1, :: -1 if mirrored else 1]
        bits = int(name[4:6])
        return Deep(np.ascontiguousarray(values), own=None if bits == 16 else (0.0, 2.0**bits - 1))
    image: Image.Image = frame.to_image()
    image = image.resize(square_size(image.size, aspect), Image.Resampling.BILINEAR)
    for wanted, turn in (
        (transposed, Image.Transpose.TRANSPOSE),
        (mirrored, Image.Transpose.FLIP_LEFT_RIGHT),
        (upside_down, Image.Transpose.FLIP_TOP_BOTTOM),
    ):
        image = image.transpose(turn) if wanted else image
    return image


def _orientation(frame: Any) -> tuple[bool, bool, bool]:
    """Return whether rows become columns, and whether the result is then mirrored and turned upside down."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX" and len(bytes(data)) >= 36:
            a, b, _, c, d, *_ = struct.unpack("<9i" if sys.byteorder == "little" else ">9i", bytes(data)[:36])
            if abs(b) + abs(c) > abs(a) + abs(d):  # x becomes c * y, and y becomes b * x
                return True, c < 0, b < 0
            return False, a < 0, d < 0
    return False, False, False


def _require_moderate(width: int, height: int) -> None:
    if width * height > 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
        raise Image.DecompressionBombError(f"{width} x {height} pixels")


def library(name: str) -> Any:
    """Return PyAV."""
    try:
        import av
    except ImportError:
        raise InputError(f"{name}: videos need PyAV: pip install 'anomalyclip[video]'") from None
    return av


def said_by(error: Exception) -> str:
    """Return what FFmpeg says, without the name of the file."""
    return str(getattr(error, "strerror", None) or error)


def _begins_as_video(start: bytes) -> bool:
    r"""Return whether a file is a video by its first bytes.

    Examples
    --------
    >>> _begins_as_video(b"\0\0\0 ftypisom"), _begins_as_video(b"\0\0\0 ftypavif"), _begins_as_video(b"")
    (True, False, False)
    """
    if start[4:8] in (b"ftyp", b"moov", b"mdat", b"wide"):
        return start[8:12] not in _PICTURES
    if any(
        len(start) > at + 2 * step and start[at] == start[at + step] == start[at + 2 * step] == _SYNC
        for at, step in _PACKETS
    ):
        return True
    return start[:4] in _BEGINNINGS or (start[:4] == b"RIFF" and start[8:12] == b"AVI ")
