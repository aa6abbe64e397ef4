"""Training of APRIL-GAN's linear layers: focal and dice loss of every block's map, with the texts of each class."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from anomalyclip.anomaly import probabilities
from anomalyclip.clip.model import CLIP
from anomalyclip.linear_layers import LinearLayers
from anomalyclip.methods.april_gan import TEMPERATURE, block_map
from anomalyclip.training.batches import Batch
from anomalyclip.training.losses import dice_loss, focal_loss
from anomalyclip.training.task import Task
from anomalyclip.training.validation import Detect


class LayersTask(Task):
    """Learns linear layers from raw tokens of several blocks.

    Parameters
    ----------
    clip : CLIP
        The frozen model.
    start : LinearLayers
        The layers to start from.
    texts : callable
        Gives the (2, E) text features of a class.
    image_size : int
        Side of the maps in pixels.
    """

    name = "layers"
    sigma = 0.0
    start: LinearLayers
    learner: nn.ParameterDict

    def __init__(
        self, clip: CLIP, start: LinearLayers, texts: Callable[[str], Tensor], *, image_size: int
    ) -> None:
        learner = nn.ParameterDict({"weight": start.weight.clone(), "bias": start.bias.clone()})
        super().__init__(clip, start, learner)
        self.texts, self.image_size = texts, image_size

    def block_losses(self, batch: Batch) -> Tensor:
        """Return (L, 2), the focal and the dice loss of each block's map of the images whose masks are known."""
        texts = torch.stack([self.texts(batch.classes[index]) for index in batch.known])  # M 2 E
        masks = batch.masks.float()
        losses = []
        for tokens, weight, bias in self._blocks(batch.patches):
            maps = block_map(tokens, weight, bias, texts.to(tokens), self.image_size)  # M S S
            losses.append(torch.stack([focal_loss(maps, masks), dice_loss(maps, masks)]))
        return torch.stack(losses)

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return zero, since no image loss is part of it, and the sum of `block_losses`."""
        if not batch.known:
            nothing = 0 * self.learner["bias"].sum()
            return nothing, nothing
        local = self.block_losses(batch).sum()
        return local.new_zeros(()), local

    def detector(self) -> Detect:
        """Return what scores an image as the method does."""

        def detect(image: Tensor, layers: Tensor, class_name: str) -> tuple[float, Tensor]:
            texts = self.texts(class_name).to(layers)
            maps = [
                block_map(tokens[None], weight, bias, texts, self.image_size)[0]
                for tokens, weight, bias in self._blocks(layers)
            ]
            score = probabilities(self.clip.visual.project(image), texts, temperature=TEMPERATURE)[1]
            return float(score), torch.stack(maps).mean(dim=0)

        return detect

    def _blocks(self, tokens: Tensor) -> "zip[tuple[Tensor, Tensor, Tensor]]":
        return zip(tokens, self.learner["weight"], self.learner["bias"], strict=True)

    def save(self, path: Path, info: Mapping[str, str]) -> None:
        """Write the layers as safetensors."""
        weight, bias = (self.learner[name].detach().cpu() for name in ("weight", "bias"))
        LinearLayers(self.start.blocks, weight, bias, info).save(path)
