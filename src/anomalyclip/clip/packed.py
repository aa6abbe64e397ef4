"""The image tower's blocks through oneDNN, with weights in its own layout: for processors on which it is the fastest.

PyTorch's float32 products go through MKL, which uses half of the vector units of AMD's processors. oneDNN, which
PyTorch contains too, uses them all. It wants the weights in blocks that fit its kernels, so each weight is stored in
that layout *instead of* the plain one; `unpack` gives the plain one back, bit for bit. Results differ from the plain
blocks by rounding only (1e-6).
"""

import os
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalyclip.backbones.vit import GatedMLP
from anomalyclip.clip.model import MLP, Attention, Block, VisionTransformer, frozen
from anomalyclip.clip.remembered import measured
from anomalyclip.machine import processor

SMALLEST_WIDTH = 256
"""Narrower models stay plain: the time of their products is too short to matter."""

_GAIN = 1.1
"""How many times faster oneDNN's product must be than the plain one."""

_LARGE = 1 << 27
"""Multiplications from which a single product is worth another library."""

_AT_ONCE = 400_000
"""Attention scores that one thread computes at once: 1.6 MB, and as much for their softmax, stay in the cache."""

_FEW = 256
"""Fewer tokens than this are left to PyTorch's own attention."""


class Packed:
    """A linear layer: its weight (out, in) in oneDNN's layout, and its bias (out,).

    Under autocast to bfloat16 the product is in bfloat16; that weight is made when it is first used.
    """

    def __init__(self, weight: Tensor, bias: Tensor, rows: int) -> None:
        self.rows = rows
        self.weight = self._in_layout(weight.detach())
        self.bias = bias.detach().clone()
        self._half: Tensor | None = None

    def __call__(self, x: Tensor, *, bias: Tensor | None = None, then: str = "none") -> Tensor:
        """Return ``x @ weight.T + bias``, by default the layer's own, followed by an activation."""
        bias = self.bias if bias is None else bias
        if not torch.is_autocast_enabled("cpu"):
            return _product(x, self.weight, bias, then)
        if self._half is None:
            self._half = self._in_layout(self.plain().bfloat16())
        return _product(x.bfloat16(), self._half, bias.bfloat16(), then).float()

    def _in_layout(self, weight: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), self.rows)
            return packed

    def plain(self) -> Tensor:
        """Return the weight in the plain layout, (out, in)."""
        with torch.inference_mode(False), torch.no_grad():
            dense: Tensor = self.weight.to_dense()
            return dense


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, then: str = "none") -> Tensor:
    """Return ``x @ weight.T + bias`` by oneDNN, then an activation while the result is cached."""
    exactly = "none" if then == "gelu" else ""  # not the approximation by tanh
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], exactly)
    return result


class _PackedModule(nn.Module):
    """What packed modules share: what leaves them is plain."""

    @abstractmethod
    def plain(self) -> nn.Module:
        """Return the module that was packed, with the same weights, bit for bit."""

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for name, tensor in self.plain().state_dict(keep_vars=keep_vars).items():
            destination[prefix + name] = tensor

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        memo[id(self)] = plain = self.plain()
        return plain


