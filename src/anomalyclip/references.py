"""`Memory`: features of flawless references, and its file (safetensors; nothing is unpickled)."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomalyclip.addresses import as_place, on_disk
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import in_one_order, parse_json, replacing, require_regular, writing
from anomalyclip.nearest import Box, box_of
from anomalyclip.trained import check_format, read_safetensors

FORMAT = "anomalyclip-memory-1"
"""Name of the file's form, in its header."""

_BANK, _PICTURES = "bank.", "pictures"

_VIEWS = 8


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
        (V, g, g) float32, or of grids that are not square (sum of h * w,): distances of normal patches to the *other*
        references (for a single reference, of its turned views to itself). They give the scale.
    text_scores, text_maps : Tensor
        (V',) and (V', g, g) float32: what the texts say of the references that `left_out` is about; of the single
        reference itself if there is only one. Maps are empty for grids that are not square: such methods have no texts.
    names, hashes : tuple of str
        Of the references, in the order of their hashes: file names as they were given, and SHA-256 of their pixels.
    identity : mapping
        What the features were made with (`anomalyclip.scorer.Scorer.identity`), without references.
    settings : mapping
        What the references were made into: augment, max_patches, patches before a coreset was taken.
    spec : mapping
        The detector's specification, for people; paths in it are names only.
    grids, left_out_grids : Tensor, optional
        (Q, 2) and (V, 2) int32: rows and columns of the patches of the pieces, and of `left_out`. None: all are the
        same square.
    pictures : tuple of bytes
        Small JPEG pictures of the references, in their order; of the first ones only, or none, if it is shorter. They
        change no score.
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
    pictures: tuple[bytes, ...] = ()
    grids: Tensor | None = None
    left_out_grids: Tensor | None = None

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
        """Bytes of the features, as a detector holds them."""
        return sum(bank.numel() * bank.element_size() for bank in self.banks.values())

    @property
    def exported_size(self) -> int:
        """Bytes of the features in float32, by which an exported file in that precision grows."""
        return sum(bank.numel() * 4 for bank in self.banks.values())

    def picture(self, number: int) -> bytes:
        """Return the small picture of a reference, by its place in `names`, as JPEG; empty if there is none."""
        return self.pictures[number] if number < len(self.pictures) else b""

    def grid(self, piece: int) -> tuple[int, int]:
        """Return the rows and columns of the patches of a piece."""
        if self.grids is None:
            return self.left_out.shape[1], self.left_out.shape[2]
        rows, columns = self.grids[piece].tolist()
        return rows, columns

    def left_out_maps(self) -> list[Tensor]:
        """Return `left_out` one by one: (h, w) each."""
        if self.left_out_grids is None:
            return list(self.left_out)
        grids = self.left_out_grids.tolist()
        flat = self.left_out.split_with_sizes([rows * columns for rows, columns in grids])
        return [part.view(*grid) for part, grid in zip(flat, grids, strict=True)]

    def place(self, row: int) -> tuple[int, Box]:
        """Return which reference a patch comes from, and where it is there; of references that are not cut into tiles.

        Returns
        -------
        int
            The reference's place in `names`.
        tuple of float
            Left, top, right and bottom, as shares of the reference as it was given, not turned.
        """
        piece = int(self.row_piece[row])
        number = int(self.piece_reference[piece])
        first = int(torch.searchsorted(self.piece_reference, number))
        rows, columns = grid = self.grid(first)
        patches = views(np.arange(rows * columns).reshape(rows, columns))[
            piece - first
        ]  # as they lie in the view
        return number, box_of(int(patches.flat[int(self.row_patch[row])]), grid)

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
            **({} if self.grids is None else {"grids": self.grids}),
            **({} if self.left_out_grids is None else {"left_out_grids": self.left_out_grids}),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all; the same memory gives the same bytes.

        Raises
        ------
        AnomalyCLIPError
            It cannot be written.
        """
        from safetensors.torch import save

        about: dict[str, Any] = {
            "names": self.names,
            "hashes": self.hashes,
            "identity": dict(self.identity),
            "settings": dict(self.settings),
            "spec": dict(self.spec),
        }
        tensors = {name: tensor.contiguous() for name, tensor in self._tensors().items()}
        if self.pictures:
            tensors[_PICTURES] = torch.frombuffer(bytearray(b"".join(self.pictures)), dtype=torch.uint8)
            about["picture_sizes"] = [len(picture) for picture in self.pictures]
        header = {"format": FORMAT, "about": json.dumps(about, sort_keys=True)}
        place = as_place(path)
        with writing(place), replacing(place) as temporary:
            temporary.write_bytes(in_one_order(save(tensors, metadata=header)))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Memory":
        """Read what `save` wrote.

        Raises
        ------
        AnomalyCLIPError
            The file is missing, damaged, or no memory.
        """
        with on_disk(as_place(path)) as file:
            try:
                require_regular(file)
                tensors, header = read_safetensors(file)
            except Exception as error:  # what a damaged file raises depends on the damage
                raise AnomalyCLIPError(
                    f"{path}: cannot be read as a memory ({error}); expected a file that `anomalyclip fit` wrote"
                ) from None
        check_format(header, path, format=FORMAT, what="a memory (which `anomalyclip fit` writes)")
        try:
            about = parse_json(header["about"])
            pictures = _cut(tensors.pop(_PICTURES, None), about.get("picture_sizes", []))
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
                pictures=pictures,
            )
            _check(memory)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise AnomalyCLIPError(
                f"{path}: damaged ({error}); write it again with `anomalyclip fit`"
            ) from None
        return memory


def _cut(pictures: Tensor | None, sizes: list[int]) -> tuple[bytes, ...]:
    """Return the pictures one by one."""
    content = b"" if pictures is None else pictures.numpy().tobytes()
    ends = list(accumulate(sizes))
    if any(size < 0 for size in sizes) or len(content) != (ends[-1] if ends else 0):
        raise ValueError("its pictures do not have the sizes that its header says")
    return tuple(content[end - size : end] for size, end in zip(sizes, ends, strict=True))


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
    _check_grids(memory)
    _check_places(memory)
    if len(memory.pictures) > len(memory.names):
        raise ValueError("it has more pictures than references")
    if len(memory.names) != len(memory.hashes) or int(memory.piece_reference.max()) >= len(memory.names):
        raise ValueError("its references have no names")
    if not all(bank.isfinite().all() for bank in memory.banks.values()):
        raise ValueError("its features are NaN or infinite")


def _check_places(memory: Memory) -> None:
    """Refuse patches and pieces that are not where `Memory.place` looks for them."""
    pieces = memory.piece_reference.long()
    if int(memory.row_piece.min()) < 0 or int(pieces.min()) < 0 or bool((pieces.diff() < 0).any()):
        raise ValueError("its patches do not belong to its references")
    if not memory.settings.get("tiles") and int(pieces.bincount().max()) > _VIEWS:
        raise ValueError("it has more views of a reference than there are")


def _check_grids(memory: Memory) -> None:
    """Refuse patches outside of their pieces, and distances that do not belong to grids."""
    if (memory.grids is None) != (memory.left_out_grids is None):
        raise ValueError("it has grids of its pieces or of their distances alone")
    if memory.grids is None or memory.left_out_grids is None:
        if memory.left_out.ndim != 3 or memory.left_out.shape[1] != memory.left_out.shape[2]:
            raise ValueError("its distances are not those of square grids")
        patches = torch.tensor(memory.left_out.shape[1] ** 2)
    else:
        for grids, count in ((memory.grids, len(memory.piece_reference)), (memory.left_out_grids, None)):
            if (
                grids.ndim != 2
                or grids.shape[1] != 2
                or (count or len(grids)) != len(grids)
                or (grids < 1).any()
            ):
                raise ValueError("its pieces have no grids")
        if memory.left_out.ndim != 1 or int(memory.left_out_grids.long().prod(dim=1).sum()) != len(
            memory.left_out
        ):
            raise ValueError("its distances do not belong to its grids")
        patches = memory.grids.long().prod(dim=1)[memory.row_piece.long()]
    if int(memory.row_patch.min()) < 0 or bool((memory.row_patch >= patches).any()):
        raise ValueError("it has patches outside of its references")


def views(pixels: NDArray[Any]) -> list[NDArray[Any]]:
    """Return an image, or a grid of patches, (H, W, ...), and its 7 other flips and quarter turns.

    Examples
    --------
    >>> image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    >>> len({view.tobytes() for view in views(image)})
    8
    """
    both = (pixels, pixels[:, ::-1])
    return [np.ascontiguousarray(np.rot90(image, turns)) for image in both for turns in range(4)]
