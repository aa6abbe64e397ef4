"""Read CLIP weights in every published form, and infer the architecture from the tensors."""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from anomalyclip.clip.config import CLIPConfig
from anomalyclip.clip.config import tensor_shapes as tensor_shapes
from anomalyclip.clip.forms import open_clip, strangers, transformers
from anomalyclip.clip.forms.settings import PREPROCESSING, Settings
from anomalyclip.clip.tensors import (
    Called,
    NoWeights,
    Unusable,
    check_shapes,
    check_stated,
    depth_of,
    file_of,
    opened,
    read_json,
    shape_of,
)
from anomalyclip.errors import AnomalyCLIPError, NoTextsError
from anomalyclip.files import parse_json, replacing

_HEAD_WIDTH = (
    64  # in all of OpenAI's models (openai/CLIP, clip/model.py); cannot be inferred from the tensors
)
_FIRST = "visual.conv1.weight"
_METADATA_KEY = "anomalyclip.config"
# Values that some forms store with the weights; they are not used.
_IGNORED = re.compile(r"(input_resolution|context_length|vocab_size|attn_mask|.*\.position_ids)")


@dataclass(frozen=True)
class Weights:
    """Weights of a CLIP.

    Parameters
    ----------
    config : CLIPConfig
        The architecture.
    state_dict : dict of str to Tensor
        Under OpenAI's names, in the file's floating-point type. Memory-mapped if the file's form allows it, so that
        nothing is read before it is used. Do not modify them.
    source : Path
        The file or folder they were read from.
    """

    config: CLIPConfig
    state_dict: dict[str, Tensor]
    source: Path


def read_weights(path: str | os.PathLike[str]) -> Weights:
    """Read CLIP weights in any published form.

    Code in a file is never run: only the tensors of TorchScript archives are read, and pickles are read with
    ``weights_only=True``.

    Parameters
    ----------
    path : str or path
        OpenAI's TorchScript archive; a PyTorch state dict, also under ``"state_dict"`` and with ``module.`` before its
        names; safetensors written by open_clip, transformers (with ``config.json`` in the same folder) or
        `save_weights`; or a folder that contains one of them. An ``open_clip_config.json`` or ``config.json`` that
        belongs to the file is used.

    Returns
    -------
    Weights
        Heads are 64 wide unless a configuration says otherwise. The activation and the normalisation are those of the
        configuration; without one, those of a published model with the file's name; else OpenAI's, with a note.

    Raises
    ------
    AnomalyCLIPError
        If it is not a CLIP with a vision transformer, or is incomplete or damaged.
    NoTextsError
        If it is a vision-only backbone.

    Examples
    --------
    >>> read_weights("nothing.pt")
    Traceback (most recent call last):
    ...
    anomalyclip.errors.AnomalyCLIPError: nothing.pt: no such file or folder
    """
    with opened(path) as (file, tensors, metadata):
        if strangers.is_vision_only(tensors.keys()):
            raise NoTextsError(
                f"{file}: a vision-only backbone, which has no texts: use --method anomalydino with references"
            )
        return weights_of(file, tensors, metadata, source=Path(path))


def weights_of(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str], *, source: Path) -> Weights:
    """Return the weights of tensors that were read from a file.

    Raises
    ------
    Unusable
        They are not those of a CLIP with a vision transformer, or incomplete.
    """
    strangers.refuse(tensors.keys())
    if _FIRST not in tensors and not transformers.is_transformers(tensors):
        raise NoWeights(f"has no tensor {_FIRST}")
    settings = _read_settings(file, tensors, metadata)
    called: Called = str
    if transformers.is_transformers(tensors):
        called = transformers.called_in(tensors.keys())
        tensors = transformers.renamed_tensors(tensors)
    tensors = {name: tensor for name, tensor in tensors.items() if not _IGNORED.fullmatch(name)}
    config = _config_of(tensors, settings, called)
    check_shapes(tensors, tensor_shapes(config), called)
    return Weights(config=config, state_dict=tensors, source=source)


