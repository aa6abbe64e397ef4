"""Frozen features on disk: each image goes through the encoder once, whatever is learned from it afterwards.

A folder holds the features that one set of weights and settings gives (`FeatureKey`), one file an image, named by the
image's content. The files are the index: a partial folder is completed, several processes may fill one folder, a file
appears whole or not at all, and its checksum tells whether it still is.
"""

import hashlib
import json
import math
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from anomalyclip.clip_core import TextCore
from anomalyclip.engines.torch import TorchScorer
from anomalyclip.errors import AnomalyCLIPError, InputError, concerning
from anomalyclip.files import replacing, writing
from anomalyclip.images import squash
from anomalyclip.readers import open_image
from anomalyclip.training.samples import OnUnreadable, TrainingImage

PREPROCESSING = 1
"""Version of the way from image files to pixels (`anomalyclip.images`): to be raised when that changes."""

DTYPES = ("float16", "float32")

_HEADER = 128  # bytes of a .npy header of these shapes
_CHECKSUM = 4  # bytes
_STALE = 3600  # seconds after which a temporary file is a leftover of a killed process


@dataclass(frozen=True)
class FeatureKey:
    """All that determines an image's features besides its content.

    Attributes
    ----------
    weights : str
        `anomalyclip.clip.weights.fingerprint`.
    image_size : int
        Side in pixels.
    layers : tuple of int
        Blocks whose patch features are kept.
    dpam_layers : int
        Final blocks with the local path.
    dtype : {"float16", "float32"}
        Of the kept numbers.
    precision : str
        Of the encoder's matrix products.
    preprocessing : int
        `PREPROCESSING`.
    """

    weights: str
    image_size: int
    layers: tuple[int, ...]
    dpam_layers: int
    dtype: str = "float16"
    precision: str = "fp32"
    preprocessing: int = PREPROCESSING

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise AnomalyCLIPError(f"feature type {self.dtype!r}: expected {' or '.join(DTYPES)}")

    def folder_name(self) -> str:
        """Return 16 hex digits that are the same exactly if the key is."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


class FeatureStore:
    """Features of images, kept in a folder.

    Parameters
    ----------
    root : Path
        Where the folders of all keys are; this one's is made below it when it is first written to.
    scorer : TorchScorer
        The encoder, with image size, layers and DPAM length.
    weights : str
        Fingerprint of its weights.
    dtype : {"float16", "float32"}
        Of the kept numbers. Half precision changes a cosine by less than 1e-4 and halves the space.
    on_damage : callable
        Called with a message when a file is found damaged; it is then encoded again.

    Raises
    ------
    AnomalyCLIPError
        Another `dtype`.
    """

    def __init__(
        self,
        root: Path,
        scorer: TorchScorer,
        *,
        weights: str,
        dtype: str = "float16",
        on_damage: Callable[[str], None],
    ) -> None:
        core = scorer.core
        assert isinstance(core, TextCore)
        self._core = core
        self.key = FeatureKey(
            weights, core.image_size, core.layers, core.dpam_layers, dtype, scorer.precision
        )
        self.folder = root / self.key.folder_name()
        self.scorer = scorer
        self._on_damage = on_damage
        self.grid = core.image_size // core.config.patch_size
        """Side of a map in patches."""
        self._stored_shape = (2 + len(core.layers) * self.grid**2, core.config.embed_dim)

    @property
    def record_bytes(self) -> int:
        """Size of one image's file."""
        return _HEADER + math.prod(self._stored_shape) * np.dtype(self.key.dtype).itemsize + _CHECKSUM

    def path(self, image: TrainingImage) -> Path:
        """Return the file of an image's features, which may not exist."""
        return self.folder / image.digest[:2] / f"{image.digest}.npy"

    def missing(self, images: Iterable[TrainingImage]) -> list[TrainingImage]:
        """Return the images without features, each content once."""
        unique = {image.digest: image for image in images}
        return [image for image in unique.values() if not self._is_whole_size(self.path(image))]

    def _is_whole_size(self, path: Path) -> bool:
        try:
            return path.stat().st_size == self.record_bytes
        except OSError:
            return False

    def check_room(self, count: int) -> None:
        """Raise `AnomalyCLIPError` unless the disk has room for the features of so many images."""
        folder = next(parent for parent in (self.folder, *self.folder.parents) if parent.exists())
        needed, free = count * self.record_bytes, shutil.disk_usage(folder).free
        if needed > free:
            raise AnomalyCLIPError(
                f"{self.folder}: the features of {count} images need {readable_size(needed)}, and "
                f"{readable_size(free)} are free: make room, or choose another disk with --cache"
            )

    def fill(
        self,
        images: Sequence[TrainingImage],
        *,
        on_error: OnUnreadable,
        advance: Callable[[], None] = lambda: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> set[str]:
        """Encode the images that have no features yet.

        Parameters
        ----------
        images : sequence of TrainingImage
        on_error : callable
            Called with an image that cannot be used and the error; the rest goes on.
        advance : callable
            Called after each image that was encoded, or could not be.
        stop : callable
            Asked before each image; true ends the work early.

        Returns
        -------
        set of str
            The digests of those that cannot be used.

        Raises
        ------
        AnomalyCLIPError
            No room, or the folder cannot be written to.
        """
        missing = self.missing(images)
        self.check_room(len(missing))
        failed = set()
        if missing:
            self._begin()
        for image in missing:
            if stop():
                break
            try:
                self._write(self.path(image), self.encode(image.path))
            except InputError as error:
                failed.add(image.digest)
                on_error(image.path, error)
            advance()
        return failed

    def _begin(self) -> None:
        """Make the folder, say in it what it is, and clear what killed processes left half-written."""
        about = self.folder / "key.json"
        with writing(about), replacing(about) as temporary:
            temporary.write_text(json.dumps(asdict(self.key), indent=1) + "\n")
        for leftover in self.folder.glob("*/.*.tmp"):
            if time.time() - leftover.stat().st_mtime > _STALE:
                leftover.unlink(missing_ok=True)

    def encode(self, path: Path) -> NDArray[np.float32]:
        """Return an image's features, each normalised, (1 + L * N, E) float32: its own, then every layer's N patches.

        Images are encoded one by one, so that the features of one do not depend on which others went with it: a run
        that was interrupted finds the same bits.
        """
        with concerning(path, "cannot be made ready for the model"):
            pixels = np.stack([squash(open_image(path), self.scorer.image_size)])  # 1 S S 3
        with torch.inference_mode():
            features = self._core.features(self.scorer.features(pixels))
            layers = [features.patches[layer][0, 1:] for layer in self.key.layers]  # L of N E
            rows = torch.cat([features.image, *layers]).float()  # 1+LN E
            normalised: NDArray[np.float32] = F.normalize(rows, dim=-1).cpu().numpy()
        if not np.isfinite(normalised).all():
            raise AnomalyCLIPError(
                f"{path}: its features are not finite: the weights or the precision do not do"
            )
        return normalised

    def _write(self, path: Path, rows: NDArray[np.float32]) -> None:
        # The image loss hangs on one row alone, which is therefore kept in two: its value and what rounding took.
        image = rows[:1].astype(self.key.dtype)
        residual = rows[:1] - image
        array = np.concatenate([image, residual, rows[1:]], dtype=self.key.dtype, casting="same_kind")
        # No fsync: a killed process loses nothing, and after a power cut the checksum finds what was lost.
        with writing(path), replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, array)
            file.write(zlib.crc32(array.data).to_bytes(_CHECKSUM, "little"))

    def read(self, image: TrainingImage) -> NDArray[np.float32]:
        """Return an image's features as `encode` does; a damaged or missing file is made anew.

        Raises
        ------
        AnomalyCLIPError
            They had to be made anew, and could not be.
        """
        path = self.path(image)
        rows = self._read_whole(path)
        if rows is None:
            self._on_damage(f"{path}: damaged or gone; encoding {image.path} again")
            self._write(path, self.encode(image.path))
            rows = self._read_whole(path)
            if rows is None:
                raise AnomalyCLIPError(
                    f"{path}: damaged again after it was written: choose another disk with --cache"
                )
        return rows

    def _read_whole(self, path: Path) -> NDArray[np.float32] | None:
        """Return a file's features if it is what was written. The mapping ends here: its pages do not add up."""
        if not self._is_whole_size(path):
            return None
        try:
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
            checksum = np.fromfile(path, dtype="<u4", offset=self.record_bytes - _CHECKSUM)[0]
        except Exception:  # what a damaged header raises depends on the damage
            return None
        if (
            stored.shape != self._stored_shape
            or stored.dtype != self.key.dtype
            or zlib.crc32(stored.data) != checksum
        ):
            return None
        rows: NDArray[np.float32] = stored[1:].astype(np.float32)
        rows[0] += stored[0]
        return rows


def readable_size(size: float) -> str:
    """Return a number of bytes as people read it.

    Examples
    --------
    >>> readable_size(3_640_000_000), readable_size(57_000)
    ('3.6 GB', '57.0 kB')
    """
    unit, scale = next((pair for pair in (("GB", 1e9), ("MB", 1e6)) if size >= pair[1]), ("kB", 1e3))
    return f"{size / scale:.1f} {unit}"
