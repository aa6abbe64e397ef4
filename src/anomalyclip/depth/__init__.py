"""Images of more than 8 bits per channel: one scale for all of them, never one for each.

Cameras and scanners give 10 to 16 bits or floats, and the model takes 8. Which value is black and which is white
decides the scores. It comes from the user (`DetectorSpec.value_range`), from the file (a DICOM window), or it is
assumed from the first image of a run, and then all others follow.

`deep`, `scale` and `color` know values alone, and `anomalyclip.images` imports them. `in_scale` and `ranges` use the
readers: they put whole runs into one scale, and measure the range of a camera.
"""

from anomalyclip.depth.deep import ADVICE, Deep, Range, Rendering, require_range
from anomalyclip.depth.scale import RangeWanted, Scale

__all__ = ["ADVICE", "Deep", "Range", "RangeWanted", "Rendering", "Scale", "require_range"]
