"""Cached features and masks as the tensors of a training step, and what there is to learn from a set of images."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.images import read_mask
from anomalyclip.training.features import FeatureStore
from anomalyclip.training.samples import TrainingImage


class Batch(NamedTuple):
    """Tensors of one training step; B images, of which M take part in the pixels' loss.

    Attributes
    ----------
    images : Tensor
        (B, E) float, normalised.
    labels : Tensor
        (B,) bool, true is anomalous.
    patches : Tensor
        (L, M, N, E) float, normalised.
    masks : Tensor
        (M, S, S) bool.
    """

    images: Tensor
    labels: Tensor
    patches: Tensor
    masks: Tensor


class TrainingData:
    """Images to learn from, whose features are in a store.

    Parameters
    ----------
    store : FeatureStore
        Has the features of all of them.
    images : sequence of TrainingImage
        At least one.

    Attributes
    ----------
    local : bool
        Whether pixels are learned from. Not if there are anomalous images and none has a mask: the normal ones alone
        would teach that no pixel is ever anomalous.

    Raises
    ------
    AnomalyCLIPError
        There are no images.
    """

    def __init__(self, store: FeatureStore, images: Sequence[TrainingImage]) -> None:
        if not images:
            raise AnomalyCLIPError("there is no image to learn from")
        self.store = store
        self.images = tuple(images)
        anomalous = [image for image in images if image.anomaly]
        self.local = not anomalous or any(image.has_mask for image in anomalous)

    def __len__(self) -> int:
        return len(self.images)

    def remarks(self) -> list[str]:
        """Return what is unusual about these images and what follows from it, one sentence each."""
        labels = {image.anomaly for image in self.images}
        unmasked = sum(not image.has_mask for image in self.images)
        remarks = []
        if len(labels) == 1:
            only = "anomalous" if labels == {True} else "normal"
            remarks.append(f"all images are {only}: the prompts are taught one label only")
        if not self.local:
            remarks.append(
                "no anomalous image has a mask: the image loss alone is used, maps are not trained"
            )
        elif unmasked:
            remarks.append(f"{unmasked} anomalous images have no mask: they take part in the image loss only")
        return remarks

    def batches(self, groups: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
        """Give the batches of these groups of indices; a thread reads the next one meanwhile."""
        with ThreadPoolExecutor(1, thread_name_prefix="batch") as pool:
            coming = pool.submit(self.batch, groups[0]) if groups else None
            for following in (*groups[1:], None):
                assert coming is not None
                batch = coming.result()
                coming = pool.submit(self.batch, following) if following is not None else None
                yield batch

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """Return the batch of these images.

        Raises
        ------
        InputError
            A mask cannot be used.
        """
        images = [self.images[index] for index in indices]
        rows = torch.from_numpy(np.stack([self.store.read(image) for image in images]))  # B 1+LN E
        known = [index for index, image in enumerate(images) if self.local and image.has_mask]
        device, layers = self.store.scorer.device, len(self.store.key.layers)
        patches = split_layers(rows[known, 1:], layers)  # L M N E
        size = self.store.key.image_size
        masks = [mask_of(images[index], size) for index in known] or [np.zeros((0, size, size), bool)]
        return Batch(
            images=rows[:, 0].to(device),
            labels=torch.tensor([image.anomaly for image in images], device=device),
            patches=patches.to(device),
            masks=torch.from_numpy(np.concatenate(masks)).to(device),
        )


def mask_of(image: TrainingImage, size: int) -> NDArray[np.bool_]:
    """Return an image's mask as (1, S, S); one without a file is normal everywhere."""
    if image.mask is None:
        return np.zeros((1, size, size), dtype=np.bool_)
    return read_mask(image.mask, size)[None]


def split_layers(rows: Tensor, layers: int) -> Tensor:
    """Return patch features (B, L * N, E), layer after layer, as (L, B, N, E)."""
    count, length, width = rows.shape
    return rows.reshape(count, layers, length // layers, width).transpose(0, 1)
