"""Files of weights to tensors by name: safetensors, shards, pickles, TorchScript. No code in them is run."""

import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from anomalyclip.clip.checkpoints import load_checkpoint, not_plain
from anomalyclip.clip.torchscript import read_torchscript
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import parse_json, require_regular

EXPECTED = (
    "expected the weights of a CLIP with a vision transformer: OpenAI's archive (.pt), a state dict "
    "(.pt, .bin), open_clip or transformers weights (.safetensors, or their folder), or a folder written by "
    "anomalyclip"
)

FOLDER_FILES = (  # in order of preference
    "open_clip_model.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)
"""Names of the weights in a folder."""

_WRAPPERS = ("state_dict", "model", "teacher")
"""Keys under which training checkpoints keep a state dict."""


class Unusable(Exception):
    """Says why a file is refused, without its name."""


class NoWeights(Unusable):
    """The same of a file that is not the weights of any model that is read here; what was expected is added."""


@contextmanager
def opened(
    path: str | os.PathLike[str], expected: str = EXPECTED
) -> Iterator[tuple[Path, dict[str, Tensor], dict[str, str]]]:
    """Give the file of a path (itself, or that of a folder), its tensors, and the metadata of a safetensors header.

    What is raised in the block as `Unusable` becomes an error that names the file, and for `NoWeights` what was
    `expected`.

    Raises
    ------
    AnomalyCLIPError
        It does not exist, cannot be read, or holds no tensors.
    """
    path = Path(path)
    if not path.exists():
        raise AnomalyCLIPError(f"{path}: no such file or folder")
    file = file_of(path, expected) if path.is_dir() else path
    try:
        tensors, metadata = read_tensors(file)
        check_plain(tensors, file)
        yield file, tensors, metadata
    except Unusable as error:
        also = f"; {expected}" if isinstance(error, NoWeights) else ""
        raise AnomalyCLIPError(f"{file}: {error}{also}") from error.__cause__
    except (OSError, EOFError) as error:
        raise AnomalyCLIPError(f"{file}: cannot be read ({error})") from error


def file_of(folder: Path, expected: str = EXPECTED) -> Path:
    """Return the file of weights in a folder."""
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise AnomalyCLIPError(
        f"{folder}: the folder has no {', '.join(FOLDER_FILES[:-1])} or {FOLDER_FILES[-1]}; {expected}"
    )


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors under the file's names, and the metadata of a safetensors header; detects the form by content."""
    require_regular(file)
    with file.open("rb") as stream:
        head = stream.read(9)
    if not head:
        raise NoWeights("is empty")
    if file.name.endswith(".index.json"):
        return _read_shards(file), {}
    if zipfile.is_zipfile(file):
        return _read_zip(file), {}
    if head[:2] == b"PK":
        raise Unusable("is truncated (a zip archive without its end); copy or download it again")
    if head[8:] == b"{" or file.suffix == ".safetensors":
        return _read_safetensors(file)
    if head[:1] == b"\x80":  # a pickle
        return _read_pickle(file, memory_map=False), {}
    raise NoWeights("is in an unknown format")


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(file, framework="pt") as archive:
            return {name: archive.get_tensor(name) for name in archive.keys()}, archive.metadata() or {}  # noqa: SIM118
    except UnicodeEncodeError as error:
        raise Unusable("has a path that is not UTF-8, which safetensors cannot open; rename it") from error
    except SafetensorError as error:
        raise Unusable(f"is not a complete safetensors file ({error}); copy or download it again") from error


def _read_shards(index: Path) -> dict[str, Tensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise Unusable('has no "weight_map"; expected the index of a transformers model')
    tensors: dict[str, Tensor] = {}
    for name in sorted({str(name) for name in weight_map.values()}):
        shard = index.parent / Path(name).name  # never outside the folder
        if not shard.is_file():
            raise Unusable(
                f"refers to {shard.name}, which is not in the same folder; download the whole folder"
            )
        tensors |= _read_safetensors(shard)[0]
    return tensors


def _read_zip(file: Path) -> dict[str, Tensor]:
    try:
        archive = zipfile.ZipFile(file)
    except Exception as error:  # what a damaged archive raises depends on the damage
        raise Unusable(f"is a damaged zip archive ({error}); copy or download it again") from error
    with archive:
        names = archive.namelist()
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if not pickles:
            raise NoWeights("is a zip archive, but not PyTorch's")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}constants.pkl" in names:  # has code: TorchScript
            return _read_archive(archive, root)
    return _read_pickle(file, memory_map=True)


def _read_archive(archive: zipfile.ZipFile, root: str) -> dict[str, Tensor]:
    try:
        return read_torchscript(archive, root)
    except Exception as error:  # what a damaged pickle raises depends on the damage
        raise Unusable(
            f"is a damaged TorchScript archive, or not one of CLIP ({error}); copy or download it again"
        ) from error


def _read_pickle(file: Path, *, memory_map: bool) -> dict[str, Tensor]:
    try:
        content = load_checkpoint(file, memory_map=memory_map)
    except AnomalyCLIPError:
        raise
    except pickle.UnpicklingError as error:
        raise Unusable(
            "is damaged, or contains Python objects other than tensors, which are not loaded because they can run "
            "code; save only the state dict: torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:  # what a damaged pickle raises depends on the damage
        raise Unusable(f"is damaged ({type(error).__name__}); copy or download it again") from error
    content = _unwrapped(content)
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise NoWeights("contains no state dict")
    return {
        str(name).removeprefix("module."): value
        for name, value in content.items()
        if isinstance(value, Tensor)
    }


def _unwrapped(content: Any) -> Any:
    for name in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            return content[name]
    return content


def read_json(file: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds."""
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Unusable(f"{file.name} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise Unusable(f"{file.name} is not a JSON object")
    return content


def check_plain(tensors: dict[str, Tensor], file: Path) -> None:
    """Refuse what is no array of numbers that is all there, and tensors that share their numbers to seem many."""
    for name, tensor in tensors.items():
        if problem := not_plain(tensor):
            raise Unusable(f"{name} {problem}; save the weights as dense floating-point numbers")
    total, there = sum(tensor.nbytes for tensor in tensors.values()), file.stat().st_size
    if total > there and not file.name.endswith(".index.json"):
        raise Unusable(
            f"its tensors claim {total} bytes, and the file has {there}; save the state dict again"
        )


Called = Callable[[str], str]
"""From our name of a tensor to that in the file, for messages."""


def check_shapes(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], called: Called = str
) -> None:
    """Refuse missing and surplus tensors, and those of another shape or kind."""
    if missing := shapes.keys() - tensors.keys():
        raise Unusable(
            f"has no {some({called(name) for name in missing})}; expected all tensors of the model: download or save "
            "it again"
        )
    if unknown := tensors.keys() - shapes.keys():
        raise Unusable(
            f"has unexpected tensors: {some({called(name) for name in unknown})}; expected those of the model "
            "alone: this may be another one, which is not supported"
        )
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise Unusable(f"{called(name)} has the shape {tuple(tensors[name].shape)}; expected {shape}")
        if not tensors[name].is_floating_point():
            raise Unusable(f"{called(name)} is {tensors[name].dtype}; expected floating-point numbers")


def shape_of(
    tensors: Mapping[str, Tensor], name: str, dimensions: int, called: Called = str
) -> tuple[int, ...]:
    """Return the shape of a tensor that must be there with so many dimensions."""
    if name not in tensors:
        raise NoWeights(f"has no tensor {called(name)}")
    if tensors[name].ndim != dimensions:
        raise Unusable(f"{called(name)} has {tensors[name].ndim} dimensions; expected {dimensions}")
    return tuple(tensors[name].shape)


def depth_of(names: Iterable[str], transformer: str) -> int:
    """Return how many blocks a transformer has.

    Examples
    --------
    >>> names = ["visual.transformer.resblocks.0.ln_1.bias", "visual.transformer.resblocks.1.ln_1.bias"]
    >>> depth_of(names, "visual.transformer"), depth_of(names, "transformer")
    (2, 0)
    """
    pattern = re.compile(rf"{re.escape(transformer)}\.resblocks\.(\d+)\.")
    return 1 + max((int(match[1]) for name in names if (match := pattern.match(name))), default=-1)


def check_stated(config: object, stated: Mapping[str, object]) -> None:
    """Refuse a configuration that says something else of a field than the architecture that the tensors show."""
    for name, value in stated.items():
        if value != getattr(config, name):
            raise Unusable(
                f"its configuration says {name} = {value}, its tensors say {getattr(config, name)}"
            )


def some(names: Iterable[str]) -> str:
    """Return the first names of many."""
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
