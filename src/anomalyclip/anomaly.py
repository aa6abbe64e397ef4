"""From features to similarities, maps and scores: pure functions of tensors.

Shapes: B images, N = g * g patches on a square grid, E embedding, S image side.
"""

import math
from collections.abc import Mapping
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.07
"""Cosines are divided by it before the softmax (the published ``/ 0.07``)."""


def similarities(features: Tensor, text_features: Tensor) -> Tensor:
    """Return the cosines (..., T) float32 of features (..., E) with texts (T, E); the texts must be normalised."""
    return F.normalize(features.float(), dim=-1) @ text_features.float().T


def probabilities(features: Tensor, text_features: Tensor, *, temperature: float = TEMPERATURE) -> Tensor:
    """Return the probabilities of normal and anomalous: the softmax of the cosines with the two texts over 0.07.

    Parameters
    ----------
    features : Tensor
        (..., E) float, of images or patches; this function normalises them.
    text_features : Tensor
        (2, E) float, normalised; normal, then abnormal.
    temperature : float
        Divides the cosines; CLIP was trained with 0.01.

    Returns
    -------
    Tensor
        (..., 2) float32 within [0, 1], normal then abnormal.

    Examples
    --------
    >>> texts = torch.eye(2)
    >>> probabilities(torch.tensor([[3.0, 3.0], [0.0, 5.0]]), texts)[:, 1].round(decimals=3)
    tensor([0.5000, 1.0000])
    """
    return (similarities(features, text_features) / temperature).softmax(dim=-1)


def feature_surgery(cosines: Tensor, of_image: Tensor) -> Tensor:
    """Return CLIP Surgery's similarities, without the part that all texts share.

    Each text is weighted by how well it fits the image, ``w = softmax(2 cos(image, text))`` divided by its mean; then
    the mean over the texts is subtracted. With two texts the result is ``(w_a cos_a - w_n cos_n) / 2``
    and its negative.

    Parameters
    ----------
    cosines : Tensor
        (B, N, T) float32, of patches with texts.
    of_image : Tensor
        (B, T) float32, of the images with texts.

    Returns
    -------
    Tensor
        (B, N, T) float32.

    References
    ----------
    Li et al., "CLIP Surgery for Better Explainability with Enhancement in Open-Vocabulary Tasks", 2023. The published
    code ignores its temperature argument and always uses 2.

    Examples
    --------
    >>> feature_surgery(torch.tensor([[[0.2, 0.4]]]), torch.tensor([[0.3, 0.3]]))
    tensor([[[-0.1000,  0.1000]]])
    """
    weights = (2 * of_image).softmax(dim=-1)  # B T
    weighed = cosines * (weights * weights.shape[-1])[:, None]  # B N T: the mean of a softmax is 1 / T
    return weighed - weighed.mean(dim=-1, keepdim=True)


def patch_probabilities(
    patches: Mapping[int, Tensor], text_features: Tensor, *, surgery_by: Tensor | None = None
) -> Tensor:
    """Return how anomalous each patch is, the mean over feature layers.

    The published map is (P_abnormal + 1 - P_normal) / 2, which equals P_abnormal, *summed* over layers. The mean keeps
    it within [0, 1].

    Parameters
    ----------
    patches : mapping of int to Tensor
        Block number to (B, 1 + N, E) features, CLS first.
    text_features : Tensor
        (2, E) float, normalised.
    surgery_by : Tensor, optional
        (B, E) float, image features: the cosines are then weighed by `feature_surgery`.

    Returns
    -------
    Tensor
        (B, g, g) float32 within [0, 1].
    """
    layers = [similarities(features[:, 1:], text_features) for features in patches.values()]  # B N 2
    if surgery_by is not None:
        of_image = similarities(surgery_by, text_features)
        layers = [feature_surgery(cosines, of_image) for cosines in layers]
    mean = torch.stack([(cosines / TEMPERATURE).softmax(dim=-1)[..., 1] for cosines in layers]).mean(
        dim=0
    )  # B N
    side = math.isqrt(mean.shape[1])
    return mean.view(-1, side, side)


