"""`fit`: a memory of flawless references, for a detector that then also compares every patch with them."""

import hashlib
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from anomalyclip.anomaly import highest
from anomalyclip.clip_core import ClipCore
from anomalyclip.decoding import OnError, decode, name_of
from anomalyclip.depth import Range, Scale, require_range
from anomalyclip.detector import VALUE_RANGE, Detector
from anomalyclip.engines.torch import TorchScorer
from anomalyclip.errors import AnomalyCLIPError, AnomalyCLIPWarning
from anomalyclip.files import file_digest
from anomalyclip.identity import differences
from anomalyclip.images import squash
from anomalyclip.inputs import find_images
from anomalyclip.memory import coreset, without
from anomalyclip.memory_core import MemoryCore, held_by
from anomalyclip.progress import Track, silent
from anomalyclip.readers import Frame, Source, frames
from anomalyclip.references import Memory, is_memory_file
from anomalyclip.scorer import Description, Scorer
from anomalyclip.spec import MAX_PATCHES, DetectorSpec
from anomalyclip.tiling import Tiling, pieces

Images = Source | Iterable[Source]

_PROBES = 64
"""References whose distances to the others give the scale, where only a coreset of the patches is kept."""

_VIEWED = 8
"""Pieces of a single reference that are turned for the scale."""

_TOLD = 20
"""Names of references that are told."""

_ENOUGH, _ODD = 4, 3.0
"""From so many references on, one is odd whose farthest patches are so many times as far as the median's."""

_FREE = ("sigma", "image_score", "precision", "tile", "overlap")
"""Parts of an identity that change nothing in a memory's features, or are compared apart."""


def fit(
    detector: Detector | DetectorSpec,
    images: Images,
    *,
    augment: bool = False,
    max_patches: int = MAX_PATCHES,
    add_to: Memory | str | os.PathLike[str] | None = None,
    on_error: OnError | None = None,
    track: Track = silent,
) -> Memory:
    """Return a memory of flawless images, to score others with (few-shot).

    Parameters
    ----------
    detector : Detector or DetectorSpec
        In PyTorch, without references: the memory is for this one, and holds features that it makes. With tiles,
        larger references are cut as images are.
    images : path, Source, or iterable of these
        Flawless images: a file, folder (searched recursively) or pattern, or a list of these; or one or several of
        the sources that `Detector.stream` takes. Images with the same pixels count once.
    augment : bool
        Also remember each image flipped and turned by quarters (8 views), for products that lie in any direction.
    max_patches : int
        Of more patches a coreset of this size is kept.
    add_to : Memory or path, optional
        A memory to add to; the result is the same as fitting all its images at once. Its `augment` and `max_patches`
        are kept.
    on_error : callable, optional
        Called with an image that cannot be used and the error, and the rest counts. None: the error is raised.
    track : Track
        Told how far it is.

    Returns
    -------
    Memory
        `Memory.save` writes it; ``DetectorSpec(references=...)`` and `remember` use it.

    Raises
    ------
    AnomalyCLIPError
        No image can be used, the detector cannot have a memory or has one already, or `add_to` does not fit.

    Examples
    --------
    >>> from anomalyclip.demo import PICTURES
    >>> memory = fit(DetectorSpec("micro"), [PICTURES / "linen_good.jpg", PICTURES / "slate_good.jpg"])
    >>> len(memory), memory.patches
    (2, 450)
    """
    if isinstance(detector, DetectorSpec):
        detector = detector.load()
    before = add_to if add_to is None or isinstance(add_to, Memory) else Memory.load(add_to)
    work = _Work(detector, augment=augment, max_patches=max_patches)
    if before is not None:
        work.take(before)
    sources = _sources(images)
    count = len(sources) if isinstance(sources, Sequence) else None
    with track("Encoding references", count) as advance, torch.inference_mode():
        for name, pieces in decode(sources, work.prepare, on_error=on_error):
            work.add(name, pieces)
            advance()
        memory = work.memory()
    for remark in work.remarks(memory):
        warnings.warn(remark, AnomalyCLIPWarning, stacklevel=2)
    return memory


