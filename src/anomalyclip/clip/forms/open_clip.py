"""open_clip's weights: what ``open_clip_config.json`` says, and without it what the published file names say."""

import re
from pathlib import Path
from typing import Any

from anomalyclip.clip.forms.settings import Settings, note, three
from anomalyclip.clip.tensors import FOLDER_FILES, Unusable, read_json

CONFIG = "open_clip_config.json"

_HEAD_WIDTH = 64
_HALF = (0.5, 0.5, 0.5)

# open_clip's pretrained.py: which published weights were trained with QuickGELU, and one with another normalisation.
_BY_NAME: tuple[tuple[str, Settings], ...] = (
    (r"vit[-_]b[-_]32-quickgelu-laion400m", Settings(quick_gelu=True)),
    (r"vit[-_]b[-_]16([-_]plus[-_]240)?-laion400m|vit[-_]l[-_]14-laion400m", Settings(quick_gelu=False)),
    (r"clip-vit-l-14-laion2b", Settings(quick_gelu=False, mean=_HALF, std=_HALF)),
    (r"laion2b|datacomp|dfn2b-clip-vit-l-14-39b|dfn2b_s39b", Settings(quick_gelu=False)),
    (r"dfn2b|metaclip|[bl](16|32|14)_(400m|fullcc)", Settings(quick_gelu=True)),
    (r"vit-[bl]-(16|32|14)(-336px)?\.pt|openai", Settings(quick_gelu=True)),
)


def settings_beside(file: Path) -> Settings | None:
    """Return what the configuration in the folder of a file says; None: there is none.

    It belongs to a file with one of open_clip's own names, and to the only file of weights in its folder.
    """
    config = file.with_name(CONFIG)
    if not config.is_file() or not _belongs(file):
        return None
    content = read_json(config)
    if "model_cfg" not in content:
        raise Unusable(f"its configuration {CONFIG} has no model_cfg")
    return _of_config(content["model_cfg"], content.get("preprocess_cfg") or {})


def settings_by_name(file: Path) -> Settings:
    """Return what the name of a published file or repository says of weights without a configuration.

    For an unknown name these are the settings of OpenAI's models, and a note says so.
    """
    for part in file.parts[:-5:-1]:  # the file, its folder, and in the hub's cache the repository
        for pattern, settings in _BY_NAME:
            if re.search(pattern, part.lower()):
                return settings
    note(
        f"{file}: no {CONFIG} beside it, and its name is not one of a published model: taken to be trained with "
        "QuickGELU and OpenAI's normalisation. If it was not, put its configuration beside it"
    )
    return Settings()


def _belongs(file: Path) -> bool:
    if file.name in FOLDER_FILES:
        return True
    endings = (".safetensors", ".bin", ".pt", ".pth")
    return [other for other in file.parent.iterdir() if other.suffix in endings] == [file]


def _of_config(model: dict[str, Any], preprocess: dict[str, Any]) -> Settings:
    vision, text = model["vision_cfg"], model["text_cfg"]
    if not isinstance(vision.get("layers"), int) or "timm_model_name" in vision:
        raise Unusable(f"{CONFIG} describes another image encoder; expected a plain vision transformer (ViT)")
    if "hf_model_name" in text or "hf_tokenizer_name" in text:
        raise Unusable(
            f"{CONFIG} describes another text encoder; expected CLIP's own, with its own tokenizer"
        )
    sides = {"image_size": vision.get("image_size"), "patch_size": vision.get("patch_size")}
    widths = {"vision_width": vision.get("width"), "text_width": text.get("width")}
    depths = {"vision_layers": vision.get("layers"), "text_layers": text.get("layers")}
    stated = {**sides, **widths, **depths, "embed_dim": model.get("embed_dim")}
    usual = Settings()
    return Settings(
        vision_heads=vision["width"] // vision.get("head_width", _HEAD_WIDTH),
        text_heads=text.get("heads"),
        quick_gelu=bool(model.get("quick_gelu", False)),
        mean=three(preprocess.get("mean") or usual.mean, "mean"),
        std=three(preprocess.get("std") or usual.std, "std"),
        stated={name: value for name, value in stated.items() if value is not None},
    )
