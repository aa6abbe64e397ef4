"""The table of known backbones, as data: what each is, where it is published, its licence, and its hash if known."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

from anomalyclip.backbones import config as vision
from anomalyclip.backbones.config import HALF, IMAGENET_MEAN, IMAGENET_STD, ViTConfig, periods
from anomalyclip.clip.config import CLIPConfig, tensor_shapes
from anomalyclip.clip.download import RemoteFile
from anomalyclip.images import OPENAI_MEAN, OPENAI_STD
from anomalyclip.spec import DEFAULT_BACKBONE

ASSETS = Path(__file__).resolve().parent.parent / "assets"
"""Folder of the files that are included in the package."""

_NORMALISATIONS: dict[tuple[tuple[float, ...], tuple[float, ...]], str] = {
    (OPENAI_MEAN, OPENAI_STD): "CLIP",
    (IMAGENET_MEAN, IMAGENET_STD): "ImageNet",
    (HALF, HALF): "0.5",
}


@dataclass(frozen=True)
class KnownBackbone:
    """A published backbone.

    Attributes
    ----------
    name : str
        For ``--backbone``.
    config : CLIPConfig or ViTConfig
        Its architecture.
    licence : str
        Of the weights.
    trained_on : str
        Images that it was trained on.
    hub, file : str
        Repository on the Hugging Face hub, and the file there.
    url : str
        The file of those who trained it, if they publish it elsewhere.
    archive : RemoteFile, optional
        OpenAI's TorchScript archive and its hash. Only backbones with one are downloaded by name.
    folder : Path, optional
        The folder in this package that holds it.
    """

    name: str
    config: CLIPConfig | ViTConfig
    licence: str
    trained_on: str
    hub: str = ""
    file: str = "model.safetensors"
    url: str = ""
    archive: RemoteFile | None = None
    folder: Path | None = None

    @property
    def has_text(self) -> bool:
        """Whether it compares images with words; otherwise it is vision-only."""
        return isinstance(self.config, CLIPConfig)

    @property
    def sha256(self) -> str | None:
        """The known hash of its published file; None: none is known, and it is used by file."""
        return None if self.archive is None else self.archive.digest.partition(":")[2]

    @property
    def parameters(self) -> int:
        """Number of values in the image encoder."""
        if isinstance(self.config, ViTConfig):
            return sum(map(prod, vision.tensor_shapes(self.config).values()))
        shapes = tensor_shapes(self.config)
        return sum(prod(shape) for name, shape in shapes.items() if name.startswith("visual."))

    @property
    def normalisation(self) -> str:
        """Name of the mean and standard deviation that it takes pixels with."""
        return _NORMALISATIONS[self.config.mean, self.config.std]

    @property
    def abilities(self) -> tuple[str, ...]:
        """What it can do: words and the local path, or references alone."""
        return ("words", "local path", "references") if self.has_text else ("references",)

    @property
    def source(self) -> str:
        """Where its file is, for people."""
        if self.folder is not None:
            return "included"
        return self.url or f"https://huggingface.co/{self.hub}"

    def to_dict(self) -> dict[str, Any]:
        """Return what the table says of it, JSON-ready."""
        return {
            "name": self.name,
            "kind": "CLIP" if self.has_text else "vision-only",
            "source": self.source,
            "hub": self.hub or None,
            "file": self.file if self.folder is None else None,
            "sha256": self.sha256,
            "by_file": self.archive is None and self.folder is None,
            "licence": self.licence,
            "trained_on": self.trained_on,
            "parameters": self.parameters,
            "normalisation": self.normalisation,
            "abilities": list(self.abilities),
            "architecture": self.config.to_dict(),
        }


_L14 = CLIPConfig(768, 224, 14, 1024, 24, 16, 768, 12, 12, 77, 49408)
_B16 = CLIPConfig(512, 224, 16, 768, 12, 12, 512, 12, 8, 77, 49408)
_B32 = replace(_B16, patch_size=32)
_B16_PLUS = CLIPConfig(640, 240, 16, 896, 12, 14, 640, 12, 10, 77, 49408)

_gelu = partial(replace, quick_gelu=False)

_OPENAI = "https://openaipublic.azureedge.net/clip/models"
_MICRO = CLIPConfig(128, 120, 12, 128, 6, 2, 128, 4, 2, 24, 178)


def _openai(name: str, config: CLIPConfig, hub: str, sha256: str, file: str) -> KnownBackbone:
    archive = RemoteFile(f"{_OPENAI}/{sha256}/{file}.pt", f"sha256:{sha256}")  # the address holds the hash
    return KnownBackbone(
        name, config, "MIT", "WIT-400M", hub, "open_clip_model.safetensors", archive.url, archive
    )


def _open_clip(
    name: str, config: CLIPConfig, licence: str, trained_on: str, hub: str, url: str = ""
) -> KnownBackbone:
    return KnownBackbone(name, config, licence, trained_on, hub, "open_clip_model.safetensors", url)


_META = "https://dl.fbaipublicfiles.com"
_WIDTHS = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}


def _dinov2(size: str, *, registers: bool) -> KnownBackbone:
    letter = f"vit{size[0]}14"
    config = ViTConfig(518, 14, *_WIDTHS[size], registers=4 * registers, layer_scale=True)
    config = replace(config, positions="bicubic-antialias" if registers else "bicubic-offset")
    return KnownBackbone(
        f"dinov2-{size}{'-registers' * registers}",
        config,
        "Apache-2.0",
        "LVD-142M",
        f"facebook/dinov2-{'with-registers-' * registers}{size}",
        url=f"{_META}/dinov2/dinov2_{letter}/dinov2_{letter}{'_reg4' * registers}_pretrain.pth",
    )


def _dinov3(size: str, *, plus: bool = False) -> KnownBackbone:
    shape = _WIDTHS[size]
    config = ViTConfig(0, 16, *shape, registers=4, layer_scale=True, class_position=False, positions="")
    config = replace(config, eps=1e-5, gated=4 * shape[0] * plus, rotary=periods(100.0, shape[0] // shape[2]))
    return KnownBackbone(
        f"dinov3-{size}{'-plus' * plus}",
        config,
        "DINOv3 License",
        "LVD-1689M",
        f"facebook/dinov3-vit{size[0]}16{'plus' * plus}-pretrain-lvd1689m",
    )


TABLE: tuple[KnownBackbone, ...] = (
    _openai(
        DEFAULT_BACKBONE,
        replace(_L14, image_size=336),
        "timm/vit_large_patch14_clip_336.openai",
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
        "ViT-L-14-336px",
    ),
    _openai(
        "ViT-L-14",
        _L14,
        "timm/vit_large_patch14_clip_224.openai",
        "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
        "ViT-L-14",
    ),
    _openai(
        "ViT-B-16",
        _B16,
        "timm/vit_base_patch16_clip_224.openai",
        "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
        "ViT-B-16",
    ),
    _openai(
        "ViT-B-32",
        _B32,
        "timm/vit_base_patch32_clip_224.openai",
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
        "ViT-B-32",
    ),
    KnownBackbone("micro", _MICRO, "MIT", "generated images, Caltech-101", folder=ASSETS / "micro"),
    _open_clip("ViT-B-32-laion2b", _gelu(_B32), "MIT", "LAION-2B", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
    _open_clip("ViT-B-16-laion2b", _gelu(_B16), "MIT", "LAION-2B", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"),
    _open_clip(
        "ViT-L-14-laion2b",
        _gelu(_L14, mean=HALF, std=HALF),
        "MIT",
        "LAION-2B",
        "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
    ),
    _open_clip(
        "ViT-B-16-plus-240-laion400m",
        _gelu(_B16_PLUS),
        "MIT",
        "LAION-400M",
        "timm/vit_base_patch16_plus_clip_240.laion400m_e31",
    ),
    _open_clip(
        "ViT-B-32-datacomp", _gelu(_B32), "MIT", "DataComp-1B", "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K"
    ),
    _open_clip(
        "ViT-B-16-datacomp", _gelu(_B16), "MIT", "DataComp-1B", "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K"
    ),
    _open_clip(
        "ViT-L-14-datacomp", _gelu(_L14), "MIT", "DataComp-1B", "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K"
    ),
    _open_clip(
        "ViT-B-32-metaclip",
        _B32,
        "CC-BY-NC-4.0",
        "MetaCLIP-400M",
        "timm/vit_base_patch32_clip_224.metaclip_400m",
        f"{_META}/MMPT/metaclip/b32_400m.pt",
    ),
    _open_clip(
        "ViT-B-16-metaclip",
        _B16,
        "CC-BY-NC-4.0",
        "MetaCLIP-400M",
        "timm/vit_base_patch16_clip_224.metaclip_400m",
        f"{_META}/MMPT/metaclip/b16_400m.pt",
    ),
    _open_clip(
        "ViT-L-14-metaclip",
        _L14,
        "CC-BY-NC-4.0",
        "MetaCLIP-400M",
        "timm/vit_large_patch14_clip_224.metaclip_400m",
        f"{_META}/MMPT/metaclip/l14_400m.pt",
    ),
    _open_clip("ViT-B-16-dfn2b", _B16, "Apple ASCL", "DFN-2B", "apple/DFN2B-CLIP-ViT-B-16"),
    _open_clip("ViT-L-14-dfn2b", _L14, "Apple ASCL", "DFN-2B", "apple/DFN2B-CLIP-ViT-L-14"),
    *(_dinov2(size, registers=registers) for registers in (False, True) for size in _WIDTHS),
    _dinov3("small"),
    _dinov3("small", plus=True),
    _dinov3("base"),
    _dinov3("large"),
    KnownBackbone(
        "dino-small-16",
        ViTConfig(224, 16, *_WIDTHS["small"], positions="bicubic-offset"),
        "Apache-2.0",
        "ImageNet-1k",
        "timm/vit_small_patch16_224.dino",
        url=f"{_META}/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth",
    ),
    KnownBackbone(
        "deit-small-16",
        ViTConfig(224, 16, *_WIDTHS["small"]),
        "Apache-2.0",
        "ImageNet-1k",
        "timm/deit_small_patch16_224.fb_in1k",
        url=f"{_META}/deit/deit_small_patch16_224-cd65a155.pth",
    ),
    KnownBackbone(
        "vit-small-16-augreg",
        ViTConfig(224, 16, *_WIDTHS["small"], mean=HALF, std=HALF),
        "Apache-2.0",
        "ImageNet-21k",
        "timm/vit_small_patch16_224.augreg_in21k_ft_in1k",
    ),
)
"""All known backbones."""

KNOWN: Mapping[str, KnownBackbone] = MappingProxyType({one.name: one for one in TABLE})
"""The same by name."""
