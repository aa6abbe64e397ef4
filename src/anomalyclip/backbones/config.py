"""The architecture of a vision-only transformer as a value, and the tensors that it consists of. No PyTorch here."""

from dataclasses import asdict, dataclass
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)

RESIZING = ("bicubic", "bicubic-antialias", "bicubic-offset")
"""How a table of positions is resized for another grid of patches.

``bicubic``: transformers' DINOv2 and ViT. ``bicubic-antialias``: timm, and DINOv2 with registers. ``bicubic-offset``:
the original DINO and DINOv2, which scale by (side + 0.1) / table side.
"""


@dataclass(frozen=True)
class ViTConfig:
    """Architecture of a vision-only transformer; blocks are pre-norm.

    Parameters
    ----------
    image_size : int
        Side in pixels of the images that the table of positions is for; 0 with rotary positions, which have no table.
    patch_size : int
        Side of a patch in pixels.
    vision_width, vision_layers, vision_heads : int
        The transformer.
    registers : int
        Number of tokens between CLS and the patches that show no place of the image.
    layer_scale : bool
        Whether each branch of a block is multiplied by a learned factor per channel.
    class_position : bool
        Whether the table of positions has a row for CLS.
    positions : str
        One of `RESIZING`; empty with rotary positions.
    eps : float
        Of the norms.
    mean, std : tuple of float
        What pixels within [0, 1] are normalised with, by channel (RGB).
    gated : int
        Width of the gated MLP (SwiGLU) of each block; 0: a plain MLP of four times the width.
    rotary : tuple of float
        Periods of the rotary positions, a quarter of a head's width of them. Empty: a table of positions.
    """

    image_size: int
    patch_size: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    registers: int = 0
    layer_scale: bool = False
    class_position: bool = True
    positions: str = "bicubic-antialias"
    eps: float = 1e-6
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    gated: int = 0
    rotary: tuple[float, ...] = ()

    @property
    def embed_dim(self) -> int:
        """Width of the features: there is no projection."""
        return self.vision_width

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-ready; those of newer architectures only if they are used."""
        fields = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        return {name: v for name, v in fields.items() if v or name not in ("gated", "rotary")}


def periods(base: float, head_width: int) -> tuple[float, ...]:
    """Return the periods of rotary positions, a quarter of a head's width of them, from 1 to nearly `base`.

    A period is in halves of the image's side.

    Examples
    --------
    >>> periods(100.0, 16)
    (1.0, 3.1622776601683795, 10.0, 31.622776601683793)
    """
    count = head_width // 4
    return tuple(base ** (number / count) for number in range(count))


def tensor_shapes(config: ViTConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor of an architecture, named like those of CLIP's image tower.

    Examples
    --------
    >>> import math
    >>> shapes = tensor_shapes(ViTConfig(518, 14, 384, 12, 6, layer_scale=True))
    >>> shapes["positional_embedding"], sum(math.prod(shape) for shape in shapes.values())
    ((1370, 384), 22056192)
    """
    width, hidden = config.vision_width, config.gated or 4 * config.vision_width
    shapes: dict[str, tuple[int, ...]] = {
        "class_embedding": (width,),
        "conv1.weight": (width, 3, config.patch_size, config.patch_size),
        "conv1.bias": (width,),
        "ln_post.weight": (width,),
        "ln_post.bias": (width,),
    }
    if config.registers:
        shapes["register_embedding"] = (config.registers, width)
    if not config.rotary:
        patches = (config.image_size // config.patch_size) ** 2
        shapes["positional_embedding"] = (patches + config.class_position, width)
    for layer in range(config.vision_layers):
        block = f"transformer.resblocks.{layer}"
        for linear, rows, columns in (
            ("attn.out_proj.", width, width),
            ("attn.in_proj_", 3 * width, width),
            *([("mlp.c_gate.", hidden, width)] if config.gated else []),
            ("mlp.c_fc.", hidden, width),
            ("mlp.c_proj.", width, hidden),
        ):
            shapes |= {f"{block}.{linear}weight": (rows, columns), f"{block}.{linear}bias": (rows,)}
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{norm}.weight": (width,), f"{block}.{norm}.bias": (width,)}
        if config.layer_scale:
            shapes |= {f"{block}.ls_1": (width,), f"{block}.ls_2": (width,)}
    return shapes
