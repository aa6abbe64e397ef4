"""Families of surfaces: each function draws one material with the irregularities that belong to it.

Knots, slubs, seams, grooves, holes and inclusions drawn here are *normal*: they are what a detector must not report.
"""

from collections.abc import Callable

import numpy as np

from anomalyclip.data.synthetic.noise import NOMINAL_SIZE, Brush, Field, coverage, hashed, smoothstep
from anomalyclip.data.synthetic.scene import Scene, material

Colour = tuple[float, float, float]
Surface = Callable[[Brush], Scene]

EARTHS: list[Colour] = [
    (0.45, 0.27, 0.16),
    (0.62, 0.42, 0.25),
    (0.25, 0.16, 0.11),
    (0.16, 0.14, 0.14),
    (0.72, 0.6, 0.46),
]
WOODS: list[Colour] = [
    (0.72, 0.52, 0.33),
    (0.6, 0.4, 0.24),
    (0.82, 0.67, 0.47),
    (0.42, 0.27, 0.18),
    (0.68, 0.45, 0.3),
]
STONES: list[Colour] = [
    (0.72, 0.71, 0.69),
    (0.55, 0.54, 0.53),
    (0.4, 0.41, 0.43),
    (0.78, 0.74, 0.67),
    (0.6, 0.52, 0.46),
]
METALS: list[Colour] = [
    (0.66, 0.67, 0.69),
    (0.55, 0.56, 0.58),
    (0.72, 0.69, 0.63),
    (0.66, 0.5, 0.4),
    (0.45, 0.46, 0.49),
]
TEXTILES: list[Colour] = [
    (0.75, 0.71, 0.63), (0.35, 0.42, 0.55), (0.6, 0.25, 0.24), (0.28, 0.4, 0.33), (0.3, 0.3, 0.33), (0.86, 0.84, 0.8),
    (0.55, 0.5, 0.58), (0.7, 0.55, 0.3),
]  # fmt: skip
PAINTS: list[Colour] = [
    (0.85, 0.85, 0.84), (0.2, 0.22, 0.25), (0.65, 0.16, 0.14), (0.16, 0.32, 0.55), (0.2, 0.45, 0.33),
    (0.82, 0.68, 0.25), (0.5, 0.52, 0.54), (0.78, 0.5, 0.3),
]  # fmt: skip
PLASTER: list[Colour] = [(0.86, 0.84, 0.8), (0.78, 0.72, 0.62), (0.7, 0.72, 0.73), (0.82, 0.7, 0.58)]


def tone(brush: Brush, palette: list[Colour], spread: float = 0.06) -> Field:
    """Draw the style's colour: one of a palette, shifted a little; float32 (3,)."""
    base = np.asarray(palette[int(brush.style.integers(len(palette)))])
    shift = brush.style.normal(0, spread) + brush.style.normal(0, spread / 5, 3)
    image = brush.rng.normal(0, 0.008)
    return np.clip(base + shift + image, 0.04, 0.95).astype(np.float32)


def mix(first: Field, second: Field, share: Field) -> Field:
    """Blend two colours, (3,) or (S, S, 3), by a share (S, S) of the second."""
    share = share[..., None]
    return (first * (1 - share) + second * share).astype(np.float32)


def shaded(colour: Field, brightness: Field) -> Field:
    """Multiply a colour (3,) or (S, S, 3) by a brightness (S, S)."""
    return (colour * brightness[..., None]).astype(np.float32)


def triangle(values: Field) -> Field:
    """Distance to the nearest integer, 0 to 0.5."""
    return np.abs(values - np.round(values))


def _seam(brush: Brush, scene: Scene) -> Scene:
    """Sew a seam across: a groove with stitches beside it."""
    u, v = brush.axes(0.02, aligned=True)
    middle = np.float32(brush.rng.uniform(40, 150)) + v.min()
    across = v - middle
    groove = np.exp(-np.square(across / np.float32(2.0)))
    thread = tone(brush, TEXTILES)
    pitch = np.float32(brush.pick(6, 10))
    stitch = smoothstep(0.36, 0.28, triangle(u / pitch)) * smoothstep(1.6, 0.6, np.abs(np.abs(across) - 6))
    albedo = mix(shaded(scene.albedo, 1 - 0.35 * groove), thread, stitch)
    height = scene.height - 2.2 * groove + 1.2 * stitch
    return Scene(albedo, height, scene.gloss, scene.behind)


def _fittings(brush: Brush, scene: Scene) -> Scene:
    """Add a regular row or grid of rivets, studs or drilled holes."""
    u, v = brush.axes(0.01, aligned=True)
    pitch_u, pitch_v = np.float32(brush.pick(40, 90)), np.float32(brush.pick(40, 90))
    radius = brush.pick(2.5, 7)
    distance = np.hypot(triangle(u / pitch_u) * pitch_u, triangle(v / pitch_v) * pitch_v) - np.float32(radius)
    share = coverage(distance)
    if brush.chance(0.5):
        dome = np.sqrt(np.clip(-distance, 0, radius))
        albedo = mix(scene.albedo, tone(brush, METALS), share * np.float32(0.8))
        return Scene(albedo, scene.height * (1 - share) + 1.5 * dome, scene.gloss, scene.behind)
    albedo = mix(scene.albedo, scene.behind * np.float32(0.8), share)
    return Scene(albedo, scene.height - 3 * smoothstep(1, -2, distance), scene.gloss, scene.behind)


def _lettering(brush: Brush, albedo: Field) -> Field:
    """Print lines of strokes that look like small type."""
    u, v = brush.axes(0.01, aligned=True)
    line = np.float32(brush.pick(11, 17))
    stroke = smoothstep(0.1, 0.7, brush.spots(brush.pick(3, 4.5), 0.45))
    row = smoothstep(0.3, 0.22, triangle(v / line))
    word = smoothstep(0.12, 0.2, triangle(u / line * 0.35 + 0.37 * np.round(v / line)))
    return mix(albedo, tone(brush, PAINTS), stroke * row * word * np.float32(0.8))


