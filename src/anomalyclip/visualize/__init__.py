"""Predictions as pictures: heat maps, overlays on the photograph, captions, contact sheets.

Colours stand for the same map values in every picture: a fixed scale, which begins at the pixel threshold if there is
one, else at 0, and ends at 1, unless told otherwise. The published code stretches each map to its own minimum and
maximum, so that a flawless image glows as much as a one.
"""

from anomalyclip.visualize.captions import captioned
from anomalyclip.visualize.colors import COLORMAPS, heat_map
from anomalyclip.visualize.overlays import overlay
from anomalyclip.visualize.sheet import contact_sheet

__all__ = ["COLORMAPS", "captioned", "contact_sheet", "heat_map", "overlay"]
