"""Map values to colours."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.prediction import Prediction

Color = tuple[int, int, int]
Scale = tuple[float, float]

# Interpolated between nine equidistant control points, which follow matplotlib's inferno (Smith, van der Walt; CC0:
# lightness rises evenly) and Google's turbo (Mikhailov; Apache-2.0: more distinct colours, but lightness rises
# and falls).
_COLORMAPS: dict[str, list[Color]] = {
    "inferno": [
        (0, 0, 4), (33, 12, 74), (87, 16, 110), (138, 34, 106), (188, 55, 84),
        (228, 90, 49), (249, 142, 9), (249, 203, 53), (252, 255, 164),
    ],
    "turbo": [
        (48, 18, 59), (70, 107, 227), (40, 188, 235), (50, 242, 152), (164, 252, 60),
        (238, 207, 58), (251, 126, 33), (208, 47, 5), (122, 4, 3),
    ],
    "gray": [(0, 0, 0), (255, 255, 255)],
}  # fmt: skip
COLORMAPS = tuple(_COLORMAPS)

# Up to the first share of the scale the photograph is unchanged; from the second on, the colour has its full opacity
# (`alpha`).
_OPACITY_FROM, _OPACITY_TO = 0.1, 0.7
# If the scale starts at the pixel threshold, only anomalous pixels are coloured, and even the faintest must be visible:
# its opacity, and its position in the colour map, which starts with black.
_FAINTEST, _FAINTEST_COLOR = 0.45, 0.3
_STRIP = 256
"""Rows that become levels at once: a map may have a hundred million pixels."""


@dataclass(frozen=True)
class Colors:
    """Colour and opacity of map values.

    Parameters
    ----------
    scale : tuple of float
        Map values of the first and the last colour.
    colormap : str
        Name of the colours.
    alpha : float
        Opacity of the strongest colour.
    marked : bool
        Whether the scale starts at the pixel threshold: values at or above it are coloured, lower values are not.
    """

    scale: Scale
    colormap: str
    alpha: float = 1.0
    marked: bool = False

    @classmethod
    def of(cls, prediction: Prediction, colormap: str, alpha: float, scale: Scale | None) -> "Colors":
        """Return the colours for a prediction; a given `scale` is used instead of its threshold."""
        if scale is None and prediction.pixel_threshold is not None:
            return cls((prediction.pixel_threshold, 1.0), colormap, alpha, marked=True)
        return cls(scale or (0.0, 1.0), colormap, alpha)

    def levels(self, anomaly_map: NDArray[np.float32]) -> Image.Image:
        """Return the map as a gray picture: 0 at the scale's low end, or below a threshold, 255 at its high end."""
        low, high = self.scale
        if not (low < high or self.marked):
            raise AnomalyCLIPError(
                f"the colour scale is {low} to {high}; its second value must be greater than its first."
            )
        levels = np.empty(anomaly_map.shape, np.uint8)
        for top in range(0, len(levels), _STRIP):
            values = anomaly_map[top : top + _STRIP]
            strip = (values - low) / max(high - low, 1e-9)
            np.rint(np.multiply(255, strip.clip(0, 1, out=strip), out=strip), out=strip)
            levels[top : top + _STRIP] = (
                np.where(values >= low, np.maximum(strip, 1), 0) if self.marked else strip
            )
        return Image.fromarray(levels)

    def colored(self, levels: Image.Image) -> Image.Image:
        """Return the colours of a picture of levels."""
        return self._by_palette(levels, "RGB")

    def layer(self, levels: Image.Image) -> Image.Image:
        """Return the colours of a picture of levels, and as its alpha how opaque each pixel is."""
        return self._by_palette(levels, "RGBA")

    def _by_palette(self, levels: Image.Image, mode: str) -> Image.Image:
        picture = levels.copy()
        picture.putpalette(self._palette.tobytes(), "RGBA")
        return picture.convert(mode)

    @cached_property
    def _palette(self) -> NDArray[np.uint8]:
        """Colour and opacity of each level, (256, 4)."""
        return np.column_stack([self._colors(), self._opacity()]).astype(np.uint8)

    def _colors(self) -> NDArray[np.float64]:
        if self.colormap not in _COLORMAPS:
            raise AnomalyCLIPError(
                f"unknown colour map {self.colormap!r}; choose one of {', '.join(COLORMAPS)}."
            )
        points = np.array(_COLORMAPS[self.colormap])
        first = _FAINTEST_COLOR if self.marked else 0
        positions = np.linspace(first * (len(points) - 1), len(points) - 1, 256)
        channels = [np.interp(positions, range(len(points)), channel) for channel in points.T]
        return np.stack(channels, axis=-1).round()

    def _opacity(self) -> NDArray[np.float64]:
        share = np.linspace(0, 1, 256)
        if self.marked:
            covered = np.clip(_FAINTEST + (1 - _FAINTEST) * share / _OPACITY_TO, 0, 1)
            covered[0] = 0
        else:
            covered = np.clip((share - _OPACITY_FROM) / (_OPACITY_TO - _OPACITY_FROM), 0, 1)
        return (255 * self.alpha * covered).round()


def heat_map(
    anomaly_map: NDArray[np.float32], *, colormap: str = "inferno", scale: Scale = (0.0, 1.0)
) -> Image.Image:
    """Return an anomaly map as a colour image.

    Parameters
    ----------
    anomaly_map : ndarray of float32, shape (H, W)
        Values in [0, 1]; `Prediction.map_at` gives it at any size.
    colormap : {"inferno", "turbo", "gray"}
        From dark to light, a rainbow, or from black to white.
    scale : tuple of float
        The map values of the first and the last colour. Use the same scale for all images that are compared.
        Values outside it get the colour of the nearest end. Narrow it if a model's values use only a part of
        [0, 1].

    Returns
    -------
    PIL.Image.Image
        RGB, with the map's size.

    Raises
    ------
    AnomalyCLIPError
        If the colour map is unknown or the scale is not increasing.

    Examples
    --------
    >>> picture = heat_map(np.array([[0, 1]], np.float32), colormap="gray")
    >>> picture.getpixel((0, 0)), picture.getpixel((1, 0))
    ((0, 0, 0), (255, 255, 255))
    """
    colors = Colors(scale, colormap)
    return colors.colored(colors.levels(anomaly_map))
