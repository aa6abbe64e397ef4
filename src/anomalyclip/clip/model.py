"""The frozen CLIP with DPAM's local path: vision transformer, text transformer with deep tokens.

Module names match OpenAI's weights, so a state dict loads without renaming. Shapes in comments:
B images or texts, N tokens, D width, H heads, E embedding. Blocks are counted from 1, as in the paper.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalyclip.clip.config import CLIPConfig as CLIPConfig
from anomalyclip.errors import AnomalyCLIPError


@dataclass(frozen=True)
class LocalPath:
    """Which final blocks have a second, local path, and what attends to what in it (DPAM).

    The local path starts from the tokens that enter its first block. Each block adds the attention of the *original*
    path's projections to it, ``sum over pairs of softmax(X X^T / sqrt(d)) V``. It has no MLP.

    Parameters
    ----------
    blocks : int
        Number of final blocks that have it: 19 in AnomalyCLIP, 6 in CLIP Surgery; 0 is plain CLIP.
    attends : str
        Projections that attend to themselves: ``q``, ``k`` and ``v``, each at most once. ``v`` is V-V attention
        (AnomalyCLIP, CLIP Surgery), ``qkv`` is Q-Q + K-K + V-V (Crane), whose rows sum to 3.

    Raises
    ------
    AnomalyCLIPError
        `attends` is empty or has other letters.
    """

    blocks: int
    attends: str = "v"

    def __post_init__(self) -> None:
        if not self.attends or len(set(self.attends)) != len(self.attends) or set(self.attends) - set("qkv"):
            raise AnomalyCLIPError(
                f"local attention {self.attends!r}: expected some of q, k and v, such as 'v'"
            )


PLAIN = LocalPath(0)
"""No local path: plain CLIP."""


class Tokens(NamedTuple):
    """Tokens after the blocks of the vision transformer, before any projection.

    Attributes
    ----------
    cls : Tensor
        (B, D) float, the first token of the original path after the last block.
    plain : dict of int to Tensor
        Block number to (B, n, D) float, the original path's tokens after that block.
    local : dict of int to Tensor
        Block number to (B, n, D) float, the local path's tokens; for blocks before its first one, the original path's.
    more : dict of LocalPath to dict of int to Tensor
        The same for each other local path.
    """

    cls: Tensor
    plain: dict[int, Tensor]
    local: dict[int, Tensor]
    more: dict[LocalPath, dict[int, Tensor]]


POSITIONS = ("bilinear", "bicubic")
"""How the positional table is resized for another grid: bilinear (AnomalyCLIP, CLIP Surgery), or bicubic with
antialiasing (open_clip's loader, so WinCLIP and APRIL-GAN)."""


class ImageFeatures(NamedTuple):
    """Features of a batch of images, before normalisation.

    Attributes
    ----------
    image : Tensor
        (B, E) float, the CLS token of the original path, without the final norm.
    patches : dict of int to Tensor
        Block number to (B, 1 + N, E) float, CLS first, from the local path (for blocks before it, from the original
        path).
    """

    image: Tensor
    patches: dict[int, Tensor]


Model = TypeVar("Model", bound=nn.Module)


def frozen(make: Callable[[], Model], state_dict: Mapping[str, Tensor]) -> Model:
    """Return what `make` builds with these weights in float32, frozen and in evaluation mode.

    Tensors that are already float32 are used without a copy (they may be memory-mapped); others are converted.

    Examples
    --------
    >>> weights = {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}
    >>> layer = frozen(lambda: nn.Linear(2, 1), weights)
    >>> layer.weight.data_ptr() == weights["weight"].data_ptr(), layer.weight.requires_grad, layer.training
    (True, False, False)
    """
    with torch.device("meta"):
        model = make()
    model.load_state_dict({name: tensor.float() for name, tensor in state_dict.items()}, assign=True)
    return model.requires_grad_(False).eval()


def normal(*shape: int, std: float) -> nn.Parameter:
    """Return a parameter of normally distributed numbers; on the meta device, of none.

    There a random number would load PyTorch's compiler, which takes a second.
    """
    values = torch.empty(shape)
    return nn.Parameter(values if values.is_meta else values.normal_(std=std))


class Attention(nn.Module):
    """Multi-head self-attention with separate projections, so that Q-K and V-V attention can share them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = normal(3 * width, width, std=width**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (B, H, N, D / H), for tokens (B, N, D)."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)  # B N 3D
        q, k, v = qkv.view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # 3 x B H N D/H
        return q, k, v

    def project_cls(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the query of the first token only, and the keys and values of all tokens."""
        width = x.shape[-1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        q = F.linear(x[:, :1], weight[:width], bias[:width])  # B 1 D
        kv = F.linear(x, weight[width:], bias[width:])  # B N 2D
        k, v = kv.view(*x.shape[:2], 2, self.heads, -1).permute(2, 0, 3, 1, 4)  # 2 x B H N D/H
        return q.view(q.shape[0], 1, self.heads, -1).transpose(1, 2), k, v

    def gather(
        self, pairs: Sequence[tuple[Tensor, Tensor]], v: Tensor, *, causal: bool = False
    ) -> list[Tensor]:
        """Return what each pair of queries (B, H, n, D / H) and keys gathers of the values, (B, H, n, D / H).

        The n x N matrix is not stored.
        """
        return [F.scaled_dot_product_attention(q, k, v, is_causal=causal) for q, k in pairs]

    def merge(self, gathered: Tensor) -> Tensor:
        """Return the projected tokens (B, n, D) of what the heads gathered."""
        projected: Tensor = self.out_proj(gathered.transpose(1, 2).flatten(2))
        return projected

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
        """Return the attended and projected tokens (B, n, D)."""
        return self.merge(*self.gather([(q, k)], v, causal=causal))


class MLP(nn.Module):
    """Two linear layers with CLIP's activation between them."""

    def __init__(self, width: int, *, quick_gelu: bool) -> None:
        super().__init__()
        self.quick_gelu = quick_gelu
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, D) to tokens (B, N, D)."""
        shape = x.shape
        x = x.flatten(0, -2)  # BN D
        # x sigmoid(1.702 x) = silu(1.702 x) / 1.702. With the factors inside the matrix products, the activation needs
        # one pass over memory instead of three, which saves a tenth of the encoder's time on a CPU.
        scale = 1.702 if self.quick_gelu else 1.0
        x = torch.addmm(scale * self.c_fc.bias, x, self.c_fc.weight.T, alpha=scale)  # BN 4D
        x = F.silu(x, inplace=not x.requires_grad) if self.quick_gelu else F.gelu(x)
        x = torch.addmm(self.c_proj.bias, x, self.c_proj.weight.T, alpha=1 / scale)  # BN D
        return x.view(shape)


class Block(nn.Module):
    """A pre-norm transformer block, run as one path (CLIP) or two (DPAM)."""

    def __init__(self, width: int, heads: int, *, quick_gelu: bool, eps: float = 1e-5) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, quick_gelu=quick_gelu)

    def forward(self, x: Tensor, *, causal: bool = False) -> Tensor:
        """Run the plain CLIP block and return its tokens (B, N, D)."""
        x = x + self.attn.attend(*self.attn.project(self.ln_1(x)), causal=causal)
        x = x + self.mlp(self.ln_2(x))
        return x

    def dual(self, x: Tensor, *, attends: Iterable[str], cls_only: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the original path, and return what it adds to local paths (B, N, D), by what attends in them.

        With `cls_only` the original path is computed for the first token only (B, 1, D). In that case the queries of
        the other tokens are not computed unless a local path attends with them.
        """
        asked = set(attends)
        letters = sorted(set("".join(asked)))
        project = self.attn.project_cls if cls_only and "q" not in letters else self.attn.project
        q, k, v = project(self.ln_1(x))
        pairs = {"q": (q, q), "k": (k, k), "v": (v, v)}
        q = q[:, :, :1] if cls_only else q
        *each, original = self.attn.gather([*(pairs[letter] for letter in letters), (q, k)], v)
        own = dict(zip(letters, each, strict=True))
        gathered = {names: self.attn.merge(_sum([own[name] for name in names])) for names in asked}
        x = x[:, : q.shape[2]] + self.attn.merge(original)
        x = x + self.mlp(self.ln_2(x))
        return x, gathered

    def cls_only(self, x: Tensor) -> Tensor:
        """Run the plain block for its first token only (B, 1, D)."""
        x = x[:, :1] + self.attn.attend(*self.attn.project_cls(self.ln_1(x)))
        x = x + self.mlp(self.ln_2(x))
        return x


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    total = tensors[0]
    for other in tensors[1:]:
        total = total + other
    return total


class Transformer(nn.Module):
    """A stack of blocks."""

    def __init__(self, width: int, layers: int, heads: int, *, quick_gelu: bool, eps: float = 1e-5) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(
            Block(width, heads, quick_gelu=quick_gelu, eps=eps) for _ in range(layers)
        )


class VisionTransformer(nn.Module):
    """CLIP's image tower; its last blocks can have DPAM's local path in addition to the original one.

    Attributes
    ----------
    registers : int
        Number R of tokens between CLS and the patches that show no place of the image; CLIP has none.
    """

    registers: int = 0

    linear = staticmethod(F.linear)
    """The product with `proj`; `anomalyclip.clip.packed` puts a faster one in its place."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        width, grid = config.vision_width, config.image_size // config.patch_size
        self.patch_size = config.patch_size
        self.conv1 = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size, bias=False)
        self.class_embedding = normal(width, std=width**-0.5)
        self.positional_embedding = normal(grid**2 + 1, width, std=width**-0.5)
        self.ln_pre: nn.Module = nn.LayerNorm(width)
        self.transformer = Transformer(
            width, config.vision_layers, config.vision_heads, quick_gelu=config.quick_gelu
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = normal(width, config.embed_dim, std=width**-0.5)

    def embed(self, pixels: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return the tokens that enter the first block: CLS, registers, then the patches row by row.

        Parameters
        ----------
        pixels : Tensor
            (B, 3, h * P, w * P) float, normalised; P is the patch size.
        positions : Tensor, optional
            (1 + h * w, D), the result of `positions` if the caller has it already. None computes it.

        Returns
        -------
        Tensor
            (B, 1 + R + h * w, D) float, with positions added and `ln_pre` applied. Both act on each token separately,
            so any subset of these rows can be passed to `run`.
        """
        x = self.conv1(pixels)  # B D h w
        if positions is None:
            positions = self.positions(*x.shape[-2:])
        x = x.flatten(2).transpose(1, 2) + positions[1:]  # B N D
        first = self.first_tokens(positions[:1]).expand(len(x), -1, -1)  # B 1+R D
        normed: Tensor = self.ln_pre(torch.cat([first, x], dim=1))  # B 1+R+N D
        return normed

    def first_tokens(self, position: Tensor) -> Tensor:
        """Return what stands before the patches (1 + R, D): CLS, at its position (1, D), and registers."""
        return self.class_embedding + position

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
        """Run the blocks.

        Parameters
        ----------
        tokens : Tensor
            (B, R + n, D) float: the result of `embed`, or any subset of its rows with CLS and registers first.
        positions : Tensor, optional
            The result of `positions`, for models that use it in every block. CLIP does not: `embed` has added it.
        plain, local : sequence of int
            Blocks, counted from 1, after which the tokens of the original and of the local path are returned.
        path : LocalPath
            The local path; none by default.
        more : mapping of LocalPath to sequence of int
            Other local paths, and the blocks after which their tokens are returned. What a block adds does not depend
            on where a path began, so that paths in which the same attends cost no more than the longest one.

        Returns
        -------
        Tokens
            CLS and patches, without registers. Only what is needed is computed: in the last block, the original path
            is run for CLS only, unless `plain` contains that block.
        """
        x, depth = tokens, len(self.transformer.resblocks)
        paths = {path: local, **more}
        seconds: dict[LocalPath, Tensor] = {}
        kept = Tokens(x, {}, {}, {one: {} for one in more})
        for number, block in enumerate(self.transformer.resblocks, start=1):
            assert isinstance(block, Block)
            running = [one for one in paths if number > depth - one.blocks]
            cls_only = number == depth and number not in plain and (bool(running) or number not in local)
            if running:
                before = x
                attends = [one.attends for one in running]
                x, gathered = block.dual(x, attends=attends, cls_only=cls_only)
                for one in running:
                    seconds[one] = seconds.get(one, before) + gathered[one.attends]
            else:
                x = block.cls_only(x) if cls_only else block(x)
            if number in plain:
                kept.plain[number] = self._without_registers(x)
            for one, asked in paths.items():
                if number in asked:
                    found = self._without_registers(seconds.get(one, x))
                    (kept.local if one == path else kept.more[one])[number] = found
        return kept._replace(cls=x[:, 0])

    def _without_registers(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :1], x[:, 1 + self.registers :]], dim=1) if self.registers else x

    def project(self, tokens: Tensor, *, norm: bool = True) -> Tensor:
        """Project tokens (..., D) to the space that images and texts share, (..., E), with or without `ln_post`."""
        projected: Tensor = self.linear(self.ln_post(tokens) if norm else tokens, self.proj.T)
        return projected

    def positions(self, rows: int, columns: int, *, rule: str = "bilinear") -> Tensor:
        """Return the positional table (1 + h * w, D) for a grid of patches; the model's table is not changed.

        A table for another grid is resized by one of `POSITIONS`.
        """
        table = self.positional_embedding
        side = int((len(table) - 1) ** 0.5)
        if (rows, columns) == (side, side):
            return table
        square = table[1:].T.reshape(1, -1, side, side)  # 1 D h w
        resized = F.interpolate(
            square, (rows, columns), mode=rule, align_corners=False, antialias=rule == "bicubic"
        )
        return torch.cat([table[:1], resized[0].flatten(1).T])  # 1+N D