class PackedAttention(_PackedModule, Attention):
    """`Attention` through oneDNN; see the module."""

    def __init__(self, plain: Attention, rows: int) -> None:
        nn.Module.__init__(self)
        self.heads = plain.heads
        weight, bias = plain.in_proj_weight, plain.in_proj_bias
        width = len(bias) // 3
        # Two parts, since the last block needs the query of its first token only.
        self.query = Packed(weight[:width], bias[:width], rows)
        self.key_value = Packed(weight[width:], bias[width:], rows)
        self.out = Packed(plain.out_proj.weight, plain.out_proj.bias, rows)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (B, H, N, D / H), for tokens (B, N, D)."""
        return self._by_head(self.query(x))[0], *self._by_head(self.key_value(x))

    def project_cls(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the query of the first token only, and the keys and values of all tokens."""
        return self._by_head(self.query(x[:, :1]))[0], *self._by_head(self.key_value(x))

    def _by_head(self, x: Tensor) -> Tensor:
        """Return (k, B, H, N, D / H), a view, of k projections (B, N, kD)."""
        width = len(self.query.bias)
        split = x.view(*x.shape[:2], -1, self.heads, width // self.heads)  # B N k H D/H
        return split.permute(2, 0, 3, 1, 4)

    def gather(
        self, pairs: Sequence[tuple[Tensor, Tensor]], v: Tensor, *, causal: bool = False
    ) -> list[Tensor]:
        """Return what each pair of queries (B, H, n, D / H) and keys gathers of the values, (B, H, n, D / H)."""
        if causal or v.shape[2] < _FEW:
            return super().gather(pairs, v, causal=causal)
        gathered = [q.new_empty(len(q), q.shape[2], self.heads, q.shape[3]) for q, _ in pairs]  # B n H D/H

        def of_head(number: int) -> None:
            image, head = divmod(number, self.heads)
            # n D/H to D/H n; of a copy it is four times faster.
            value = v[image, head].contiguous().T.contiguous()
            for (q, k), out in zip(pairs, gathered, strict=True):
                _attend(q[image, head], k[image, head], value, out[image, :, head])

        _each(of_head, len(v) * self.heads)
        return [out.transpose(1, 2) for out in gathered]

    def merge(self, gathered: Tensor) -> Tensor:
        """Return the projected tokens (B, n, D) of what the heads gathered."""
        return self.out(gathered.transpose(1, 2).flatten(2))

    def plain(self) -> Attention:
        """Return the module that was packed."""
        width = len(self.query.bias)
        weights = {
            "in_proj_weight": torch.cat([self.query.plain(), self.key_value.plain()]),
            "in_proj_bias": torch.cat([self.query.bias, self.key_value.bias]),
            "out_proj.weight": self.out.plain(),
            "out_proj.bias": self.out.bias,
        }
        return frozen(lambda: Attention(width, self.heads), weights).train(self.training)


def _attend(q: Tensor, k: Tensor, value: Tensor, out: Tensor) -> None:
    """Write what queries (n, d) and keys (N, d) gather of the values, given as (d, N), to `out` (n, d).

    Tensors of oneDNN's own kind take its softmax too, which is twice as fast as PyTorch's.
    """
    q = q * q.shape[1] ** -0.5
    keys, values = k.contiguous().to_mkldnn(), value.to_mkldnn()
    parts = -(-len(q) * len(k) // _AT_ONCE)
    step = -(-len(q) // parts)
    for start in range(0, len(q), step):
        scores = _linear(q[start : start + step].to_mkldnn(), keys)
        out[start : start + step] = _linear(torch.softmax(scores, -1), values).to_dense()


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """Return ``x @ weight.T`` of tensors of oneDNN's own kind."""
    result: Tensor = torch.ops.aten.mkldnn_linear(x, weight)
    return result


class PackedMLP(_PackedModule, MLP):
    """`MLP` through oneDNN; see the module."""

    def __init__(self, plain: MLP, rows: int) -> None:
        nn.Module.__init__(self)
        self.quick_gelu = plain.quick_gelu
        self.first = Packed(plain.c_fc.weight, plain.c_fc.bias, rows)
        self.second = Packed(plain.c_proj.weight, plain.c_proj.bias, rows)
        # x sigmoid(1.702 x) = silu(1.702 x) / 1.702; see `MLP.forward`. The weights are not scaled, so that they can
        # be unpacked exactly.
        scale = 1.702 if plain.quick_gelu else 1.0
        self.scale, self.biases = scale, (scale * self.first.bias, scale * self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, D) to tokens (B, N, D)."""
        if not self.quick_gelu:
            return self.second(self.first(x, then="gelu"))
        x = self.first(x * self.scale, bias=self.biases[0], then="swish")
        return self.second(x, bias=self.biases[1]).mul_(1 / self.scale)

    def plain(self) -> MLP:
        """Return the module that was packed."""
        width = len(self.second.bias)
        weights = {
            "c_fc.weight": self.first.plain(),
            "c_fc.bias": self.first.bias,
            "c_proj.weight": self.second.plain(),
            "c_proj.bias": self.second.bias,
        }
        return frozen(lambda: MLP(width, quick_gelu=self.quick_gelu), weights).train(self.training)


class PackedGatedMLP(_PackedModule, GatedMLP):
    """`GatedMLP` through oneDNN; see the module."""

    def __init__(self, plain: GatedMLP, rows: int) -> None:
        nn.Module.__init__(self)
        layers = (plain.c_gate, plain.c_fc, plain.c_proj)
        self.gate, self.first, self.second = (Packed(one.weight, one.bias, rows) for one in layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, D) to tokens (B, N, D)."""
        return self.second(self.gate(x, then="swish").mul_(self.first(x)))

    def plain(self) -> GatedMLP:
        """Return the module that was packed."""
        width, hidden = len(self.second.bias), len(self.first.bias)
        weights = {
            "c_gate.weight": self.gate.plain(),
            "c_gate.bias": self.gate.bias,
            "c_fc.weight": self.first.plain(),
            "c_fc.bias": self.first.bias,
            "c_proj.weight": self.second.plain(),
            "c_proj.bias": self.second.bias,
        }
        return frozen(lambda: GatedMLP(width, hidden), weights).train(self.training)


def largest_products(x: Tensor, parts: Iterable[Tensor]) -> Tensor:
    """Return each row's largest product with any row of the parts, by oneDNN where it is faster.

    `x` is brought into oneDNN's layout once, for all parts; parts need none, since they are multiplied from the left.

    Parameters
    ----------
    x : Tensor
        (..., D) float32.
    parts : iterable of Tensor
        (M, D) float32 each; the matrix of products with one part is in memory at a time.

    Returns
    -------
    Tensor
        (...) float32. Products that are differentiated, compiled or exported are PyTorch's own.

    Examples
    --------
    >>> largest_products(torch.tensor([[1.0, 2.0]]), [torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 1.0]])])
    tensor([11.])
    """
    found: list[Tensor] = []
    layout: Tensor | None = None
    for part in parts:
        if not _is_worth_it(x, part):
            found.append((x @ part.T).amax(dim=-1))
            continue
        if layout is None:
            layout = torch.ops.mkldnn._reorder_linear_weight(x.flatten(0, -2).contiguous(), len(part))
        found.append(_product(part.contiguous(), layout, None).amax(dim=0).view(x.shape[:-1]))
    return reduce(torch.maximum, found)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ weight.T + bias``, by oneDNN where it is faster and the product is large.

    Parameters
    ----------
    x : Tensor
        (..., D).
    weight : Tensor
        (E, D), in any layout.
    bias : Tensor, optional
        (E,).

    Returns
    -------
    Tensor
        (..., E). Products that are differentiated, compiled, exported or not in float32 are PyTorch's own.

    Examples
    --------
    >>> linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([0.0, 1.0]))
    tensor([[11.,  3.]])
    """
    if x.dtype != torch.float32 or weight.dtype != torch.float32 or not _is_worth_it(x, weight):
        return F.linear(x, weight, bias)
    return _product(x.contiguous(), weight, bias)


def _is_worth_it(x: Tensor, rows: Tensor) -> bool:
    """Return whether ``rows @ x.T`` is a product for oneDNN."""
    if torch.compiler.is_compiling() or x.requires_grad or rows.requires_grad or x.device.type != "cpu":
        return False
    return x.numel() * len(rows) >= _LARGE and is_faster()


def pack(visual: VisionTransformer, *, tokens: int) -> None:
    """Store the weights of all blocks in oneDNN's layout, in place, and project through it too.

    Parameters
    ----------
    visual : VisionTransformer
        A frozen image tower with float32 weights on the CPU; packed ones are left as they are.
    tokens : int
        Number of tokens of the images; the layout is chosen for it, others work too.
    """
    for block in _blocks(visual):
        if not isinstance(block.attn, PackedAttention):
            block.attn = PackedAttention(block.attn, tokens).train(block.training)
            mlp = block.mlp
            packed = PackedGatedMLP(mlp, tokens) if isinstance(mlp, GatedMLP) else PackedMLP(mlp, tokens)
            block.mlp = packed.train(block.training)
    # One tensor of a mapped file would keep all of the file in memory.
    for tensor in (*visual.parameters(), *visual.buffers()):
        tensor.data = tensor.data.clone()
    visual.linear = linear  # type: ignore[assignment]


def pack_if_faster(visual: VisionTransformer, *, tokens: int) -> None:
    """Pack the weights where that makes this machine faster: of wide models, see `is_faster`."""
    if len(visual.class_embedding) >= SMALLEST_WIDTH and is_faster():
        pack(visual, tokens=tokens)


def unpack(visual: VisionTransformer) -> None:
    """Store the weights in the plain layout again, in place."""
    for block in _blocks(visual):
        if isinstance(block.attn, PackedAttention):
            block.attn = block.attn.plain()
        if isinstance(block.mlp, PackedMLP | PackedGatedMLP):
            block.mlp = block.mlp.plain()
    vars(visual).pop("linear", None)


def is_packed(visual: VisionTransformer) -> bool:
    """Tell whether the weights are in oneDNN's layout."""
    return any(isinstance(block.attn, PackedAttention) for block in _blocks(visual))


def _blocks(visual: VisionTransformer) -> list[Block]:
    return [block for block in visual.transformer.resblocks if isinstance(block, Block)]


def _each(work: Callable[[int], None], count: int) -> None:
    """Call `work` with each number below `count`, on as many threads as PyTorch uses."""
    threads = min(torch.get_num_threads(), count)
    if threads == 1:
        for number in range(count):
            work(number)
        return
    inference, numbers = torch.is_inference_mode_enabled(), iter(range(count))

    def several(_: int) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            for number in numbers:  # each thread takes the next one
                work(number)

    list(_pool(threads, os.getpid()).map(several, range(threads)))


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Return the threads of a process, each of which computes alone: the whole product of one head after another.

    The alternative, one product on all threads, stops for them two hundred times in a block.
    """
    return ThreadPoolExecutor(threads, "attention", initializer=torch.set_num_threads, initargs=(1,))


def is_faster() -> bool:
    """Tell whether oneDNN's float32 product is clearly faster here than PyTorch's usual one.

    It is measured once and remembered in the cache folder: for this processor, number of threads and version of
    PyTorch.
    """
    return _is_faster(torch.get_num_threads())


@cache
def _is_faster(threads: int) -> bool:
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or not all(
        hasattr(*one) for one in ((torch.ops.mkldnn, "_linear_pointwise"), (torch.ops.aten, "mkldnn_linear"))
    ):
        return False
    about = [processor(), threads, torch.__version__, os.environ.get("ONEDNN_MAX_CPU_ISA")]
    ratio: float = measured("speed", about, "ratio", float, lambda: {"about": about, "ratio": _ratio()})
    return ratio > _GAIN


def _ratio() -> float:
    """Return how many times faster oneDNN's product of a few hundred tokens is; best of four, in turn."""
    x, weight = torch.ones(1, 512, 1024), torch.ones(1024, 1024)
    packed = Packed(weight, torch.zeros(1024), 512)

    def seconds(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    with torch.inference_mode():
        times = [(seconds(lambda: x @ weight.T), seconds(lambda: packed(x))) for _ in range(4)]
    plain, fast = (min(column) for column in zip(*times, strict=True))
    ratio: float = plain / fast
    return ratio
