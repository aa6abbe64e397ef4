"""Which patches show an object, by the first principal component of DINOv2's features (AnomalyDINO's rule)."""

import torch
import torch.nn.functional as F
from torch import Tensor

THRESHOLD = 10.0
"""Published threshold of the first component; it fits the scale of DINOv2's features and of no other."""

_STEPS = 40
"""Steps of the power iteration."""

_CENTRE, _LEAST = (0.2, 0.8), 0.35
"""The middle of the image, of which at least this share must be object, or the other side of the component is."""


def first_component(tokens: Tensor) -> Tensor:
    """Return the scores (B, N) of each image's patches (B, N, D) on their first principal component.

    The sign is such that the largest loading is positive, as in scikit-learn. Matrix products alone (a power
    iteration), so that exported files compute it too.

    Examples
    --------
    >>> first_component(torch.tensor([[[2.0, 0.0], [0.0, 0.0], [-2.0, 0.0]]]))
    tensor([[ 2.,  0., -2.]])
    """
    x = tokens.float()
    x = x - x.mean(dim=1, keepdim=True)
    spread = x.transpose(1, 2) @ x  # B D D
    spread = spread / spread.diagonal(dim1=1, dim2=2).sum(dim=1).clamp(min=1e-12)[:, None, None]
    direction = spread[torch.arange(len(x)), spread.diagonal(dim1=1, dim2=2).argmax(dim=1)][
        ..., None
    ]  # B D 1
    for _ in range(_STEPS):
        direction = F.normalize(spread @ direction, dim=1)
    largest = direction.gather(1, direction.abs().argmax(dim=1, keepdim=True))
    return (x @ (direction * largest.sign()))[..., 0]


def foreground(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return 1 for patches (B, N) that show an object and 0 for the background; all are 1 if nothing is found.

    Parameters
    ----------
    tokens : Tensor
        (B, N, D) float, DINOv2's patches after the final norm, not normalised.
    grid : (int, int)
        Rows and columns of the patches.
    """
    scores = first_component(tokens).view(-1, 1, *grid)  # B 1 h w
    one, other = ((sign * scores > THRESHOLD).float() for sign in (1, -1))
    top, bottom, left, right = (int(length * share) for length in grid for share in _CENTRE)
    enough = one[..., top:bottom, left:right].mean(dim=(1, 2, 3), keepdim=True) > _LEAST
    mask = torch.where(enough, one, other)
    mask = _grown(mask)
    mask = -_grown(-_grown(mask))  # closed
    found = mask.amax(dim=(1, 2, 3), keepdim=True) > 0
    return torch.where(found, mask, torch.ones_like(mask)).flatten(1)


def _grown(mask: Tensor) -> Tensor:
    return F.max_pool2d(mask, 3, stride=1, padding=1)
