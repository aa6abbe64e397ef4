"""Small pictures of a run's most anomalous images, kept in its folder while others come and go."""

import hashlib
import os
from bisect import insort
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from anomalyclip.decoders import unsaid
from anomalyclip.files import replacing, writing
from anomalyclip.overview.summary import SHOWN, Entry, summarize
from anomalyclip.prediction import Prediction
from anomalyclip.readers import open_image
from anomalyclip.reference_pictures import finding, jpeg
from anomalyclip.visualize import overlay
from anomalyclip.visualize.overlays import fitted

FOLDER = ".thumbnails"
SIDE = 192
"""Longest side of the photograph in a thumbnail, in pixels."""

_QUALITY = 80


class Thumbnails:
    """Keeps a thumbnail of each of the most anomalous images: the photograph, and beside it the overlay, in one JPEG.

    An image's thumbnail is written before its line, and one that is no longer needed is deleted after it, so that a run
    that is killed in between lacks none.

    Parameters
    ----------
    folder : Path
        Of the run. What its lines name is taken up.
    shown : int
        How many to keep.
    draw : callable
        (photograph, prediction) to overlay, of the photograph's size.
    pictures : sequence of bytes
        Small JPEG pictures of references, by their numbers: a finding that was compared with one of them also gets a
        picture of both places side by side.
    """

    def __init__(
        self,
        folder: Path,
        *,
        shown: int = SHOWN,
        draw: Callable[[Image.Image, Prediction], Image.Image] = overlay,
        pictures: Sequence[bytes] = (),
    ) -> None:
        self._folder, self._shown, self._draw, self._pictures = folder, shown, draw, pictures
        self._best: list[Entry] = summarize(folder, shown=shown).top
        kept = {path for entry in self._best for path in _paths_of(folder, entry.image_path)}
        for file in (folder / FOLDER).glob("*"):
            if file not in kept:
                file.unlink()

    def wants(self, prediction: Prediction) -> bool:
        """Return whether an image is among the most anomalous so far."""
        return len(self._best) < self._shown or _entry(prediction) < self._best[-1]

    def draw(self, prediction: Prediction) -> Image.Image | None:
        """Write an image's thumbnail; an image that cannot be opened or drawn again has none.

        Returns
        -------
        PIL.Image.Image or None
            The image.

        Raises
        ------
        AnomalyCLIPError
            The thumbnail cannot be written.
        """
        try:
            with unsaid():
                image = open_image(prediction.image_path or "", value_range=prediction.value_range)
            contents = _encoded(image, prediction, self._draw), self._beside(image, prediction)
        except Exception:  # the image was scored, and its picture is not its result
            return None
        for path, content in zip(_paths_of(self._folder, str(prediction.image_path)), contents, strict=True):
            if content:
                with writing(path), replacing(path) as temporary:
                    temporary.write_bytes(content)
        return image

    def _beside(self, image: Image.Image, prediction: Prediction) -> bytes:
        """Return the place of a finding beside that of a reference, as JPEG; nothing without references."""
        both = finding(image, prediction.nearest, self._pictures)
        return b"" if both is None else jpeg(both, _QUALITY)

    def settle(self, prediction: Prediction) -> None:
        """Take note that an image has its line; the thumbnail of the one that it displaced is deleted."""
        if self.wants(prediction):
            insort(self._best, _entry(prediction))
            for entry in self._best[self._shown :]:
                for path in _paths_of(self._folder, entry.image_path):
                    path.unlink(missing_ok=True)
            del self._best[self._shown :]


def path_of(folder: Path, image_path: str) -> Path:
    """Return where an image's thumbnail is."""
    return folder / FOLDER / f"{hashlib.sha256(os.fsencode(image_path)).hexdigest()[:24]}.jpg"


def beside_path_of(folder: Path, image_path: str) -> Path:
    """Return where the picture of an image's finding beside its reference is."""
    return path_of(folder, image_path).with_suffix(".beside.jpg")


def _paths_of(folder: Path, image_path: str) -> tuple[Path, Path]:
    return path_of(folder, image_path), beside_path_of(folder, image_path)


def halves(thumbnail: Image.Image) -> list[Image.Image]:
    """Return the photograph and the overlay of a thumbnail."""
    middle = thumbnail.width // 2
    return [thumbnail.crop((left, 0, left + middle, thumbnail.height)) for left in (0, middle)]


def _entry(prediction: Prediction) -> Entry:
    return Entry(-prediction.pred_score, str(prediction.image_path), prediction.pred_label, None)


def _encoded(
    image: Image.Image, prediction: Prediction, draw: Callable[[Image.Image, Prediction], Image.Image]
) -> bytes:
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    small = image.resize(fitted(image.size, SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0).convert("RGB")
    both = Image.new("RGB", (2 * small.width, small.height))
    both.paste(small, (0, 0))
    both.paste(draw(small, prediction), (small.width, 0))
    return jpeg(both, _QUALITY)
