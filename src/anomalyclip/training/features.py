"""Cache of frozen features on disk: each image is encoded only once, however often it is used for training.

A folder has the features for one set of weights and settings (`FeatureKey`): one file per image, named by the image's
content. There is no other index, so a partial folder can be completed, and several processes can fill one folder.
An interrupted write leaves no partial file, and a checksum detects damage.
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
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anomalyclip.addresses import Address
from anomalyclip.clip_core import ClipCore
from anomalyclip.depth import Range, Scale
from anomalyclip.engines.torch import TorchScorer
from anomalyclip.errors import AnomalyCLIPError, InputError, concerning
from anomalyclip.files import open_output, replacing, writing
from anomalyclip.images import squash
from anomalyclip.readers import open_deep
from anomalyclip.training.samples import OnUnreadable, TrainingImage

PREPROCESSING = 1
"""Version of the preprocessing from image files to pixels (`anomalyclip.images`); raise it when that changes."""

DTYPES = ("float16", "float32")

_HEADER = 128  # bytes of a .npy header of these shapes
_CHECKSUM = 4  # bytes
_STALE = 3600  # seconds; older temporary files are left over from killed processes


@dataclass(frozen=True)
class FeatureKey:
    """Everything except the image's content that determines its features.

    Attributes
    ----------
    weights : str
        `anomalyclip.clip.weights.fingerprint`.
    image_size : int
        Side in pixels.
    layers : tuple of int
        Blocks whose patch features are stored.
    dpam_layers : int
        Number of final blocks with the local path.
    dtype : {"float16", "float32"}
        Type of the stored numbers.
    precision : str
        Precision of the encoder's matrix products.
    preprocessing : int
        `PREPROCESSING`.
    value_range : (float, float), optional
        The values that become black and white in images of more than 8 bits; without it such images are refused unless
        their files say it, for what is assumed from one image must not decide the features of another.
    kind : str
        What else tells them from the features of AnomalyCLIP's prompts; empty for these.
    """

    weights: str
    image_size: int
    layers: tuple[int, ...]
    dpam_layers: int
    dtype: str = "float16"
    precision: str = "fp32"
    preprocessing: int = PREPROCESSING
    value_range: Range | None = None
    kind: str = ""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise AnomalyCLIPError(f"feature type {self.dtype!r}: expected {' or '.join(DTYPES)}")

    def folder_name(self) -> str:
        """Return 16 hex digits that identify the key."""
        return hashlib.sha256(json.dumps(self.facts(), sort_keys=True).encode()).hexdigest()[:16]

    def facts(self) -> dict[str, Any]:
        """Return the key, JSON-ready; what is not used is left out, so that older features are found."""
        return {name: value for name, value in asdict(self).items() if value is not None and value != ""}


class FeatureStore:
    """Features of images, stored in a folder.

    Parameters
    ----------
    root : Path
        The parent folder for all keys; a subfolder for this key is created on the first write.
    scorer : TorchScorer
        The encoder, with image size, layers and DPAM layers.
    weights : str
        Fingerprint of its weights.
    dtype : {"float16", "float32"}
        Type of the stored numbers. Half precision changes a cosine by less than 1e-4 and halves the space.
    value_range : (float, float), optional
        See `FeatureKey`.
    activation : str, optional
        The backbone's, if it is not the one that its weights were trained with.
    on_damage : callable
        Called with a message when a file is damaged; the image is then encoded again.

    Raises
    ------
    AnomalyCLIPError
        `dtype` is unknown.
    """

    def __init__(
        self,
        root: Path,
        scorer: TorchScorer,
        *,
        weights: str,
        dtype: str = "float16",
        value_range: Range | None = None,
        activation: str | None = None,
        on_damage: Callable[[str], None],
    ) -> None:
        core = scorer.core
        assert isinstance(core, ClipCore)
        self._core = core
        self.key = FeatureKey(
            weights,
            core.image_size,
            core.layers,
            core.taps.path.blocks,
            dtype,
            scorer.precision,
            value_range=value_range,
            kind=" ".join(filter(None, [core.row_kind, activation])),
        )
        self._scale = Scale(value_range, strict=True)
        self.folder = root / self.key.folder_name()
        self.scorer = scorer
        self._on_damage = on_damage
        self.grid = core.patch_grid
        """Side of a map in patches."""
        self._stored_shape = (2 + len(core.layers) * self.grid**2, core.row_width)

    @property
    def record_bytes(self) -> int:
        """Size of one image's file."""
        return _HEADER + math.prod(self._stored_shape) * np.dtype(self.key.dtype).itemsize + _CHECKSUM

    def path(self, image: TrainingImage) -> Path:
        """Return the file of an image's features, which may not exist."""
        return self.folder / image.digest[:2] / f"{image.digest}.npy"

    def missing(self, images: Iterable[TrainingImage]) -> list[TrainingImage]:
        """Return the images without features; images with equal content are listed once."""
        unique = {image.digest: image for image in images}
        return [image for image in unique.values() if not self._is_whole_size(self.path(image))]

    def _is_whole_size(self, path: Path) -> bool:
        try:
            return path.stat().st_size == self.record_bytes
        except OSError:
            return False

    def check_room(self, count: int) -> None:
        """Raise `AnomalyCLIPError` unless the disk has space for the features of this many images."""
        folder = next(parent for parent in (self.folder, *self.folder.parents) if parent.exists())
        needed, free = count * self.record_bytes, shutil.disk_usage(folder).free
        if needed > free:
            raise AnomalyCLIPError(
                f"{self.folder}: the features of {count} images need {readable_size(needed)}, but only "
                f"{readable_size(free)} are free: free some space, or choose another disk with --cache"
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
            Called with an image that cannot be used and the error; the other images are still encoded.
        advance : callable
            Called after each image, whether it was encoded or not.
        stop : callable
            Called before each image; if it returns true, encoding stops.

        Returns
        -------
        set of str
            The digests of the images that cannot be used.

        Raises
        ------
        AnomalyCLIPError
            There is not enough space, or the folder cannot be written to.
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
        """Create the folder and its description, and remove half-written files of killed processes."""
        about = self.folder / "key.json"
        with writing(about), replacing(about) as temporary:
            temporary.write_text(json.dumps(self.key.facts(), indent=1) + "\n")
        for leftover in self.folder.glob("*/.*.tmp"):
            if time.time() - leftover.stat().st_mtime > _STALE:
                leftover.unlink(missing_ok=True)

    def encode(self, path: Path | Address) -> NDArray[np.float32]:
        """Return an image's features, (1 + L * N, W) float32: the image's, then N patches for each layer.

        What they are the core says (`anomalyclip.clip_core.ClipCore.rows`).

        Images are encoded one by one, so that an image's features do not depend on the other images in a batch: an
        interrupted run gets exactly the same bits.
        """
        with concerning(path, "cannot be made ready for the model"):
            image, _ = self._scale(open_deep(path), name=str(path))
            pixels = np.stack([squash(image, self.scorer.image_size)])  # 1 S S 3
        with torch.inference_mode():
            found = self._core.rows(self.scorer.features(pixels))[0]  # 1+LN W
        rows: NDArray[np.float32] = found.cpu().numpy()
        if not np.isfinite(rows).all():
            raise AnomalyCLIPError(
                f"{path}: its features are NaN or infinite: the weights are damaged, or half precision overflows"
            )
        return rows

    def _write(self, path: Path, rows: NDArray[np.float32]) -> None:
        # The image loss depends on a single row, which is therefore stored as two: its value and the rounding error.
        image = rows[:1].astype(self.key.dtype)
        residual = rows[:1] - image
        array = np.concatenate([image, residual, rows[1:]], dtype=self.key.dtype, casting="same_kind")
        # No fsync: a killed process loses nothing, and after a power failure the checksum detects lost data.
        with writing(path), replacing(path) as temporary, open_output(temporary) as file:
            np.save(file, array)
            file.write(zlib.crc32(array.data).to_bytes(_CHECKSUM, "little"))

    def read(self, image: TrainingImage) -> NDArray[np.float32]:
        """Return an image's features as `encode` does; a damaged or missing file is made again.

        Raises
        ------
        AnomalyCLIPError
            The file had to be made again, but this failed.
        """
        path = self.path(image)
        rows = self._read_whole(path)
        if rows is None:
            self._on_damage(f"{path}: damaged or missing; encoding {image.path} again")
            self._write(path, self.encode(image.path))
            rows = self._read_whole(path)
            if rows is None:
                raise AnomalyCLIPError(
                    f"{path}: damaged again after it was rewritten: choose another disk with --cache"
                )
        return rows

    def _read_whole(self, path: Path) -> NDArray[np.float32] | None:
        """Return a file's features if its checksum is right; the memory map is closed, so its pages are not kept."""
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
    """Return a number of bytes in readable form.

    Examples
    --------
    >>> readable_size(3_640_000_000), readable_size(57_000)
    ('3.6 GB', '57.0 kB')
    """
    unit, scale = next((pair for pair in (("GB", 1e9), ("MB", 1e6)) if size >= pair[1]), ("kB", 1e3))
    return f"{size / scale:.1f} {unit}"
