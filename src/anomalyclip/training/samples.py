"""Training images: files identified by their content, and an identity for the whole set."""

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anomalyclip.addresses import Address
from anomalyclip.data.identity import content_digest
from anomalyclip.data.meta import SampleList
from anomalyclip.errors import AnomalyCLIPError, InputError
from anomalyclip.images import read_mask

OnUnreadable = Callable[[Path | Address, InputError], None]


@dataclass(frozen=True)
class TrainingImage:
    """One training image.

    Attributes
    ----------
    path : Path or Address
        The image file.
    mask : Path, Address or None
        Its defect mask, if it has one.
    class_name : str
        The object it shows.
    anomaly : bool
        Whether it is anomalous.
    digest, mask_digest : str
        SHA-256 of the files' contents, in hex; empty without a mask.
    """

    path: Path | Address
    mask: Path | Address | None
    class_name: str
    anomaly: bool
    digest: str
    mask_digest: str = ""

    @property
    def has_mask(self) -> bool:
        """Whether the label of every pixel is known: a normal image needs no mask for that."""
        return self.mask is not None or not self.anomaly


def identify(samples: SampleList, *, on_error: OnUnreadable) -> list[TrainingImage]:
    """Read every file of a sample list once and identify it by its content.

    Parameters
    ----------
    samples : SampleList
        From `anomalyclip.data.listing.load_samples`.
    on_error : callable
        Called with a file that is missing or cannot be read and the error; its sample is skipped.

    Returns
    -------
    list of TrainingImage
        In the order of `samples`.
    """

    def one(index: int) -> TrainingImage | InputError:
        sample = samples[index]
        path = samples.root / sample.image
        mask = samples.root / sample.mask if sample.mask is not None else None
        try:
            digests = content_digest(path), content_digest(mask) if mask is not None else ""
            if mask is not None:
                read_mask(mask)  # found damaged now, it costs one sample; in the middle of training, the run
        except InputError as error:
            return error
        return TrainingImage(path, mask, sample.class_name, sample.anomaly, *digests)

    for gone in samples.missing:
        path = samples.root / gone.path
        on_error(path, InputError(f"{path}: {samples.source} lists it, but it does not exist"))
    with ThreadPoolExecutor(4) as pool:
        images = []
        for sample, result in zip(samples, pool.map(one, range(len(samples))), strict=True):
            if isinstance(result, InputError):
                on_error(samples.root / sample.image, result)
            else:
                images.append(result)
    return images


def split(
    images: Sequence[TrainingImage], fraction: float, *, seed: int
) -> tuple[list[TrainingImage], list[TrainingImage]]:
    """Hold out a fraction of the normal and of the anomalous images of every class.

    Parameters
    ----------
    images : sequence of TrainingImage
    fraction : float
        Fraction to hold out, within (0, 1). It is rounded to whole images for each group, and at least one image
        of each group is kept for training.
    seed : int
        Determines which images are held out.

    Returns
    -------
    training, held_out : list of TrainingImage
        Each in the order of `images`.

    Raises
    ------
    AnomalyCLIPError
        The fraction is not within (0, 1), or nothing would be held out.

    Examples
    --------
    >>> images = [TrainingImage(Path(f"{i}.png"), None, "nut", i > 4, f"{i}") for i in range(10)]
    >>> training, held_out = split(images, 0.2, seed=0)
    >>> len(training), sorted(image.anomaly for image in held_out)
    (8, [False, True])
    """
    if not 0 < fraction < 1:
        raise AnomalyCLIPError(
            f"validation fraction {fraction}: expected a number between 0 and 1, such as 0.2"
        )
    random = np.random.default_rng(seed)
    groups: dict[tuple[str, bool], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault((image.class_name, image.anomaly), []).append(index)
    held: set[int] = set()
    for group in groups.values():
        count = min(round(fraction * len(group)), len(group) - 1)
        held.update(random.permutation(group)[:count].tolist())
    if not held:
        raise AnomalyCLIPError(
            f"validation fraction {fraction} of {len(images)} images holds out none: raise it, or give another data set"
        )
    return (
        [image for index, image in enumerate(images) if index not in held],
        [image for index, image in enumerate(images) if index in held],
    )


def order_fingerprint(images: Sequence[TrainingImage]) -> str:
    """Return a hash, 64 hex digits, of the images' contents, masks, labels and order."""
    facts = [(image.digest, image.mask_digest, image.anomaly) for image in images]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
