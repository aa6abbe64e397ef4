"""A core with texts and a memory of flawless references: one pass through the image tower serves both."""

from collections.abc import Iterator, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor

from anomalyclip.anomaly import image_score
from anomalyclip.backbones.config import ViTConfig
from anomalyclip.clip.model import CLIPConfig
from anomalyclip.clip.taps import Features, Taps
from anomalyclip.clip_core import ClipCore
from anomalyclip.core import Core
from anomalyclip.likeness import Tally
from anomalyclip.memory import (
    Banks,
    distance,
    flattened,
    lifted,
    nearest_rows,
    on_scale,
    scale_of,
    unknown_share,
    with_neighbours,
    within,
)
from anomalyclip.nearest import NearestNormal, box_of, is_noting, note
from anomalyclip.references import Memory


def default_blocks(config: CLIPConfig | ViTConfig) -> tuple[int, ...]:
    """Return the blocks whose patches are remembered: at two thirds and at five sixths of the depth.

    Examples
    --------
    >>> default_blocks(CLIPConfig(768, 336, 14, 1024, 24, 16, 768, 12, 12, 77, 49408))
    (16, 20)
    """
    depth = config.vision_layers
    return tuple(sorted({max(round(depth * share), 1) for share in (2 / 3, 5 / 6)}))


