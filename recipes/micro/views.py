"""Flawless scenes made of photographs: one as it is, its object, or simple things in its colours, on plain ground.

Products often lie on plain ground and are turned or flat, which photographs of a collection seldom show.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from recipes.micro.album import Album
from scipy.ndimage import gaussian_filter

from anomalyclip.data.synthetic.noise import NOMINAL_SIZE, Brush, Field, coverage, smoothstep

WHOLE, CUT_OUT, PLATE, TURNED = "whole", "cut out", "plate", "turned"

VIEWS = {WHOLE: 0.3, CUT_OUT: 0.1, PLATE: 0.2, TURNED: 0.4}
"""Share of each kind of scene."""

CATEGORY_OF = {PLATE: "printed plate", TURNED: "turned part"}
"""What scenes show that are made of parts of a photograph."""


@dataclass(frozen=True)
class View:
    """A flawless scene.

    Parameters
    ----------
    image : ndarray of float32 (S, S, 3)
        In [0, 1].
    ground : ndarray of float32 (S, S, 3)
        What is behind the thing, in [0, 1].
    foreground : ndarray of bool (S, S), optional
        Where the thing is; None if it is not known.
    category : str
        What the scene shows, in words.
    """

    image: Field
    ground: Field
    foreground: NDArray[np.bool_] | None
    category: str


def draw_view(album: Album, rng: Generator) -> View:
    """Draw a flawless scene."""
    number = int(rng.integers(len(album.pictures)))
    way = str(rng.choice(list(VIEWS), p=list(VIEWS.values())))
    outline = album.outlines[number]
    if way in (PLATE, TURNED):
        brush = Brush(len(outline), rng, rng)
        drawn = (
            _plate(enlarged_part(album.pictures[number], rng), brush)
            if way == PLATE
            else _turned(album, number, brush)
        )
        return replace(drawn, category=CATEGORY_OF[way])
    picture, category = album.pictures[number].astype(np.float32) / 255, album.categories[number]
    if not outline.any():
        ground = np.broadcast_to(rng.uniform(0, 0.3, 3).astype(np.float32), picture.shape)
        return View(picture, ground, None, category)
    if way == WHOLE:
        colour = np.median(picture[~outline], 0)
        return View(picture, np.broadcast_to(colour, picture.shape), outline, category)
    ground = _ground(Brush(len(outline), rng, rng))
    soft = np.clip(gaussian_filter(outline.astype(np.float32), 1.0) * 2 - 1, 0, 1)[..., None]
    return View(ground + soft * (picture - ground), ground, outline, category)


def _ground(brush: Brush) -> Field:
    """Draw plain ground: one colour, nearly evenly lit, with little grain; often white, grey or black."""
    rng, tone = brush.rng, float(brush.rng.choice([0.95, 0.5, 0.06, -1], p=[0.3, 0.15, 0.15, 0.4]))
    colour = rng.uniform(0.05, 0.95) + rng.normal(0, 0.08, 3) if tone < 0 else np.full(3, tone)
    slope, angle = rng.uniform(0, 0.1) / NOMINAL_SIZE, rng.uniform(0, 2 * np.pi)
    light = 1 + slope * (np.cos(angle) * brush.x + np.sin(angle) * brush.y)
    ground: Field = colour * light[..., None] + rng.normal(0, rng.uniform(0.002, 0.012), (*brush.x.shape, 1))
    ground = np.clip(ground, 0.01, 1).astype(np.float32)
    return ground


def _laid(brush: Brush, distance: Field, colours: Field) -> View:
    """Lay a thing with this outline (signed distance, negative inside) and these colours on plain ground."""
    ground = _ground(brush)
    dx, dy = brush.rng.normal(0, 2, 2)
    depth = brush.rng.uniform(0, 0.5)
    reach = brush.rng.uniform(4, 12)
    near = np.hypot(dx, dy)
    ground = ground * (1 - np.float32(depth) * smoothstep(reach, 0, distance - np.float32(near)))[..., None]
    edge = 1 - np.float32(brush.rng.uniform(0, 0.5)) * smoothstep(-brush.rng.uniform(3, 9), 0, distance)
    inside = coverage(distance, 1.5)[..., None]
    image = ground + inside * (np.clip(colours * edge[..., None], 0, 1) - ground)
    return View(image.astype(np.float32), ground.astype(np.float32), distance < 0, "")


def _plate(picture: Field, brush: Brush) -> View:
    """Draw a flat thing of any simple outline that shows a part of a photograph."""
    rng = brush.rng
    x, y = NOMINAL_SIZE / 2 + rng.normal(0, 6, 2)
    u, v = brush.x - np.float32(x), brush.y - np.float32(y)
    a, b = rng.uniform(50, 86), rng.uniform(40, 86)
    choice = rng.random()
    if choice < 0.35:
        distance = (np.hypot(u / a, v / b) - 1) * np.float32(min(a, b))
    elif choice < 0.75:
        corner = rng.uniform(2, 0.9 * min(a, b))
        outer = np.hypot(np.maximum(np.abs(u) - (a - corner), 0), np.maximum(np.abs(v) - (b - corner), 0))
        distance = outer - corner
    else:
        distance = brush.blob(x, y, a, lobes=0.2)
    return _laid(brush, distance.astype(np.float32), picture)


def _turned(album: Album, number: int, brush: Brush) -> View:
    """Draw a thing that was turned or moulded round, from above: rings of a photograph's colours, with highlights."""
    rng = brush.rng
    x, y = NOMINAL_SIZE / 2 + rng.normal(0, 4, 2)
    u, v = brush.x - np.float32(x), brush.y - np.float32(y)
    radius, angle = np.hypot(u, v * np.float32(rng.uniform(0.94, 1.06))), np.arctan2(v, u)
    outer = np.float32(rng.uniform(58, 92))
    colours = _rings(album.pictures[number], radius / outer, rng)
    for _ in range(int(rng.integers(1, 6))):  # highlights and dark reflections along arcs of a ring
        centre, width = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 1.2)
        at, thick = rng.uniform(0.3, 1) * outer, rng.uniform(1, 5)
        arc = np.exp(-np.square((radius - at) / thick)) * np.clip(
            1 - np.abs(_turn(angle - centre)) / width, 0, 1
        )
        gain = rng.uniform(-0.4, 0.9) * rng.uniform(0.5, 1, 3)
        colours = colours + (arc[..., None] * gain).astype(np.float32)
    light = 1 + rng.uniform(0, 0.25) * np.cos(angle - rng.uniform(0, 2 * np.pi)) * np.clip(
        radius / outer, 0, 1
    )
    return _laid(brush, (radius - outer).astype(np.float32), np.clip(colours * light[..., None], 0, 1))


