"""Predictions as pictures: heat maps, overlays on the photograph, captions, contact sheets.

A colour stands for the same map value in every picture: by default the scale is fixed, from the pixel threshold (or 0
without one) to 1. The published code stretches each map to its own minimum and maximum, so that a flawless image looks
as hot as a defective one.
"""

from anomalyclip.visualize.captions import captioned
from anomalyclip.visualize.colors import COLORMAPS, heat_map
from anomalyclip.visualize.overlays import overlay
from anomalyclip.visualize.sheet import contact_sheet

__all__ = ["COLORMAPS", "captioned", "contact_sheet", "heat_map", "overlay"]
