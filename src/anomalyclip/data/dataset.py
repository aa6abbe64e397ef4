"""Samples to tensors, for training and evaluation alike."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from anomalyclip.data.meta import SampleList
from anomalyclip.errors import InputError
from anomalyclip.images import open_image, read_mask, to_pixels


class Item(NamedTuple):
    """What the model and the metrics need of one sample; batches have the same fields.

    Attributes
    ----------
    pixels : Tensor
        (3, S, S) float32, the model's input.
    mask : Tensor
        (S, S) bool, defect pixels; all False for normal images, and for anomalous ones without a mask.
    label : int
        1 if anomalous, else 0; (B,) int64 in a batch.
    has_mask : bool
        False where the mask is unknown, so that pixel-level metrics must leave the sample out; (B,) bool in a batch.
    class_name : str
        The thing that it shows; a tuple in a batch.
    path : str
        Image path relative to the data set's root; a tuple in a batch.
    """

    pixels: Tensor
    mask: Tensor
    label: int
    has_mask: bool
    class_name: str
    path: str


class SampleDataset(Dataset[Item]):
    """The samples of a list as tensors, read when they are asked for.

    Parameters
    ----------
    samples : SampleList
        What to read, as `anomalyclip.data.listing.load_samples` gives it.
    image_size : int
        Side S to which images and masks are squashed.

    Raises
    ------
    InputError
        On access: the image or the mask cannot be read; the message names the file.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from anomalyclip.data.meta import Sample
    >>> with tempfile.TemporaryDirectory() as root:
    ...     Image.new("RGB", (40, 30)).save(f"{root}/0.png")
    ...     Image.new("L", (40, 30), 255).save(f"{root}/0_mask.png")
    ...     samples = SampleList(Path(root), (Sample("0.png", "0_mask.png", "nut", "bent", True),))
    ...     item = SampleDataset(samples, image_size=14)[0]
    >>> tuple(item.pixels.shape), item.mask.all().item(), item.label, item.has_mask
    ((3, 14, 14), True, 1, True)
    """

    def __init__(self, samples: SampleList, image_size: int) -> None:
        self.samples = samples
        self.image_size = image_size

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item:
        sample = self.samples[index]
        size = self.image_size
        pixels = to_pixels(open_image(self.samples.root / sample.image), size)
        if sample.anomaly and sample.mask is not None:
            mask = torch.tensor(read_mask(self.samples.root / sample.mask, size))
        else:
            mask = torch.zeros(size, size, dtype=torch.bool)
        return Item(
            pixels=torch.from_numpy(pixels),
            mask=mask,
            label=int(sample.anomaly),
            has_mask=sample.has_mask,
            class_name=sample.class_name,
            path=sample.image,
        )


def batches(
    dataset: SampleDataset, *, batch_size: int, shuffle: bool = False, seed: int = 0, workers: int = 0
) -> "BatchLoader":
    """Return a loader whose order, and whatever chance its workers use, is decided by the seed alone.

    Parameters
    ----------
    dataset : SampleDataset
        What to read.
    batch_size : int
        Samples a batch; the last batch may be smaller.
    shuffle : bool
        A new order for every pass; the first pass after construction has the same order for the same seed.
    seed : int
        Seed of order and workers.
    workers : int
        Processes that read ahead; 0 reads in this one.

    Returns
    -------
    BatchLoader
        Gives `Item` with batched fields.
    """
    return BatchLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=workers,
        # Torch seeds its own, NumPy's and Python's generators in each worker from this one.
        generator=torch.Generator().manual_seed(seed),
    )


class BatchLoader(DataLoader[Item]):
    """A loader whose workers' errors arrive as they were raised: one message, without the worker's traceback."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # batches, not the samples' type
        try:
            yield from super().__iter__()
        except InputError as error:
            raise InputError(str(error).rpartition("InputError: ")[2].strip()) from None
