"""Writes backbones.npz: what timm 1.0.31 and open_clip 3.3.0 compute with small models, for tests/test_backbones.py.

The weights are a formula of their names (`tests.vit_forms.formula`), so only results are stored. Both packages import
torchvision, which is not needed for their models: a stand-in takes its place. In an empty virtual environment:

    pip install torch==2.13.0 numpy safetensors && pip install --no-deps timm==1.0.31 open_clip_torch==3.3.0 \
        ftfy wcwidth regex tqdm huggingface_hub pyyaml filelock packaging
    python -m tests.golden.make_backbones
"""

import importlib.abc
import importlib.util
import sys
import types
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tests.vit_forms import (
    CLIP_CONFIG,
    DINOV3,
    DINOV3_SIZES,
    SIZES,
    TIMM,
    dinov3_state,
    formula,
    formula_pixels,
)


class _Attributes(type(torch.nn.Module)):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("_"):
            raise AttributeError(name)
        return name


class _Anything(types.ModuleType):
    __path__ = ()

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Attributes(name, (torch.nn.Module,), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        is_ours = name.partition(".")[0] == "torchvision"
        return importlib.util.spec_from_loader(name, self, is_package=True) if is_ours else None

    def create_module(self, spec):
        return _Anything(spec.name)

    def exec_module(self, module):
        module.__version__ = "0.99.0"


def of_timm() -> dict[str, np.ndarray]:
    """Return tokens (1 + N, D) after the final norm, without registers, of each model and size."""
    from timm.models.vision_transformer import VisionTransformer

    found = {}
    for form, options in TIMM.items():
        model = VisionTransformer(num_classes=0, dynamic_img_size=True, **options).eval()
        model.load_state_dict({name: formula(name, one.shape) for name, one in model.state_dict().items()})
        for size in SIZES:
            with torch.inference_mode():
                tokens = model.forward_features(formula_pixels(size))[0]
            patches = tokens[model.num_prefix_tokens :]
            found[f"timm {form} {size[0]}x{size[1]}"] = torch.cat([tokens[:1], patches]).numpy()
    return found


def of_dinov3() -> dict[str, np.ndarray]:
    """Return the same of timm's DINOv3, into which timm itself has read weights of Meta's form."""
    from timm.models.eva import Eva, checkpoint_filter_fn

    found = {}
    for form in DINOV3:
        model = Eva(
            img_size=64,
            patch_size=16,
            dynamic_img_size=True,
            embed_dim=128,
            depth=2,
            num_heads=2,
            num_classes=0,
            qkv_bias=True,
            init_values=1.0,
            swiglu_mlp=form == "gated",
            swiglu_align_to=8,
            rope_type="dinov3",
            rope_temperature=100,
            rope_rotate_half=True,
            use_rot_pos_emb=True,
            use_abs_pos_emb=False,
            num_reg_tokens=3,
            use_fc_norm=False,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-5),
        ).eval()
        model.load_state_dict(checkpoint_filter_fn(dinov3_state(form), model))
        for size in DINOV3_SIZES:
            with torch.inference_mode():
                tokens = model.forward_features(formula_pixels(size))[0]
            found[f"dinov3 {form} {size[0]}x{size[1]}"] = torch.cat([tokens[:1], tokens[4:]]).numpy()
    return found


def of_open_clip() -> dict[str, np.ndarray]:
    """Return the features of an image and a text, and the image's last patches, with both activations."""
    from open_clip.model import CLIP

    found = {}
    for quick in (False, True):
        model = CLIP(**CLIP_CONFIG, quick_gelu=quick, output_dict=True).eval()
        state = model.state_dict()
        model.load_state_dict(
            {name: one if name == "attn_mask" else formula(name, one.shape) for name, one in state.items()},
            strict=False,
        )
        model.visual.output_tokens = True
        name = f"open_clip {'quick ' * quick}gelu"
        with torch.inference_mode():
            image, patches = model.visual(formula_pixels((56, 56)))
            found[f"{name} image"] = image[0].numpy()
            found[f"{name} patches"] = patches[0].numpy()
            texts = torch.tensor([[98, 3, 14, 15, 92, 99] + [0] * 10])  # the end is the largest number
            found[f"{name} text"] = model.encode_text(texts)[0].numpy()
    return found


if __name__ == "__main__":
    sys.meta_path.insert(0, _Finder())
    np.savez_compressed(
        Path(__file__).with_name("backbones.npz"), **of_timm(), **of_dinov3(), **of_open_clip()
    )
