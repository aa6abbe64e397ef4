"""A vision-only transformer with rotary positions, run like the others: no table of positions, any size alike.

References: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021; Siméoni et al., "DINOv3",
2025, whose rotation is by both coordinates of a patch.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from anomalyclip.backbones.config import ViTConfig
from anomalyclip.backbones.vit import PlainViT
from anomalyclip.clip.model import PLAIN, Block, LocalPath, Tokens


class RotaryViT(PlainViT):
    """A vision-only transformer in which queries and keys are rotated by the place of their patch in the image.

    Parameters
    ----------
    config : ViTConfig
        The architecture, with rotary positions; weights are random until a state dict is loaded.

    Examples
    --------
    >>> from anomalyclip.backbones.config import periods
    >>> model = RotaryViT(ViTConfig(0, 16, 64, 2, 1, registers=4, rotary=periods(100.0, 64)))
    >>> positions = model.positions(3, 5)
    >>> tokens = model.run(model.embed(torch.zeros(1, 3, 48, 80)), positions=positions, plain=[2])
    >>> model.ln_post(tokens.plain[2]).shape
    torch.Size([1, 16, 64])
    """

    def embed(self, pixels: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return the tokens that enter the first block, (B, 1 + R + h * w, D); positions have no part in them."""
        x = self.conv1(pixels).flatten(2).transpose(1, 2)  # B N D
        first = self.first_tokens(x.new_zeros(1, 1)).expand(len(x), -1, -1)  # B 1+R D
        return torch.cat([first, x], dim=1)

    def run(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        plain: Sequence[int] = (),
        local: Sequence[int] = (),
        path: LocalPath = PLAIN,
        more: Mapping[LocalPath, Sequence[int]] = MappingProxyType({}),
    ) -> Tokens:
        """Run the blocks; the tokens that are returned are CLS and the patches, without registers.

        `positions` is needed, and there is no local path.
        """
        assert positions is not None
        assert not [*local, *more]
        x, kept = tokens, {}
        for number, block in enumerate(self.transformer.resblocks, start=1):
            assert isinstance(block, Block)
            q, k, v = block.attn.project(block.ln_1(x))
            x = x + block.attn.attend(rotated(q, positions), rotated(k, positions), v)
            x = x + block.mlp(block.ln_2(x))
            if number in plain:
                kept[number] = self._without_registers(x)
        return Tokens(x[:, 0], kept, {}, {})

    def positions(self, rows: int, columns: int, *, rule: str = "") -> Tensor:
        """Return how each token is rotated (1 + R + h * w, D / H): cosines, then sines; CLS and registers are not.

        A coordinate of a patch's centre is within (-1, 1) along either side of the image, whatever its proportions.
        The angle is 2 pi coordinate / period: half of the channels are for the row, half for the column.
        """
        down, along = ((2 * torch.arange(n).double() + 1) / n - 1 for n in (rows, columns))
        places = torch.cartesian_prod(down, along).view(-1, 2, 1)  # N 2 1
        steps = torch.tensor(self.config.rotary, dtype=torch.float64)  # D/4H
        angles = (2 * math.pi * places / steps).flatten(1)  # N D/2H
        table = torch.cat([angles.cos(), angles.sin()], dim=1).float()
        still = torch.tensor([1.0, 0.0]).repeat_interleave(table.shape[1] // 2)
        return torch.cat([still.expand(1 + self.registers, -1), table])


def rotated(x: Tensor, positions: Tensor) -> Tensor:
    """Return queries or keys (B, H, n, d) rotated by cosines and sines (n, d): the pairs are i and i + d / 2."""
    half, positions = x.shape[-1] // 2, positions.to(x.dtype)
    cos, sin = positions[..., :half], positions[..., half:]
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def form_of(config: ViTConfig) -> type[PlainViT]:
    """Return the class of an architecture."""
    return RotaryViT if config.rotary else PlainViT