def leather(brush: Brush) -> Scene:
    """Pebbled hide, sometimes sewn."""
    u, v = brush.axes(0.1)
    grain = brush.cells(u, v, brush.pick(3.5, 8), stretch=brush.pick(1, 1.4), warp=1.2)
    pebble = smoothstep(0.0, brush.pick(0.25, 0.5), grain.edge)
    crease = brush.noise(26, 1.6)
    colour = tone(brush, EARTHS)
    bright = 0.82 + 0.18 * pebble + 0.05 * crease + 0.05 * (hashed(grain.ids) - 0.5)
    height = brush.pick(0.5, 1.3) * pebble + 0.5 * crease
    scene = material(brush, shaded(colour, bright), height, brush.pick(0.1, 0.4), (0.3, 0.25, 0.2))
    return _seam(brush, scene) if brush.chance(0.3) else scene


def wood(brush: Brush) -> Scene:
    """Planed wood: rings, fibres, pores and, in some, knots and joints between boards."""
    u, v = brush.axes(0.02, aligned=True)
    angle = float(np.arctan2(u[-1, 0] - u[0, 0], u[0, -1] - u[0, 0]))
    period = brush.pick(7, 18)
    wave = brush.noise(70, 2.4, stretch=4, angle=angle)
    light, dark = tone(brush, WOODS), np.float32(brush.pick(0.6, 0.85))
    bend = v / np.float32(period) + np.float32(brush.pick(0.3, 1.0)) * wave
    knot = np.zeros_like(u)
    if brush.chance(0.35):
        for _ in range(int(brush.rng.integers(1, 3))):
            x, y = brush.rng.uniform(20, 172, 2)
            radius = np.sqrt(np.square(brush.x - x) + np.square(brush.y - y)) / np.float32(period)
            pull = np.exp(-radius * np.float32(0.9))
            bend = bend * (1 - pull) + pull * radius * 2.5
            knot = np.maximum(knot, smoothstep(0.75, 0.3, radius))
    ring = np.float32(0.5) + np.float32(0.5) * np.sin(bend * np.float32(2 * np.pi))
    fibre = brush.noise(5, 1.0, stretch=14, angle=angle)
    pores = smoothstep(1.3, 2.3, brush.noise(3, 1.0, stretch=9, angle=angle))
    share = (1 - dark) * ring * ring + 0.03 * fibre + 0.25 * pores + 0.35 * knot
    scene = material(
        brush, shaded(light, 1 - share), 0.12 * fibre - 0.6 * pores + 0.2 * ring, brush.pick(0, 0.3)
    )
    if brush.chance(0.3):
        width = np.float32(brush.pick(45, 80))
        joint = smoothstep(1.1, 0.4, triangle(v / width) * width)
        plank = hashed(np.floor(v / width).astype(np.int64), int(brush.rng.integers(1000)))
        albedo = shaded(scene.albedo, (0.88 + 0.2 * plank) * (1 - 0.6 * joint))
        scene = Scene(albedo, scene.height - 2 * joint, scene.gloss, scene.behind)
    return scene


def marble(brush: Brush) -> Scene:
    """Polished stone with veins."""
    base, vein = tone(brush, [*STONES, (0.9, 0.89, 0.87)]), tone(brush, [*EARTHS, (0.95, 0.94, 0.92)])
    angle, stretch = brush.pick(0, np.pi), brush.pick(1.2, 3)
    cloud = brush.noise(90, 1.7, stretch=stretch, angle=angle)
    share = 0.18 * smoothstep(-1.5, 2, cloud)
    for wavelength, sharp, weight in ((70, 0.08, 0.8), (40, 0.06, 0.5)):
        field = brush.noise(wavelength, 1.9, stretch=stretch, angle=angle)
        strength = smoothstep(-0.6, 1.2, brush.noise(60, 2.5))
        share = share + weight * strength * np.exp(-np.abs(field) / np.float32(sharp * brush.pick(0.6, 2)))
    return material(brush, mix(base, vein, np.clip(share, 0, 0.85)), 0.02 * cloud, brush.pick(0.2, 0.6))


def _woven(brush: Brush, shift: float, warp: Colour | Field, weft: Colour | Field, pitch: float) -> Scene:
    """Weave: warp and weft threads with this pitch; ``shift`` is 1 for plain weave, 1/2.. for twill."""
    u, v = brush.axes(0.02, aligned=brush.chance(0.7))
    u, v = u + 0.7 * brush.noise(60, 2.5), v + 0.7 * brush.noise(60, 2.5)
    pitch32 = np.float32(pitch)
    i, j = np.floor(u / pitch32), np.floor(v / pitch32)
    salt = int(brush.rng.integers(1000))
    slub_u, slub_v = hashed(i.astype(np.int64) + 5000, salt), hashed(j.astype(np.int64) + 5000, salt + 1)
    across_u = np.abs(u / pitch32 - i - 0.5) * 2
    across_v = np.abs(v / pitch32 - j - 0.5) * 2
    over = np.cos((i * np.float32(shift) + j) * np.float32(np.pi if shift == 1 else 2 * np.pi / 3)) > 0
    round_u = np.sqrt(np.clip(1 - np.square(across_u), 0, 1)) * (0.8 + 0.4 * slub_u)
    round_v = np.sqrt(np.clip(1 - np.square(across_v), 0, 1)) * (0.8 + 0.4 * slub_v)
    lift_u = round_u * np.where(over, 1.0, 0.45) * (1 - 0.3 * across_v * over)
    lift_v = round_v * np.where(over, 0.45, 1.0) * (1 - 0.3 * across_u * ~over)
    top = smoothstep(-0.1, 0.1, (lift_u - lift_v).astype(np.float32))
    fuzz = brush.noise(2.5, 1.0)
    level = np.maximum(lift_u, lift_v).astype(np.float32)
    warp_colour = shaded(np.asarray(warp, np.float32), 0.85 + 0.3 * slub_u)
    weft_colour = shaded(np.asarray(weft, np.float32), 0.85 + 0.3 * slub_v)
    bright = 0.55 + 0.45 * level + 0.04 * fuzz
    height = np.float32(0.28 * pitch) * level + 0.08 * fuzz
    return material(
        brush, shaded(mix(weft_colour, warp_colour, top), bright), height, 0.02, (0.12, 0.11, 0.1)
    )