class PatchMemory:
    """The features that a memory uses, and how they are used, for most methods.

    Plain patch tokens of two blocks, mixed with their neighbours. The map is the mean of the text map and the memory's
    map; the image score combines the text score of the image and the highest 1 % of the memory's map. For an image of
    another product the memory's map is flat, and the image is not called normal.

    A method with a rule of its own names a subclass in `anomalyclip.clip_core.ClipCore.few_shot`.

    Parameters
    ----------
    core : ClipCore
        The method's core.
    blocks : sequence of int, optional
        None: `default_blocks`.

    Attributes
    ----------
    taps : Taps
        What it needs of a pass.
    """

    rule: ClassVar[str] = "top1"
    """How the image score is made unless told otherwise (`anomalyclip.spec.IMAGE_SCORES`), of the memory's map."""

    dtype: ClassVar[torch.dtype] = torch.float16
    """Of the features in a memory; it changes distances by less than 1e-3."""

    def __init__(self, core: ClipCore, blocks: Sequence[int] | None = None) -> None:
        self.blocks = tuple(blocks or default_blocks(core.config))
        self.taps = Taps(plain=self.blocks, positions=core.taps.positions)

    def features(self, found: Features) -> dict[str, Tensor]:
        """Return (B, n, D) float32, normalised, by the name of their bank."""
        return {f"block {number}": with_neighbours(found.plain[number][:, 1:]) for number in self.blocks}

    def distances(self, features: Banks, banks: Banks) -> Tensor:
        """Return (B, N) float32: how far each patch is from those of the banks."""
        return distance(features, banks)

    def within(self, features: Banks, grid: tuple[int, int]) -> Tensor | None:
        """Return (B, N) float32: how far each patch is from others of its image; None if the features are no grid's."""
        return within(features, grid)

    def scale(self, memory: Memory) -> float:
        """Return the one constant that comes from the references."""
        return scale_of(memory.left_out)

    def fused(
        self, core: "MemoryCore", text: Tensor, maps: Tensor, distances: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores (B,), maps as `core` takes them, and the share (B,) of patches that are unlike the references.

        Parameters
        ----------
        core : MemoryCore
            Whose `scale` is used.
        text, maps : Tensor
            What the method alone says.
        distances : Tensor
            (B, N) float32.
        """
        unknown = unknown_share(distances, core.scale)
        memory = flattened(on_scale(distances, core.scale), unknown).view(maps.shape)  # B g g
        score = image_score(text, core.enlarged(memory), core.memory_rule, grids=memory)
        return lifted(score, unknown), (maps + memory) / 2, unknown

    def enlarged(self, core: "MemoryCore", grids: Tensor) -> Tensor:
        """Return maps (B, H, W) of the maps that `fused` returned."""
        return Core.enlarged(core, grids)

    def over_class(self, core: "MemoryCore", scores: Tensor, highest: Tensor) -> Tensor | None:
        """Return the image scores that were published for all test images of a class together; None: the same.

        Parameters
        ----------
        core : MemoryCore
        scores, highest : Tensor
            (B,) float32, of all images: their scores one by one, and the maxima of their maps.
        """
        return None


def held_by(core: ClipCore) -> PatchMemory:
    """Return what a memory holds for a method."""
    kind = PatchMemory if core.few_shot is None else core.few_shot
    return cast(type[PatchMemory], kind)(core)


class MemoryCore(ClipCore):
    """A method's core with a memory of normal images: one pass through the image tower serves both.

    Parameters
    ----------
    core : ClipCore
        The method's own.
    memory : Memory
        Of this core's image tower and image size.
    score_rule : str, optional
        A key of `anomalyclip.spec.IMAGE_SCORES`. None: the rule's own.
    held : PatchMemory, optional
        What the memory holds. None: `held_by`.
    """

    scale: Tensor

    outputs = ("score", "map", "unlike")
    rule_in_compare = True

    def __init__(
        self,
        core: ClipCore,
        memory: Memory,
        *,
        score_rule: str | None = None,
        held: PatchMemory | None = None,
    ) -> None:
        held = held or held_by(core)
        super().__init__(
            core.visual,
            core.config,
            core.taps | held.taps,
            image_size=core.image_size,
            sigma=core.sigma,
            score_rule="text",
            full_size=core.enlarging.shape[1] == core.image_size,
            framing=core.framing,
        )
        self.text_core, self.memory, self.held = core, memory, held
        self.memory_rule = score_rule or held.rule
        for number, bank in enumerate(memory.banks.values()):
            self.register_buffer(f"bank_{number}", bank, persistent=False)
        self.register_buffer("scale", torch.tensor(held.scale(memory)), persistent=False)
        self.tally = Tally()

    @property
    def banks(self) -> dict[str, Tensor]:
        """The references' features by name, float16 where the memory has them so: they are compared in float32."""
        return {name: self.get_buffer(f"bank_{number}") for number, name in enumerate(self.memory.banks)}

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return scores, maps, and the shares (B,) of patches that are unlike the references: `outputs`."""
        scores, maps, unlike = self._compared(self.encode(self.normalise(image)))
        return *self.finish(scores, maps), unlike

    def compare(self, features: Features) -> tuple[Tensor, Tensor]:
        """Return scores (B,) and maps."""
        scores, maps, unlike = self._compared(features)
        if not torch.compiler.is_compiling():
            self.tally.add(unlike.cpu().numpy())
        return scores, maps

    def _compared(self, features: Features) -> tuple[Tensor, Tensor, Tensor]:
        text, maps = self.text_core.compare(features)
        own = self.held.features(features)
        distances = self.held.distances(own, self.banks)
        if not torch.compiler.is_compiling() and is_noting():  # nor exporting
            note(self._nearest(own, distances, features.grid))
        return self.held.fused(self, text, maps, distances)

    def fused(self, text: Tensor, maps: Tensor, distances: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (B,) and maps of what the method alone and the memory say; see `PatchMemory.fused`."""
        return self.held.fused(self, text, maps, distances)[:2]

    def enlarged(self, grids: Tensor) -> Tensor:
        """Return maps (B, H, W) of maps (B, h, w); see `PatchMemory.enlarged`."""
        return self.held.enlarged(self, grids)

    def over_class(self, scores: Tensor, highest: Tensor) -> Tensor | None:
        """Return other image scores for a class's test images together; see `PatchMemory.over_class`."""
        return self.held.over_class(self, scores, highest)

    def remarks(self) -> list[str]:
        """Return a warning if most images since the last call look like another product than the references."""
        return self.tally.remarks()

    def reference_pictures(self) -> tuple[bytes, ...]:
        """Return small JPEG pictures of the references, by their numbers; of the first ones, or none."""
        return self.memory.pictures

    def _nearest(self, own: Banks, distances: Tensor, grid: tuple[int, int]) -> Iterator[NearestNormal]:
        """Yield, for each image, its farthest patch, and the patch of a reference that is nearest to it."""
        rows, memory = len(self.memory.row_piece), self.memory
        if memory.settings.get("tiles"):  # where a tile was is not remembered
            return
        names = [
            name for name, bank in self.banks.items() if len(bank) == rows
        ]  # of windows there are other numbers
        if not names:
            return
        farthest = distances.max(dim=1)
        patches = own[names[-1]][torch.arange(len(distances)), farthest.indices]  # B D
        found = nearest_rows(patches, self.banks[names[-1]])
        for far, place, row in zip(farthest.values, farthest.indices, found, strict=True):
            number, box = memory.place(int(row))
            own_box = box_of(int(place), grid)
            yield NearestNormal(memory.names[number], number, own_box, box, round(float(far), 6))
