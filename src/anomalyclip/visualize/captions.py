"""A slim caption below an overlay: score, verdict, threshold, and the scale of colours."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from anomalyclip.images import as_image
from anomalyclip.prediction import Prediction
from anomalyclip.visualize.colors import Color, Colors, Scale
from anomalyclip.visualize.overlays import draw_over

_STRIP: Color = (32, 33, 36)
_INK: Color = (255, 255, 255)
_FAINT: Color = (176, 180, 186)
_ANOMALOUS: Color = (255, 128, 117)
_NORMAL: Color = (126, 211, 149)

# The size of the text: a share of the geometric mean of width and height, but never too small to read.
_TEXT, _SMALLEST = 0.027, 13
# A picture too narrow for its caption is enlarged by a whole factor, up to this longer side.
_ENLARGED = 512


def captioned(
    image: Image.Image,
    prediction: Prediction,
    *,
    colormap: str = "inferno",
    alpha: float = 0.7,
    scale: Scale | None = None,
    contour: bool = True,
    boxes: bool = False,
) -> Image.Image:
    """Return the overlay with a caption below it: score, verdict, threshold, and the scale of colours.

    Parameters
    ----------
    image, prediction, colormap, alpha, scale, contour, boxes
        As for `overlay`.

    Returns
    -------
    PIL.Image.Image
        RGB: the overlay at the image's size, and below it a strip of the same width with one or two lines of text. A
        picture that is too narrow for the text is enlarged by a whole factor first; a narrow and tall one gets margins.

    Raises
    ------
    AnomalyCLIPError
        As for `overlay`.

    Examples
    --------
    >>> prediction = Prediction(pred_score=0.1, anomaly_map=np.zeros((8, 8), np.float32), image_size=(400, 300))
    >>> picture = captioned(Image.new("RGB", (400, 300), "tan"), prediction)
    >>> picture.width, picture.height > 300, picture.crop((0, 0, 400, 300)).getcolors()
    (400, True, [(120000, (210, 180, 140))])
    """
    photograph = as_image(image)
    colors = Colors.of(prediction, colormap, alpha, scale)
    narrowest = _Caption.of(prediction, colors, _SMALLEST).narrowest
    factor = min(math.ceil(narrowest / photograph.width), max(1, _ENLARGED // max(photograph.size)))
    if factor > 1:
        photograph = photograph.resize(
            (factor * photograph.width, factor * photograph.height), Image.Resampling.NEAREST
        )
    size = max(_SMALLEST, round(_TEXT * math.sqrt(photograph.width * photograph.height)))
    width = max(photograph.width, narrowest)
    caption = _Caption.of(prediction, colors, size)
    while caption.narrowest > width:
        size -= 1
        caption = _Caption.of(prediction, colors, size)
    strip = caption.draw(width)
    whole = Image.new("RGB", (width, photograph.height + strip.height), _STRIP)
    left = (width - photograph.width) // 2
    draw_over(whole, photograph, prediction, colors, contour=contour, boxes=boxes, left=left)
    whole.paste(strip, (0, photograph.height))
    return whole


def scale_bar(colors: Colors, size: tuple[int, int]) -> Image.Image:
    """Return the colours from the low to the high end of their scale, from left to right."""
    ramp = Image.fromarray(np.linspace(0, 255, size[0]).astype(np.uint8)[None])
    return colors.colored(ramp).resize(size)


@dataclass(frozen=True)
class _Caption:
    """The text of a caption, at one font size."""

    words: list[tuple[str, Color]]
    colors: Colors
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont
    text: int

    @classmethod
    def of(cls, prediction: Prediction, colors: Colors, text: int) -> "_Caption":
        words = [(f"score {prediction.pred_score:.4f}", _INK)]
        if prediction.pred_label is not None:
            words.append(("anomalous", _ANOMALOUS) if prediction.pred_label else ("normal", _NORMAL))
            words.append((f"threshold {prediction.threshold:.4f}", _FAINT))
        return cls(words, colors, ImageFont.load_default(size=text), text)

    @property
    def narrowest(self) -> int:
        """The width that it needs on two lines."""
        return math.ceil(max(self._length(self.words[:2]), self._length(self.words[2:])) + self.text)

    def draw(self, width: int) -> Image.Image:
        """Return the strip: on one line if that fits, with the scale at its end if there is room."""
        one = self._length(self.words) + self.text <= width
        lines = [self.words] if one else [self.words[:2], self.words[2:]]
        height = round(self.text * (1.9 if one else 3.2))
        strip = Image.new("RGB", (width, height), _STRIP)
        for number, words in enumerate(lines):
            middle = height * (2 * number + 1) // (2 * len(lines))
            x = self.text / 2
            for word, color in words:
                ImageDraw.Draw(strip).text((x, middle), word, color, self.font, anchor="lm")
                x += self.font.getlength(word) + self._space
        if one:
            self._draw_scale(strip, x + self._space)
        return strip

    @property
    def _space(self) -> float:
        return 0.7 * self.text

    def _length(self, words: list[tuple[str, Color]]) -> float:
        return sum(self.font.getlength(word) for word, _ in words) + self._space * (len(words) - 1)

    def _draw_scale(self, strip: Image.Image, left: float) -> None:
        low, high = (f"{value:.2g}" for value in self.colors.scale)
        bar = scale_bar(self.colors, (5 * self.text, max(4, self.text // 2)))
        gap = self.text // 3
        right = strip.width - self.text // 2
        start = right - self.font.getlength(low) - self.font.getlength(high) - bar.width - 2 * gap
        if start < left:
            return
        draw, middle = ImageDraw.Draw(strip), strip.height // 2
        draw.text((start, middle), low, _FAINT, self.font, anchor="lm")
        draw.text((right, middle), high, _FAINT, self.font, anchor="rm")
        strip.paste(bar, (round(start + self.font.getlength(low)) + gap, middle - bar.height // 2))
