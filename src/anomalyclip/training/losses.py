"""The published losses of one batch: cross-entropy of images, focal and dice loss of pixels.

Shapes: B images, S side of the maps in pixels, E embedding, N = g * g patches.
"""

import math

import torch.nn.functional as F
from torch import Tensor

from anomalyclip.anomaly import TEMPERATURE, enlarge, probabilities

_FOCAL_SMOOTHING = 1e-5
_DICE_SMOOTHING = 1.0


def image_loss(features: Tensor, text_features: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of the images' two logits, cosine / 0.07.

    Parameters
    ----------
    features : Tensor
        (B, E) float image features; this function normalises them.
    text_features : Tensor
        (2, E) float, normalised; normal, then abnormal.
    labels : Tensor
        (B,) bool or integer, 1 is anomalous.

    Returns
    -------
    Tensor
        A scalar.

    Examples
    --------
    >>> import torch
    >>> image_loss(torch.eye(2), torch.eye(2), torch.tensor([0, 0]))
    tensor(7.1429)
    """
    cosines = F.normalize(features.float(), dim=-1) @ text_features.T
    return F.cross_entropy(cosines / TEMPERATURE, labels.long())


def local_loss(patches: Tensor, text_features: Tensor, masks: Tensor) -> Tensor:
    """Return focal plus both dice losses of one block's map, upsampled to the masks' size and not smoothed.

    Parameters
    ----------
    patches : Tensor
        (B, N, E) float patch features of one block; this function normalises them.
    text_features : Tensor
        (2, E) float, normalised; normal, then abnormal.
    masks : Tensor
        (B, S, S) bool, true where there is a defect.

    Returns
    -------
    Tensor
        A scalar.
    """
    side = math.isqrt(patches.shape[1])
    grids = probabilities(patches, text_features)[..., 1].view(-1, side, side)  # B g g
    # Upsampling averages, so the two enlarged maps still sum to one: the normal one is the complement.
    abnormal = enlarge(grids, masks.shape[-1])  # B S S
    defects = masks.to(abnormal)
    return focal_loss(abnormal, defects) + dice_loss(abnormal, defects) + dice_loss(1 - abnormal, 1 - defects)


def focal_loss(abnormal: Tensor, masks: Tensor) -> Tensor:
    """Return the focal loss (gamma 2, no alpha) of two-class maps, as the published code computes it.

    It is the mean of -(1 - pt)^2 log pt, where pt = sum(truth * P) + 1e-5 and the one-hot truth is clamped to
    [1e-5, 1 - 1e-5].

    Parameters
    ----------
    abnormal : Tensor
        (B, S, S) float within [0, 1], probability of defect.
    masks : Tensor
        (B, S, S) float, 1 where there is a defect, else 0.

    Returns
    -------
    Tensor
        A scalar.

    References
    ----------
    Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.

    Examples
    --------
    >>> import torch
    >>> focal_loss(torch.full((1, 2, 2), 0.5), torch.zeros(1, 2, 2))
    tensor(0.1733)
    """
    truth = masks.clamp(_FOCAL_SMOOTHING, 1 - _FOCAL_SMOOTHING)
    pt = truth * abnormal + (1 - truth) * (1 - abnormal) + _FOCAL_SMOOTHING
    return -((1 - pt) ** 2 * pt.log()).mean()


def dice_loss(maps: Tensor, masks: Tensor) -> Tensor:
    """Return 1 minus the dice overlap with smoothing 1, computed per image and averaged over images.

    Parameters
    ----------
    maps : Tensor
        (B, S, S) float within [0, 1].
    masks : Tensor
        (B, S, S) float, 0 or 1.

    Returns
    -------
    Tensor
        A scalar.

    References
    ----------
    Milletari et al., "V-Net", 3DV 2016.

    Examples
    --------
    >>> import torch
    >>> dice_loss(torch.ones(1, 2, 2), torch.ones(1, 2, 2))
    tensor(0.)
    """
    overlap = (maps * masks).sum(dim=(1, 2))
    total = maps.sum(dim=(1, 2)) + masks.sum(dim=(1, 2))
    return (1 - (2 * overlap + _DICE_SMOOTHING) / (total + _DICE_SMOOTHING)).mean()
