"""`fit`: a memory of flawless references, for a detector that then also compares every patch with them."""

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image

from anomalyclip.anomaly import highest
from anomalyclip.decoding import OnError, decode
from anomalyclip.detector import Detector
from anomalyclip.errors import AnomalyCLIPWarning
from anomalyclip.gathering import Gathering
from anomalyclip.inputs import find_images
from anomalyclip.loading import in_pytorch
from anomalyclip.progress import Track, silent
from anomalyclip.readers import Source
from anomalyclip.references import Memory
from anomalyclip.spec import MAX_PATCHES, DetectorSpec

Images = Source | Iterable[Source]

_TOLD = 20
"""Names of references that are told."""

_ENOUGH, _ODD = 4, 3.0
"""From so many references on, one is odd whose farthest patches are so many times as far as the median's."""


def fit(
    detector: Detector | DetectorSpec,
    images: Images,
    *,
    augment: bool = False,
    max_patches: int = MAX_PATCHES,
    pictures: bool = True,
    add_to: Memory | str | os.PathLike[str] | None = None,
    on_error: OnError | None = None,
    track: Track = silent,
) -> Memory:
    """Return a memory of flawless images, to score others with (few-shot).

    Parameters
    ----------
    detector : Detector or DetectorSpec
        In PyTorch, without references: the memory is for this one, and holds features that it makes. With tiles,
        larger references are cut as images are.
    images : path, Source, or iterable of these
        Flawless images: a file, folder (searched recursively) or pattern, or a list of these; or one or several of
        the sources that `Detector.stream` takes. Images with the same pixels count once.
    augment : bool
        Also remember each image flipped and turned by quarters (8 views), for products that lie in any direction.
    max_patches : int
        Of more patches a coreset of this size is kept.
    pictures : bool
        Also keep a small picture of each reference (256 pixels, 5 to 15 kB; of the first 1,000 at most), so that a
        finding can be shown beside what it was compared with.
    add_to : Memory or path, optional
        A memory to add to; the result is the same as fitting all its images at once. Its `augment`, `max_patches` and
        `pictures` are kept.
    on_error : callable, optional
        Called with an image that cannot be used and the error, and the rest counts. None: the error is raised.
    track : Track
        Told how far it is.

    Returns
    -------
    Memory
        `Memory.save` writes it; ``DetectorSpec(references=...)`` and `remember` use it.

    Raises
    ------
    AnomalyCLIPError
        No image can be used, the detector cannot have a memory or has one already, or `add_to` does not fit.

    Examples
    --------
    >>> from anomalyclip.demo import PICTURES
    >>> memory = fit(DetectorSpec("micro"), [PICTURES / "linen_good.jpg", PICTURES / "slate_good.jpg"])
    >>> len(memory), memory.patches
    (2, 450)
    """
    detector = in_pytorch(detector)
    before = add_to if add_to is None or isinstance(add_to, Memory) else Memory.load(add_to)
    work = Gathering(detector, augment=augment, max_patches=max_patches, pictures=pictures)
    if before is not None:
        work.take(before)
    sources = sources_of(images)
    count = len(sources) if isinstance(sources, Sequence) else None
    with track("Encoding references", count) as advance, torch.inference_mode():
        for shown in decode(sources, work.prepare, on_error=on_error):
            work.add(shown)
            advance()
        memory = work.memory()
    for remark in _remarks(work, memory):
        warnings.warn(remark, AnomalyCLIPWarning, stacklevel=2)
    return memory


def sources_of(images: Images) -> Iterable[Source]:
    """Return the images that files, folders, patterns or sources name, one by one."""
    if isinstance(images, str | os.PathLike | bytes | Image.Image | np.ndarray):
        images = [images]
    if isinstance(images, Sequence) and all(isinstance(image, str | os.PathLike) for image in images):
        paths = [os.fspath(image) for image in images if isinstance(image, str | os.PathLike)]
        return [image.path for image in find_images(paths)]
    return images


def _remarks(work: Gathering, memory: Memory) -> Iterator[str]:
    """Yield warnings for the user about the references."""
    if work.repeated:
        one = len(work.repeated) == 1
        yield (
            f"{len(work.repeated)} {'reference has' if one else 'references have'} the same pixels as another one "
            f"and {'counts' if one else 'count'} once: "
            f"{', '.join(work.repeated[:_TOLD])}{', ...' * (len(work.repeated) > _TOLD)}"
        )
    if work.copies:
        yield (
            f"the {len(memory)} references are nearly the same picture, so they do not show how much normal images "
            "differ: take them at different times, of different parts"
        )
    if odd := _unlike_the_others(work, memory):
        yield (
            f"{', '.join(odd)}: parts of {'it look' if len(odd) == 1 else 'these look'} unlike all other references; "
            "is there a defect? Then leave it out: what a reference shows counts as normal"
        )
    if memory.is_reduced:
        yield (
            f"of {memory.settings['patches']} patches in {len(memory)} references {memory.patches} are kept "
            "(--max-patches): the fewer are kept, the more is lost (see the table in docs/few-shot.md)"
        )


def _unlike_the_others(work: Gathering, memory: Memory) -> list[str]:
    """Return the names of references whose farthest patches are much farther from the others than is usual."""
    if work.copies:
        return []
    left_out = memory.left_out_maps()
    owners = [one for _, one in work.in_order() if one.texts is not None for _ in one.texts]
    if len(memory) < _ENOUGH or len(owners) != len(left_out):
        return []
    farthest = torch.cat([highest(one[None], 0.01) for one in left_out])
    usual = float(farthest.median())
    return list(
        dict.fromkeys(
            one.name for one, far in zip(owners, farthest.tolist(), strict=True) if far > _ODD * usual
        )
    )