def denim(brush: Brush) -> Scene:
    """Twill of coloured warp and pale weft."""
    warp = tone(brush, [(0.22, 0.3, 0.48), (0.15, 0.18, 0.26), (0.3, 0.31, 0.33), (0.4, 0.33, 0.25)])
    scene = _woven(brush, 0.5, warp, tone(brush, [(0.75, 0.75, 0.74)]), brush.pick(2.6, 4.2))
    return _seam(brush, scene) if brush.chance(0.25) else scene


def canvas(brush: Brush) -> Scene:
    """Plain weave of one colour, in some with stripes of another yarn."""
    colour = tone(brush, TEXTILES)
    scene = _woven(brush, 1, colour, colour * np.float32(brush.pick(0.85, 1.1)), brush.pick(3, 6.5))
    if not brush.chance(0.3):
        return scene
    _, v = brush.axes(0.02, aligned=True)
    pitch = np.float32(brush.pick(16, 50))
    yarn = coverage(triangle(v / pitch) * pitch - np.float32(brush.pick(0.8, 2.5)))
    albedo = mix(scene.albedo, tone(brush, TEXTILES) * scene.albedo.mean(2, keepdims=True) * 1.6, yarn * 0.8)
    return Scene(np.clip(albedo, 0.01, 1), scene.height, scene.gloss, scene.behind)


def knit(brush: Brush) -> Scene:
    """Stocking stitch: columns of V-shaped loops."""
    u, v = brush.axes(0.03, aligned=True)
    u, v = u + 0.9 * brush.noise(50, 2.5), v + 0.9 * brush.noise(50, 2.5)
    wide, tall = np.float32(brush.pick(8, 13)), np.float32(brush.pick(6, 9))
    column = u / wide
    inside = np.abs(column - np.floor(column) - 0.5)
    slanted = v / tall + inside * np.float32(brush.pick(1.2, 1.9))
    yarn = triangle(slanted) * 2
    round_ = (
        np.sqrt(np.clip(1 - np.square(yarn), 0, 1))
        * smoothstep(0.02, 0.16, inside)
        * smoothstep(0.5, 0.4, inside)
    )
    stripe = np.ones_like(u)
    colour = tone(brush, TEXTILES)
    if brush.chance(0.3):
        band = hashed(np.floor(v / (tall * 6)).astype(np.int64) + 900, 3) > 0.6
        stripe = np.where(band, np.float32(brush.pick(0.5, 0.8)), stripe)
    fuzz = brush.noise(3, 1.0)
    bright = (0.4 + 0.6 * round_ + 0.06 * fuzz) * stripe
    return material(brush, shaded(colour, bright.astype(np.float32)), 1.9 * round_ + 0.12 * fuzz, 0.0)


def mesh(brush: Brush) -> Scene:
    """Woven wire in front of something dark or light."""
    u, v = brush.axes(0.03, aligned=brush.chance(0.5))
    u, v = u + 0.5 * brush.noise(80, 3), v + 0.5 * brush.noise(80, 3)
    pitch = np.float32(brush.pick(9, 18))
    radius = np.float32(brush.pick(0.14, 0.24)) * pitch
    i, j = np.round(u / pitch), np.round(v / pitch)
    across_u, across_v = np.abs(u - i * pitch), np.abs(v - j * pitch)
    phase_u = np.cos(np.float32(np.pi) * (v / pitch + i))
    phase_v = -np.cos(np.float32(np.pi) * (u / pitch + j))
    round_u = np.sqrt(np.clip(1 - np.square(across_u / radius), 0, 1)) * radius + 1.2 * phase_u
    round_v = np.sqrt(np.clip(1 - np.square(across_v / radius), 0, 1)) * radius + 1.2 * phase_v
    cover_u, cover_v = coverage(across_u - radius), coverage(across_v - radius)
    wire = np.maximum(cover_u, cover_v)
    height = np.maximum(np.where(cover_u > 0, round_u, -9), np.where(cover_v > 0, round_v, -9))
    height = np.where(wire > 0.05, height, -2)
    ground = tone(brush, [(0.07, 0.07, 0.08), (0.14, 0.13, 0.13), (0.82, 0.82, 0.8)], 0.02)
    backdrop = shaded(ground, 1 + 0.06 * brush.noise(60, 2.5))
    colour = shaded(tone(brush, METALS), (0.8 + 0.12 * np.clip(height, -1, 2)).astype(np.float32))
    return material(brush, mix(backdrop, colour, wire), height, brush.pick(0.2, 0.6), backdrop)


def tiles(brush: Brush) -> Scene:
    """Glazed tiles and the grout between them."""
    u, v = brush.axes(0.01, aligned=True)
    side = np.float32(brush.pick(28, 70))
    long = side * np.float32(brush.style.choice([1.0, 1.0, 2.0]))
    row = np.floor(v / side)
    u = u + np.where(brush.chance(0.4), row * long / 2, 0).astype(np.float32)
    gap = np.minimum(triangle(u / long) * long, triangle(v / side) * side)
    width = np.float32(brush.pick(0.8, 2.0))
    tile = smoothstep(float(width), float(width) + 1.0, gap)
    bevel = smoothstep(float(width), float(width) + 3.5, gap)
    number = (np.floor(u / long) * 131 + row).astype(np.int64) + 100000
    glaze, grout = tone(brush, PAINTS + PLASTER), tone(brush, STONES)
    cloud = brush.noise(40, 1.8)
    bright = 1 + brush.pick(0.02, 0.1) * (hashed(number, 7) - 0.5) * 2 + brush.pick(0, 0.04) * cloud
    rough = brush.noise(3, 1.0)
    albedo = mix(shaded(grout, 1 + 0.07 * rough), shaded(glaze, bright.astype(np.float32)), tile)
    height = 2.2 * bevel + 0.15 * (1 - tile) * rough
    return material(brush, albedo, height, brush.pick(0.2, 0.6), tuple(grout * np.float32(0.8)))


