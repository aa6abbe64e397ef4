"""APRIL-GAN's trained part: one linear layer per block, from raw tokens to the space of the texts."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from anomalyclip.clip.checkpoints import load_checkpoint
from anomalyclip.clip.model import CLIPConfig
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.trained import check_file, read_trained, save_trained

FORMAT = "anomalyclip-linear-layers-1"
"""Name of the safetensors format, stored in the file's header."""

_WHAT = "APRIL-GAN's linear layers"
_PUBLISHED_BLOCKS = 24
_PUBLISHED_ACTIVATION = "gelu"


@dataclass(frozen=True)
class LinearLayers:
    """One linear layer for each block whose tokens are used.

    Attributes
    ----------
    blocks : tuple of int
        The blocks, counted from 1.
    weight : Tensor
        (L, E, D) float32.
    bias : Tensor
        (L, E) float32.
    info : mapping of str to str
        What is known about their training (``trained_on``, ``activation``, ``backbone_fingerprint``, ...).
    """

    blocks: tuple[int, ...]
    weight: Tensor
    bias: Tensor
    info: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def initial(cls, config: CLIPConfig, blocks: Sequence[int], *, seed: int) -> "LinearLayers":
        """Return untrained layers, as PyTorch initialises linear layers."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = [nn.Linear(config.vision_width, config.embed_dim) for _ in blocks]
        weight = torch.stack([layer.weight.detach() for layer in layers])
        return cls(tuple(blocks), weight, torch.stack([layer.bias.detach() for layer in layers]))

    def digest(self) -> str:
        """Return the SHA-256 of blocks and tensors in hex."""
        digest = hashlib.sha256(f"{self.blocks}".encode())
        for tensor in (self.weight, self.bias):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def check_fits(self, config: CLIPConfig, activation: str, path: Path) -> None:
        """Refuse layers that were trained for another architecture, or on tokens of another activation.

        Raises
        ------
        AnomalyCLIPError
            Naming what differs.
        """
        needed, has = self.weight.shape[1:], (config.embed_dim, config.vision_width)
        if tuple(needed) != has or max(self.blocks) > config.vision_layers:
            raise AnomalyCLIPError(
                f"{path}: linear layers from width {needed[1]} to {needed[0]} after the blocks {_listed(self.blocks)}; "
                f"the backbone has width {has[1]}, embedding {has[0]} and {config.vision_layers} blocks"
            )
        trained = self.info.get("activation")
        if trained is not None and trained != activation:
            raise AnomalyCLIPError(
                f"{path}: the linear layers were trained with the activation {trained}, and the tokens here are of "
                f"{activation}: give --activation {trained}"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the layers, with the format's name and `info` in the header."""
        tensors: dict[str, Tensor] = {}
        for block, weight, bias in zip(self.blocks, self.weight, self.bias, strict=True):
            tensors |= {f"block.{block}.weight": weight.clone(), f"block.{block}.bias": bias.clone()}
        save_trained(path, tensors, format=FORMAT, info=self.info)


def load_linear_layers(path: str | os.PathLike[str]) -> LinearLayers:
    """Read layers that `LinearLayers.save` wrote, or a published ``.pth`` of APRIL-GAN.

    Published layers are of the blocks 6, 12, 18 and 24 of ViT-L/14, and of exact GELU.

    Raises
    ------
    AnomalyCLIPError
        The file is missing or has no such layers.
    """
    path = Path(path)
    check_file(path, f"{_WHAT}, from `anomalyclip train --method april-gan` or published")
    with path.open("rb") as file:
        is_checkpoint = file.read(2) in (b"PK", b"\x80\x02")
    tensors, info = _published(path) if is_checkpoint else _own(path)
    return _assembled(tensors, info, path)


def _own(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors, info = read_trained(path, format=FORMAT, what=_WHAT, or_else="a published .pth")
    return {name.removeprefix("block."): tensor for name, tensor in tensors.items()}, info


def _published(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        content = load_checkpoint(path)
    except AnomalyCLIPError:
        raise
    except Exception as error:  # what a damaged checkpoint raises depends on the damage
        raise AnomalyCLIPError(
            f"{path}: not a readable checkpoint of tensors ({type(error).__name__})"
        ) from None
    state = content.get("trainable_linearlayer") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise AnomalyCLIPError(
            f'{path}: not {_WHAT}; expected {{"trainable_linearlayer": {{"fc.0.weight", ...}}}}'
        )
    count = max(len(state) // 2, 1)
    tensors = {}
    for name, tensor in state.items():
        index, _, kind = name.removeprefix("fc.").partition(".")
        block = (int(index) + 1) * _PUBLISHED_BLOCKS // count if index.isdecimal() else index
        tensors[f"{block}.{kind}"] = tensor.float()
    return tensors, {"activation": _PUBLISHED_ACTIVATION, "name": path.name}


def _assembled(tensors: Mapping[str, Tensor], info: Mapping[str, str], path: Path) -> LinearLayers:
    names = {name.partition(".")[0] for name in tensors}
    if not names or not all(name.isdecimal() and int(name) >= 1 for name in names):
        raise AnomalyCLIPError(f"{path}: not {_WHAT}: it has {', '.join(sorted(tensors)) or 'no tensor'}")
    blocks = tuple(sorted(map(int, names)))
    if missing := [
        f"{b}.{kind}" for b in blocks for kind in ("weight", "bias") if f"{b}.{kind}" not in tensors
    ]:
        raise AnomalyCLIPError(f"{path}: incomplete linear layers: {', '.join(missing)} missing")
    weights, biases = ([tensors[f"{b}.{kind}"].float() for b in blocks] for kind in ("weight", "bias"))
    shapes = {tuple(w.shape) for w in weights}, {tuple(b.shape) for b in biases}
    fitting = len(shapes[0]) == len(shapes[1]) == 1 and all(w.dim() == 2 for w in weights)
    if not fitting or shapes[1] != {weights[0].shape[:1]}:
        raise AnomalyCLIPError(f"{path}: the linear layers do not match: shapes {shapes[0]} and {shapes[1]}")
    weight, bias = torch.stack(weights), torch.stack(biases)
    if not (weight.isfinite().all() and bias.isfinite().all()):
        raise AnomalyCLIPError(f"{path}: the linear layers have values that are NaN or infinite; train again")
    return LinearLayers(blocks, weight, bias, info)


def _listed(blocks: Sequence[int]) -> str:
    return ", ".join(map(str, blocks))
