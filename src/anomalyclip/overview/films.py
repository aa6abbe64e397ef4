"""Videos of what was found: the frames with their maps over them, at the times of the original.

VP9 in WebM: free of royalties, played by browsers and by all common players, and with a time stamp for each frame, so
that a variable frame rate is kept. It is written by libvpx through PyAV.
"""

from collections.abc import Callable
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from anomalyclip.files import replacing, writing
from anomalyclip.prediction import Prediction
from anomalyclip.readers import open_image
from anomalyclip.readers.video import library
from anomalyclip.writers import safe_name, without_ending

FOLDER, ENDING = "videos", ".webm"

_CODEC = "libvpx-vp9"
_OPTIONS = {"deadline": "realtime", "cpu-used": "7", "crf": "28", "row-mt": "1"}
_UNIT = Fraction(1, 1000)
"""WebM counts milliseconds."""


class Films:
    """Writes one video per video that is scored; frames come in order, one video after the other.

    Parameters
    ----------
    folder : Path
        Of the run.
    draw : callable
        (image, prediction) to the picture that is shown.

    Attributes
    ----------
    files : dict
        What was written, by the path of the video.
    """

    def __init__(self, folder: Path, draw: Callable[[Image.Image, Prediction], Image.Image]) -> None:
        self.files: dict[str, str] = {}
        self._folder, self._draw = folder, draw
        self._path: str | None = None
        self._open: ExitStack | None = None
        self._film: _Film | None = None

    def add(self, prediction: Prediction, image: Image.Image | None, *, path: str, name: str) -> None:
        """Add a frame.

        Parameters
        ----------
        prediction : Prediction
            Of a frame, with its time.
        image : PIL.Image.Image, optional
            The frame. None: it is opened again.
        path : str
            Of the video.
        name : str
            What the file is called after.

        Raises
        ------
        AnomalyCLIPError
            The file cannot be written.
        """
        assert prediction.time is not None
        if image is None:
            image = open_image(str(prediction.image_path), value_range=prediction.value_range)
        if path != self._path:
            self._begin(path, name)
        assert self._film is not None
        with writing(self._target(path)):
            self._film.add(self._draw(image, prediction), prediction.time)

    def close(self) -> None:
        """Complete the video that is being written."""
        if self._open is not None and self._path is not None:
            opened, self._open = self._open, None
            with writing(self._target(self._path)):
                opened.close()
        self._path = None

    def _begin(self, path: str, name: str) -> None:
        self.close()
        whole = safe_name(name)
        file = f"{FOLDER}/{without_ending(whole)}{ENDING}"
        if file in self.files.values():
            file = f"{FOLDER}/{whole}{ENDING}"
        self.files[path], self._path = file, path
        with writing(self._target(path)), ExitStack() as stack:
            temporary = stack.enter_context(replacing(self._target(path)))
            self._film = stack.enter_context(_Film(temporary))
            self._open = stack.pop_all()

    def _target(self, path: str) -> Path:
        return self._folder / self.files[path]


class _Film:
    """A video file that is being written."""

    def __init__(self, file: Path) -> None:
        self._container = library(str(file)).open(f"file:{file}", "w", format="webm")
        self._stream: Any = None
        self._last = -1

    def __enter__(self) -> "_Film":
        return self

    def __exit__(self, *error: object) -> None:
        with self._container:
            if self._stream is not None:
                self._container.mux(self._stream.encode())

    def add(self, picture: Image.Image, seconds: float) -> None:
        if self._stream is None:
            self._stream = self._container.add_stream(_CODEC, options=dict(_OPTIONS))
            self._stream.width, self._stream.height = picture.size
            self._stream.pix_fmt, self._stream.bit_rate = "yuv420p", 0
            self._stream.time_base = self._stream.codec_context.time_base = _UNIT
        if picture.size != (self._stream.width, self._stream.height):  # a camera may change its mind
            picture = picture.resize((self._stream.width, self._stream.height))
        frame = library("video").VideoFrame.from_image(picture)
        self._last = frame.pts = max(round(seconds / _UNIT), self._last + 1)
        frame.time_base = _UNIT
        self._container.mux(self._stream.encode(frame))
