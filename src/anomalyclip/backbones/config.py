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
    """Architecture of a vision-only transformer; blocks are pre-norm with an MLP of four times the width.

    Parameters
    ----------
    image_size : int
        Side in pixels of the images that the table of positions is for.
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
        One of `RESIZING`.
    eps : float
        Of the norms.
    mean, std : tuple of float
        What pixels within [0, 1] are normalised with, by channel (RGB).
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

    @property
    def embed_dim(self) -> int:
        """Width of the features: there is no projection."""
        return self.vision_width

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-ready."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def tensor_shapes(config: ViTConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor of an architecture, named like those of CLIP's image tower.

    Examples
    --------
    >>> import math
    >>> shapes = tensor_shapes(ViTConfig(518, 14, 384, 12, 6, layer_scale=True))
    >>> shapes["positional_embedding"], sum(math.prod(shape) for shape in shapes.values())
    ((1370, 384), 22056192)
    """
    width, patches = config.vision_width, (config.image_size // config.patch_size) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "class_embedding": (width,),
        "positional_embedding": (patches + config.class_position, width),
        "conv1.weight": (width, 3, config.patch_size, config.patch_size),
        "conv1.bias": (width,),
        "ln_post.weight": (width,),
        "ln_post.bias": (width,),
    }
    if config.registers:
        shapes["register_embedding"] = (config.registers, width)
    for layer in range(config.vision_layers):
        block = f"transformer.resblocks.{layer}"
        for linear, rows, columns in (
            ("attn.out_proj.", width, width),
            ("attn.in_proj_", 3 * width, width),
            ("mlp.c_fc.", 4 * width, width),
            ("mlp.c_proj.", width, 4 * width),
        ):
            shapes |= {f"{block}.{linear}weight": (rows, columns), f"{block}.{linear}bias": (rows,)}
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{norm}.weight": (width,), f"{block}.{norm}.bias": (width,)}
        if config.layer_scale:
            shapes |= {f"{block}.ls_1": (width,), f"{block}.ls_2": (width,)}
    return shapes
