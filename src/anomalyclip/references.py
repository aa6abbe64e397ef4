"""`Memory`: features of flawless references, and its file (safetensors; nothing is unpickled)."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import in_one_order, parse_json, replacing, require_regular, writing
from anomalyclip.trained import check_format, read_safetensors

FORMAT = "anomalyclip-memory-1"
"""Name of the file's form, in its header."""

_BANK = "bank."


@dataclass(frozen=True)
class Memory:
    """Features of flawless references, and how far normal patches are from them.

    A *piece* is one image as the model takes it: a reference, one of its tiles, or a turned view of either.

    Attributes
    ----------
    banks : dict of str to Tensor
        By the name of where features come from, (M, D) float16, normalised (float32 for winclip and april-gan). M
        patches, the same rows in each; of windows of patches as many of each piece.
    row_piece, row_patch : Tensor
        (M,) int32: the piece that a row comes from, and its patch there.
    piece_reference : Tensor
        (Q,) int32: the reference that a piece belongs to.
    left_out : Tensor
        (V, g, g) float32: distances of normal patches to the *other* references (for a single reference, of its turned
        views to itself). They give the scale.
    text_scores, text_maps : Tensor
        (V',) and (V', g, g) float32: what the texts say of the references that `left_out` is about; of the single
        reference itself if there is only one.
    names, hashes : tuple of str
        Of the references, in the order of their hashes: file names as they were given, and SHA-256 of their pixels.
    identity : mapping
        What the features were made with (`anomalyclip.scorer.Scorer.identity`), without references.
    settings : mapping
        What the references were made into: augment, max_patches, patches before a coreset was taken.
    spec : mapping
        The detector's specification, for people; paths in it are names only.
    """

    banks: dict[str, Tensor]
    row_piece: Tensor
    row_patch: Tensor
    piece_reference: Tensor
    left_out: Tensor
    text_scores: Tensor
    text_maps: Tensor
    names: tuple[str, ...]
    hashes: tuple[str, ...]
    identity: Mapping[str, Any]
    settings: Mapping[str, Any]
    spec: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of references."""
        return len(self.names)

    @property
    def patches(self) -> int:
        """Number of patches that are kept."""
        return len(self.row_piece)

    @property
    def is_reduced(self) -> bool:
        """Whether only a coreset of the patches is kept."""
        return self.patches < int(self.settings["patches"])

    @property
    def size(self) -> int:
        """Bytes of the features in float32, as they are compared."""
        return sum(bank.numel() * 4 for bank in self.banks.values())

    def digest(self) -> str:
        """Return the SHA-256, in hex, of everything that determines scores: the features, and the scale."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._tensors().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _tensors(self) -> dict[str, Tensor]:
        return {
            **{_BANK + name: bank for name, bank in self.banks.items()},
            "row_piece": self.row_piece,
            "row_patch": self.row_patch,
            "piece_reference": self.piece_reference,
            "left_out": self.left_out,
            "text_scores": self.text_scores,
            "text_maps": self.text_maps,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all; the same memory gives the same bytes.

        Raises
        ------
        AnomalyCLIPError
            It cannot be written.
        """
        from safetensors.torch import save

        about = {
            "names": self.names,
            "hashes": self.hashes,
            "identity": dict(self.identity),
            "settings": dict(self.settings),
            "spec": dict(self.spec),
        }
        header = {"format": FORMAT, "about": json.dumps(about, sort_keys=True)}
        tensors = {name: tensor.contiguous() for name, tensor in self._tensors().items()}
        with writing(path), replacing(path) as temporary:
            temporary.write_bytes(in_one_order(save(tensors, metadata=header)))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Memory":
        """Read what `save` wrote.

        Raises
        ------
        AnomalyCLIPError
            The file is missing, damaged, or no memory.
        """
        try:
            require_regular(path)
            tensors, header = read_safetensors(path)
        except Exception as error:  # what a damaged file raises depends on the damage
            raise AnomalyCLIPError(
                f"{path}: cannot be read as a memory ({error}); expected a file that `anomalyclip fit` wrote"
            ) from None
        check_format(header, path, format=FORMAT, what="a memory (which `anomalyclip fit` writes)")
        try:
            about = parse_json(header["about"])
            memory = cls(
                banks={
                    name.removeprefix(_BANK): tensor
                    for name, tensor in tensors.items()
                    if name.startswith(_BANK)
                },
                **{name: tensor for name, tensor in tensors.items() if not name.startswith(_BANK)},
                names=tuple(about["names"]),
                hashes=tuple(about["hashes"]),
                identity=about["identity"],
                settings=about["settings"],
                spec=about["spec"],
            )
            _check(memory)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise AnomalyCLIPError(
                f"{path}: damaged ({error}); write it again with `anomalyclip fit`"
            ) from None
        return memory


def _check(memory: Memory) -> None:
    rows, pieces = len(memory.row_piece), len(memory.piece_reference)
    if not memory.banks or any(
        bank.ndim != 2 or not (len(bank) == rows or (pieces and len(bank) and len(bank) % pieces == 0))
        for bank in memory.banks.values()
    ):
        raise ValueError("its features do not belong together")
    if (
        len(memory.row_patch) != rows
        or rows == 0
        or int(memory.row_piece.max()) >= len(memory.piece_reference)
    ):
        raise ValueError("its patches do not belong to its references")
    if len(memory.names) != len(memory.hashes) or int(memory.piece_reference.max()) >= len(memory.names):
        raise ValueError("its references have no names")
    if not all(bank.isfinite().all() for bank in memory.banks.values()):
        raise ValueError("its features are NaN or infinite")


def is_memory_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a path names a memory rather than images: its name ends in ``.memory``."""
    return Path(path).suffix.lower() == ".memory"
