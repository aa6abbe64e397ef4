"""References one by one: their features in bounded memory, and the memory that is made of them."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomalyclip import reference_pictures
from anomalyclip.agreement import check_fits, cut_of, features_made_with, without_memory
from anomalyclip.clip_core import ClipCore
from anomalyclip.depth import Scale, require_range
from anomalyclip.detector import VALUE_RANGE, Detector
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.likeness import pixels_digest
from anomalyclip.memory import are_copies, coreset, without
from anomalyclip.memory_core import held_by
from anomalyclip.readers import Frame, Source
from anomalyclip.references import Memory, views
from anomalyclip.tiling import pieces

_PROBES = 64
"""References whose distances to the others give the scale, where only a coreset of the patches is kept."""

_VIEWED = 8
"""Pieces of a single reference that are turned for the scale."""


Grid = tuple[int, int]
"""Rows and columns of patches."""


@dataclass(frozen=True)
class Shown:
    """A reference as it was decoded: its name, its pieces (H, W, 3) uint8, and a small picture of it as JPEG."""

    name: str
    pieces: list[NDArray[np.uint8]]
    picture: bytes


@dataclass
class Reference:
    """One reference, of one or several images as the model takes them (pieces), each with all its views.

    Rows number its patches: view after view, piece after piece, patch after patch.
    """

    name: str
    grids: list[Grid]  # of its pieces, in each view
    banks: dict[str, Tensor]  # (rows, D) float16 or float32
    rows: Tensor  # (rows,) int64
    texts: list[tuple[Tensor, Tensor]] | None  # of its pieces, not turned: (1,) and (1, h, w)
    picture: bytes = b""
    whole: dict[str, list[Tensor]] | None = (
        None  # (N, D): features of these, where `banks` are only a coreset
    )

    @property
    def counts(self) -> list[int]:
        """Number of patches of each piece in each view."""
        return [rows * columns for rows, columns in self.grids]


class Gathering:
    """References that are being gathered; features are kept in bounded memory.

    Parameters
    ----------
    detector, augment, max_patches, pictures
        As for `anomalyclip.fit`.

    Attributes
    ----------
    repeated : list of str
        Names of references with the same pixels as another one.
    copies : bool
        Whether the references are nearly the same picture, so that their distances to each other give no scale.
    """

    def __init__(self, detector: Detector, *, augment: bool, max_patches: int, pictures: bool) -> None:
        if not isinstance(max_patches, int) or max_patches < 1:
            raise AnomalyCLIPError(f"max patches {max_patches!r}: expected 1 or more")
        scorer = without_memory(detector.scorer)
        core = scorer.core
        assert isinstance(core, ClipCore)
        self.detector, self.scorer, self.core = detector, scorer, core
        self.held = held_by(core)
        self.scale = Scale(detector.value_range, strict=True)
        self.taps = core.taps | self.held.taps
        self.augment, self.max_patches, self.pictures = augment, max_patches, pictures
        self.references: dict[str, Reference] = {}  # by digest
        self.repeated: list[str] = []
        self.copies = False
        self.single: list[NDArray[np.uint8]] = []  # pieces of the only reference so far
        self.turned: list[Tensor] | None = None  # of the only reference of a memory that is added to
        self.patches = self.kept = 0  # in all, and in `references`

    @property
    def views(self) -> int:
        """How many views of each piece are remembered."""
        return 8 if self.augment else 1

    def prepare(self, source: Source, frame: Frame) -> Shown:
        """Return what is needed of a reference."""
        known = (
            getattr(source, "filename", None) if frame.id is None else frame.id
        )  # PIL's images may have one
        name = Path(known).name if isinstance(known, str) and known else f"{type(source).__name__} in memory"
        image, _ = self.scale(frame.image, name=name)
        picture = reference_pictures.encoded(image) if self.pictures else b""
        return Shown(name, list(pieces(image, self.detector.tiling, self.core.framing)), picture)

    def add(self, shown: Shown) -> None:
        """Take a reference, unless there is one with the same pixels."""
        digest = pixels_digest(shown.pieces)
        if digest in self.references:
            self.repeated.append(shown.name)
            return
        reference = self._encoded(shown)
        self.single = shown.pieces if not self.references else []
        self.references[digest] = reference
        self.patches += len(reference.rows)
        self.kept += len(reference.rows)
        if self.kept > 2 * self.max_patches:
            self._reduce()

    def _encoded(self, shown: Shown) -> Reference:
        found: dict[str, list[Tensor]] = {}
        texts, grids = [], []
        for piece in shown.pieces:
            for number, view in enumerate(views(piece)[: self.views]):
                banks, text, grid = self._encode(view)  # one at a time: the same features in any company
                for bank, features in banks.items():
                    found.setdefault(bank, []).append(features)
                grids.append(grid)
                if number == 0:
                    texts.append(text)
        banks = {bank: torch.cat(parts) for bank, parts in found.items()}
        every = torch.arange(sum(rows * columns for rows, columns in grids))
        return Reference(shown.name, grids, banks, every, texts, shown.picture)

    def _encode(self, pixels: NDArray[np.uint8]) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor], Grid]:
        """Return the features (N, D) of one image, what the texts say of it, and its grid."""
        batch = self.scorer.normalised(pixels[None].copy())
        with self.scorer.autocast():
            features = self.core.encode_for(batch, self.taps)
        banks = {
            name: bank[0].to(self.held.dtype).cpu() for name, bank in self.held.features(features).items()
        }
        score, maps = self.core.compare(features)
        if not all(bank.isfinite().all() for bank in banks.values()):
            raise AnomalyCLIPError(
                f"the model gave NaN or infinite features at precision {self.scorer.precision}: the weights are "
                "damaged, or half precision overflows (try --precision fp32)"
            )
        return banks, (score.float().cpu(), maps.float().cpu()), features.grid

    def take(self, memory: Memory) -> None:
        """Begin with the references of a memory."""
        if memory.is_reduced:
            raise AnomalyCLIPError(
                f"the memory of {len(memory)} references was reduced to {memory.patches} patches, and nothing can be "
                "added to it: fit all images at once, or with a larger --max-patches"
            )
        check_fits(self.scorer, memory, self.detector.tiling, self.detector.value_range)
        self.scale = Scale(
            require_range(memory.settings.get(VALUE_RANGE)) or self.scale.value_range, strict=True
        )
        self.augment, self.max_patches = bool(memory.settings["augment"]), int(memory.settings["max_patches"])
        self.pictures = bool(memory.pictures)
        self.turned = memory.left_out_maps() if len(memory) == 1 else None
        first = 0
        for number, (name, digest) in enumerate(zip(memory.names, memory.hashes, strict=True)):
            own = int((memory.piece_reference == number).sum())
            grids = [memory.grid(piece) for piece in range(first, first + own)]
            banks = {
                bank: self._slice(memory, features, first, own) for bank, features in memory.banks.items()
            }
            texts = [self._text(memory, piece) for piece in range(first, first + own, self.views)]
            count = sum(rows * columns for rows, columns in grids)
            self.references[digest] = Reference(
                name, grids, banks, torch.arange(count), texts, memory.picture(number)
            )
            first += own
            self.patches += count
            self.kept += count

    def _slice(self, memory: Memory, features: Tensor, first: int, own: int) -> Tensor:
        """Return the rows of some pieces."""
        counts = [memory.grid(piece) for piece in range(len(memory.piece_reference))]
        sizes = [rows * columns for rows, columns in counts]
        if sum(sizes) != len(features):  # of windows there are other numbers, as many of each piece
            sizes = [len(features) // len(sizes)] * len(sizes)
        return features[sum(sizes[:first]) : sum(sizes[: first + own])]

    def _text(self, memory: Memory, piece: int) -> tuple[Tensor, Tensor]:
        """Return what the texts say of a piece that is not turned; nothing where the method has none."""
        at = piece // self.views
        if memory.grids is not None:
            return memory.text_scores[at : at + 1], torch.zeros(1, *memory.grid(piece))
        return memory.text_scores[at : at + 1], memory.text_maps[at : at + 1]

    def in_order(self) -> list[tuple[str, Reference]]:
        """Return the references by their digests, in the order of these."""
        return sorted(self.references.items())

    def _reduce(self) -> None:
        """Keep a coreset of all patches; and all features of a few references, which give the scale."""
        ordered = self.in_order()
        for number, (_, one) in enumerate(ordered):  # in the order of hashes: as good as drawn
            if number < _PROBES:
                one.whole = self._unturned(one)
            else:
                one.whole = one.texts = None
            if number >= reference_pictures.MOST:
                one.picture = b""
        banks = {bank: torch.cat([one.banks[bank] for _, one in ordered]) for bank in ordered[0][1].banks}
        if len({len(bank) for bank in banks.values()}) > 1:
            raise AnomalyCLIPError(
                f"the references have more than {self.max_patches} patches, of which this method keeps all: give fewer "
                "references, or a larger --max-patches"
            )
        chosen = coreset(banks, self.max_patches)
        self.kept = len(chosen)
        counts = torch.tensor([len(one.rows) for _, one in ordered])
        ends = counts.cumsum(0)
        bounds = torch.searchsorted(chosen, ends).tolist()
        for (_, one), start, stop, first in zip(
            ordered, [0, *bounds], bounds, (ends - counts).tolist(), strict=False
        ):
            rows = chosen[start:stop] - first
            one.banks = {bank: features[rows] for bank, features in one.banks.items()}
            one.rows = one.rows[rows]

    def _unturned(self, one: Reference) -> dict[str, list[Tensor]]:
        """Return the features (N, D) of a reference's pieces, not turned."""
        if one.whole is not None:
            return one.whole
        found = {}
        for bank, features in one.banks.items():
            counts = one.counts
            if sum(counts) != len(features):  # of windows there are other numbers, as many of each piece
                counts = [len(features) // len(counts)] * len(counts)
            found[bank] = list(features.split_with_sizes(counts))[:: self.views]
        return found

    def memory(self) -> Memory:
        """Return all of it.

        Raises
        ------
        AnomalyCLIPError
            There is no reference.
        """
        if not self.references:
            raise AnomalyCLIPError("no reference could be used: give at least one flawless image")
        if self.kept > self.max_patches:
            self._reduce()
        ordered = self.in_order()
        first = ordered[0][1]
        banks = {bank: torch.cat([one.banks[bank] for _, one in ordered]) for bank in first.banks}
        counts = torch.tensor([len(one.grids) for _, one in ordered])
        starts = counts.cumsum(0) - counts
        piece_reference = torch.arange(len(ordered)).repeat_interleave(counts)
        places = [_places(one) for _, one in ordered]
        row_piece = torch.cat(
            [piece + start for (piece, _), start in zip(places, starts.tolist(), strict=True)]
        )
        texts = [text for _, one in ordered for text in one.texts or ()]
        grids = [grid for _, one in ordered for grid in one.grids]
        square = set(grids) == {(self.core.patch_grid, self.core.patch_grid)}
        left_out = self._left_out(ordered, banks)
        spec = {} if self.detector.spec is None else _without_folders(self.detector.spec.to_dict())
        return Memory(
            banks=banks,
            row_piece=row_piece.int(),
            row_patch=torch.cat([patch for _, patch in places]).int(),
            piece_reference=piece_reference.int(),
            left_out=torch.stack(left_out) if square else torch.cat([one.flatten() for one in left_out]),
            text_scores=torch.cat([scores for scores, _ in texts]),
            text_maps=torch.cat([maps for _, maps in texts]) if square else torch.zeros(0),
            names=tuple(one.name for _, one in ordered),
            hashes=tuple(digest for digest, _ in ordered),
            identity=features_made_with(self.scorer),
            settings={
                "augment": self.augment,
                "max_patches": self.max_patches,
                "patches": self.patches,
                "tiles": cut_of(self.detector.tiling),
                **({} if self.scale.value_range is None else {VALUE_RANGE: list(self.scale.value_range)}),
            },
            spec=spec,
            pictures=tuple(one.picture for _, one in ordered[: reference_pictures.MOST])
            if self.pictures
            else (),
            grids=None if square else torch.tensor(grids, dtype=torch.int32),
            left_out_grids=None
            if square
            else torch.tensor([one.shape for one in left_out], dtype=torch.int32),
        )

    def _left_out(self, ordered: list[tuple[str, Reference]], banks: dict[str, Tensor]) -> list[Tensor]:
        """Return the distances (h, w) of normal patches to references that they do not come from."""
        if len(ordered) > 1:
            return self._to_the_others(ordered, banks)
        return self._to_turned_views(ordered[0][1]) if self.turned is None else self.turned

    def _to_the_others(self, ordered: list[tuple[str, Reference]], banks: dict[str, Tensor]) -> list[Tensor]:
        owners = {
            bank: torch.cat([torch.full((len(one.banks[bank]),), n) for n, (_, one) in enumerate(ordered)])
            for bank in banks
        }
        found, within = [], []
        for number, (_, one) in enumerate(ordered):
            if one.texts is None:
                continue
            others = without(banks, owners, number)
            if any(len(bank) == 0 for bank in others.values()):
                others = self._whole_of_others(ordered, number)
            for own, grid in zip(_one_by_one(self._unturned(one)), one.grids[:: self.views], strict=True):
                found.append(self.held.distances(own, others).view(*grid))
                inside = self.held.within(own, grid)
                within.append(None if inside is None else inside.view(*grid))
        if are_copies(
            [one.flatten() for one in found], [None if one is None else one.flatten() for one in within]
        ):
            self.copies = True
            return [part for part in within if part is not None]
        return found

    def _whole_of_others(self, ordered: list[tuple[str, Reference]], number: int) -> dict[str, Tensor]:
        """Return all features of the other probes, for a reference from which every patch of the coreset comes."""
        wholes = [one.whole for other, (_, one) in enumerate(ordered) if other != number and one.whole]
        return {bank: torch.cat([part for whole in wholes for part in whole[bank]]) for bank in wholes[0]}

    def _to_turned_views(self, one: Reference) -> list[Tensor]:
        whole = {bank: torch.cat(features) for bank, features in self._unturned(one).items()}
        shown = self.single[:: -(-len(self.single) // _VIEWED)]
        turned = (self._encode(view) for piece in shown for view in views(piece)[1:])
        return [
            self.held.distances({bank: part.float()[None] for bank, part in features.items()}, whole).view(
                *grid
            )
            for features, _, grid in turned
        ]


def _one_by_one(banks: dict[str, list[Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Yield the features (1, N, D) float32 of each piece."""
    for parts in zip(*banks.values(), strict=True):
        yield {bank: part.float()[None] for bank, part in zip(banks, parts, strict=True)}


def _places(one: Reference) -> tuple[Tensor, Tensor]:
    """Return the piece, counted within the reference, and the patch there, of each row that is kept."""
    counts = torch.tensor(one.counts)
    ends = counts.cumsum(0)
    piece = torch.searchsorted(ends, one.rows, right=True)
    return piece, one.rows - (ends - counts)[piece]


def _without_folders(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a spec whose paths are names: the file may go to other people."""
    return {
        name: os.path.basename(value) if isinstance(value, str) and os.path.isabs(value) else value
        for name, value in spec.items()
    }
