"""What a method needs from the image tower, as a value, so that several methods can share one pass."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from anomalyclip.backbones.config import ViTConfig
from anomalyclip.clip.model import PLAIN, CLIPConfig, LocalPath, VisionTransformer
from anomalyclip.errors import AnomalyCLIPError

Window = tuple[int, int]
"""Side of a square window and the step to the next one, both in patches."""

_TOGETHER = 512
"""Windows of one image that go through the tower at once."""


@dataclass(frozen=True)
class Taps:
    """Where the tokens of a pass through the image tower are kept.

    Parameters
    ----------
    plain : tuple of int
        Blocks, counted from 1, after which the tokens of the original path are kept.
    local : tuple of int
        The same of the local path.
    path : LocalPath
        Which local path; by default there is none.
    windows : tuple of (int, int)
        Side and step of windows of patches, each of which goes through the tower alone, with CLS (WinCLIP).
    positions : {"bilinear", "bicubic"}
        How the positional table is resized for the grid (`anomalyclip.clip.model.POSITIONS`).
    more : tuple of (LocalPath, tuple of int)
        Other local paths and where their tokens are kept, in a pass that serves several methods.

    Examples
    --------
    >>> one, other = Taps(local=(24,), path=LocalPath(19)), Taps(plain=(6, 24))
    >>> one | other
    Taps(plain=(6, 24), local=(24,), path=LocalPath(blocks=19, attends='v'), windows=(), positions='bilinear', more=())
    >>> one.fits(Taps(plain=(24,), positions="bicubic"))
    False
    """

    plain: tuple[int, ...] = ()
    local: tuple[int, ...] = ()
    path: LocalPath = PLAIN
    windows: tuple[Window, ...] = ()
    positions: str = "bilinear"
    more: tuple[tuple[LocalPath, tuple[int, ...]], ...] = ()

    def __post_init__(self) -> None:
        for name in ("plain", "local", "windows"):
            object.__setattr__(self, name, tuple(sorted(set(getattr(self, name)))))
        if self.local and not self.path.blocks:
            raise AnomalyCLIPError("there is no local path to keep tokens of: use plain instead")

    @property
    def paths(self) -> dict[LocalPath, tuple[int, ...]]:
        """Every local path, and where its tokens are kept; the longest first."""
        own = {self.path: self.local} if self.path.blocks else {}
        return own | dict(self.more)

    def fits(self, other: "Taps") -> bool:
        """Return whether one pass serves both: the positional table is the same."""
        return self.positions == other.positions

    def __or__(self, other: "Taps") -> "Taps":
        """Return what serves both.

        Raises
        ------
        AnomalyCLIPError
            No single pass does; see `fits`.
        """
        if not self.fits(other):
            raise AnomalyCLIPError(f"no pass through the image tower serves both {self} and {other}")
        paths = {
            path: tuple(sorted({*self.paths.get(path, ()), *other.paths.get(path, ())}))
            for path in sorted({**self.paths, **other.paths}, key=lambda path: (-path.blocks, path.attends))
        }
        (path, local), *more = list(paths.items()) or [(PLAIN, ())]
        return Taps(
            self.plain + other.plain,
            local,
            path,
            self.windows + other.windows,
            self.positions,
            tuple(more),
        )


def passes(several: Iterable[Taps]) -> list[Taps]:
    """Return few passes that serve all of these.

    Examples
    --------
    >>> len(passes([Taps(plain=(24,)), Taps(local=(24,), path=LocalPath(19)), Taps(plain=(24,), positions="bicubic")]))
    2
    """
    found: dict[str, Taps] = {}
    for taps in several:
        found[taps.positions] = found.get(taps.positions, taps) | taps
    return list(found.values())


def gflop(config: CLIPConfig | ViTConfig, taps: Taps, side: int) -> float:
    """Return the 1e9 operations of the blocks' matrix products for one image (a product of sums counts two).

    Counted: projections, MLP and attention of every block, the local path where it runs, of the last block's original
    path what CLS needs unless its tokens are kept, and the windows.

    Parameters
    ----------
    config : CLIPConfig or ViTConfig
    taps : Taps
    side : int
        Side g of the grid of patches.
    """
    width, depth = config.vision_width, config.vision_layers

    gated = getattr(config, "gated", 0)
    mlp = 6 * gated * width if gated else 16 * width**2  # for one token

    def block(tokens: int) -> int:
        return tokens * (8 * width**2 + mlp) + 4 * tokens**2 * width

    tokens = side**2 + 1 + getattr(config, "registers", 0)
    linear, attention = 2 * tokens * width**2, 4 * tokens**2 * width
    last = block(tokens) if depth in taps.plain else 2 * linear  # keys and values alone
    longest: dict[str, int] = {}  # of the paths in which the same attends
    for path in taps.paths:
        longest[path.attends] = max(longest.get(path.attends, 0), path.blocks)
    local = sum(blocks * (linear + len(attends) * attention) for attends, blocks in longest.items())
    windows = 0
    for window in taps.windows:
        inside = window[0] ** 2 + 1
        each = (depth - 1) * block(inside) + 4 * inside * width**2  # of the last block keys and values alone
        windows += len(starts(side, window)) ** 2 * each
    return ((depth - 1) * block(tokens) + last + local + windows) / 1e9


class Features(NamedTuple):
    """What a pass through the image tower kept: raw tokens, before `ln_post` and projection, CLS first.

    Attributes
    ----------
    cls : Tensor
        (B, D) float, CLS of the original path after the last block.
    plain, local : dict of int to Tensor
        Block number to (B, 1 + N, D) float tokens of the original and of the local path.
    windows : dict of (int, int) to Tensor
        Side and step to (B, W, D) float, CLS of each window after the last block, row by row.
    more : dict of LocalPath to dict of int to Tensor
        Tokens of other local paths.
    grid : (int, int)
        Rows and columns of the patches.
    projected : dict of int to Tensor
        What cores have projected of these tokens, for the next core (`anomalyclip.clip_core.ClipCore.projected`).
    """

    cls: Tensor
    plain: dict[int, Tensor]
    local: dict[int, Tensor]
    windows: dict[Window, Tensor]
    more: dict[LocalPath, dict[int, Tensor]]
    grid: tuple[int, int]
    projected: dict[int, Tensor]

    def of(self, path: LocalPath) -> "Features":
        """Return the same with the tokens of another local path as `local`, if they were kept."""
        return self._replace(local=self.more[path]) if path in self.more else self


def run(visual: VisionTransformer, pixels: Tensor, positions: Tensor, taps: Taps) -> Features:
    """Run the image tower once.

    Parameters
    ----------
    visual : VisionTransformer
        The tower.
    pixels : Tensor
        (B, 3, h * P, w * P) float, normalised.
    positions : Tensor
        The result of the tower's `positions` for this grid.
    taps : Taps
        What is kept; nothing else is computed.
    """
    tokens = visual.embed(pixels.to(positions.dtype), positions)  # B 1+N D
    found = visual.run(
        tokens,
        positions=positions,
        plain=taps.plain,
        local=taps.local,
        path=taps.path,
        more=dict(taps.more),
    )
    grid = pixels.shape[-2] // visual.patch_size, pixels.shape[-1] // visual.patch_size
    windows = {window: _windows(visual, tokens, window, grid[0]) for window in taps.windows}
    return Features(found.cls, found.plain, found.local, windows, found.more, grid, {})


def starts(side: int, window: Window) -> list[int]:
    """Return where windows start along a side of the grid; the last one always ends at the edge.

    Examples
    --------
    >>> starts(7, (3, 1)), starts(7, (2, 3))
    ([0, 1, 2, 3, 4], [0, 3, 5])
    """
    size, step = window
    last = side - size
    return [*range(0, last, step), last]


@lru_cache(maxsize=16)
def window_patches(side: int, window: Window) -> list[list[int]]:
    """Return the patches of each window, counted from 0 row by row; windows row by row too."""
    along = [range(start, start + window[0]) for start in starts(side, window)]
    return [
        [row * side + column for row in rows for column in columns] for rows in along for columns in along
    ]


def _windows(visual: VisionTransformer, tokens: Tensor, window: Window, side: int) -> Tensor:
    """Return the last CLS (B, W, D) of windows, each of which goes through the tower alone."""
    # A list is what is kept: a tensor that was made while the model is exported would be of no use later.
    patches = torch.tensor(window_patches(side, window), device=tokens.device) + 1  # W n, CLS is row 0
    found = []
    for part in torch.split(patches, _TOGETHER):
        cls = tokens[:, None, :1].expand(-1, len(part), -1, -1)  # B w 1 D
        cut = torch.cat([cls, tokens[:, part]], dim=2)  # B w 1+n D
        cls = visual.run(cut.flatten(0, 1)).cls  # Bw D
        found.append(cls.view(len(tokens), len(part), -1))  # B w D
    return torch.cat(found, dim=1)
