"""Evaluate prompts on held-out images, using cached features."""

import math
from collections.abc import Callable, Mapping, Sequence

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


Detect = Callable[[Tensor, Tensor, str], tuple[float, Tensor]]
"""From an image's own row (W,), its patches (L, N, W) and its class name to its score and its map (g, g)."""


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
            (2, E) float, normalised; normal, then abnormal. For rows that are normalised features.
        """
        return self.measure(lambda image, layers, class_name: by_texts(image, layers, text_features))

    def measure(self, detect: Detect) -> dict[str, float]:
        """Return the same metrics for any function from an image's rows to a score and a map."""
        scores, maps, masks = [], [], []
        size = self.store.key.image_size
        for image in self.images:
            rows = torch.from_numpy(self.store.read(image)).to(self.store.scorer.device)  # 1+LN W
            layers = rows[1:].unflatten(0, (len(self.store.key.layers), -1))  # type: ignore[no-untyped-call]
            score, grid = detect(rows[0], layers, image.class_name)
            scores.append(score)
            if image.has_mask:
                full = enlarge(grid, size, sigma=self.sigma)
                maps.append(full[::_STRIDE, ::_STRIDE].cpu().numpy())
                masks.append(mask_of(image, size)[0, ::_STRIDE, ::_STRIDE])
        results = {"val_image_auroc": auroc([image.anomaly for image in self.images], scores)}
        if maps:
            results["val_pixel_auroc"] = auroc(np.stack(masks), np.stack(maps))
        return {name: value for name, value in results.items() if not math.isnan(value)}


def by_texts(image: Tensor, layers: Tensor, text_features: Tensor) -> tuple[float, Tensor]:
    """Return the score, and the map (g, g) averaged over layers, of normalised features (E,) and (L, N, E)."""
    values = probabilities(layers, text_features)[..., 1].mean(dim=0)  # N
    side = math.isqrt(len(values))
    return float(probabilities(image, text_features)[1]), values.view(side, side)


def quality(results: Mapping[str, float]) -> float | None:
    """Return the value that selects the best epoch: the mean of the AUROCs that are defined, or None."""
    values = [value for name, value in results.items() if name.startswith("val_")]
    return sum(values) / len(values) if values else None
