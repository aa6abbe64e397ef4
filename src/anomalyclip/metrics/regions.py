"""Defect regions: sets of mask pixels that are connected by sides or corners, and their areas."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def region_areas(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return, for every pixel, the area of its 8-connected region of the mask.

    Parameters
    ----------
    mask : (H, W) bool array
        True is anomalous.

    Returns
    -------
    (H, W) int32 array
        Number of pixels in the region; 0 for normal pixels.

    Examples
    --------
    >>> region_areas(np.array([[1, 1, 0, 1]], dtype=bool)).tolist()
    [[2, 2, 0, 1]]
    """
    areas = np.zeros(mask.shape, np.int32)
    areas[mask] = areas_within(mask)
    return areas


def areas_within(mask: NDArray[np.bool_]) -> NDArray[np.integer[Any]]:
    """Return, for each anomalous pixel of a mask in row-major order, the area of its region."""
    if not mask.any():
        return np.empty(0, np.int64)
    regions, _ = ndimage.label(mask, _EIGHT_NEIGHBOURS)
    inside = regions[mask]
    areas: NDArray[np.integer[Any]] = np.bincount(inside)[inside]
    return areas
