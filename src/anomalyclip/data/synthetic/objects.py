"""Families of simple objects: a shape with a bevel and a material, lying on plain ground."""

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter, shift

from anomalyclip.data.synthetic.noise import NOMINAL_SIZE, Brush, Field, coverage, smoothstep
from anomalyclip.data.synthetic.scene import Scene
from anomalyclip.data.synthetic.surfaces import (
    EARTHS,
    METALS,
    PAINTS,
    PLASTER,
    TEXTILES,
    Colour,
    mix,
    shaded,
    tone,
    triangle,
)

Object = Callable[[Brush], Scene]


def _pose(brush: Brush, turn: float) -> tuple[Field, Field]:
    """Coordinates around the object's centre; ``turn`` is the largest rotation (radians)."""
    angle = brush.rng.uniform(-turn, turn)
    x0, y0 = NOMINAL_SIZE / 2 + brush.rng.uniform(-7, 7, 2)
    dx, dy = brush.x - np.float32(x0), brush.y - np.float32(y0)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * dx + sin * dy, cos * dy - sin * dx


def _box(u: Field, v: Field, half_u: float, half_v: float, corner: float) -> Field:
    """Signed distance to a rectangle with rounded corners."""
    a, b = np.abs(u) - np.float32(half_u - corner), np.abs(v) - np.float32(half_v - corner)
    outside = np.sqrt(np.square(np.maximum(a, 0)) + np.square(np.maximum(b, 0)))
    distance: Field = outside + np.minimum(np.maximum(a, b), 0) - np.float32(corner)
    return distance


def _polygon(u: Field, v: Field, radius: float, corners: int) -> Field:
    """Signed distance (to the line through the nearest side) of a regular polygon with this inner radius."""
    theta = np.arctan2(v, u)
    sector = np.float32(2 * np.pi / corners)
    return np.hypot(u, v) * np.cos(theta - sector * np.round(theta / sector)) - np.float32(radius)


def _place(
    brush: Brush, outline: Field, albedo: Field, height: Field, gloss: float, bevel: float, thick: float = 6.0
) -> Scene:
    """Round the edge of a shape and lay it on the ground, where it casts a shadow."""
    inside = coverage(outline)
    ground_colour = tone(brush, PAINTS + PLASTER + EARTHS, 0.05)
    texture = brush.noise(brush.pick(3, 12), 1.1, stretch=brush.pick(1, 6), angle=brush.pick(0, np.pi))
    ground = shaded(
        ground_colour, 1 + np.float32(brush.pick(0.005, 0.04)) * texture + 0.02 * brush.noise(90, 3)
    )
    if np.abs(ground.mean() - albedo[outline < 0].mean()) < 0.12:
        ground = ground * np.float32(0.45 if ground.mean() > 0.3 else 1.9)
    scale = brush.size / NOMINAL_SIZE
    angle = brush.pick(0, 2 * np.pi)
    offset = (3 * np.sin(angle) * scale, 3 * np.cos(angle) * scale)
    ground = np.minimum(ground, 0.85)
    shadow = gaussian_filter(shift(inside, offset, order=1, mode="nearest"), 3 * scale)
    ground = np.clip(shaded(ground, 1 - np.float32(brush.pick(0.3, 0.6)) * shadow), 0.01, 1)
    rounded = np.sqrt(np.clip(1 - np.square(np.clip(1 + outline / np.float32(bevel), 0, 1)), 0, 1))
    level = np.float32(thick) * rounded + height
    return Scene(
        albedo=np.clip(mix(ground, albedo, inside), 0.01, 1),
        height=np.where(outline < 0, level, 0.05 * texture).astype(np.float32),
        gloss=gloss,
        behind=ground,
        foreground=outline < 0,
    )


def _finish(brush: Brush, palette: list[Colour], grain: float = 0.03) -> tuple[Field, Field]:
    """Draw a plain, slightly grained colour (S, S, 3) and the grain (S, S)."""
    texture = brush.noise(brush.pick(2.5, 6), 1.0, stretch=brush.pick(1, 8), angle=brush.pick(0, np.pi))
    return shaded(tone(brush, palette), 1 + np.float32(grain) * texture), texture


