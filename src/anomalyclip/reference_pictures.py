"""Small pictures of references, kept in a memory so that a finding can be shown beside what it was compared with."""

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw

from anomalyclip.nearest import Box, NearestNormal

SIDE = 256
"""Longest side of a picture, in pixels."""

MOST = 1000
"""References of a memory that have a picture: the first ones, in the order of their hashes."""

_QUALITY = 75
_AROUND = 1.25
"""How much is shown on each side of a patch: so many times its size, but never less than a tenth of the picture."""

_LEAST = 0.1
_SHOWN, _SEAM = 128, 4
_FRAME = (255, 214, 0)


def encoded(image: Image.Image) -> bytes:
    """Return a picture of a reference as JPEG, its longest side 256 pixels at most: 5 to 15 kB."""
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return jpeg(small, _QUALITY)


def jpeg(picture: Image.Image, quality: int) -> bytes:
    """Return a picture as the content of a JPEG file."""
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=quality)
    return content.getvalue()


def finding(
    image: Image.Image, nearest: NearestNormal | None, pictures: Sequence[bytes]
) -> Image.Image | None:
    """Return the strangest place of an image beside the place of a reference that is most like it.

    Parameters
    ----------
    image : PIL.Image.Image
    nearest : NearestNormal, optional
        What it was compared with.
    pictures : sequence of bytes
        Of the references, by their numbers.

    Returns
    -------
    PIL.Image.Image or None
        See `side_by_side`. None: it was compared with nothing, or the reference has no picture.
    """
    if nearest is None or not 0 <= nearest.number < len(pictures):
        return None
    reference = decoded(pictures[nearest.number])
    if reference is None:
        return None
    return side_by_side(image, nearest.box, reference, nearest.reference_box)


def decoded(content: bytes) -> Image.Image | None:
    """Return a picture that `encoded` made; None where there is none, or somebody changed it."""
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as picture:
            return picture.convert("RGB") if max(picture.size) <= SIDE else None
    except (OSError, ValueError, SyntaxError):
        return None


def side_by_side(image: Image.Image, box: Box, reference: Image.Image, reference_box: Box) -> Image.Image:
    """Return two cuttings side by side: a place of an image, and the place of a reference that is most like it.

    Parameters
    ----------
    image, reference : PIL.Image.Image
    box, reference_box : tuple of float
        The places, which are framed, as shares of the pictures.

    Returns
    -------
    PIL.Image.Image
        RGB, (260, 128).
    """
    both = Image.new("RGB", (2 * _SHOWN + _SEAM, _SHOWN), (255, 255, 255))
    for left, picture, place in ((0, image, box), (_SHOWN + _SEAM, reference, reference_box)):
        both.paste(_cutting(picture, place), (left, 0))
    return both


def _cutting(picture: Image.Image, box: Box) -> Image.Image:
    """Return a square around a box, with the box framed."""
    width, height = picture.size
    left, top, right, bottom = (
        share * side for share, side in zip(_within(box), (width, height) * 2, strict=True)
    )
    half = max((0.5 + _AROUND) * max(right - left, bottom - top), _LEAST * max(width, height))
    half = min(half, min(width, height) / 2)
    x = min(max((left + right) / 2, half), width - half)
    y = min(max((top + bottom) / 2, half), height - half)
    scale = _SHOWN / (2 * half)
    cutting = picture.convert("RGB").resize(
        (_SHOWN, _SHOWN), Image.Resampling.BICUBIC, box=(x - half, y - half, x + half, y + half)
    )
    frame = [(left - x + half), (top - y + half), (right - x + half), (bottom - y + half)]
    ImageDraw.Draw(cutting).rectangle([value * scale for value in frame], outline=_FRAME, width=2)
    return cutting


def _within(box: Sequence[float]) -> list[float]:
    return [min(max(share, 0.0), 1.0) for share in box]
