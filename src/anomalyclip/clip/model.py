"""The frozen CLIP with DPAM's local path: vision transformer, text transformer with deep tokens.

Module names are those of OpenAI's weights, so that a state dict loads without renaming. Shapes in comments:
B images or texts, N tokens, D width, H heads, E embedding. Blocks are counted from 1, as in the paper.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class CLIPConfig:
    """Architecture of a CLIP model; every number can be read off its tensors.

    Parameters
    ----------
    embed_dim : int
        Width of the space that images and texts share.
    image_size : int
        Side in pixels of the images that the positional table was made for.
    patch_size : int
        Side of a patch in pixels.
    vision_width, vision_layers, vision_heads : int
        Vision transformer.
    text_width, text_layers, text_heads : int
        Text transformer.
    context_length : int
        Longest text, in tokens.
    vocab_size : int
        Number of tokens.
    quick_gelu : bool
        ``x * sigmoid(1.702 x)`` (OpenAI's models) rather than the exact GELU (most others).
    """

    embed_dim: int
    image_size: int
    patch_size: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    text_width: int
    text_layers: int
    text_heads: int
    context_length: int
    vocab_size: int
    quick_gelu: bool = True


class ImageFeatures(NamedTuple):
    """What the vision transformer says of a batch of images, before normalisation.

    Attributes
    ----------
    image : Tensor
        (B, E) float, the CLS token of the original path.
    patches : dict of int to Tensor
        Block number to (B, 1 + N, E) float, CLS first, of the local path (of the plain stream for blocks before it).
    """

    image: Tensor
    patches: dict[int, Tensor]


class Attention(nn.Module):
    """Multi-head self-attention whose projections are apart, so that Q-K and V-V attention can share them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) * width**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (B, H, N, D / H), of tokens (B, N, D)."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)  # B N 3D
        q, k, v = qkv.view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # 3 x B H N D/H
        return q, k, v

    def project_cls(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the query of the first token alone, and the keys and values of all."""
        width = x.shape[-1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        q = F.linear(x[:, :1], weight[:width], bias[:width])  # B 1 D
        kv = F.linear(x, weight[width:], bias[width:])  # B N 2D
        k, v = kv.view(*x.shape[:2], 2, self.heads, -1).permute(2, 0, 3, 1, 4)  # 2 x B H N D/H
        return q.view(q.shape[0], 1, self.heads, -1).transpose(1, 2), k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
        """Return the attended and projected tokens (B, N, D); the N x N matrix is never held in memory."""
        x = F.scaled_dot_product_attention(q, k, v, is_causal=causal)  # B H N D/H
        projected: Tensor = self.out_proj(x.transpose(1, 2).flatten(2))  # B N D
        return projected


class MLP(nn.Module):
    """Two linear layers with CLIP's activation between them."""

    def __init__(self, width: int, *, quick_gelu: bool) -> None:
        super().__init__()
        self.quick_gelu = quick_gelu
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, N, D) of tokens (B, N, D)."""
        shape = x.shape
        x = x.flatten(0, -2)  # BN D
        # x sigmoid(1.702 x) = silu(1.702 x) / 1.702: with the factors inside the matrix products, the activation is one
        # pass over memory instead of three (a tenth of the encoder's time on a CPU).
        scale = 1.702 if self.quick_gelu else 1.0
        x = torch.addmm(scale * self.c_fc.bias, x, self.c_fc.weight.T, alpha=scale)  # BN 4D
        x = F.silu(x, inplace=not x.requires_grad) if self.quick_gelu else F.gelu(x)
        x = torch.addmm(self.c_proj.bias, x, self.c_proj.weight.T, alpha=1 / scale)  # BN D
        return x.view(shape)


class Block(nn.Module):
    """A pre-norm transformer block, as one path (CLIP) or two (DPAM)."""

    def __init__(self, width: int, heads: int, *, quick_gelu: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, quick_gelu=quick_gelu)

    def forward(self, x: Tensor, *, causal: bool = False) -> Tensor:
        """Return the plain CLIP block's tokens (B, N, D)."""
        x = x + self.attn.attend(*self.attn.project(self.ln_1(x)), causal=causal)
        x = x + self.mlp(self.ln_2(x))
        return x

    def dual(self, x: Tensor, local: Tensor, *, last: bool) -> tuple[Tensor, Tensor]:
        """Run the original and the local path; in the last block the original one for CLS alone (B, 1, D).

        The local path adds V-V attention of the *original* path's values and has no MLP (DPAM).
        """
        project = self.attn.project_cls if last else self.attn.project
        q, k, v = project(self.ln_1(x))
        local = local + self.attn.attend(v, v, v)
        x = x[:, : q.shape[2]] + self.attn.attend(q, k, v)
        x = x + self.mlp(self.ln_2(x))
        return x, local

    def cls_only(self, x: Tensor) -> Tensor:
        """Return the plain block's first token alone (B, 1, D)."""
        x = x[:, :1] + self.attn.attend(*self.attn.project_cls(self.ln_1(x)))
        x = x + self.mlp(self.ln_2(x))
        return x