def washer(brush: Brush) -> Scene:
    """Flat ring."""
    u, v = _pose(brush, np.pi)
    radius, outer = np.hypot(u, v), brush.pick(58, 78)
    outline = np.maximum(radius - np.float32(outer), np.float32(outer * brush.pick(0.35, 0.6)) - radius)
    albedo, texture = _finish(brush, METALS)
    return _place(brush, outline, albedo, 0.08 * texture, brush.pick(0.2, 0.6), brush.pick(2, 5), 3.0)


def nut(brush: Brush) -> Scene:
    """Hexagonal nut with a threaded hole."""
    u, v = _pose(brush, np.pi)
    side = brush.pick(55, 70)
    radius, hole = np.hypot(u, v), side * brush.pick(0.45, 0.6)
    outline = np.maximum(_polygon(u, v, side, 6), np.float32(hole) - radius)
    albedo, texture = _finish(brush, METALS)
    thread = np.sin(radius * np.float32(2 * np.pi / 4)) * smoothstep(hole + 8, hole + 5, radius)
    chamfer = -3 * smoothstep(side * 0.95, side * 1.12, radius)
    return _place(brush, outline, albedo, chamfer + 0.6 * thread + 0.08 * texture, brush.pick(0.2, 0.5), 4)


def tablet(brush: Brush) -> Scene:
    """Pressed pill with a score line."""
    u, v = _pose(brush, np.pi)
    outline = np.hypot(u, v / np.float32(brush.pick(0.7, 1.0))) - np.float32(brush.pick(58, 75))
    palette = [(0.92, 0.91, 0.88), (0.85, 0.62, 0.6), (0.88, 0.82, 0.55), (0.6, 0.72, 0.82)]
    albedo, texture = _finish(brush, palette, 0.02)
    line = smoothstep(3.2, 0.6, np.abs(v)) if brush.chance(0.7) else np.zeros_like(u)
    return _place(
        brush, outline, albedo, 0.15 * texture - 2.2 * line, brush.pick(0, 0.15), brush.pick(14, 30), 9
    )


def button(brush: Brush) -> Scene:
    """Round button with a rim and two or four holes."""
    u, v = _pose(brush, np.pi)
    size, count = brush.pick(55, 75), int(brush.style.choice([2, 4]))
    radius = np.hypot(u, v)
    outline = radius - np.float32(size)
    for k in range(count):
        angle = 2 * np.pi * k / count
        hole = np.hypot(
            u - np.float32(size * 0.27 * np.cos(angle)), v - np.float32(size * 0.27 * np.sin(angle))
        )
        outline = np.maximum(outline, np.float32(size * 0.09) - hole)
    albedo, _ = _finish(brush, PAINTS + TEXTILES, 0.02)
    swirl = 1 + np.float32(brush.pick(0, 0.12)) * brush.noise(40, 2)
    dish = -3.0 * smoothstep(size * 0.8, size * 0.65, radius)
    return _place(brush, outline, shaded(albedo, swirl), dish, brush.pick(0.2, 0.7), 5)


def cap(brush: Brush) -> Scene:
    """Crown cap with a corrugated edge and a printed ring."""
    u, v = _pose(brush, np.pi)
    radius, theta = np.hypot(u, v), np.arctan2(v, u)
    size, teeth = brush.pick(60, 74), np.float32(brush.style.integers(18, 25))
    wave = np.cos(theta * teeth)
    outline = radius - np.float32(size) - 2.2 * wave
    albedo, _ = _finish(brush, PAINTS + METALS, 0.015)
    ring = coverage(np.abs(radius - np.float32(size * brush.pick(0.45, 0.62))) - np.float32(brush.pick(1, 3)))
    edge = smoothstep(size * 0.76, size * 0.98, radius)
    return _place(
        brush,
        outline,
        mix(albedo, tone(brush, PAINTS), ring),
        edge * (2.2 * wave - 5),
        brush.pick(0.3, 0.7),
        4,
        8,
    )


