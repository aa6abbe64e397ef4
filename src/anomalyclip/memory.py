"""Few-shot on features: how far a patch is from the nearest one of flawless references. Pure functions of tensors.

Shapes: B images, N = g * g patches on a square grid, M patches of the references, D width of a feature.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anomalyclip.clip.packed import largest_products

Banks = Mapping[str, Tensor]
"""Normalised features by the name of where they come from; the same rows (last axis but one) in each."""

BLOCK = 1024
"""Reference patches that are compared at once: the matrix of cosines is never larger than B * N * BLOCK."""

PART = 8192
"""Patches among which a coreset is chosen at once."""

_SKETCH = 64
"""Width to which features are projected at random before a coreset is chosen."""


def nearest(features: Tensor, bank: Tensor, *, block: int = BLOCK) -> Tensor:
    """Return the cosine distance of each feature to the nearest one of a bank, by matrix products of bounded size.

    Parameters
    ----------
    features : Tensor
        (..., D) float, normalised.
    bank : Tensor
        (M, D) float, normalised.
    block : int
        Rows of the bank that are compared at once.

    Returns
    -------
    Tensor
        (...) float32 within [0, 2]: 1 - cosine.

    Examples
    --------
    >>> nearest(torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[1.0, 0.0]]))
    tensor([0.0000, 0.4000])
    """
    best = largest_products(features.float(), (part.float() for part in _parts(bank, block)))
    return (1 - best).clamp(0, 2)


def nearest_rows(features: Tensor, bank: Tensor, *, block: int = BLOCK) -> Tensor:
    """Return which row of a bank (M, D) each feature (..., D) is nearest to, int64 (...)."""
    found = [(features.float() @ part.float().T).max(dim=-1) for part in _parts(bank, block)]
    which = torch.stack([cosine for cosine, _ in found]).argmax(dim=0)
    rows = torch.stack([row + number * block for number, (_, row) in enumerate(found)])
    return rows.gather(0, which[None])[0]


def _parts(bank: Tensor, block: int) -> Iterator[Tensor]:
    """Yield parts of a bank: by slices, which exporters can fold into constants, as they cannot a split."""
    for start in range(0, len(bank), block):
        yield bank[start : start + block]


def distance(features: Banks, banks: Banks) -> Tensor:
    """Return the mean over banks of the distance of each patch (..., N) to the nearest reference patch."""
    return torch.stack([nearest(features[name], bank) for name, bank in banks.items()]).mean(dim=0)


def with_neighbours(tokens: Tensor) -> Tensor:
    """Return patch features mixed with their neighbours: each, normalised, plus the mean of its 3 x 3.

    A patch that occurs in the references with other neighbours is then farther from them. At the edge of
    the grid the mean is over the neighbours that there are.

    Parameters
    ----------
    tokens : Tensor
        (B, N, D) float, patches row by row on a square grid, without CLS.

    Returns
    -------
    Tensor
        (B, N, D) float32, normalised.

    Examples
    --------
    >>> with_neighbours(torch.tensor([[[2.0, 0.0]] * 4])).tolist()[0][0]
    [1.0, 0.0]
    """
    side = math.isqrt(tokens.shape[1])
    patches = F.normalize(tokens.float(), dim=-1)  # B N D
    grid = patches.reshape(len(patches), side, side, -1).permute(
        0, 3, 1, 2
    )  # B D g g, a view with channels last
    mean = F.avg_pool2d(grid, 3, stride=1, padding=1, count_include_pad=False)
    return F.normalize(patches + mean.permute(0, 2, 3, 1).flatten(1, 2), dim=-1)


NORMAL_SHARE = 0.99
"""Share of the references' own patches whose distance is below 1 on the fixed scale."""

_KNOWN, _UNKNOWN = 0.5, 0.9
"""Shares of patches beyond that distance: up to the first an image is of the product, from the second on it is not."""

_LEFT = 0.25
"""How much of its normality an image of another product keeps."""


