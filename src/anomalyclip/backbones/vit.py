"""A vision-only transformer, run like CLIP's image tower: patches, CLS, registers, blocks, one final norm.

References: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; Caron et al., "Emerging Properties in
Self-Supervised Vision Transformers" (DINO), ICCV 2021; Oquab et al., "DINOv2", TMLR 2024; Darcet et al., "Vision
Transformers Need Registers", ICLR 2024.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalyclip.backbones.config import ViTConfig
from anomalyclip.clip.model import MLP, Block, Transformer, VisionTransformer, frozen, normal


class GatedMLP(MLP):
    """The MLP called SwiGLU: one linear layer times the SiLU of another, and a third.

    Reference: Shazeer, "GLU Variants Improve Transformer", 2020.
    """

    def __init__(self, width: int, hidden: int) -> None:
        nn.Module.__init__(self)
        self.c_gate = nn.Linear(width, hidden)
        self.c_fc = nn.Linear(width, hidden)
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, D) to tokens (B, N, D)."""
        projected: Tensor = self.c_proj(F.silu(self.c_gate(x)) * self.c_fc(x))
        return projected


class PlainViT(VisionTransformer):
    """A vision-only transformer.

    Parameters
    ----------
    config : ViTConfig
        The architecture; weights are random until a state dict is loaded.

    Examples
    --------
    >>> model = PlainViT(ViTConfig(56, 14, 64, 2, 1, registers=4))
    >>> tokens = model.run(model.embed(torch.zeros(1, 3, 70, 98)), plain=[2])  # 5 x 7 patches
    >>> model.ln_post(tokens.plain[2]).shape
    torch.Size([1, 36, 64])
    """

    def __init__(self, config: ViTConfig) -> None:
        nn.Module.__init__(self)
        width = config.vision_width
        self.config = config
        self.patch_size, self.registers = config.patch_size, config.registers
        self.conv1 = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size)
        self.class_embedding = normal(width, std=width**-0.5)
        if not config.rotary:
            rows = (config.image_size // config.patch_size) ** 2 + config.class_position
            self.positional_embedding = normal(rows, width, std=width**-0.5)
        if self.registers:
            self.register_embedding = normal(self.registers, width, std=width**-0.5)
        self.ln_pre = nn.Identity()
        self.transformer = Transformer(
            width, config.vision_layers, config.vision_heads, quick_gelu=False, eps=config.eps
        )
        for block in self.transformer.resblocks if config.gated else ():
            assert isinstance(block, Block)
            block.mlp = GatedMLP(width, config.gated)
        self.ln_post = nn.LayerNorm(width, eps=config.eps)

    @classmethod
    def frozen(cls, config: ViTConfig, state_dict: Mapping[str, Tensor]) -> "PlainViT":
        """Return the model with these weights; see `anomalyclip.clip.model.frozen`.

        Layer scale is multiplied into the linear layers before it, which saves a pass over memory.
        """
        return frozen(lambda: cls(config), _scaled(config, state_dict))

    def first_tokens(self, position: Tensor) -> Tensor:
        """Return what stands before the patches (1 + R, D): CLS, at its position (1, D), and registers."""
        cls = super().first_tokens(position)
        return torch.cat([cls, self.register_embedding]) if self.registers else cls

    def project(self, tokens: Tensor, *, norm: bool = True) -> Tensor:
        """Return tokens (..., D), with or without the final norm: there is no projection."""
        return self.ln_post(tokens) if norm else tokens

    def positions(self, rows: int, columns: int, *, rule: str = "") -> Tensor:
        """Return the table of positions (1 + h * w, D) for a grid of patches, by the rule of the published form.

        The model has a rule of its own (`ViTConfig.positions`); `rule` is not used.
        """
        config = self.config
        side, first = config.image_size // config.patch_size, int(config.class_position)
        table = self.positional_embedding[first:]
        cls = self.positional_embedding[:1] if first else torch.zeros_like(table[:1])
        if (rows, columns) == (side, side):
            return torch.cat([cls, table])
        square = table.T.reshape(1, -1, side, side)  # 1 D s s
        if config.positions == "bicubic-offset":
            factors = ((rows + 0.1) / side, (columns + 0.1) / side)
            resized = F.interpolate(square, scale_factor=factors, mode="bicubic")
        else:
            smooth = config.positions == "bicubic-antialias"
            resized = F.interpolate(square, (rows, columns), mode="bicubic", antialias=smooth)
        assert resized.shape[-2:] == (rows, columns)
        return torch.cat([cls, resized[0].flatten(1).T])  # 1+N D


def _scaled(config: ViTConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    weights = {name: tensor.float() for name, tensor in state_dict.items()}
    for layer in range(config.vision_layers if config.layer_scale else 0):
        block = f"transformer.resblocks.{layer}"
        for name, linear in (("ls_1", "attn.out_proj"), ("ls_2", "mlp.c_proj")):
            scale = weights.pop(f"{block}.{name}")
            weights[f"{block}.{linear}.weight"] = weights[f"{block}.{linear}.weight"] * scale[:, None]
            weights[f"{block}.{linear}.bias"] = weights[f"{block}.{linear}.bias"] * scale
    return weights