def image_score(text: Tensor, maps: Tensor, rule: str, *, grids: Tensor | None = None) -> Tensor:
    """Return the score of each image from its text probability and its map.

    Parameters
    ----------
    text : Tensor
        (B,) float32 within [0, 1]: probability that the image is anomalous.
    maps : Tensor
        (B, S, S) float32 within [0, 1], smoothed.
    rule : str
        A key of `anomalyclip.spec.IMAGE_SCORES`. ``text``: the probability P only, as published. ``max``: the mean of
        P and the map's maximum (AdaptCLIP's rule). ``top1``: the mean of P and the average of the map's highest 1 %.
        ``mean``: the mean of P and the map's average. ``mrad``: 0.7 P plus 0.3 times the average of the map's highest
        1 % (MRAD's rule). ``faprompt``: the mean of P and the maximum over patches, before smoothing (FAPrompt's rule).
    grids : Tensor, optional
        (B, g, g) float32 within [0, 1], the patch maps before upsampling; needed by ``faprompt``.

    Returns
    -------
    Tensor
        (B,) float32 within [0, 1].

    Examples
    --------
    >>> maps = torch.tensor([[[0.0, 0.2], [0.4, 0.8]]])
    >>> [round(float(image_score(torch.tensor([0.6]), maps, rule)), 2) for rule in ("text", "max")]
    [0.6, 0.7]
    """
    if rule == "text":
        return text
    if rule == "mrad":
        return 0.7 * text + 0.3 * highest(maps, 0.01)
    if rule == "faprompt":
        assert grids is not None
        return (text + highest(grids, 0.0)) / 2
    return (text + highest(maps, {"max": 0.0, "top1": 0.01, "mean": 1.0}[rule])) / 2


def highest(maps: Tensor, share: float) -> Tensor:
    """Return the mean (B,) of the highest ``int(share * S * S)`` pixels of each map, at least one.

    Examples
    --------
    >>> highest(torch.arange(100.0).view(1, 10, 10), 0.02)
    tensor([98.5000])
    """
    flat = maps.flatten(1)
    count = int(share * flat.shape[1])
    if count == flat.shape[1]:
        return flat.mean(dim=1)
    return flat.amax(dim=1) if count <= 1 else flat.topk(count, sorted=False).values.mean(dim=1)


def enlarge(grids: Tensor, size: int, *, sigma: float = 0.0) -> Tensor:
    """Upsample maps bilinearly to S x S and smooth them with a Gaussian, both in one step.

    Both operations are linear and separable, so a map is ``A @ grid @ A.T`` for one constant matrix A: two small
    matrix products instead of an interpolation and two convolutions at full size.

    Parameters
    ----------
    grids : Tensor
        (..., g, g) float.
    size : int
        The side S.
    sigma : float
        Standard deviation of the Gaussian in pixels; 0 disables smoothing. Edges are reflected and the kernel is
        truncated at 4 sigma, the defaults of `scipy.ndimage.gaussian_filter`.

    Returns
    -------
    Tensor
        (..., S, S) float.

    Examples
    --------
    >>> enlarge(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), 4)[0]
    tensor([0.0000, 0.2500, 0.7500, 1.0000])
    """
    matrix = enlarging_matrix(grids.shape[-1], size, float(sigma)).to(grids)
    return matrix @ grids @ matrix.T


@lru_cache(maxsize=64)
def enlarging_matrix(grid: int, size: int, sigma: float) -> Tensor:
    """Return A, (S, g) float32: its rows are convex combinations, so maps keep their range."""
    with torch.inference_mode(False):  # a cached constant must be usable in training too
        identity = torch.eye(grid, dtype=torch.float64)[None]  # 1 g g
        upsample = F.interpolate(identity, size, mode="linear", align_corners=False)[0].T  # S g
        return (_gaussian_matrix(size, sigma) @ upsample).float() if sigma > 0 else upsample.float()


def _gaussian_matrix(size: int, sigma: float) -> Tensor:
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    weights /= weights.sum()
    # d c b a | a b c d | d c b a: positions repeat with period 2 S, and the second half of each period is mirrored.
    source = (torch.arange(size)[:, None] + offsets) % (2 * size)
    source = torch.where(source < size, source, 2 * size - 1 - source)  # S 2r+1
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, source, weights.expand(size, -1).contiguous())
