"""One training step: the published losses of a batch, their gradients, and Adam."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anomalyclip.errors import AnomalyCLIPError
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


class Optimizer:
    """Adam on the loss of one batch at a time.

    Parameters
    ----------
    parameters : iterable of Parameter
        What changes.
    losses : callable
        From a batch to the image loss and the weighted pixel loss, scalars; their sum is what falls.
    learning_rate : float
        Adam's learning rate, constant.
    betas : tuple of float
        Adam's betas.

    Attributes
    ----------
    adam : torch.optim.Adam
        A step depends only on its state and the parameters.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        losses: Callable[[Batch], tuple[Tensor, Tensor]],
        *,
        learning_rate: float,
        betas: tuple[float, float],
    ) -> None:
        self._losses = losses
        self.adam = torch.optim.Adam(parameters, lr=learning_rate, betas=betas)

    def step(self, batch: Batch, *, moment: str) -> Losses:
        """Learn from a batch.

        Parameters
        ----------
        batch : Batch
        moment : str
            Position in the run, for error messages.

        Returns
        -------
        Losses
            Those before the step.

        Raises
        ------
        AnomalyCLIPError
            The loss is NaN or infinite; the parameters are not changed.
        """
        image, local = self._losses(batch)
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
