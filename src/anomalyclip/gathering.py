"""References one by one: their features in bounded memory, and the memory that is made of them."""

import hashlib
import os
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
from anomalyclip.memory import are_copies, coreset, without
from anomalyclip.memory_core import held_by
from anomalyclip.readers import Frame, Source
from anomalyclip.references import Memory, views
from anomalyclip.tiling import pieces

_PROBES = 64
"""References whose distances to the others give the scale, where only a coreset of the patches is kept."""

_VIEWED = 8
"""Pieces of a single reference that are turned for the scale."""


@dataclass(frozen=True)
class Shown:
    """A reference as it was decoded: its name, its pieces (S, S, 3) uint8, and a small picture of it as JPEG."""

    name: str
    pieces: list[NDArray[np.uint8]]
    picture: bytes


@dataclass
class Reference:
    """One reference, of `pieces` images as the model takes them, each with all its views.

    Rows number its patches: view after view, piece after piece, patch after patch.
    """

    name: str
    pieces: int
    banks: dict[str, Tensor]  # (rows, D) float16 or float32
    rows: Tensor  # (rows,) int64
    texts: tuple[Tensor, Tensor] | None  # of its pieces, not turned: (Q,) and (Q, g, g)
    picture: bytes = b""
    whole: dict[str, Tensor] | None = None  # (Q, N, D): features of these, where `banks` are only a coreset


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
        self.turned: Tensor | None = None  # of the only reference of a memory that is added to
        self.patches = self.kept = 0  # in all, and in `references`

    @property
    def views(self) -> int:
        """How many views of each piece are remembered."""
        return 8 if self.augment else 1

    def prepare(self, source: Source, frame: Frame) -> Shown:
        """Return what is needed of a reference."""
        name = f"{type(source).__name__} in memory" if frame.id is None else Path(frame.id).name
        image, _ = self.scale(frame.image, name=name)
        picture = reference_pictures.encoded(image) if self.pictures else b""
        return Shown(name, list(pieces(image, self.detector.tiling, self.core.image_size)), picture)

    def add(self, shown: Shown) -> None:
        """Take a reference, unless there is one with the same pixels."""
        digest = hashlib.sha256(np.stack(shown.pieces).tobytes()).hexdigest()
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
        texts = []
        for piece in shown.pieces:
            for number, view in enumerate(views(piece)[: self.views]):
                banks, text = self._encode(view)  # one at a time: the same features in any company
                for bank, features in banks.items():
                    found.setdefault(bank, []).append(features)
                if number == 0:
                    texts.append(text)
        banks = {bank: torch.cat(parts) for bank, parts in found.items()}
        count = len(shown.pieces) * self.views * self.core.patch_grid**2
        scores, maps = (torch.cat(part) for part in zip(*texts, strict=True))
        return Reference(
            shown.name, len(shown.pieces), banks, torch.arange(count), (scores, maps), shown.picture
        )

    def _encode(self, pixels: NDArray[np.uint8]) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        """Return the features (N, D) of one image, and what the texts say of it."""
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
        return banks, (score.float().cpu(), maps.float().cpu())

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
        self.turned = memory.left_out if len(memory) == 1 else None
        patches, at = self.core.patch_grid**2, 0
        for number, (name, digest) in enumerate(zip(memory.names, memory.hashes, strict=True)):
            own = int((memory.piece_reference == number).sum())
            first, count = at * self.views, own // self.views
            banks = {}
            for bank, features in memory.banks.items():
                rows = len(features) // len(memory.piece_reference)  # of each piece
                banks[bank] = features[first * rows : (first + own) * rows]
            texts = memory.text_scores[at : at + count], memory.text_maps[at : at + count]
            every, picture = torch.arange(own * patches), memory.picture(number)
            self.references[digest] = Reference(name, count, banks, every, texts, picture)
            at += count
            self.patches += own * patches
            self.kept += own * patches

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

    def _unturned(self, one: Reference) -> dict[str, Tensor]:
        """Return the features (Q, N, D) of a reference's pieces, not turned."""
        if one.whole is not None:
            return one.whole
        return {
            bank: features.view(one.pieces, self.views, -1, features.shape[1])[:, 0]
            for bank, features in one.banks.items()
        }

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
        patches = self.core.patch_grid**2
        banks = {bank: torch.cat([one.banks[bank] for _, one in ordered]) for bank in first.banks}
        counts = torch.tensor([one.pieces * self.views for _, one in ordered])
        starts = counts.cumsum(0) - counts
        piece_reference = torch.arange(len(ordered)).repeat_interleave(counts)
        row_piece = torch.cat(
            [one.rows // patches + start for (_, one), start in zip(ordered, starts.tolist(), strict=True)]
        )
        texts = [one.texts for _, one in ordered if one.texts is not None]
        spec = {} if self.detector.spec is None else _without_folders(self.detector.spec.to_dict())
        return Memory(
            banks=banks,
            row_piece=row_piece.int(),
            row_patch=torch.cat([one.rows % patches for _, one in ordered]).int(),
            piece_reference=piece_reference.int(),
            left_out=self._left_out(ordered, banks),
            text_scores=torch.cat([scores for scores, _ in texts]),
            text_maps=torch.cat([maps for _, maps in texts]),
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
        )

    def _left_out(self, ordered: list[tuple[str, Reference]], banks: dict[str, Tensor]) -> Tensor:
        """Return the distances (V, g, g) of normal patches to references that they do not come from."""
        if len(ordered) > 1:
            found = self._to_the_others(ordered, banks)
        elif self.turned is not None:
            return self.turned
        else:
            found = self._to_turned_views(ordered[0][1])
        return torch.cat(found).view(-1, self.core.patch_grid, self.core.patch_grid)

    def _to_the_others(self, ordered: list[tuple[str, Reference]], banks: dict[str, Tensor]) -> list[Tensor]:
        owners = {
            bank: torch.cat([torch.full((len(one.banks[bank]),), n) for n, (_, one) in enumerate(ordered)])
            for bank in banks
        }
        found, within = [], []
        for number, (_, one) in enumerate(ordered):
            if one.texts is None or not (others := without(banks, owners, number)):
                continue
            own = {bank: part.float() for bank, part in self._unturned(one).items()}
            found.append(self.held.distances(own, others))
            within.append(self.held.within(own))
        if are_copies(found, within):
            self.copies = True
            return [part for part in within if part is not None]
        return found

    def _to_turned_views(self, one: Reference) -> list[Tensor]:
        whole = {bank: features.flatten(0, 1) for bank, features in self._unturned(one).items()}
        shown = self.single[:: -(-len(self.single) // _VIEWED)]
        turned = (self._encode(view)[0] for piece in shown for view in views(piece)[1:])
        return [
            self.held.distances({bank: part.float()[None] for bank, part in features.items()}, whole)
            for features in turned
        ]


def _without_folders(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a spec whose paths are names: the file may go to other people."""
    return {
        name: os.path.basename(value) if isinstance(value, str) and os.path.isabs(value) else value
        for name, value in spec.items()
    }
