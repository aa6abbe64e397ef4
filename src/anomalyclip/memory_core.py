"""A core with texts and a memory of flawless references: one pass through the image tower serves both."""

from collections.abc import Sequence

import torch
from torch import Tensor

from anomalyclip.anomaly import image_score
from anomalyclip.clip.model import CLIPConfig
from anomalyclip.clip.taps import Features, Taps
from anomalyclip.clip_core import ClipCore
from anomalyclip.memory import (
    distance,
    flattened,
    lifted,
    nearest_rows,
    on_scale,
    scale_of,
    unknown_share,
    with_neighbours,
)
from anomalyclip.references import Memory

DEFAULT_RULE = "top1"
"""How the image score is made with references (`anomalyclip.spec.IMAGE_SCORES`), the map being the memory's."""


def default_blocks(config: CLIPConfig) -> tuple[int, ...]:
    """Return the blocks whose patches are remembered: at two thirds and at five sixths of the depth.

    Examples
    --------
    >>> default_blocks(CLIPConfig(768, 336, 14, 1024, 24, 16, 768, 12, 12, 77, 49408))
    (16, 20)
    """
    depth = config.vision_layers
    return tuple(sorted({max(round(depth * share), 1) for share in (2 / 3, 5 / 6)}))


class PatchMemory:
    """The features a memory uses: plain patch tokens of two blocks, mixed with their neighbours.

    Parameters
    ----------
    config : CLIPConfig
        Of the model.
    blocks : sequence of int, optional
        None: `default_blocks`.
    """

    def __init__(self, config: CLIPConfig, blocks: Sequence[int] | None = None) -> None:
        self.blocks = tuple(blocks or default_blocks(config))
        self.taps = Taps(plain=self.blocks)

    def features(self, found: Features) -> dict[str, Tensor]:
        """Return (B, N, D) float32, normalised, by the name of their bank."""
        return {f"block {number}": with_neighbours(found.plain[number][:, 1:]) for number in self.blocks}


class MemoryCore(ClipCore):
    """A core's own scores and maps, combined with how far each patch is from flawless references.

    The map is the mean of the text map and the memory's map; the image score combines the text score of
    the image and the highest 1 % of the memory's map. For an image of another product the memory's map is flat, and the
    image is not called normal.

    Parameters
    ----------
    core : ClipCore
        What compares images with texts.
    memory : Memory
        Of this core's image tower and image size.
    score_rule : str
        A key of `anomalyclip.spec.IMAGE_SCORES`.
    held : PatchMemory, optional
        What the memory holds of a pass. None: the default.
    """

    scale: Tensor

    def __init__(
        self,
        core: ClipCore,
        memory: Memory,
        *,
        score_rule: str = DEFAULT_RULE,
        held: PatchMemory | None = None,
    ) -> None:
        held = held or PatchMemory(core.config)
        super().__init__(
            core.visual,
            core.config,
            core.taps | held.taps,
            image_size=core.image_size,
            sigma=core.sigma,
            score_rule="text",
        )
        self.text_core, self.memory, self.held, self.memory_rule = core, memory, held, score_rule
        for number, bank in enumerate(memory.banks.values()):
            self.register_buffer(f"bank_{number}", bank.float(), persistent=False)
        self.register_buffer("scale", torch.tensor(scale_of(memory.left_out)), persistent=False)
        self.seen, self.unknown = 0, 0
        """Images scored, and how many of them look like another product."""

    @property
    def banks(self) -> dict[str, Tensor]:
        """The references' features, float32, by name."""
        return {name: self.get_buffer(f"bank_{number}") for number, name in enumerate(self.memory.banks)}

    def compare(self, features: Features) -> tuple[Tensor, Tensor]:
        """Return scores (B,) and patch maps (B, g, g)."""
        text, maps = self.text_core.compare(features)
        distances = distance(self.held.features(features), self.banks)  # B N
        return self.fused(text, maps, distances)

    def fused(self, text: Tensor, maps: Tensor, distances: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (B,) and patch maps (B, g, g) that combine texts and memory.

        Parameters
        ----------
        text, maps : Tensor
            (B,) and (B, g, g) float32 of the text core.
        distances : Tensor
            (B, N) float32.
        """
        unknown = unknown_share(distances, self.scale)
        self._count(unknown)
        memory = flattened(on_scale(distances, self.scale), unknown).view(maps.shape)  # B g g
        score = image_score(text, self.enlarged(memory), self.memory_rule, grids=memory)
        return lifted(score, unknown), (maps + memory) / 2

    def _count(self, unknown: Tensor) -> None:
        if not torch.compiler.is_compiling():  # nor exporting
            self.seen += len(unknown)
            self.unknown += int((unknown > 0.5).sum())

    def remarks(self) -> list[str]:
        """Return a warning if most images look like another product than the references."""
        if 2 * self.unknown <= self.seen or not self.seen:
            return []
        return [
            f"{self.unknown} of {self.seen} images do not look like the references at all: are they of the same "
            "product, taken in the same way? Their scores are raised, and their maps follow the texts"
        ]

    def nearest(self, features: Features) -> tuple[Tensor, Tensor]:
        """Return distances (B, N) and which row of the memory each patch is nearest to, by its last bank."""
        name = list(self.banks)[-1]
        return nearest_rows(self.held.features(features)[name], self.banks, name)