def remember(detector: Detector, memory: Memory) -> Detector:
    """Return a detector that also compares images with a memory.

    Parameters
    ----------
    detector : Detector
        The one that the memory was made for.
    memory : Memory
        See `fit`.

    Raises
    ------
    AnomalyCLIPError
        The memory was made with another model, or the detector has one already.

    Examples
    --------
    >>> from anomalyclip.demo import PICTURES
    >>> detector = Detector.from_pretrained("micro")
    >>> memory = fit(detector, PICTURES / "linen_good.jpg")
    >>> few_shot = remember(detector, memory)
    >>> prediction = few_shot.predict(PICTURES / "linen_good.jpg")
    >>> prediction.pred_score < 0.5
    True
    """
    base, value_range = _without_memory(detector.scorer), detector.value_range
    _check_fits(base, memory, detector.tiling, value_range)
    return Detector(
        _remembering(base, memory, rule=None),
        threshold=detector.threshold,
        tiling=detector.tiling,
        spec=detector.spec,
        value_range=value_range,
    )


@dataclass(frozen=True)
class NearestNormal:
    """The most anomalous patch of an image, and the patch of a reference that is most like it.

    Attributes
    ----------
    reference : str
        File name of the reference.
    box, reference_box : tuple of float
        Left, top, right and bottom of both patches, as shares of the image and of the reference.
    distance : float
        How far they are apart: 1 - cosine.
    """

    reference: str
    box: tuple[float, float, float, float]
    reference_box: tuple[float, float, float, float]
    distance: float


def nearest_normal(detector: Detector, image: Source) -> NearestNormal:
    """Return which place of a reference the most anomalous place of an image was compared with.

    Parameters
    ----------
    detector : Detector
        With references, in PyTorch, without tiles and `augment`.
    image : Source
        One image.

    Raises
    ------
    AnomalyCLIPError
        The detector has no references, or turned or cut ones.

    Examples
    --------
    >>> from anomalyclip.demo import PICTURES
    >>> detector = Detector.from_pretrained("micro", references=PICTURES / "linen_good.jpg")
    >>> nearest_normal(detector, PICTURES / "linen_good.jpg").reference
    'linen_good.jpg'
    """
    scorer = detector.scorer
    core = scorer.core if isinstance(scorer, TorchScorer) else None
    if not (isinstance(core, MemoryCore) and isinstance(scorer, TorchScorer)):
        raise AnomalyCLIPError("the detector has no references (a PyTorch model) to look for the nearest one")
    memory = core.memory
    if detector.tiling is not None or memory.settings["augment"]:
        raise AnomalyCLIPError("the nearest normal place is only known without tiles and without augment")
    frame = next(iter(frames(image)))
    picture, _ = Scale(detector.value_range)(frame.image, name=name_of(image, frame.id))
    with torch.inference_mode():
        batch = scorer.normalised(squash(picture, core.image_size)[None].copy())
        distances, rows = core.nearest(scorer.encode(batch))
    place = int(distances[0].argmax())
    row = int(rows[0, place])
    name = memory.names[int(memory.piece_reference[int(memory.row_piece[row])])]
    side = core.patch_grid
    return NearestNormal(
        name, _box(place, side), _box(int(memory.row_patch[row]), side), float(distances[0, place])
    )


def _box(patch: int, side: int) -> tuple[float, float, float, float]:
    row, column = divmod(patch, side)
    return column / side, row / side, (column + 1) / side, (row + 1) / side


def left_out_scores(detector: Detector) -> Iterator[tuple[float, NDArray[np.float32]]]:
    """Yield the score and map (S, S) that each reference has when it is compared with the others alone.

    Raises
    ------
    AnomalyCLIPError
        The detector has no references, only one, or tiles.
    """
    scorer = detector.scorer
    core = scorer.core if isinstance(scorer, TorchScorer) else None
    if not (isinstance(core, MemoryCore) and isinstance(scorer, TorchScorer)):
        raise AnomalyCLIPError(
            "the detector has no references to calibrate with: give normal images, or references (a PyTorch model)"
        )
    memory = core.memory
    if detector.tiling is not None:
        raise AnomalyCLIPError("with tiles the references alone give no threshold: give normal images")
    if len(memory) < 2:
        raise AnomalyCLIPError(
            "a single reference gives no threshold, since it cannot be compared with others: give normal images, or "
            "more references"
        )
    with torch.inference_mode():
        for text, maps, distances in zip(memory.text_scores, memory.text_maps, memory.left_out, strict=True):
            batch = (part[None].to(scorer.device) for part in (text, maps, distances.flatten()))
            score, full = core.finish(*core.fused(*batch))
            yield float(score), full[0].cpu().numpy()


