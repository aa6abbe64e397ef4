"""Turn cached features and masks into training batches, and check what a set of images can teach."""

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
    """Tensors of one training step; B images, M of which are used for the pixel loss.

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
    classes : tuple of str
        B class names.
    known : tuple of int
        Which of the B images the M are.
    """

    images: Tensor
    labels: Tensor
    patches: Tensor
    masks: Tensor
    classes: tuple[str, ...] = ()
    known: tuple[int, ...] = ()


class TrainingData:
    """Training images whose features are in a store.

    Parameters
    ----------
    store : FeatureStore
        Contains the features of all images.
    images : sequence of TrainingImage
        At least one.

    Attributes
    ----------
    local : bool
        Whether the pixel loss is used. It is not if there are anomalous images but none has a mask: normal images alone
        would teach that no pixel is ever anomalous.

    Raises
    ------
    AnomalyCLIPError
        `images` is empty.
    """

    def __init__(self, store: FeatureStore, images: Sequence[TrainingImage]) -> None:
        if not images:
            raise AnomalyCLIPError("there are no images to train on")
        self.store = store
        self.images = tuple(images)
        anomalous = [image for image in images if image.anomaly]
        self.local = not anomalous or any(image.has_mask for image in anomalous)

    def __len__(self) -> int:
        return len(self.images)

    def remarks(self) -> list[str]:
        """Return what is unusual about these images and its consequence, one sentence each."""
        labels = {image.anomaly for image in self.images}
        unmasked = sum(not image.has_mask for image in self.images)
        remarks = []
        if len(labels) == 1:
            only = "anomalous" if labels == {True} else "normal"
            remarks.append(f"all images are {only}: the prompts learn only one label")
        if not self.local:
            remarks.append("no anomalous image has a mask: only the image loss is used, maps are not trained")
        elif unmasked:
            remarks.append(f"{unmasked} anomalous images have no mask: they are only used for the image loss")
        return remarks

    def batches(self, groups: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
        """Yield the batches of these groups of indices; a thread reads the next one in the meantime."""
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
            classes=tuple(image.class_name for image in images),
            known=tuple(known),
        )


def mask_of(image: TrainingImage, size: int) -> NDArray[np.bool_]:
    """Return an image's mask as (1, S, S); without a file, all pixels are normal."""
    if image.mask is None:
        return np.zeros((1, size, size), dtype=np.bool_)
    return read_mask(image.mask, size)[None]


def split_layers(rows: Tensor, layers: int) -> Tensor:
    """Split patch features (B, L * N, E), ordered by layer, into (L, B, N, E)."""
    count, length, width = rows.shape
    return rows.reshape(count, layers, length // layers, width).transpose(0, 1)
