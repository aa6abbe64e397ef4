"""A font that has the characters of a text: Pillow's own has Latin letters only."""

from functools import cache

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_OTHERS = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "msgothic.ttc", "Arial Unicode.ttf")
"""Fonts of Linux, Windows and macOS that have many scripts, tried in this order."""

_NOBODYS = "\uffff"
"""No character: what a font draws for it is what it draws for all that it does not have."""


def lettering(text: str, size: float) -> tuple[str, Font]:
    r"""Return a text, and a font that draws all of it.

    Pillow's own font is used if it has all characters, otherwise the first font of the system that does. If none does,
    the characters that are missing are spelled out.

    Parameters
    ----------
    text : str
    size : float
        Of the font, in pixels.

    Returns
    -------
    str, font

    Examples
    --------
    >>> lettering("part 7.png", 12)[0], lettering("part \ue000.png", 12)[0]
    ('part 7.png', 'part \\ue000.png')
    """
    own = ImageFont.load_default(size=size)
    if _has(own, text):
        return text, own
    for name in _OTHERS:
        font = _of_the_system(name, size)
        if font is not None and _has(font, text):
            return text, font
    return "".join(char if _has(own, char) else char.encode("unicode_escape").decode() for char in text), own


def _has(font: Font, text: str) -> bool:
    missing = _drawn(font, _NOBODYS)
    return all(char.isprintable() and _drawn(font, char) != missing for char in set(text))


def _drawn(font: Font, char: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(char)
    return mask.size, bytes(mask)


@cache
def _of_the_system(name: str, size: float) -> Font | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None