def with_references(scorer: Scorer, spec: DetectorSpec) -> Scorer:
    """Return a scorer that also compares images with the references of a spec, a memory or pictures."""
    if hasattr(scorer, "of_class"):
        return _EachClass(scorer, spec)
    base, paths = _without_memory(scorer), spec.references or ()
    if len(paths) == 1 and is_memory_file(paths[0]):
        memory = Memory.load(paths[0])
    else:
        plain = replace(spec, references=None, augment=False, max_patches=MAX_PATCHES)
        detector = Detector(base, tiling=spec.tiling, spec=plain, value_range=spec.value_range)
        memory = fit(detector, list(paths), augment=spec.augment, max_patches=spec.max_patches)
    _check_fits(base, memory, spec.tiling, spec.value_range)
    return _remembering(base, memory, rule=spec.image_score)


class _EachClass:
    """A method that names the class, before it is known: gives a scorer for each, all with the same references."""

    def __init__(self, scorer: Any, spec: DetectorSpec) -> None:
        self.image_size, self._scorer, self._spec = scorer.image_size, scorer, spec

    def of_class(self, name: str) -> Scorer:
        """Return the scorer of a class."""
        return with_references(self._scorer.of_class(name), self._spec)

    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Refuse: there is no class."""
        return cast(Scorer, self._scorer)(pixels)

    def identity(self) -> dict[str, Any]:
        """Return what decides the scores of every class."""
        hashes = hashlib.sha256()
        for path in self._spec.references or ():
            for image in [path] if is_memory_file(path) else _sources([path]):
                hashes.update(file_digest(Path(str(image)), "sha256").encode())
        made = {"augment": self._spec.augment, "max_patches": self._spec.max_patches}
        return {**self._scorer.identity(), "memory": made, "references_sha256": hashes.hexdigest()}

    def describe(self) -> Description:
        """Return what reports say of it."""
        about: Description = self._scorer.describe()
        return replace(about, title=f"{about.title}, with references")


def _without_memory(scorer: Scorer) -> TorchScorer:
    """Return the scorer that a memory can be made for."""
    core = scorer.core if isinstance(scorer, TorchScorer) else None
    if isinstance(core, MemoryCore):
        raise AnomalyCLIPError("this detector has references already: load it without them")
    if not isinstance(core, ClipCore):
        method = scorer.identity().get("method", type(scorer).__name__)
        raise AnomalyCLIPError(
            f"method {method!r} does not support references: it is not a PyTorch module on CLIP"
        )
    assert isinstance(scorer, TorchScorer)
    return scorer


def _remembering(base: TorchScorer, memory: Memory, *, rule: str | None) -> TorchScorer:
    core = base.core
    assert isinstance(core, ClipCore)
    together = MemoryCore(core, memory, score_rule=rule)
    digest, settings = memory.digest(), {**memory.settings, "references": len(memory)}
    description = base.describe()
    noun = "reference" if len(memory) == 1 else "references"
    return TorchScorer(
        together,
        identity=lambda: (
            base.identity()
            | {"image_score": together.memory_rule}
            | {"memory": settings, "references_sha256": digest}
        ),
        description=Description(
            f"{description.title}, {len(memory)} {noun}",
            {
                **description.facts,
                "references": list(memory.names[:_TOLD]),
                "references_mb": round(memory.size / 1e6, 2),
            },
            description.training,
        ),
        device=str(base.device),
        precision=base.precision,
        compiled=base.compiled,
    )


def _check_fits(base: TorchScorer, memory: Memory, tiling: Tiling | None, value_range: Range | None) -> None:
    now = {name: value for name, value in base.identity().items() if name not in _FREE}
    if differ := differences(dict(memory.identity), now):
        raise AnomalyCLIPError(
            f"the memory was made with another model or other options ({'; '.join(differ)}): use the same, or fit it "
            "again"
        )
    cut = _cut(tiling)
    if (made := memory.settings.get("tiles")) != cut:
        raise AnomalyCLIPError(
            f"the memory was made {_in_words(made)}, and images are scored {_in_words(cut)}: use the same --tile and "
            "--overlap, or fit it again"
        )
    scale = require_range(memory.settings.get(VALUE_RANGE))
    if value_range is not None and scale not in (None, value_range):
        raise AnomalyCLIPError(
            f"the memory was made with --range {scale[0]:g} {scale[1]:g}, and images are scored with "
            f"{value_range[0]:g} {value_range[1]:g}: leave the range out, or fit it again"
        )


def _cut(tiling: Tiling | None) -> list[float] | None:
    return None if tiling is None else [tiling.size, tiling.overlap]


def _in_words(cut: Any) -> str:
    return "without tiles" if cut is None else f"with tiles of {cut[0]} pixels, overlap {cut[1]}"


def _sources(images: Images) -> Iterable[Source]:
    if isinstance(images, str | os.PathLike | bytes | Image.Image | np.ndarray):
        images = [images]
    if isinstance(images, Sequence) and all(isinstance(image, str | os.PathLike) for image in images):
        return [image.path for image in find_images([str(image) for image in images])]
    return images


def views(pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Return an image (S, S, 3) and its 7 other flips and quarter turns.

    Examples
    --------
    >>> image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    >>> len({view.tobytes() for view in views(image)})
    8
    """
    both = (pixels, pixels[:, ::-1])
    return [np.ascontiguousarray(np.rot90(image, turns)) for image in both for turns in range(4)]