class Transformer(nn.Module):
    """A stack of blocks."""

    def __init__(self, width: int, layers: int, heads: int, *, quick_gelu: bool) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, quick_gelu=quick_gelu) for _ in range(layers))


class VisionTransformer(nn.Module):
    """CLIP's image tower, whose last blocks may carry DPAM's local path beside the original one."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        width, grid = config.vision_width, config.image_size // config.patch_size
        self.patch_size = config.patch_size
        self.conv1 = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn(grid**2 + 1, width) * width**-0.5)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(
            width, config.vision_layers, config.vision_heads, quick_gelu=config.quick_gelu
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, config.embed_dim) * width**-0.5)
        self._resized_positions: dict[tuple[int, int, torch.device, torch.dtype], Tensor] = {}

    def forward(self, pixels: Tensor, *, layers: Sequence[int], dpam_layers: int) -> ImageFeatures:
        """Encode a batch of images.

        Parameters
        ----------
        pixels : Tensor
            (B, 3, S, S) float, normalised; S a multiple of the patch size.
        layers : sequence of int
            The blocks, counted from 1, after which patch features are read.
        dpam_layers : int
            How many final blocks carry the local path.

        Returns
        -------
        ImageFeatures
        """
        x = self.embed(pixels)  # B 1+N D
        blocks = self.transformer.resblocks
        local: Tensor | None = None
        patches: dict[int, Tensor] = {}
        for number, block in enumerate(blocks, start=1):
            assert isinstance(block, Block)
            last = number == len(blocks)
            if number > len(blocks) - dpam_layers:
                x, local = block.dual(x, x if local is None else local, last=last)
            elif last and number not in layers:
                x = block.cls_only(x)
            else:
                x = block(x)
            if number in layers:
                patches[number] = self.ln_post(x if local is None else local) @ self.proj  # B 1+N E
        return ImageFeatures(x[:, 0] @ self.proj, patches)

    def embed(self, pixels: Tensor) -> Tensor:
        """Return the tokens (B, 1 + N, D), CLS first, that enter the first block."""
        x = self.conv1(pixels)  # B D h w
        rows, columns = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)  # B N D
        cls = self.class_embedding.expand(x.shape[0], 1, -1)
        x = torch.cat([cls, x], dim=1) + self.positions(rows, columns)  # B 1+N D
        normed: Tensor = self.ln_pre(x)
        return normed

    def positions(self, rows: int, columns: int) -> Tensor:
        """Return the positional table (1 + N, D) for a grid; the model's own table is never changed."""
        table = self.positional_embedding
        side = int((len(table) - 1) ** 0.5)
        if (rows, columns) == (side, side):
            return table
        key = (rows, columns, table.device, table.dtype)
        if key in self._resized_positions and not table.requires_grad:
            return self._resized_positions[key]
        square = table[1:].T.reshape(1, -1, side, side)  # 1 D h w
        resized = F.interpolate(square, (rows, columns), mode="bilinear", align_corners=False)
        resized = torch.cat([table[:1], resized[0].flatten(1).T])  # 1+N D
        if not table.requires_grad:
            self._resized_positions[key] = resized
        return resized