def scale_of(left_out: Tensor) -> float:
    """Return the distance that becomes 1 on the fixed scale: 99 % of normal patches are nearer. Never 0.

    Examples
    --------
    >>> scale_of(torch.arange(101.0))
    99.0
    """
    quantile = np.quantile(
        left_out.numpy().astype(np.float64), NORMAL_SHARE
    )  # torch's takes 16 million at most
    return max(round(float(quantile), 9), 1e-4)


def on_scale(distances: Tensor, scale: Tensor | float) -> Tensor:
    """Return distances within [0, 1): d / (d + scale), so that 99 % of normal patches are below 0.5.

    It never saturates: of two patches, the farther one stays the more anomalous.

    Examples
    --------
    >>> on_scale(torch.tensor([0.0, 0.1, 0.9]), 0.1)
    tensor([0.0000, 0.5000, 0.9000])
    """
    return distances / (distances + scale)


def unknown_share(distances: Tensor, scale: Tensor | float) -> Tensor:
    """Return the share (B,) of each image's patches (B, N) that are farther than 99 % of normal ones.

    It is near 0.01 for normal images, and seldom above 0.3 for anomalous ones; for another product it is near 1.
    """
    return (distances > scale).float().mean(dim=-1)


def flattened(maps: Tensor, unknown: Tensor) -> Tensor:
    """Return memory maps (B, N), made flat for images of another product.

    Far from all references, distances differ between places for reasons that are no defects. The mean stays: such an
    image is not called normal.

    Parameters
    ----------
    maps : Tensor
        (B, N) float within [0, 1].
    unknown : Tensor
        (B,) float, of `unknown_share`: up to 0.5 nothing changes, from 0.9 on the map is its mean.

    Examples
    --------
    >>> flattened(torch.tensor([[0.6, 0.8], [0.6, 0.8]]), torch.tensor([0.2, 1.0]))
    tensor([[0.6000, 0.8000],
            [0.7000, 0.7000]])
    """
    trust = _trust(unknown)[:, None]  # B 1
    return trust * maps + (1 - trust) * maps.mean(dim=-1, keepdim=True)


def lifted(scores: Tensor, unknown: Tensor) -> Tensor:
    """Return image scores (B,) raised so that no image of another product is called normal, even if the texts say so.

    From a share of 0.9 of unknown patches on, scores are within [0.75, 1], in the same order.

    Examples
    --------
    >>> lifted(torch.tensor([0.2, 0.2]), torch.tensor([0.1, 0.95]))
    tensor([0.2000, 0.8000])
    """
    return 1 - (1 - scores) * (_LEFT + (1 - _LEFT) * _trust(unknown))


def _trust(unknown: Tensor) -> Tensor:
    """Return how far the references apply to images: 1 for their own product, 0 for others."""
    return ((_UNKNOWN - unknown) / (_UNKNOWN - _KNOWN)).clamp(0, 1)


def without(banks: Banks, owners: Mapping[str, Tensor], reference: int) -> dict[str, Tensor]:
    """Return banks without the rows of one reference, which can then be compared with the others.

    Parameters
    ----------
    banks : mapping of str to Tensor
        (M, D), of all references.
    owners : mapping of str to Tensor
        (M,) int, the reference that each row comes from.
    reference : int
        The one that is left out.
    """
    return {name: bank[owners[name] != reference] for name, bank in banks.items()}


BEYOND = 2
"""Patches around a patch that are so like it that they do not count as others of its image."""

COPIES = 0.07
"""References are copies whose distances to each other are below this share of the distances within each of them.

For different images of generated products and bottles it was 0.15 or more, for one image with noise or JPEG's losses
mostly below 0.07: `python -m benchmarks.few_shot copies`.
"""