@dataclass
class _Reference:
    """One reference, of `pieces` images as the model takes them, each with all its views.

    Rows number its patches: view after view, piece after piece, patch after patch.
    """

    name: str
    pieces: int
    banks: dict[str, Tensor]  # (rows, D) float16 or float32
    rows: Tensor  # (rows,) int64
    texts: tuple[Tensor, Tensor] | None  # of its pieces, not turned: (Q,) and (Q, g, g)
    whole: dict[str, Tensor] | None = None  # (Q, N, D): features of these, where `banks` are only a coreset


class _Work:
    """References that are being gathered; features are kept in bounded memory."""

    def __init__(self, detector: Detector, *, augment: bool, max_patches: int) -> None:
        if not isinstance(max_patches, int) or max_patches < 1:
            raise AnomalyCLIPError(f"max patches {max_patches!r}: expected 1 or more")
        scorer = _without_memory(detector.scorer)
        core = scorer.core
        assert isinstance(core, ClipCore)
        self.detector, self.scorer, self.core = detector, scorer, core
        self.held = held_by(core)
        self.scale = Scale(detector.value_range, strict=True)
        self.taps = core.taps | self.held.taps
        self.augment, self.max_patches = augment, max_patches
        self.references: dict[str, _Reference] = {}  # by digest
        self.repeated: list[str] = []
        self.single: list[NDArray[np.uint8]] = []  # pieces of the only reference so far
        self.turned: Tensor | None = None  # of the only reference of a memory that is added to
        self.patches = 0

    @property
    def views(self) -> int:
        return 8 if self.augment else 1

    def prepare(self, source: Source, frame: Frame) -> tuple[str, list[NDArray[np.uint8]]]:
        """Return a reference's name and pieces."""
        name = f"{type(source).__name__} in memory" if frame.id is None else Path(frame.id).name
        image, _ = self.scale(frame.image, name=name)
        return name, list(pieces(image, self.detector.tiling, self.core.image_size))

    def add(self, name: str, shown: list[NDArray[np.uint8]]) -> None:
        """Take a reference, unless there is one with the same pixels."""
        digest = hashlib.sha256(np.stack(shown).tobytes()).hexdigest()
        if digest in self.references:
            self.repeated.append(name)
            return
        found: dict[str, list[Tensor]] = {}
        texts = []
        for piece in shown:
            for number, view in enumerate(views(piece)[: self.views]):
                banks, text = self._encode(view)  # one at a time: the same features in any company
                for bank, features in banks.items():
                    found.setdefault(bank, []).append(features)
                if number == 0:
                    texts.append(text)
        banks = {bank: torch.cat(parts) for bank, parts in found.items()}
        count = len(shown) * self.views * self.core.patch_grid**2
        scores, maps = (torch.cat(part) for part in zip(*texts, strict=True))
        self.single = shown if not self.references else []
        self.references[digest] = _Reference(name, len(shown), banks, torch.arange(count), (scores, maps))
        self.patches += count
        if sum(len(one.rows) for one in self.references.values()) > 2 * self.max_patches:
            self._reduce()

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
        _check_fits(self.scorer, memory, self.detector.tiling, self.detector.value_range)
        self.scale = Scale(
            require_range(memory.settings.get(VALUE_RANGE)) or self.scale.value_range, strict=True
        )
        self.augment, self.max_patches = bool(memory.settings["augment"]), int(memory.settings["max_patches"])
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
            self.references[digest] = _Reference(name, count, banks, torch.arange(own * patches), texts)
            at += count
            self.patches += own * patches

    def _in_order(self) -> list[tuple[str, _Reference]]:
        return sorted(self.references.items())

    def _reduce(self) -> None:
        """Keep a coreset of all patches; and all features of a few references, which give the scale."""
        ordered = self._in_order()
        for number, (_, one) in enumerate(ordered):  # in the order of hashes: as good as drawn
            if number < _PROBES:
                one.whole = self._unturned(one)
            else:
                one.whole = one.texts = None
        banks = {bank: torch.cat([one.banks[bank] for _, one in ordered]) for bank in ordered[0][1].banks}
        if len({len(bank) for bank in banks.values()}) > 1:
            raise AnomalyCLIPError(
                f"the references have more than {self.max_patches} patches, of which this method keeps all: give fewer "
                "references, or a larger --max-patches"
            )
        chosen, at = coreset(banks, self.max_patches), 0
        for _, one in ordered:
            rows = chosen[(chosen >= at) & (chosen < at + len(one.rows))] - at
            at += len(one.rows)
            one.banks = {bank: features[rows] for bank, features in one.banks.items()}
            one.rows = one.rows[rows]

    def _unturned(self, one: _Reference) -> dict[str, Tensor]:
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
        if sum(len(one.rows) for one in self.references.values()) > self.max_patches:
            self._reduce()
        ordered = self._in_order()
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
            identity={name: value for name, value in self.scorer.identity().items() if name not in _FREE},
            settings={
                "augment": self.augment,
                "max_patches": self.max_patches,
                "patches": self.patches,
                "tiles": _cut(self.detector.tiling),
                **({} if self.scale.value_range is None else {VALUE_RANGE: list(self.scale.value_range)}),
            },
            spec=spec,
        )

    def _left_out(self, ordered: list[tuple[str, _Reference]], banks: dict[str, Tensor]) -> Tensor:
        """Return the distances (V, g, g) of normal patches to references that they do not come from."""
        side, distances = self.core.patch_grid, self.held.distances
        if len(ordered) > 1:
            owners = {
                bank: torch.cat(
                    [torch.full((len(one.banks[bank]),), n) for n, (_, one) in enumerate(ordered)]
                )
                for bank in banks
            }
            found = [
                distances({bank: part.float() for bank, part in self._unturned(one).items()}, others)
                for number, (_, one) in enumerate(ordered)
                if one.texts is not None and (others := without(banks, owners, number))
            ]
        elif self.turned is not None:
            return self.turned
        else:
            whole = {bank: features.flatten(0, 1) for bank, features in self._unturned(ordered[0][1]).items()}
            shown = self.single[:: -(-len(self.single) // _VIEWED)]
            turned = (self._encode(view)[0] for piece in shown for view in views(piece)[1:])
            found = [
                distances({bank: part.float()[None] for bank, part in one.items()}, whole) for one in turned
            ]
        return torch.cat(found).view(-1, side, side)

    def remarks(self, memory: Memory) -> list[str]:
        """Return warnings for the user about the references."""
        found = []
        if self.repeated:
            found.append(
                f"{len(self.repeated)} references have the same pixels as another one and count once: "
                f"{', '.join(self.repeated[:_TOLD])}{', ...' * (len(self.repeated) > _TOLD)}"
            )
        if odd := _unlike_the_others(self._in_order(), memory):
            found.append(
                f"{', '.join(odd)}: parts of {'it look' if len(odd) == 1 else 'these look'} unlike all other "
                "references; is there a defect? Then leave it out: what a reference shows counts as normal"
            )
        if memory.is_reduced:
            found.append(
                f"of {memory.settings['patches']} patches in {len(memory)} references {memory.patches} are kept "
                "(--max-patches): a coreset, which scores nearly the same"
            )
        return found


def _unlike_the_others(ordered: list[tuple[str, _Reference]], memory: Memory) -> list[str]:
    """Return the names of references whose farthest patches are much farther from the others than is usual."""
    owners = [one for _, one in ordered if one.texts is not None for _ in range(one.pieces)]
    if len(memory) < _ENOUGH or len(owners) != len(memory.left_out):
        return []
    farthest = highest(memory.left_out, 0.01)
    usual = float(farthest.median())
    return list(
        dict.fromkeys(
            one.name for one, far in zip(owners, farthest.tolist(), strict=True) if far > _ODD * usual
        )
    )


def _without_folders(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a spec whose paths are names: the file may go to other people."""
    return {
        name: os.path.basename(value) if isinstance(value, str) and os.path.isabs(value) else value
        for name, value in spec.items()
    }