def save_weights(weights: Weights, path: str | os.PathLike[str]) -> Path:
    """Write weights as safetensors: one file, or a folder with ``config.json`` and ``model.safetensors``.

    An interrupted call leaves no partly written file.

    Parameters
    ----------
    weights : Weights
        The weights to write.
    path : str or path
        A name that ends in ``.safetensors`` is a file, with the architecture in its header; any other name is a
        folder.

    Returns
    -------
    Path
        `path`, which `read_weights` can read.

    Raises
    ------
    AnomalyCLIPError
        If it cannot be written.
    """
    path = Path(path)
    config = weights.config.to_dict()
    tensors = {name: tensor.contiguous() for name, tensor in weights.state_dict.items()}
    try:
        if path.suffix == ".safetensors":
            metadata = {
                _METADATA_KEY: json.dumps(config)
            }  # a single entry, since several are written in random order
            with replacing(path) as file:
                save_file(tensors, file, metadata)
        else:
            text = json.dumps(config, indent=2) + "\n"
            with replacing(path / "model.safetensors") as file:
                save_file(tensors, file, {"format": "pt"})
            with replacing(path / "config.json") as file:
                file.write_text(text, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise AnomalyCLIPError(f"{path}: cannot be written ({error})") from error
    return path


class Architecture(Protocol):
    """What a fingerprint needs of an architecture."""

    def to_dict(self) -> dict[str, Any]:
        """Return its fields, JSON-ready."""
        ...


def fingerprint(config: Architecture, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of architecture, names, shapes and contents as float32; equal weights have equal fingerprints.

    Parameters
    ----------
    config : Architecture
        A `CLIPConfig`, or that of a vision-only backbone.
    tensors : mapping of str to Tensor
        All of the model's tensors, in any floating-point type: half precision is converted to float32, as in
        `CLIP.frozen`. The form of the file they came from does not matter.

    Returns
    -------
    str
        64 hex digits.
    """
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().float().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weight_files(path: str | os.PathLike[str]) -> list[Path]:
    """Return all files that `read_weights` would read for a file or folder: weights, shards, configurations."""
    path = Path(path)
    file = file_of(path) if path.is_dir() else path
    beside = [file.with_name(name) for name in ("open_clip_config.json", "config.json", PREPROCESSING)]
    shards = sorted(file.parent.glob("*.safetensors")) if file.name.endswith(".index.json") else []
    return [file, *(other for other in (*beside, *shards) if other.is_file())]


# --- settings beside the tensors ----------------------------------------------------------------------------


def _read_settings(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Settings:
    """Read the settings from the header, or from the configuration file that belongs to the file by name."""
    try:
        if _METADATA_KEY in metadata:
            return _stated(parse_json(metadata[_METADATA_KEY]))
        if transformers.is_transformers(tensors):
            return transformers.settings_beside(file)
        if (settings := open_clip.settings_beside(file)) is not None:
            return settings
        own = file.with_name("config.json")
        if file.name == "model.safetensors" and own.is_file():
            content = read_json(own)
            if "embed_dim" in content:
                return _stated(content)
        return Settings() if _is_archive(tensors) else open_clip.settings_by_name(file)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        name = open_clip.CONFIG if file.with_name(open_clip.CONFIG).is_file() else "config.json"
        raise Unusable(f"its configuration {name} is invalid ({type(error).__name__}: {error})") from error


def _is_archive(tensors: Iterable[str]) -> bool:
    """Return whether these are the tensors of OpenAI's archives, which store their sizes too."""
    return {"input_resolution", "context_length", "vocab_size"} <= set(tensors)


def _stated(content: dict[str, Any]) -> Settings:
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in content.items()}
    config = CLIPConfig(**fields)
    return Settings(
        config.vision_heads, config.text_heads, config.quick_gelu, config.mean, config.std, asdict(config)
    )


# --- architecture -------------------------------------------------------------------------------------------


def _config_of(tensors: dict[str, Tensor], settings: Settings, called: Called) -> CLIPConfig:
    vision_width, _, patch_size, _ = shape_of(tensors, "visual.conv1.weight", 4, called)
    positions, _ = shape_of(tensors, "visual.positional_embedding", 2, called)
    context_length, _ = shape_of(tensors, "positional_embedding", 2, called)
    vocab_size, _ = shape_of(tensors, "token_embedding.weight", 2, called)
    text_width, embed_dim = shape_of(tensors, "text_projection", 2, called)
    grid = math.isqrt(max(positions - 1, 0))
    if grid**2 + 1 != positions:
        raise Unusable(
            f"{called('visual.positional_embedding')} has {positions} rows; expected a square number of patches plus "
            "one for CLS"
        )
    config = CLIPConfig(
        embed_dim=embed_dim,
        image_size=grid * patch_size,
        patch_size=patch_size,
        vision_width=vision_width,
        vision_layers=depth_of(tensors, "visual.transformer"),
        vision_heads=_heads("vision", vision_width, settings.vision_heads),
        text_width=text_width,
        text_layers=depth_of(tensors, "transformer"),
        text_heads=_heads("text", text_width, settings.text_heads),
        context_length=context_length,
        vocab_size=vocab_size,
        quick_gelu=settings.quick_gelu,
        mean=settings.mean,
        std=settings.std,
    )
    check_stated(config, settings.stated or {})
    return config


def _heads(tower: str, width: int, stated: int | None) -> int:
    if stated is None and width % _HEAD_WIDTH:
        raise Unusable(
            f"its {tower} width {width} is not a multiple of {_HEAD_WIDTH}; "
            "expected a configuration that gives the number of heads"
        )
    if stated is not None and not (isinstance(stated, int) and stated >= 0):
        raise Unusable(f"its configuration says {stated!r} {tower} heads; expected a number")
    heads = stated or width // _HEAD_WIDTH
    if width % heads:
        raise Unusable(
            f"its {tower} width {width} is not divisible by the {heads} heads in its configuration"
        )
    return heads
