"""Read CLIP weights in every published form, and infer the architecture from the tensors."""

import hashlib
import json
import math
import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from anomalyclip.clip.checkpoints import load_checkpoint, not_plain
from anomalyclip.clip.model import CLIPConfig
from anomalyclip.clip.torchscript import read_torchscript
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import parse_json, replacing, require_regular

EXPECTED = (
    "expected the weights of a CLIP with a vision transformer: OpenAI's archive (.pt), a state dict "
    "(.pt, .bin), open_clip or transformers weights (.safetensors, or their folder), or a folder written by "
    "anomalyclip"
)

_FOLDER_FILES = (  # in order of preference
    "open_clip_model.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)
_HEAD_WIDTH = (
    64  # in all of OpenAI's models (openai/CLIP, clip/model.py); cannot be inferred from the tensors
)
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


@dataclass(frozen=True)
class _Settings:
    """Settings that cannot be inferred from the tensors."""

    vision_heads: int | None = None
    text_heads: int | None = None
    quick_gelu: bool = True
    stated: dict[str, Any] | None = None  # a whole CLIPConfig, to compare


class _Unusable(Exception):
    """Says why a file is refused, without its name."""


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
        Heads are 64 wide and the activation is QuickGELU, as in OpenAI's models, unless a configuration says
        otherwise.

    Raises
    ------
    AnomalyCLIPError
        If it is not a CLIP with a vision transformer, or is incomplete or damaged.

    Examples
    --------
    >>> read_weights("nothing.pt")
    Traceback (most recent call last):
    ...
    anomalyclip.errors.AnomalyCLIPError: nothing.pt: no such file or folder
    """
    path = Path(path)
    if not path.exists():
        raise AnomalyCLIPError(f"{path}: no such file or folder")
    file = _file_of(path) if path.is_dir() else path
    try:
        tensors, metadata = _read_tensors(file)
        _check_plain(tensors, file)
        settings = _read_settings(file, tensors, metadata)
        if _is_transformers(tensors):
            tensors = _from_transformers(tensors)
        tensors = {name: tensor for name, tensor in tensors.items() if not _IGNORED.fullmatch(name)}
        config = _config_of(tensors, settings)
        _check(tensors, config)
    except _Unusable as error:
        raise AnomalyCLIPError(f"{file}: {error}") from error.__cause__
    except (OSError, EOFError) as error:
        raise AnomalyCLIPError(f"{file}: cannot be read ({error})") from error
    return Weights(config=config, state_dict=tensors, source=path)


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
    config = asdict(weights.config)
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


def fingerprint(config: CLIPConfig, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of architecture, names, shapes and contents as float32; equal weights have equal fingerprints.

    Parameters
    ----------
    config : CLIPConfig
        The architecture.
    tensors : mapping of str to Tensor
        All of the model's tensors, in any floating-point type: half precision is converted to float32, as in
        `CLIP.frozen`. The form of the file they came from does not matter.

    Returns
    -------
    str
        64 hex digits.
    """
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().float().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weight_files(path: str | os.PathLike[str]) -> list[Path]:
    """Return all files that `read_weights` would read for a file or folder: weights, shards, configurations."""
    path = Path(path)
    file = _file_of(path) if path.is_dir() else path
    beside = [file.with_name(name) for name in ("open_clip_config.json", "config.json")]
    shards = sorted(file.parent.glob("*.safetensors")) if file.name.endswith(".index.json") else []
    return [file, *(other for other in (*beside, *shards) if other.is_file())]


def tensor_shapes(config: CLIPConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor of an architecture.

    Parameters
    ----------
    config : CLIPConfig
        The architecture.

    Returns
    -------
    dict of str to tuple of int
        Under OpenAI's names (openai/CLIP, clip/model.py).

    Examples
    --------
    >>> config = CLIPConfig(
    ...     embed_dim=32, image_size=56, patch_size=14, vision_width=64, vision_layers=1, vision_heads=1,
    ...     text_width=64, text_layers=1, text_heads=1, context_length=77, vocab_size=100,
    ... )
    >>> tensor_shapes(config)["visual.positional_embedding"]  # 4 x 4 patches and CLS
    (17, 64)
    """
    vision, text = config.vision_width, config.text_width
    shapes: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (vision,),
        "visual.positional_embedding": (1 + (config.image_size // config.patch_size) ** 2, vision),
        "visual.conv1.weight": (vision, 3, config.patch_size, config.patch_size),
        "visual.proj": (vision, config.embed_dim),
        "token_embedding.weight": (config.vocab_size, text),
        "positional_embedding": (config.context_length, text),
        "text_projection": (text, config.embed_dim),
        "logit_scale": (),
    }
    for norm, width in (("visual.ln_pre", vision), ("visual.ln_post", vision), ("ln_final", text)):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for tower, width, layers in (
        ("visual.transformer", vision, config.vision_layers),
        ("transformer", text, config.text_layers),
    ):
        for layer in range(layers):
            block = f"{tower}.resblocks.{layer}"
            shapes |= {
                f"{block}.attn.in_proj_weight": (3 * width, width),
                f"{block}.attn.in_proj_bias": (3 * width,),
            }
            shapes |= {
                f"{block}.{norm}.{part}": (width,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")
            }
            for linear, rows, columns in (
                ("attn.out_proj", width, width),
                ("mlp.c_fc", 4 * width, width),
                ("mlp.c_proj", width, 4 * width),
            ):
                shapes |= {f"{block}.{linear}.weight": (rows, columns), f"{block}.{linear}.bias": (rows,)}
    return shapes


# --- files to tensors ---------------------------------------------------------------------------------------


def _file_of(folder: Path) -> Path:
    for name in _FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise AnomalyCLIPError(
        f"{folder}: the folder has no {', '.join(_FOLDER_FILES[:-1])} or {_FOLDER_FILES[-1]}; {EXPECTED}"
    )


def _read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors under the file's names, and the metadata of a safetensors header; detects the form by content."""
    require_regular(file)
    with file.open("rb") as stream:
        head = stream.read(9)
    if not head:
        raise _Unusable(f"is empty; {EXPECTED}")
    if file.name.endswith(".index.json"):
        return _read_shards(file), {}
    if zipfile.is_zipfile(file):
        return _read_zip(file), {}
    if head[:2] == b"PK":
        raise _Unusable("is truncated (a zip archive without its end); copy or download it again")
    if head[8:] == b"{" or file.suffix == ".safetensors":
        return _read_safetensors(file)
    if head[:1] == b"\x80":  # a pickle
        return _read_pickle(file, memory_map=False), {}
    raise _Unusable(f"is in an unknown format; {EXPECTED}")


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(file, framework="pt") as archive:
            return {name: archive.get_tensor(name) for name in archive.keys()}, archive.metadata() or {}  # noqa: SIM118
    except UnicodeEncodeError as error:
        raise _Unusable("has a path that is not UTF-8, which safetensors cannot open; rename it") from error
    except SafetensorError as error:
        raise _Unusable(f"is not a complete safetensors file ({error}); copy or download it again") from error


def _read_shards(index: Path) -> dict[str, Tensor]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise _Unusable('has no "weight_map"; expected the index of a transformers model')
    tensors: dict[str, Tensor] = {}
    for name in sorted({str(name) for name in weight_map.values()}):
        shard = index.parent / Path(name).name  # never outside the folder
        if not shard.is_file():
            raise _Unusable(
                f"refers to {shard.name}, which is not in the same folder; download the whole folder"
            )
        tensors |= _read_safetensors(shard)[0]
    return tensors


def _read_zip(file: Path) -> dict[str, Tensor]:
    try:
        archive = zipfile.ZipFile(file)
    except Exception as error:  # what a damaged archive raises depends on the damage
        raise _Unusable(f"is a damaged zip archive ({error}); copy or download it again") from error
    with archive:
        names = archive.namelist()
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if not pickles:
            raise _Unusable(f"is a zip archive, but not PyTorch's; {EXPECTED}")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}constants.pkl" in names:  # has code: TorchScript
            return _read_archive(archive, root)
    return _read_pickle(file, memory_map=True)


def _read_archive(archive: zipfile.ZipFile, root: str) -> dict[str, Tensor]:
    try:
        return read_torchscript(archive, root)
    except Exception as error:  # what a damaged pickle raises depends on the damage
        raise _Unusable(
            f"is a damaged TorchScript archive, or not one of CLIP ({error}); copy or download it again"
        ) from error


def _read_pickle(file: Path, *, memory_map: bool) -> dict[str, Tensor]:
    try:
        content = load_checkpoint(file, memory_map=memory_map)
    except AnomalyCLIPError:
        raise
    except pickle.UnpicklingError as error:
        raise _Unusable(
            "is damaged, or contains Python objects other than tensors, which are not loaded because they can run "
            "code; save only the state dict: torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:  # what a damaged pickle raises depends on the damage
        raise _Unusable(f"is damaged ({type(error).__name__}); copy or download it again") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise _Unusable(f"contains no state dict; {EXPECTED}")
    return {
        str(name).removeprefix("module."): value
        for name, value in content.items()
        if isinstance(value, Tensor)
    }


# --- settings beside the tensors ----------------------------------------------------------------------------


def _read_settings(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> _Settings:
    """Read the settings from the header, or from the configuration file that belongs to the file by name."""
    beside = file.with_name("open_clip_config.json" if file.name.startswith("open_clip_") else "config.json")
    try:
        if _METADATA_KEY in metadata:
            return _stated(parse_json(metadata[_METADATA_KEY]))
        if _is_transformers(tensors):
            if not beside.is_file():
                raise _Unusable(
                    "has transformers' names, but no config.json in the same folder; download the whole folder"
                )
            return _transformers_settings(_read_json(beside))
        if file.name not in _FOLDER_FILES or not beside.is_file():
            return _Settings()
        content = _read_json(beside)
        if "model_cfg" in content:
            return _open_clip_settings(content["model_cfg"])
        return _stated(content) if "embed_dim" in content else _Settings()
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _Unusable(
            f"its configuration {beside.name} is invalid ({type(error).__name__}: {error})"
        ) from error


def _stated(content: dict[str, Any]) -> _Settings:
    config = CLIPConfig(**content)
    return _Settings(config.vision_heads, config.text_heads, config.quick_gelu, asdict(config))


def _open_clip_settings(model: dict[str, Any]) -> _Settings:
    vision, text = model["vision_cfg"], model["text_cfg"]
    return _Settings(
        vision_heads=vision["width"] // vision.get("head_width", _HEAD_WIDTH),
        text_heads=text.get("heads"),
        quick_gelu=bool(model.get("quick_gelu", False)),
    )


def _transformers_settings(content: dict[str, Any]) -> _Settings:
    # Missing values have transformers' defaults (CLIPVisionConfig, CLIPTextConfig).
    vision, text = content.get("vision_config") or {}, content.get("text_config") or {}
    activations = {tower.get("hidden_act", "quick_gelu") for tower in (vision, text)}
    if activations not in ({"quick_gelu"}, {"gelu"}):
        raise _Unusable(
            f"has the activations {sorted(activations)}; expected quick_gelu or gelu in both towers"
        )
    return _Settings(
        vision_heads=vision.get("num_attention_heads", 12),
        text_heads=text.get("num_attention_heads", 8),
        quick_gelu=activations == {"quick_gelu"},
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _Unusable(f"{file.name} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise _Unusable(f"{file.name} is not a JSON object")
    return content


# --- names and architecture ---------------------------------------------------------------------------------


def _is_transformers(tensors: Iterable[str]) -> bool:
    return any(name.startswith(("vision_model.", "text_model.")) for name in tensors)


_TRANSFORMERS_NAMES = [
    (r"vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
    (r"vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
    (r"vision_model\.pre_layrnorm\.", "visual.ln_pre."),  # spelled like this in transformers
    (r"vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"visual_projection\.weight", "visual.proj"),
    (r"text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"text_model\.final_layer_norm\.", "ln_final."),
    (r"text_projection\.weight", "text_projection"),
    (r"vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"\.self_attn\.", ".attn."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
]


def _from_transformers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename; stack q, k and v; transpose the two projections, which are linear layers there."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, replacement in _TRANSFORMERS_NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    for name in [name for name in renamed if ".attn.q_proj." in name]:
        parts = [name.replace("q_proj", f"{part}_proj") for part in "qkv"]
        if (
            all(part in renamed and renamed[part].shape == renamed[name].shape for part in parts)
            and renamed[name].ndim
        ):
            stacked = torch.cat([renamed.pop(part) for part in parts])
            renamed[name.replace("q_proj.", "in_proj_")] = stacked
    for name in ("visual.proj", "text_projection"):
        if name in renamed and renamed[name].ndim == 2:
            renamed[name] = renamed[name].T.contiguous()
    return renamed


def _config_of(tensors: dict[str, Tensor], settings: _Settings) -> CLIPConfig:
    if any(name.startswith("visual.layer1.") for name in tensors):
        raise _Unusable("is a CLIP with a ResNet image encoder; expected a vision transformer (ViT)")

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        if name not in tensors:
            raise _Unusable(f"has no tensor {name}; {EXPECTED}")
        if tensors[name].ndim != dimensions:
            raise _Unusable(f"{name} has {tensors[name].ndim} dimensions; expected {dimensions}")
        return tuple(tensors[name].shape)

    vision_width, _, patch_size, _ = shape("visual.conv1.weight", 4)
    positions, _ = shape("visual.positional_embedding", 2)
    context_length, _ = shape("positional_embedding", 2)
    vocab_size, _ = shape("token_embedding.weight", 2)
    text_width, embed_dim = shape("text_projection", 2)
    grid = math.isqrt(max(positions - 1, 0))
    if grid**2 + 1 != positions:
        raise _Unusable(
            f"visual.positional_embedding has {positions} rows; expected a square number of patches plus one for CLS"
        )
    config = CLIPConfig(
        embed_dim=embed_dim,
        image_size=grid * patch_size,
        patch_size=patch_size,
        vision_width=vision_width,
        vision_layers=_layers(tensors, "visual.transformer"),
        vision_heads=_heads("vision", vision_width, settings.vision_heads),
        text_width=text_width,
        text_layers=_layers(tensors, "transformer"),
        text_heads=_heads("text", text_width, settings.text_heads),
        context_length=context_length,
        vocab_size=vocab_size,
        quick_gelu=settings.quick_gelu,
    )
    for name, value in (settings.stated or {}).items():
        if value != getattr(config, name):
            raise _Unusable(
                f"its configuration says {name} = {value}, its tensors say {getattr(config, name)}"
            )
    return config


def _layers(tensors: Iterable[str], tower: str) -> int:
    pattern = re.compile(rf"{re.escape(tower)}\.resblocks\.(\d+)\.")
    return 1 + max((int(match[1]) for name in tensors if (match := pattern.match(name))), default=-1)


def _heads(tower: str, width: int, stated: int | None) -> int:
    if stated is None and width % _HEAD_WIDTH:
        raise _Unusable(
            f"its {tower} width {width} is not a multiple of {_HEAD_WIDTH}; "
            "expected a configuration that gives the number of heads"
        )
    if stated is not None and not (isinstance(stated, int) and stated >= 0):
        raise _Unusable(f"its configuration says {stated!r} {tower} heads; expected a number")
    heads = stated or width // _HEAD_WIDTH
    if width % heads:
        raise _Unusable(
            f"its {tower} width {width} is not divisible by the {heads} heads in its configuration"
        )
    return heads


def _check_plain(tensors: dict[str, Tensor], file: Path) -> None:
    """Refuse what is no array of numbers that is all there, and tensors that share their numbers to seem many."""
    for name, tensor in tensors.items():
        if problem := not_plain(tensor):
            raise _Unusable(f"{name} {problem}; save the weights as dense floating-point numbers")
    total, there = sum(tensor.nbytes for tensor in tensors.values()), file.stat().st_size
    if total > there and not file.name.endswith(".index.json"):
        raise _Unusable(
            f"its tensors claim {total} bytes, and the file has {there}; save the state dict again"
        )


def _check(tensors: dict[str, Tensor], config: CLIPConfig) -> None:
    shapes = tensor_shapes(config)
    if missing := shapes.keys() - tensors.keys():
        raise _Unusable(f"has no {_some(missing)}; {EXPECTED}")
    if unknown := tensors.keys() - shapes.keys():
        raise _Unusable(f"has unexpected tensors: {_some(unknown)}; {EXPECTED}")
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise _Unusable(f"{name} has the shape {tuple(tensors[name].shape)}; expected {shape}")
        if not tensors[name].is_floating_point():
            raise _Unusable(f"{name} is {tensors[name].dtype}; expected floating-point numbers")


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