def brushed(brush: Brush) -> Scene:
    """Metal brushed along a line or in circles."""
    if brush.chance(0.25):
        x, y = brush.pick(-60, 250), brush.pick(-60, 250)
        radius = np.sqrt(np.square(brush.x - x) + np.square(brush.y - y))
        profile = brush.noise(3, 0.8)[brush.size // 2]
        lines = np.interp(
            radius * 2.0 % NOMINAL_SIZE, np.linspace(0, NOMINAL_SIZE, profile.size), profile
        ).astype(np.float32)
    else:
        angle = brush.pick(0, np.pi) + brush.rng.normal(0, 0.02)
        lines = 0.75 * brush.noise(3, 0.7, stretch=60, angle=angle) + 0.4 * brush.noise(
            10, 1, stretch=30, angle=angle
        )
    bright = 1 + brush.pick(0.03, 0.09) * lines + 0.04 * brush.noise(120, 3)
    scene = material(
        brush, shaded(tone(brush, METALS), bright), brush.pick(0.04, 0.12) * lines, brush.pick(0.25, 0.7)
    )
    return _fittings(brush, scene) if brush.chance(0.25) else scene


def cast(brush: Brush) -> Scene:
    """Sand-cast metal: grainy, with small pits."""
    bumps = brush.noise(brush.pick(4, 9), 1.3)
    pits = smoothstep(2.1, 2.8, brush.spots(5))
    broad = brush.noise(45, 2)
    bright = 1 + 0.07 * bumps + 0.05 * broad - 0.3 * pits
    height = brush.pick(0.3, 0.8) * bumps - 0.9 * pits + 0.4 * broad
    return material(
        brush, shaded(tone(brush, METALS) * np.float32(0.85), bright), height, brush.pick(0.1, 0.4)
    )


def paper(brush: Brush) -> Scene:
    """Paper with fibres, sometimes ruled or printed with a grid."""
    fibre = brush.noise(6, 1.1)
    colour = tone(brush, [(0.9, 0.89, 0.86), (0.82, 0.77, 0.66), (0.72, 0.6, 0.46), (0.75, 0.8, 0.84)], 0.04)
    albedo = shaded(colour, 1 + 0.025 * fibre + 0.02 * brush.noise(50, 2))
    if brush.chance(0.35):
        u, v = brush.axes(0.01, aligned=True)
        pitch = np.float32(brush.pick(9, 20))
        line = coverage(triangle(v / pitch) * pitch - np.float32(0.4))
        if brush.chance(0.4):
            line = np.maximum(line, coverage(triangle(u / pitch) * pitch - np.float32(0.4)))
        albedo = mix(albedo, tone(brush, PAINTS), line * np.float32(0.6))
    elif brush.chance(0.4):
        albedo = _lettering(brush, albedo)
    return material(brush, albedo, 0.12 * fibre, 0.0, (0.3, 0.28, 0.25))


def granite(brush: Brush) -> Scene:
    """Polished grains of three minerals."""
    u, v = brush.axes(0.5)
    grain = brush.cells(u, v, brush.pick(3.5, 8), warp=brush.pick(0.5, 1.5))
    lot = hashed(grain.ids, int(brush.rng.integers(1000)))
    first, second = tone(brush, STONES), tone(brush, EARTHS + STONES)
    dark = np.asarray([0.1, 0.1, 0.11], np.float32)
    albedo = mix(first, second, smoothstep(0.45, 0.55, lot))
    albedo = mix(albedo, dark, smoothstep(0.84, 0.87, lot))
    albedo = shaded(albedo, 0.92 + 0.16 * hashed(grain.ids, 5) + 0.04 * brush.noise(3, 1))
    return material(brush, albedo, 0.05 * lot, brush.pick(0.15, 0.5))


def foam(brush: Brush) -> Scene:
    """Open-pored foam."""
    u, v = brush.axes(0.5)
    bubble = brush.cells(u, v, brush.pick(4.5, 10), jitter=0.95)
    size = 0.32 + 0.2 * hashed(bubble.ids, 3)
    pit = smoothstep(0.0, 0.3, (size - bubble.distance).astype(np.float32))
    colour = tone(
        brush, [(0.82, 0.75, 0.45), (0.35, 0.36, 0.38), (0.8, 0.8, 0.78), (0.45, 0.6, 0.7), (0.75, 0.5, 0.5)]
    )
    return material(brush, shaded(colour, 1 - 0.5 * pit + 0.03 * brush.noise(3, 1)), -1.8 * pit, 0.0)


def plastic(brush: Brush) -> Scene:
    """Moulded plastic with an eroded grain, sometimes ribbed."""
    bumps = brush.spots(brush.pick(3, 6), 0.5)
    height = brush.pick(0.1, 0.35) * bumps
    if brush.chance(0.3):
        _, v = brush.axes(0.01, aligned=True)
        pitch = np.float32(brush.pick(24, 50))
        height = height + 2.0 * smoothstep(3.2, 1.2, triangle(v / pitch) * pitch)
    bright = 1 + 0.02 * bumps + 0.02 * brush.noise(100, 3)
    scene = material(brush, shaded(tone(brush, PAINTS), bright), height, brush.pick(0.1, 0.5))
    return _fittings(brush, scene) if brush.chance(0.25) else scene


def glass(brush: Brush) -> Scene:
    """Patterned glass with something blurred behind it."""
    u, v = brush.axes(0.2)
    if brush.chance(0.5):
        bump = brush.spots(brush.pick(7, 14), 0.3)
    else:
        pebble = brush.cells(u, v, brush.pick(8, 15), jitter=0.8)
        bump = 2.2 * (0.5 - np.square(pebble.distance))
    colour = tone(brush, [(0.55, 0.68, 0.66), (0.7, 0.73, 0.74), (0.4, 0.5, 0.56), (0.62, 0.6, 0.5)])
    bright = 1 + 0.12 * brush.noise(90, 3) + 0.05 * bump
    return material(brush, shaded(colour, bright), brush.pick(0.5, 1.2) * bump, brush.pick(0.5, 0.9))


def concrete(brush: Brush) -> Scene:
    """Cement with pores, clouds and, in some, the seam of the formwork."""
    cloud, fine = brush.noise(60, 1.5), brush.noise(3, 0.9)
    pores = smoothstep(2.3, 2.9, brush.spots(brush.pick(4, 8)))
    colour = tone(brush, STONES)
    height = 0.2 * fine - 1.6 * pores
    bright = 1 + brush.pick(0.03, 0.08) * cloud + 0.04 * fine - 0.35 * pores
    if brush.chance(0.35):
        _, v = brush.axes(0.01, aligned=True)
        gap = np.abs(v - v.mean() - np.float32(brush.rng.uniform(-60, 60)))
        joint = smoothstep(2.2, 0.8, gap)
        bright, height = bright * (1 - 0.4 * joint), height - 1.8 * joint
    scene = material(brush, shaded(colour, bright), height, 0.03)
    return _fittings(brush, scene) if brush.chance(0.25) else scene


def rubber(brush: Brush) -> Scene:
    """Dark rubber with grooves or studs."""
    u, v = brush.axes(0.02, aligned=brush.chance(0.6))
    fine = brush.noise(4, 1)
    pitch = np.float32(brush.pick(8, 22))
    if brush.chance(0.5):
        relief = smoothstep(0.12, 0.2, triangle(v / pitch))
    else:
        relief = smoothstep(
            0.34, 0.26, np.sqrt(np.square(triangle(u / pitch)) + np.square(triangle(v / pitch)))
        )
    colour = tone(brush, [(0.14, 0.14, 0.15), (0.2, 0.2, 0.21), (0.45, 0.18, 0.16), (0.3, 0.32, 0.35)], 0.03)
    bright = 0.75 + 0.3 * relief + 0.06 * fine
    return material(brush, shaded(colour, bright), 2.2 * relief + 0.1 * fine, brush.pick(0.08, 0.3))


def carpet(brush: Brush) -> Scene:
    """Cut or looped pile."""
    u, v = brush.axes(0.05, aligned=True)
    tuft = brush.cells(u, v, brush.pick(3, 5.5), jitter=brush.pick(0.75, 1.0))
    lift = np.clip(1 - 1.5 * np.square(tuft.distance), 0, 1)
    first, second = tone(brush, TEXTILES), tone(brush, TEXTILES)
    share = (hashed(tuft.ids, 11) > brush.pick(0.5, 1.0)).astype(np.float32)
    fuzz = brush.noise(2.5, 0.9)
    albedo = shaded(
        mix(first, second, share), (0.45 + 0.5 * lift + 0.1 * fuzz) * (1 + 0.05 * brush.noise(50, 2))
    )
    return material(brush, albedo, 1.4 * lift + 0.25 * fuzz, 0.0)


def cardboard(brush: Brush) -> Scene:
    """Corrugated board: its flutes show through."""
    _, v = brush.axes(0.02, aligned=True)
    pitch = np.float32(brush.pick(6, 12))
    flute = np.sin(v * np.float32(2 * np.pi) / pitch + 0.5 * brush.noise(60, 2.5))
    fibre = brush.noise(5, 1.0)
    speck = smoothstep(2.4, 3.0, brush.noise(2.5, 0.8))
    colour = tone(brush, [(0.7, 0.54, 0.36), (0.62, 0.46, 0.3), (0.85, 0.82, 0.76)], 0.04)
    bright = 1 + brush.pick(0.01, 0.04) * flute + 0.03 * fibre - 0.25 * speck + 0.02 * brush.noise(50, 2)
    return material(
        brush, shaded(colour, bright), brush.pick(0.1, 0.3) * flute + 0.08 * fibre, 0.0, (0.35, 0.25, 0.16)
    )


def hammered(brush: Brush) -> Scene:
    """Sheet metal with hammer marks."""
    u, v = brush.axes(0.5)
    blow = brush.cells(u, v, brush.pick(9, 18), jitter=0.85)
    bowl = np.square(blow.distance)
    bright = 1 + 0.05 * brush.noise(30, 2)
    return material(
        brush, shaded(tone(brush, METALS), bright), brush.pick(2, 4.5) * bowl, brush.pick(0.3, 0.7)
    )


def terrazzo(brush: Brush) -> Scene:
    """Stone chips in cement, ground flat."""
    u, v = brush.axes(0.5)
    albedo = shaded(tone(brush, PLASTER + STONES), 1 + 0.03 * brush.noise(5, 1))
    chips = [tone(brush, STONES + EARTHS) for _ in range(3)]
    for spacing, share in ((brush.pick(12, 20), 0.75), (brush.pick(6, 9), 0.55)):
        cell = brush.cells(u, v, spacing, warp=1.5)
        lot = hashed(cell.ids, int(brush.rng.integers(1000)))
        chip = smoothstep(0.12, 0.2, cell.edge) * (lot < share) * smoothstep(0.62, 0.52, cell.distance)
        colour = mix(
            mix(chips[0], chips[1], (lot < share * 0.66).astype(np.float32)),
            chips[2],
            (lot < share * 0.3) * 1.0,
        )
        albedo = mix(albedo, colour, chip)
    return material(brush, albedo, np.zeros_like(u), brush.pick(0.1, 0.5))


def cork(brush: Brush) -> Scene:
    """Pressed granules of cork."""
    u, v = brush.axes(0.5)
    grain = brush.cells(u, v, brush.pick(6, 12), warp=2)
    lot = hashed(grain.ids, int(brush.rng.integers(1000)))
    gap = smoothstep(0.12, 0.0, grain.edge)
    colour = tone(brush, [(0.72, 0.52, 0.34), (0.62, 0.42, 0.27), (0.78, 0.62, 0.44)], 0.04)
    bright = 0.85 + 0.3 * lot - 0.35 * gap - 0.25 * (lot < 0.06) + 0.06 * brush.noise(3, 1)
    return material(brush, shaded(colour, bright.astype(np.float32)), 0.3 * lot - 0.8 * gap, 0.0)


def felt(brush: Brush) -> Scene:
    """Matted fibres lying in all directions."""
    fibres = np.zeros_like(brush.x)
    for angle in brush.rng.uniform(0, np.pi, 4):
        fibres = np.maximum(fibres, brush.noise(3, 0.9, stretch=10, angle=float(angle)))
    fibres = (fibres - fibres.mean()) / fibres.std()
    speck = tone(brush, TEXTILES)
    albedo = shaded(tone(brush, TEXTILES), 1 + 0.07 * fibres + 0.03 * brush.noise(40, 2))
    albedo = mix(
        albedo, speck, brush.pick(0, 0.5) * smoothstep(1.8, 2.6, brush.noise(3, 0.8, stretch=8, angle=0.8))
    )
    return material(brush, albedo, 0.35 * fibres, 0.0)


def sandpaper(brush: Brush) -> Scene:
    """Coarse grit glued to a sheet."""
    u, v = brush.axes(0.5)
    grit = brush.cells(u, v, brush.pick(2.6, 4.5), jitter=1.0)
    tall = hashed(grit.ids, int(brush.rng.integers(1000)))
    bump = np.clip(0.7 - grit.distance, 0, 1) * tall
    colour = tone(brush, [(0.5, 0.3, 0.2), (0.25, 0.25, 0.27), (0.62, 0.52, 0.36), (0.35, 0.42, 0.36)])
    return material(brush, shaded(colour, 0.7 + 0.8 * bump), 2.2 * bump, brush.pick(0.1, 0.4))


def perforated(brush: Brush) -> Scene:
    """Sheet with regular holes, square or staggered."""
    u, v = brush.axes(0.02, aligned=brush.chance(0.6))
    pitch = np.float32(brush.pick(11, 22))
    row = np.round(v / pitch)
    if brush.chance(0.5):
        u = u + (row % 2) * pitch / 2
    radius = np.float32(brush.pick(0.2, 0.34)) * pitch
    distance = np.sqrt(np.square(triangle(u / pitch) * pitch) + np.square(v - row * pitch)) - radius
    hole = coverage(distance)
    colour = tone(brush, METALS + PAINTS)
    ground = shaded(tone(brush, [(0.06, 0.06, 0.07), (0.15, 0.14, 0.14)], 0.02), 1 + 0.1 * brush.noise(60, 2))
    lines = brush.noise(4, 0.9, stretch=brush.pick(1, 30), angle=brush.pick(0, np.pi))
    albedo = mix(shaded(colour, 1 + 0.03 * lines), ground, hole)
    return material(
        brush, albedo, -2.5 * smoothstep(0.8, -0.8, distance) + 0.05 * lines, brush.pick(0.1, 0.5), ground
    )


def treadplate(brush: Brush) -> Scene:
    """Metal plate with raised bars in alternating directions."""
    u, v = brush.axes(0.02)
    pitch = np.float32(brush.pick(15, 24))
    i, j = np.floor(u / pitch), np.floor(v / pitch)
    du, dv = u / pitch - i - 0.5, v / pitch - j - 0.5
    swap = (i + j) % 2 == 0
    along, across = np.where(swap, du, dv), np.where(swap, dv, du)
    bar = smoothstep(1.0, 0.6, np.sqrt(np.square(along / 0.46) + np.square(across / 0.17)).astype(np.float32))
    scuff = brush.noise(6, 1.0)
    bright = 0.9 + 0.18 * bar + 0.05 * scuff
    return material(brush, shaded(tone(brush, METALS), bright), 2.6 * bar + 0.1 * scuff, brush.pick(0.2, 0.6))


def brick(brush: Brush) -> Scene:
    """Bricks in running bond with mortar."""
    u, v = brush.axes(0.01, aligned=True)
    tall = np.float32(brush.pick(18, 30))
    long = tall * np.float32(brush.pick(2.0, 3.0))
    row = np.floor(v / tall)
    u = u + (row % 2) * long / 2
    ragged = 0.8 * brush.noise(8, 1.3)
    gap = np.minimum(triangle(u / long) * long, triangle(v / tall) * tall) + ragged
    stone = smoothstep(1.4, 2.6, gap)
    number = (np.floor(u / long) * 131 + row).astype(np.int64) + 100000
    colour = tone(brush, [(0.6, 0.3, 0.22), (0.7, 0.45, 0.33), (0.45, 0.25, 0.2), (0.75, 0.68, 0.58)])
    mortar, rough = tone(brush, PLASTER), brush.noise(4, 1.0)
    bright = (0.85 + 0.3 * hashed(number, 2) + 0.07 * rough + 0.04 * brush.noise(25, 1.6)).astype(np.float32)
    albedo = mix(shaded(mortar, 1 + 0.06 * rough), shaded(colour, bright), stone)
    return material(brush, albedo, 2.2 * stone + 0.35 * rough, 0.0, tuple(mortar * np.float32(0.7)))


def satin(brush: Brush) -> Scene:
    """Smooth shiny cloth lying in soft waves."""
    _, v = brush.axes(0.1)
    wave = brush.noise(110, 3, stretch=brush.pick(1, 2.5), angle=brush.pick(0, np.pi))
    rib = np.sin(v * np.float32(2 * np.pi / brush.pick(2.2, 3.2)))
    bright = 1 + 0.03 * rib + 0.02 * brush.noise(3, 1, stretch=10)
    return material(
        brush,
        shaded(tone(brush, TEXTILES), bright),
        brush.pick(3, 9) * wave + 0.08 * rib,
        brush.pick(0.2, 0.5),
    )


def plaster(brush: Brush) -> Scene:
    """Trowelled wall."""
    angle = brush.pick(0, np.pi)
    sweep = brush.noise(30, 1.8, stretch=3, angle=angle)
    fine = brush.noise(4, 1)
    height = brush.pick(0.6, 1.8) * smoothstep(-0.3, 0.9, sweep) + 0.12 * fine
    bright = 1 + 0.02 * sweep + 0.02 * fine
    return material(brush, shaded(tone(brush, PLASTER), bright), height, 0.0, (0.5, 0.45, 0.4))


def painted(brush: Brush) -> Scene:
    """Sprayed paint with orange peel and, in some, metal flakes."""
    peel = brush.spots(brush.pick(4, 8), 0.5)
    bright = 1 + 0.015 * peel + 0.03 * brush.noise(120, 3)
    if brush.chance(0.4):
        bright = bright + 0.25 * smoothstep(1.5, 3, brush.noise(1.6, 0.5))
    scene = material(
        brush, shaded(tone(brush, PAINTS), bright), brush.pick(0.04, 0.15) * peel, brush.pick(0.3, 0.8)
    )
    return _fittings(brush, scene) if brush.chance(0.25) else scene


def linen(brush: Brush) -> Scene:
    """Loose plain weave of uneven yarn with slubs."""
    colour = tone(brush, [(0.78, 0.72, 0.6), (0.7, 0.68, 0.63), (0.5, 0.55, 0.56), (0.62, 0.5, 0.4)])
    scene = _woven(brush, 1, colour, colour * np.float32(brush.pick(0.9, 1.15)), brush.pick(2.4, 3.6))
    angle = 0.0 if brush.chance(0.5) else np.pi / 2
    slub = smoothstep(1.5, 2.6, brush.noise(4, 1.0, stretch=14, angle=angle))
    return Scene(shaded(scene.albedo, 1 + 0.22 * slub), scene.height + 0.9 * slub, scene.gloss, scene.behind)


def honeycomb(brush: Brush) -> Scene:
    """Hexagonal cells with thin walls."""
    u, v = brush.axes(0.02)
    pitch = np.float32(brush.pick(13, 22))
    u, v = (u + 0.4 * brush.noise(60, 2.5)) / pitch, (v + 0.4 * brush.noise(60, 2.5)) / pitch
    root = np.float32(np.sqrt(3))
    edge = np.full_like(u, 9)
    for shift in (0.0, 0.5):
        a, b = u - np.round(u - shift) - shift, v / root - np.round(v / root - shift) - shift
        b = b * root
        inside = np.maximum(np.abs(a), 0.5 * np.abs(a) + (root / 2) * np.abs(b))
        edge = np.minimum(edge, inside)
    wall = smoothstep(0.5 - float(brush.pick(0.07, 0.12)), 0.47, edge)
    colour, ground = (
        tone(brush, [(0.85, 0.65, 0.3), (0.75, 0.75, 0.76), (0.6, 0.5, 0.4)]),
        tone(brush, EARTHS) * 0.5,
    )
    deep = shaded(ground, 0.7 + 0.5 * (0.5 - edge) + 0.05 * brush.noise(8, 1.2))
    return material(brush, mix(deep, colour, wall), 3.0 * wall, brush.pick(0.05, 0.4), deep)


def slate(brush: Brush) -> Scene:
    """Split stone: steps between layers."""
    angle = brush.pick(0, np.pi)
    field = brush.noise(70, 1.6, stretch=brush.pick(1.2, 2.5), angle=angle)
    level = field * np.float32(brush.pick(2, 4))
    step = np.floor(level) + smoothstep(0.35, 0.65, level - np.floor(level))
    fine = brush.noise(7, 1.1, stretch=2.5, angle=angle)
    colour = tone(brush, [(0.33, 0.36, 0.4), (0.42, 0.43, 0.43), (0.45, 0.4, 0.38), (0.3, 0.36, 0.34)], 0.03)
    bright = 1 + 0.06 * fine + 0.04 * (step % 2) + 0.05 * brush.noise(50, 2)
    return material(brush, shaded(colour, bright), 0.9 * step + 0.35 * fine, brush.pick(0.03, 0.2))


def wicker(brush: Brush) -> Scene:
    """Basket-work: flat strips over and under stakes."""
    u, v = brush.axes(0.02, aligned=True)
    u, v = u + 0.8 * brush.noise(60, 2.5), v + 0.8 * brush.noise(60, 2.5)
    stake, strip = np.float32(brush.pick(14, 22)), np.float32(brush.pick(5, 8))
    row = np.floor(v / strip)
    wave = np.cos(np.float32(np.pi) * (u / stake + row))
    across = triangle(v / strip - 0.5) * 2
    round_ = np.sqrt(np.clip(1 - np.square(across), 0, 1))
    lot = hashed(row.astype(np.int64) + 7000, int(brush.rng.integers(1000)))
    fibre = brush.noise(3, 0.9, stretch=3)
    colour = tone(brush, WOODS)
    bright = (0.45 + 0.35 * round_ + 0.2 * round_ * wave) * (0.85 + 0.3 * lot) + 0.05 * fibre
    return material(
        brush, shaded(colour, bright.astype(np.float32)), 1.6 * round_ + 1.8 * wave, brush.pick(0.05, 0.25)
    )


def chipboard(brush: Brush) -> Scene:
    """Pressed flakes of wood lying in all directions."""
    colour = tone(brush, WOODS)
    albedo = shaded(colour, 0.75 + 0.1 * brush.noise(6, 1))
    height = np.zeros_like(brush.x)
    for layer in range(3):
        angle = brush.rng.uniform(0, np.pi) + layer
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        u, v = cos * brush.x + sin * brush.y, cos * brush.y - sin * brush.x
        flake = brush.cells(u, v, brush.pick(6, 9), stretch=3.2, jitter=1.0)
        lot = hashed(flake.ids, layer)
        shape = smoothstep(0.03, 0.1, flake.edge) * (lot < 0.5)
        fibre = brush.noise(3, 0.9, stretch=12, angle=float(angle))
        albedo = mix(albedo, shaded(colour, (0.78 + 0.75 * lot + 0.05 * fibre).astype(np.float32)), shape)
        height = np.where(shape > 0.5, 0.25 * layer + 0.5 * lot, height)
    return material(brush, albedo, height.astype(np.float32), brush.pick(0, 0.15))


def asphalt(brush: Brush) -> Scene:
    """Stones in bitumen."""
    u, v = brush.axes(0.5)
    stone = brush.cells(u, v, brush.pick(4, 7), jitter=1.0, warp=1)
    lot = hashed(stone.ids, int(brush.rng.integers(1000)))
    shape = smoothstep(0.05, 0.25, stone.edge) * (lot < 0.75)
    fine = brush.noise(2.5, 0.8)
    colour = tone(brush, [(0.2, 0.2, 0.21), (0.28, 0.27, 0.27), (0.36, 0.35, 0.34)], 0.03)
    bright = 0.75 + shape * (0.25 + 0.9 * lot * lot) + 0.12 * fine
    return material(
        brush,
        shaded(colour, bright.astype(np.float32)),
        1.3 * shape * lot + 0.3 * fine,
        brush.pick(0.05, 0.25),
    )


def corduroy(brush: Brush) -> Scene:
    """Cut pile in ribs."""
    _, v = brush.axes(0.02, aligned=brush.chance(0.7))
    v = v + 0.6 * brush.noise(60, 2.5)
    pitch = np.float32(brush.pick(6, 12))
    rib = np.sqrt(np.clip(1 - np.square(triangle(v / pitch) * 2.1), 0, 1))
    fuzz = brush.noise(2.6, 0.9)
    brushed_over = brush.noise(60, 2)
    bright = 0.5 + 0.5 * rib + 0.07 * fuzz + 0.05 * brushed_over
    return material(
        brush, shaded(tone(brush, TEXTILES + EARTHS), bright), np.float32(0.3) * pitch * rib + 0.2 * fuzz, 0.0
    )


def snakeskin(brush: Brush) -> Scene:
    """Overlapping scales in staggered rows, patterned."""
    u, v = brush.axes(0.03)
    u, v = u + 0.8 * brush.noise(40, 2.5), v + 0.8 * brush.noise(40, 2.5)
    scale = brush.cells(u + v, u - v, brush.pick(9, 14), jitter=0.16)
    dome = 1 - np.square(np.clip(scale.distance * 1.4, 0, 1))
    gap = smoothstep(0.16, 0.03, scale.edge)
    patch = smoothstep(-0.2, 0.4, brush.spots(brush.pick(30, 50), 0.4))
    albedo = mix(
        tone(brush, EARTHS + STONES),
        tone(brush, EARTHS) * np.float32(0.6),
        patch * np.float32(brush.pick(0.1, 0.8)),
    )
    bright = (0.92 + 0.16 * hashed(scale.ids, 4)) * (1 - 0.5 * gap)
    return material(brush, shaded(albedo, bright), 1.6 * dome - 0.8 * gap, brush.pick(0.1, 0.4))


def parquet(brush: Brush) -> Scene:
    """Short strips of wood laid in a basket pattern."""
    u, v = brush.axes(0.01, aligned=brush.chance(0.6))
    block = np.float32(brush.pick(40, 60))
    strips = float(brush.style.integers(3, 6))
    i, j = np.floor(u / block), np.floor(v / block)
    turned = (i + j) % 2 == 0
    along, across = np.where(turned, u, v), np.where(turned, v, u)
    strip = np.floor(across / block * strips)
    number = ((i * 97 + j) * 17 + (strip % strips)).astype(np.int64) + 1000000
    lot = hashed(number, int(brush.rng.integers(1000)))
    gap = np.minimum(triangle(across / block * strips) * block / strips, triangle(along / block) * block)
    joint = smoothstep(0.9, 0.25, gap)
    angle = float(np.arctan2(u[-1, 0] - u[0, 0], u[0, -1] - u[0, 0]))
    first = brush.noise(4, 1.0, stretch=12, angle=angle)
    second = brush.noise(4, 1.0, stretch=12, angle=angle + np.pi / 2)
    fibre = np.where(turned, first, second)
    bright = (0.82 + 0.36 * lot + 0.05 * fibre) * (1 - 0.5 * joint)
    return material(
        brush,
        shaded(tone(brush, WOODS), bright.astype(np.float32)),
        0.08 * fibre - 1.2 * joint,
        brush.pick(0, 0.35),
    )


TRAINING_SURFACES: dict[str, Surface] = {
    family.__name__: family
    for family in (
        leather, wood, marble, denim, canvas, knit, mesh, tiles, brushed, cast, paper, granite, foam, plastic, glass,
        concrete, rubber, carpet, cardboard, hammered, terrazzo, cork, felt, sandpaper, perforated, treadplate, brick,
        satin, plaster, painted,
    )
}  # fmt: skip
"""Surfaces that the embedded backbone is trained on."""

HELD_OUT_SURFACES: dict[str, Surface] = {
    family.__name__: family
    for family in (
        linen, honeycomb, slate, wicker, chipboard, asphalt, corduroy, snakeskin, parquet,
    )
}  # fmt: skip
"""Surfaces that the embedded backbone never sees: its evaluation and the demo use them."""