def within(features: Banks, grid: tuple[int, int]) -> Tensor | None:
    """Return how far each patch is from the nearest other one of its own image, more than two patches away.

    Parameters
    ----------
    features : mapping of str to Tensor
        (B, N, D) each, normalised, N patches row by row.
    grid : (int, int)
        Rows and columns of the patches.

    Returns
    -------
    Tensor or None
        (B, N) float32: the mean over banks. None if the features are not those of a grid with a side of 6 patches
        or more, in which every patch has others that far.

    Examples
    --------
    >>> within({"4": F.normalize(torch.ones(1, 36, 3), dim=-1)}, (6, 6)).amax().round(decimals=6)
    tensor(0.)
    """
    (rows, columns), counts = grid, {bank.shape[1] for bank in features.values()}
    if counts != {rows * columns} or max(grid) < 2 * BEYOND + 2:
        return None
    row, column = torch.arange(rows * columns) // columns, torch.arange(rows * columns) % columns
    around = ((row[:, None] - row).abs() <= BEYOND) & ((column[:, None] - column).abs() <= BEYOND)

    def nearest_other(patches: Tensor) -> Tensor:  # N D, of one image at a time: the matrix is N x N
        cosines = patches.float() @ patches.float().T
        return (1 - cosines.masked_fill_(around, -1).amax(dim=-1)).clamp(0, 2)

    found = [torch.stack([nearest_other(patches) for patches in bank]) for bank in features.values()]
    return torch.stack(found).mean(dim=0)


def are_copies(left_out: Sequence[Tensor], inside: Sequence[Tensor | None]) -> bool:
    """Return whether references are so nearly the same picture that their distances say nothing about other images.

    Parameters
    ----------
    left_out : sequence of Tensor
        (Q, N), for each reference: distances of its patches to the other references.
    inside : sequence of Tensor or None
        (Q, N), of the same: `within`.
    """
    known = [part for part in inside if part is not None]
    if len(known) < len(inside) or not known:
        return False
    return scale_of(torch.cat(list(left_out))) < COPIES * scale_of(torch.cat(known))


def coreset(banks: Banks, count: int, *, seed: int = 0, part: int = PART) -> Tensor:
    """Choose patches that stand for all: greedily, each time the one that is farthest from those chosen (k-centre).

    Features of all banks are taken together, and projected at random to a width of 64, which keeps distances well
    enough to choose by. More patches than a part has are dealt at random into parts, and each part gives its share, so
    that the time grows with the number of patches and not with its square.

    Parameters
    ----------
    banks : mapping of str to Tensor
        (M, D) each, normalised.
    count : int
        How many patches are kept.
    seed : int
        Of the projection, and of the parts.
    part : int
        Patches among which is chosen at once.

    Returns
    -------
    Tensor
        (count,) int64, rising; all rows if there are no more.

    References
    ----------
    Roth et al., "Towards Total Recall in Industrial Anomaly Detection" (PatchCore), CVPR 2022.

    Examples
    --------
    >>> bank = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0]]), dim=-1)
    >>> coreset({"4": bank}, 2).tolist()
    [0, 2]
    """
    rows = len(next(iter(banks.values())))
    if rows <= count:
        return torch.arange(rows)
    sketch = _sketch(banks, seed)  # M d
    parts = -(-rows // part)
    if parts == 1:
        return _farthest(sketch, count).sort().values
    dealt = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    shares = [count * (n + 1) // parts - count * n // parts for n in range(parts)]
    chosen = [
        own[_farthest(sketch[own], share)]
        for own, share in zip(dealt.tensor_split(parts), shares, strict=True)
    ]
    return torch.cat(chosen).sort().values


def _farthest(sketch: Tensor, count: int) -> Tensor:
    """Return the rows (count,) of a sketch (M, d) that are chosen greedily."""
    norms = sketch.square().sum(dim=1)
    chosen = torch.zeros(count, dtype=torch.int64)  # the first is row 0
    farness = torch.full((len(sketch),), torch.inf)
    for step in range(1, count):
        last = sketch[chosen[step - 1]]
        torch.minimum(farness, norms - 2 * (sketch @ last) + last.square().sum(), out=farness)
        chosen[step] = farness.argmax()
    return chosen


def _sketch(banks: Banks, seed: int) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    parts = []
    for _, bank in sorted(banks.items()):
        matrix = torch.randn(bank.shape[1], _SKETCH, generator=chance) / _SKETCH**0.5
        parts.append(torch.cat([part.float() @ matrix for part in _parts(bank, BLOCK)]))
    return torch.stack(parts).sum(dim=0)
