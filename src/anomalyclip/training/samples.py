"""What is learned from: image files identified by their content, and which data set that was."""

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anomalyclip.data.identity import content_digest
from anomalyclip.data.meta import SampleList
from anomalyclip.errors import AnomalyCLIPError, InputError

OnUnreadable = Callable[[Path, InputError], None]


@dataclass(frozen=True)
class TrainingImage:
    """One image to learn from.

    Attributes
    ----------
    path : Path
        The image file.
    mask : Path or None
        Its defect mask; None: there is none.
    class_name : str
        The thing that it shows.
    anomaly : bool
        Whether anything is wrong with it.
    digest, mask_digest : str
        SHA-256 of the files' contents, in hex; of no mask, empty.
    """

    path: Path
    mask: Path | None
    class_name: str
    anomaly: bool
    digest: str
    mask_digest: str = ""

    @property
    def has_mask(self) -> bool:
        """Whether every pixel's truth is known: a normal image needs no file for that."""
        return self.mask is not None or not self.anomaly


def identify(samples: SampleList, *, on_error: OnUnreadable) -> list[TrainingImage]:
    """Read every file of a sample list once and identify it by its content.

    Parameters
    ----------
    samples : SampleList
        From `anomalyclip.data.listing.load_samples`.
    on_error : callable
        Called with the file and the error where one cannot be read; that sample is left out.

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
        except InputError as error:
            return error
        return TrainingImage(path, mask, sample.class_name, sample.anomaly, *digests)

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
    """Hold out a share of every class, of its normal and of its anomalous images alike.

    Parameters
    ----------
    images : sequence of TrainingImage
    fraction : float
        Share to hold out, within (0, 1); of each group it is rounded, and at least one image is left to learn from.
    seed : int
        Decides which.

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
            f"validation fraction {fraction} of {len(images)} images holds none out: raise it, or name another data set"
        )
    return (
        [image for index, image in enumerate(images) if index not in held],
        [image for index, image in enumerate(images) if index in held],
    )


def order_fingerprint(images: Sequence[TrainingImage]) -> str:
    """Return what a training run depends on in its images: contents, masks, labels and order; 64 hex digits."""
    facts = [(image.digest, image.mask_digest, image.anomaly) for image in images]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