def _rings(picture: NDArray[np.uint8], radius: Field, rng: Generator) -> Field:
    """Return colours (S, S, 3) by the radius in [0, 1]: a column of a photograph, with plain rings in between."""
    column = picture[:, rng.integers(picture.shape[1])].astype(np.float32) / 255
    start, length = rng.integers(0, len(column) // 2), rng.integers(len(column) // 4, len(column) // 2)
    profile = gaussian_filter(column[start : start + length], (rng.uniform(0.2, 2.5), 0))
    for _ in range(int(rng.integers(0, 4))):  # a plain middle or ring
        low = int(rng.integers(0, len(profile))) * int(rng.integers(0, 2))
        high = min(len(profile), low + int(rng.integers(2, len(profile) // 2)))
        profile[low:high] = profile[low:high].mean(0)
    if rng.random() < 0.4:  # a shape like this is often of one material
        profile = profile.mean(1, keepdims=True) * rng.uniform(0.7, 1, 3).astype(np.float32)
    place = np.clip(radius, 0, 1) * (len(profile) - 1)
    return np.stack([np.interp(place, np.arange(len(profile)), channel) for channel in profile.T], -1).astype(
        np.float32
    )


def _turn(angle: Field) -> Field:
    """Return angles in [-pi, pi)."""
    turned: Field = (angle + np.pi) % (2 * np.pi) - np.pi
    return turned


def enlarged_part(picture: NDArray[np.uint8], rng: Generator) -> Field:
    """Return a part of a photograph, enlarged to (S, S, 3) and turned by any number of quarters, in [0, 1]."""
    size = len(picture)
    side = int(rng.integers(size // 3, size + 1))
    top, left = rng.integers(0, size - side + 1, 2)
    part = Image.fromarray(picture[top : top + side, left : left + side])
    enlarged = np.asarray(part.resize((size, size), Image.Resampling.BILINEAR), np.float32) / 255
    return np.rot90(enlarged, int(rng.integers(4)))
