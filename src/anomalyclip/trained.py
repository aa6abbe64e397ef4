"""Files of what was trained: tensors as safetensors, with a format's name and what is known about their training."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from anomalyclip.errors import AnomalyCLIPError, reason
from anomalyclip.files import in_one_order, parse_json, replacing


def save_trained(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], *, format: str, info: Mapping[str, str]
) -> None:
    """Write tensors with the format's name and `info` in the header; equal content gives equal bytes."""
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"format": format, "info": json.dumps(dict(info), sort_keys=True)}
    with replacing(path) as temporary:
        temporary.write_bytes(in_one_order(save(plain, metadata=header)))


def read_trained(
    path: Path, *, format: str, what: str, or_else: str = "another file"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what `save_trained` wrote.

    Parameters
    ----------
    path : Path
        The file.
    format : str
        The format's name.
    what : str
        What the file should have, for messages.
    or_else : str
        What else it could have been, for messages.

    Returns
    -------
    tensors, info

    Raises
    ------
    AnomalyCLIPError
        The file is not readable, or of another format.
    """
    try:
        tensors, header = read_safetensors(path)
    except Exception as error:  # what a damaged file raises depends on the damage
        raise AnomalyCLIPError(
            f"{path}: neither {what} as safetensors nor {or_else} ({reason(error)})"
        ) from None
    check_format(header, path, format=format, what=what)
    return tensors, _info(header, path, what)


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the header of a safetensors file; what a damaged file raises depends on the damage."""
    from safetensors.torch import load

    content = Path(path).read_bytes()  # safetensors itself opens no path that is not UTF-8
    tensors = load(content)
    header = parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__") or {}
    return tensors, header


def check_format(header: Mapping[str, str], path: str | os.PathLike[str], *, format: str, what: str) -> None:
    """Refuse a safetensors file of another format than the one it should have.

    Raises
    ------
    AnomalyCLIPError
        Naming the file.
    """
    if header.get("format") != format:
        raise AnomalyCLIPError(
            f"{path}: a safetensors file, but not {what}: its header says format {header.get('format')!r}, "
            f"expected {format!r}"
        )


def _info(header: Mapping[str, str], path: Path, what: str) -> dict[str, str]:
    try:
        info = parse_json(header.get("info", "{}"))
    except ValueError as error:
        raise AnomalyCLIPError(f"{path}: damaged {what}: info is not JSON ({error})") from None
    if not isinstance(info, dict) or not all(isinstance(value, str) for value in info.values()):
        raise AnomalyCLIPError(f"{path}: damaged {what}: info is not an object of texts")
    return info


def check_file(path: Path, what: str) -> None:
    """Refuse a path that is no file.

    Raises
    ------
    AnomalyCLIPError
        Naming it.
    """
    if path.is_dir():
        raise AnomalyCLIPError(f"{path}: is a folder; give the file in it")
    if not path.is_file():
        raise AnomalyCLIPError(f"{path}: no such file; expected {what}")


def check_backbone(info: Mapping[str, str], fingerprint: str, path: Path) -> None:
    """Refuse what was trained on other weights, where it says so.

    Raises
    ------
    AnomalyCLIPError
        Naming the file.
    """
    trained = info.get("backbone_fingerprint")
    if trained is not None and trained != fingerprint:
        raise AnomalyCLIPError(
            f"{path}: was trained on other weights (SHA-256 {trained[:8]}..., the backbone's is {fingerprint[:8]}...): "
            "use the backbone that it was trained on, or train again"
        )