class CLIP(nn.Module):
    """CLIP with the changes that AnomalyCLIP makes to how it is run; its weights are CLIP's own.

    Parameters
    ----------
    config : CLIPConfig
        The architecture; weights are random until a state dict is loaded.

    Examples
    --------
    >>> config = CLIPConfig(32, 56, 14, 64, 4, 1, 64, 2, 1, 77, 1000)
    >>> features = CLIP(config).encode_image(torch.zeros(2, 3, 70, 70), layers=[4], dpam_layers=3)
    >>> features.image.shape, features.patches[4].shape
    (torch.Size([2, 32]), torch.Size([2, 26, 32]))
    """

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        width = config.text_width
        self.visual = VisionTransformer(config)
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.randn(config.context_length, width) * 0.01)
        self.transformer = Transformer(
            width, config.text_layers, config.text_heads, quick_gelu=config.quick_gelu
        )
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, config.embed_dim) * width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    @classmethod
    def frozen(cls, config: CLIPConfig, state_dict: Mapping[str, Tensor]) -> "CLIP":
        """Return the model with these weights in float32, frozen and in evaluation mode.

        Tensors that are float32 already are used as they are (they may be memory-mapped); others are converted.
        """
        with torch.device("meta"):
            model = cls(config)
        weights = {name: tensor.float() for name, tensor in state_dict.items()}
        model.load_state_dict(weights, assign=True)
        return model.requires_grad_(False).eval()

    def encode_image(self, pixels: Tensor, *, layers: Sequence[int], dpam_layers: int) -> ImageFeatures:
        """Encode images (B, 3, S, S); see `VisionTransformer.forward`."""
        features: ImageFeatures = self.visual(pixels, layers=layers, dpam_layers=dpam_layers)
        return features

    def encode_text(self, embeddings: Tensor, end: Tensor, *, deep_tokens: Sequence[Tensor] = ()) -> Tensor:
        """Encode texts given as token embeddings, which learned prompts are.

        Attention is causal, so nothing after a text's end token changes its feature: the texts may be cut after the
        longest one's end token.

        Parameters
        ----------
        embeddings : Tensor
            (B, N, D) float token embeddings, start token first, without positions; N at most the context length.
        end : Tensor
            (B,) int64, position of each text's end token, where the feature is read.
        deep_tokens : sequence of Tensor
            The i-th, (n, D), overwrites the n tokens after the start token before block i + 2.

        Returns
        -------
        Tensor
            (B, E) float, before normalisation.
        """
        x = embeddings + self.positional_embedding[: embeddings.shape[1]]  # B N D
        for index, block in enumerate(self.transformer.resblocks):
            if 1 <= index <= len(deep_tokens):
                x = overwrite(x, deep_tokens[index - 1])
            x = block(x, causal=True)
        x = self.ln_final(x[torch.arange(len(x), device=x.device), end])  # B D
        features: Tensor = x @ self.text_projection  # B E
        return features


def overwrite(x: Tensor, tokens: Tensor) -> Tensor:
    """Return texts (B, N, D) with the tokens (n, D) in place of those after the start token.

    The published model rounds the tokens to half precision here, which changes the fourth digit of its features.
    """
    rounded = tokens.expand(len(x), -1, -1).half().to(x.dtype)  # B n D
    return torch.cat([x[:, :1], rounded, x[:, 1 + rounded.shape[1] :]], dim=1)
