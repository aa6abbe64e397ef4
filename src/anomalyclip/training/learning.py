"""One training step: the published losses of a batch, their gradients, and Adam."""

from typing import NamedTuple

import torch
from torch import Tensor

from anomalyclip.clip.model import CLIP
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.prompts import PromptLearner
from anomalyclip.training.batches import Batch
from anomalyclip.training.losses import image_loss, local_loss


class Losses(NamedTuple):
    """The loss of a step, and its two parts.

    Attributes
    ----------
    loss : float
        The sum of the two parts.
    image_loss : float
        Cross-entropy of the images.
    local_loss : float
        The pixel loss summed over layers, times its weight.
    """

    loss: float
    image_loss: float
    local_loss: float


class PromptOptimizer:
    """Optimises prompts with the published losses, one batch at a time.

    Parameters
    ----------
    learner : PromptLearner
        The prompts to train, on their device.
    clip : CLIP
        The frozen model, on the same device; its text tower is used.
    learning_rate : float
        Adam's learning rate, constant.
    betas : tuple of float
        Adam's betas.
    local_weight : float
        Lambda, the weight of the pixel loss.

    Attributes
    ----------
    adam : torch.optim.Adam
        A step depends only on its state and the learner's.
    """

    def __init__(
        self,
        learner: PromptLearner,
        clip: CLIP,
        *,
        learning_rate: float,
        betas: tuple[float, float],
        local_weight: float,
    ) -> None:
        self.learner, self.clip, self.local_weight = learner, clip, local_weight
        self.adam = torch.optim.Adam(learner.parameters(), lr=learning_rate, betas=betas)

    def step(self, batch: Batch, *, moment: str) -> Losses:
        """Train on one batch.

        Parameters
        ----------
        batch : Batch
        moment : str
            Current position in the run, for the error message.

        Returns
        -------
        Losses
            The losses before the step.

        Raises
        ------
        AnomalyCLIPError
            The loss is NaN or infinite; the prompts are not changed.
        """
        text_features = self.learner(self.clip)  # 2 E
        image, local = batch_loss(batch, text_features)
        local = self.local_weight * local
        loss = image + local
        if not bool(loss.isfinite()):
            raise AnomalyCLIPError(f"the loss is {loss.item()} at {moment}: try a lower --learning-rate")
        self.adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.adam.step()
        return Losses(loss.item(), image.item(), local.item())


def batch_loss(batch: Batch, text_features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the image loss of a batch and the pixel loss summed over layers, which is zero if no image has pixels.

    Parameters
    ----------
    batch : Batch
    text_features : Tensor
        (2, E) float, normalised; normal, then abnormal.

    Returns
    -------
    image, local : Tensor
        Scalars; lambda is not applied.
    """
    image = image_loss(batch.images, text_features, batch.labels)
    if len(batch.masks) == 0:
        return image, image.new_zeros(())
    layers = [local_loss(patches, text_features, batch.masks) for patches in batch.patches]
    return image, torch.stack(layers).sum()