def connector(brush: Brush) -> Scene:
    """Moulded housing with a row of contacts."""
    u, v = _pose(brush, 0.12)
    wide, tall = brush.pick(66, 80), brush.pick(34, 50)
    outline = _box(u, v, wide, tall, brush.pick(4, 10))
    albedo, texture = _finish(
        brush, [(0.12, 0.12, 0.13), (0.85, 0.84, 0.8), (0.2, 0.32, 0.5), (0.3, 0.42, 0.3)], 0.02
    )
    count = int(brush.style.integers(5, 10))
    pitch = np.float32(2 * wide * 0.85 / count)
    cell = triangle(u / pitch - (0.5 if count % 2 == 0 else 0.0)) * pitch
    inside = np.abs(u) < np.float32(count / 2) * pitch
    slot = np.maximum(cell - pitch * np.float32(0.33), np.abs(v) - np.float32(tall * 0.55))
    pin = np.maximum(cell - pitch * np.float32(0.16), np.abs(v) - np.float32(tall * 0.42))
    slot, pin = np.where(inside, slot, 9), np.where(inside, pin, 9)
    metal = np.asarray([0.8, 0.66, 0.35], np.float32)
    albedo = mix(shaded(albedo, 1 - 0.6 * coverage(slot)), metal, coverage(pin))
    height = -2.5 * smoothstep(0.8, -0.8, slot) + 2.0 * smoothstep(0.8, -0.8, pin) + 0.08 * texture
    return _place(brush, outline, albedo, height, brush.pick(0.1, 0.4), 3)


def gear(brush: Brush) -> Scene:
    """Toothed wheel with a bore and, in some, lightening holes."""
    u, v = _pose(brush, np.pi)
    radius, theta = np.hypot(u, v), np.arctan2(v, u)
    size, teeth = brush.pick(60, 72), np.float32(brush.style.integers(12, 25))
    outline = radius - np.float32(size) - 5 * np.tanh(np.float32(2.5) * np.cos(theta * teeth))
    outline = np.maximum(outline, np.float32(size * brush.pick(0.16, 0.26)) - radius)
    if brush.chance(0.5):
        count = int(brush.style.integers(3, 7))
        sector = np.float32(2 * np.pi / count)
        turned = theta - sector * np.round(theta / sector)
        hole = np.hypot(radius * np.cos(turned) - np.float32(size * 0.6), radius * np.sin(turned))
        outline = np.maximum(outline, np.float32(size * 0.13) - hole)
    albedo, texture = _finish(brush, METALS + PAINTS[:3])
    dish = -1.5 * smoothstep(size * 0.84, size * 0.8, radius)
    return _place(brush, outline, albedo, dish + 0.08 * texture, brush.pick(0.2, 0.6), 3)


def capsule(brush: Brush) -> Scene:
    """Two-coloured capsule."""
    u, v = _pose(brush, 0.5)
    half, width = brush.pick(64, 78), brush.pick(24, 34)
    along = np.maximum(np.abs(u) - np.float32(half - width), 0)
    outline = np.hypot(along, v) - np.float32(width)
    first, _ = _finish(brush, PAINTS, 0.01)
    second, _ = _finish(brush, PAINTS + PLASTER, 0.01)
    joint = u - np.float32(brush.pick(-12, 12))
    step = smoothstep(-0.8, 0.8, joint)
    return _place(
        brush,
        outline,
        mix(first, second, coverage(joint)),
        -1.2 * step,
        brush.pick(0.4, 0.8),
        width * 0.9,
        14,
    )


def bracket(brush: Brush) -> Scene:
    """Stamped plate with holes."""
    u, v = _pose(brush, 0.2)
    wide, tall = brush.pick(60, 76), brush.pick(38, 60)
    outline = _box(u, v, wide, tall, brush.pick(5, 16))
    for sign_u in (-1, 1):
        for sign_v in (-1, 1):
            hole = np.hypot(u - np.float32(sign_u * wide * 0.7), v - np.float32(sign_v * tall * 0.62))
            outline = np.maximum(outline, np.float32(tall * 0.13) - hole)
    if brush.chance(0.6):
        outline = np.maximum(outline, -_box(u, v, wide * 0.32, tall * 0.3, 5))
    albedo, texture = _finish(brush, METALS + PAINTS)
    return _place(brush, outline, albedo, 0.1 * texture, brush.pick(0.2, 0.6), 2.5, 3)


TRAINING_OBJECTS: dict[str, Object] = {
    family.__name__: family for family in (washer, nut, tablet, button, cap, connector)
}
"""Objects that the embedded backbone is trained on."""

HELD_OUT_OBJECTS: dict[str, Object] = {family.__name__: family for family in (gear, capsule, bracket)}
"""Objects that the embedded backbone never sees."""
