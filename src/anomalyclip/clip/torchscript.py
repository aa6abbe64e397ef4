"""Read the tensors of a TorchScript archive without running or compiling the code in it."""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from typing import IO, Any

import torch
from torch import Tensor

_DTYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


_LARGEST_PICKLE = 16 << 20
"""Bytes of the pickle of a module; that of a large CLIP has 0.2 million."""


def read_torchscript(archive: zipfile.ZipFile, root: str) -> dict[str, Tensor]:
    """Return all tensors of a module and its children.

    The archive has a pickle (``data.pkl``) of nested objects, whose classes are in ``code/``, and one record
    of bytes for each storage (``data/<key>``). Here each class is replaced by an empty one, and the pickle may only
    call functions that make tensors and lists.

    Parameters
    ----------
    archive : ZipFile
        A file written by ``torch.jit.save``.
    root : str
        The folder in it, with a trailing slash.

    Returns
    -------
    dict of str to Tensor
        Dotted names, as in the module's state dict, to tensors.

    Raises
    ------
    pickle.UnpicklingError
        If the pickle refers to anything but tensors. A damaged archive can raise any other exception.
    """
    record = archive.getinfo(f"{root}data.pkl")
    if record.file_size > _LARGEST_PICKLE:
        raise pickle.UnpicklingError(
            f"its data.pkl has {record.file_size} bytes; expected a few hundred thousand"
        )
    with archive.open(record) as stream:
        return dict(_tensors_of(_Reader(stream, archive, root).load(), ""))


class _Module:
    """Replaces every class in the archive: attributes, no behaviour."""


class _Reader(pickle.Unpickler):
    def __init__(self, stream: IO[bytes], archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(stream)
        self._archive = archive
        self._root = root
        self._storages: dict[str, Tensor] = {}
        self._room = (
            archive.start_dir
        )  # the records together are no larger than what lies before their directory

    def find_class(self, module: str, name: str) -> Any:
        """Resolve only the few names that a module of tensors needs."""
        if module.split(".")[0] == "__torch__":
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch.jit._pickle", "restore_type_tag"):
            return _untagged
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return list  # of numbers
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which no CLIP of OpenAI does")

    def persistent_load(self, reference: Any) -> Tensor:
        """Return a storage as a flat tensor."""
        _, dtype, key, _, count = reference
        if key not in self._storages:
            self._storages[key] = self._storage(f"{self._root}data/{key}", dtype, count)
        return self._storages[key]

    def _storage(self, name: str, dtype: torch.dtype, count: int) -> Tensor:
        """Read a storage, once the archive's directory shows that its bytes are there and are as many as needed."""
        record, needed = self._archive.getinfo(name), count * dtype.itemsize
        if record.compress_type != zipfile.ZIP_STORED:
            raise pickle.UnpicklingError(f"{name} is compressed, as PyTorch never writes a tensor")
        if record.file_size != needed:
            raise pickle.UnpicklingError(
                f"{name} has {record.file_size} bytes, and its tensors need {needed}"
            )
        self._room -= needed
        if self._room < 0:
            raise pickle.UnpicklingError("its tensors say to be larger than the whole file")
        data = bytearray(self._archive.read(record))
        return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _tensor(storage: Tensor, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(shape, stride, offset)


def _untagged(value: object, tag: str) -> object:
    return value


def _tensors_of(module: object, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _tensors_of(value, f"{prefix}{name}.")
