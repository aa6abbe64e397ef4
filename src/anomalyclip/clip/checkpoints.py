"""Reads PyTorch's checkpoints: no code of theirs runs, and they take no more memory than the file has bytes."""

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anomalyclip.errors import AnomalyCLIPError


def load_checkpoint(
    path: str | os.PathLike[str], *, device: str | torch.device = "cpu", memory_map: bool = False
) -> Any:
    """Return what a checkpoint holds: tensors, numbers and text in dicts and lists, and no other objects.

    Parameters
    ----------
    path : path-like
        What ``torch.save`` wrote, in its present form or that before PyTorch 1.6.
    device : str or torch.device
        Where the tensors go.
    memory_map : bool
        Leave tensors in the file until they are used; only for the present form.

    Raises
    ------
    AnomalyCLIPError
        The archive is compressed, as ``torch.save`` never leaves one, or a tensor is no plain array of numbers.
    pickle.UnpicklingError
        It holds other objects. A damaged checkpoint can raise anything else.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"weight": torch.zeros(1).expand(10**6, 10**6)}, f"{folder}/large.pt")
    ...     load_checkpoint(f"{folder}/large.pt")
    Traceback (most recent call last):
    anomalyclip.errors.AnomalyCLIPError: ...large.pt: a tensor of shape (1000000, 1000000) is not all there; ...
    """
    path = Path(path)
    if zipfile.is_zipfile(path):
        _refuse_compressed(path)
    content = torch.load(path, map_location=device, weights_only=True, mmap=memory_map)
    for tensor in _tensors_in(content):
        if problem := not_plain(tensor):
            raise AnomalyCLIPError(
                f"{path}: a tensor of shape {_shape(tensor)} {problem}; save dense tensors alone"
            )
    return content


def not_plain(tensor: Tensor) -> str | None:
    """Return why a tensor is no array of numbers that is all there; None if it is one."""
    if tensor.layout != torch.strided or tensor.is_nested:
        return "is sparse, nested or of another engine"
    if tensor.is_quantized:
        return "is quantised"
    if tensor.is_meta:
        return "has no content"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "is not all there"  # one number, said to be many
    return None


def _shape(tensor: Tensor) -> object:
    return "of several" if tensor.is_nested else tuple(tensor.shape)


def _refuse_compressed(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > path.stat().st_size:
        raise AnomalyCLIPError(
            f"{path}: a compressed archive ({unpacked} bytes in {path.stat().st_size}), as PyTorch never writes one; "
            "save the tensors with torch.save"
        )


def _tensors_in(content: Any) -> Iterator[Tensor]:
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))  # a pickle may hold itself
            waiting += value.values() if isinstance(value, dict) else value
