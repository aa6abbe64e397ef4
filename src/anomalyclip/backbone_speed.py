"""How long a backbone takes for one image on this machine; random weights do, since speed does not depend on values."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from anomalyclip.backbones.config import ViTConfig
from anomalyclip.backbones.rotary import form_of
from anomalyclip.backbones.table import KnownBackbone
from anomalyclip.clip import packed, taps
from anomalyclip.clip.model import VisionTransformer
from anomalyclip.clip.taps import Taps
from anomalyclip.clip_core import default_image_size
from anomalyclip.engines.floor import best_time, limit


@dataclass(frozen=True)
class Speed:
    """Time of one image through an image encoder.

    Attributes
    ----------
    name : str
        Of the backbone.
    image_size : int
        Side of the image in pixels: the size at which the backbone is used unless told otherwise.
    gflop : float
        Operations of the blocks' matrix products for one image, in 1e9.
    seconds : float
        Best of the repetitions.
    floor : float
        Seconds that these products take at the rate of the best float32 product on this machine.
    """

    name: str
    image_size: int
    gflop: float
    seconds: float
    floor: float

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, and their ratio, JSON-ready."""
        return asdict(self) | {"ratio": self.seconds / self.floor}


def gflop_of(one: KnownBackbone, image_size: int | None = None) -> float:
    """Return the operations of one image in 1e9, for the last block's patches; None: at the size it is used at."""
    size = default_image_size(one.config) if image_size is None else image_size
    return taps.gflop(one.config, Taps(plain=(one.config.vision_layers,)), size // one.config.patch_size)


def measure(backbones: Iterable[KnownBackbone], *, repeats: int = 3) -> Iterator[Speed]:
    """Yield the time of each backbone on the CPU; equal architectures are timed once.

    Parameters
    ----------
    backbones : iterable of KnownBackbone
    repeats : int
        Runs of each; the best one counts.

    Yields
    ------
    Speed
    """
    cpu = torch.device("cpu")
    rate = limit(cpu).rate
    known: dict[str, float] = {}
    for one in backbones:
        size, config = default_image_size(one.config), one.config
        shape = (size, config.patch_size, config.vision_width, config.vision_layers, config.vision_heads)
        key = f"{shape} {[getattr(config, name, None) for name in ('registers', 'gated', 'rotary')]}"
        if key not in known:
            known[key] = _seconds(_random_tower(one), size, repeats)
        gflop = gflop_of(one)
        yield Speed(one.name, size, gflop, known[key], gflop / rate)


def _random_tower(one: KnownBackbone) -> VisionTransformer:
    torch.manual_seed(0)
    config = one.config
    tower = form_of(config)(config) if isinstance(config, ViTConfig) else VisionTransformer(config)
    return tower.requires_grad_(False).eval()


def _seconds(tower: VisionTransformer, size: int, repeats: int) -> float:
    pixels, last = torch.randn(1, 3, size, size), len(tower.transformer.resblocks)
    packed.pack_if_faster(tower, tokens=1 + (size // tower.patch_size) ** 2)
    with torch.inference_mode():
        positions = tower.positions(size // tower.patch_size, size // tower.patch_size)
        return best_time(
            lambda: tower.run(tower.embed(pixels, positions), positions=positions, plain=[last]),
            repeats=repeats,
        )