class CLIP(nn.Module):
    """CLIP, run with AnomalyCLIP's changes; the weights are those of CLIP.

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
        words = normal(config.vocab_size, width, std=1.0)
        self.token_embedding = nn.Embedding(config.vocab_size, width, _weight=words)
        self.positional_embedding = normal(config.context_length, width, std=0.01)
        self.transformer = Transformer(
            width, config.text_layers, config.text_heads, quick_gelu=config.quick_gelu
        )
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = normal(width, config.embed_dim, std=width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @classmethod
    def frozen(cls, config: CLIPConfig, state_dict: Mapping[str, Tensor]) -> "CLIP":
        """Return the model with these weights; see `anomalyclip.clip.model.frozen`."""
        return frozen(lambda: cls(config), state_dict)

    def encode_image(self, pixels: Tensor, *, layers: Sequence[int], dpam_layers: int) -> ImageFeatures:
        """Encode images as AnomalyCLIP does.

        Parameters
        ----------
        pixels : Tensor
            (B, 3, S, S) float, normalised; S a multiple of the patch size.
        layers : sequence of int
            The blocks, counted from 1, after which patch features are read.
        dpam_layers : int
            Number of final blocks with the local path.

        Returns
        -------
        ImageFeatures
        """
        visual = self.visual
        tokens = visual.run(visual.embed(pixels), local=layers, path=LocalPath(dpam_layers))
        patches = {number: visual.project(found) for number, found in tokens.local.items()}
        return ImageFeatures(visual.project(tokens.cls, norm=False), patches)

    def encode_text(self, embeddings: Tensor, end: Tensor, *, deep_tokens: Sequence[Tensor] = ()) -> Tensor:
        """Encode texts that are given as token embeddings, as learned prompts are.

        Attention is causal, so nothing after a text's end token changes its feature. The texts may therefore be cut
        after the longest one's end token.

        Parameters
        ----------
        embeddings : Tensor
            (B, N, D) float token embeddings, start token first, without positions; N at most the context length.
        end : Tensor
            (B,) int64, position of each text's end token, from which the feature is read.
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
    """Return texts (B, N, D) in which the tokens (n, D) replace those after the start token.

    Like the published model, this rounds the tokens to half precision, which changes the fourth digit of the features.
    """
    rounded = tokens.expand(len(x), -1, -1).half().to(x.dtype)  # B n D
    return torch.cat([x[:, :1], rounded, x[:, 1 + rounded.shape[1] :]], dim=1)
