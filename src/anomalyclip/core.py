"""From pixels to scores and maps, in one module: PyTorch runs it, and the exporter exports it.

A method implements `encode` and `compare`; the steps before and after them are the same for all methods.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from anomalyclip.anomaly import enlarging_matrix, image_score
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.framing import Framing
from anomalyclip.images import OPENAI_MEAN, OPENAI_STD


class Core(nn.Module):
    """Maps uint8 RGB images (B, H, W, 3) to scores (B,) and maps (B, H, W), float32 within [0, 1].

    H and W are the side S unless the method keeps the proportions of images.

    Parameters
    ----------
    image_size : int
        Side S in pixels.
    grid : int
        Side g of the maps that `compare` returns.
    sigma : float
        Gaussian smoothing of the maps in pixels; 0 disables it.
    score_rule : str
        How the image score is computed: a key of `anomalyclip.spec.IMAGE_SCORES`.
    framing : Framing, optional
        How images become its input. None: squashed to S x S.
    mean, std : sequence of float
        What pixels within [0, 1] are normalised with, by channel; by default as for OpenAI's CLIPs.

    Raises
    ------
    AnomalyCLIPError
        Sigma is outside [0, S].
    """

    mean: Tensor
    std: Tensor
    enlarging: Tensor

    outputs: ClassVar[tuple[str, ...]] = ("score", "map")
    """Names of what a call returns, for exports."""

    needs_references: ClassVar[bool] = False
    """Whether it can score nothing until it is given references."""

    rule_in_compare: ClassVar[bool] = False
    """Whether `compare` already uses the rule of the image score, rather than `finish` alone."""

    def __init__(
        self,
        *,
        image_size: int,
        grid: int,
        sigma: float,
        score_rule: str,
        framing: Framing | None = None,
        mean: Sequence[float] = OPENAI_MEAN,
        std: Sequence[float] = OPENAI_STD,
    ) -> None:
        super().__init__()
        if not 0 <= sigma <= image_size:
            raise AnomalyCLIPError(f"sigma {sigma}: expected 0 to {image_size} pixels, the image size")
        self.image_size, self.sigma, self.score_rule = image_size, sigma, score_rule
        self.framing = framing or Framing(image_size)
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)
        self.register_buffer("enlarging", enlarging_matrix(grid, image_size, float(sigma)), persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return scores and maps; see `outputs`."""
        return self.finish(*self.compare(self.encode(self.normalise(image))))

    def normalise(self, image: Tensor) -> Tensor:
        """Convert uint8 RGB (B, H, W, 3) to the encoder's float32 (B, 3, H, W); channels last in memory on CUDA."""
        pixels = ((image.float() / 255 - self.mean) / self.std).permute(0, 3, 1, 2)
        return pixels if pixels.is_cuda else pixels.contiguous()

    @abstractmethod
    def encode(self, pixels: Tensor) -> Any:
        """Return the features of normalised pixels: the expensive step, which may be compiled or in half precision."""

    @abstractmethod
    def compare(self, features: Any) -> tuple[Tensor, Tensor]:
        """Return the anomaly probability of each image (B,) and of each patch (B, h, w), float32 within [0, 1]."""

    def over_class(self, scores: Tensor, highest: Tensor) -> Tensor | None:
        """Return image scores (B,) for all test images of a class together; None: every image is scored alone."""
        return None

    def remarks(self) -> list[str]:
        """Return what the images since the last call say about their fitness for this core; the count begins anew."""
        return []

    @property
    def is_packed(self) -> bool:
        """Whether `pack` has changed the layout of weights; a deep copy is always plain."""
        return False

    def pack(self) -> None:
        """Store float32 weights on the CPU in the layout in which this machine computes fastest, in place."""

    def unpack(self) -> None:
        """Store weights in the plain layout, in place, as other devices, compilers and exports need them."""

    def reference_pictures(self) -> tuple[bytes, ...]:
        """Return small JPEG pictures of the references, by their numbers; of the first ones, or none."""
        return ()

    def half_encoder(self) -> "Core":
        """Convert the weights that `encode` uses to half precision, in place, for an export; return the same core.

        Raises
        ------
        AnomalyCLIPError
            The method does not support half precision.
        """
        raise AnomalyCLIPError(f"{type(self).__name__} does not support half precision")

    def finish(self, text: Tensor, grids: Tensor) -> tuple[Tensor, Tensor]:
        """Turn the result of `compare` into scores (B,) and smoothed maps (B, H, W)."""
        maps = self.enlarged(grids)
        return self.scored(text, grids, maps), maps

    def scored(self, text: Tensor, grids: Tensor, maps: Tensor) -> Tensor:
        """Return scores (B,) by this core's rule, of what `compare` returned and the smoothed maps (B, S, S)."""
        return image_score(text, maps, self.score_rule, grids=grids)

    def enlarged(self, grids: Tensor) -> Tensor:
        """Return maps (B, H, W) of maps (B, h, w), smoothed."""
        rows, columns = (self._enlarging(patches) for patches in grids.shape[-2:])
        return (rows @ grids @ columns.T).clamp(0, 1)

    def _enlarging(self, patches: int) -> Tensor:
        """Return the matrix that enlarges and smooths along a side of so many patches."""
        if patches == self.enlarging.shape[1]:
            return self.enlarging
        size = patches * self.image_size // self.enlarging.shape[1]
        return enlarging_matrix(patches, size, float(self.sigma)).to(self.enlarging.device)
