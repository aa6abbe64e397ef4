"""Evaluate prompts on held-out images, using cached features."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from anomalyclip.anomaly import enlarge, probabilities
from anomalyclip.metrics import auroc
from anomalyclip.training.batches import mask_of
from anomalyclip.training.features import FeatureStore
from anomalyclip.training.samples import TrainingImage

_STRIDE = 4
"""Only every fourth pixel in both directions is used: smoothed maps hardly change in between, and it saves memory."""


class Validation:
    """Held-out images, whose features are in a store.

    Parameters
    ----------
    store : FeatureStore
        Contains the features of all images.
    images : sequence of TrainingImage
    sigma : float
        Gaussian smoothing of the maps in pixels, as in detection.
    """

    def __init__(self, store: FeatureStore, images: Sequence[TrainingImage], *, sigma: float = 4.0) -> None:
        self.store = store
        self.images = tuple(images)
        self.sigma = sigma

    def __call__(self, text_features: Tensor) -> dict[str, float]:
        """Return ``val_image_auroc`` and ``val_pixel_auroc``, each only if it is defined.

        Parameters
        ----------
        text_features : Tensor
            (2, E) float, normalised; normal, then abnormal.
        """
        scores, maps, masks = [], [], []
        size = self.store.key.image_size
        for image in self.images:
            score, grid = self._detect(image, text_features)
            scores.append(score)
            if image.has_mask:
                full = enlarge(grid, size, sigma=self.sigma)
                maps.append(full[::_STRIDE, ::_STRIDE].cpu().numpy())
                masks.append(mask_of(image, size)[0, ::_STRIDE, ::_STRIDE])
        results = {"val_image_auroc": auroc([image.anomaly for image in self.images], scores)}
        if maps:
            results["val_pixel_auroc"] = auroc(np.stack(masks), np.stack(maps))
        return {name: value for name, value in results.items() if not math.isnan(value)}

    def _detect(self, image: TrainingImage, text_features: Tensor) -> tuple[float, Tensor]:
        """Return the score, and the map (g, g), averaged over layers."""
        rows = torch.from_numpy(self.store.read(image)).to(text_features.device)  # 1+LN E
        values = probabilities(rows, text_features)[:, 1]
        side = self.store.grid
        return float(values[0]), values[1:].view(-1, side, side).mean(dim=0)


def quality(results: Mapping[str, float]) -> float | None:
    """Return the value that selects the best epoch: the mean of the AUROCs that are defined, or None."""
    values = [value for name, value in results.items() if name.startswith("val_")]
    return sum(values) / len(values) if values else None
