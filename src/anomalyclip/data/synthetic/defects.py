"""Kinds of defects: each function changes a scene's colour and relief in place and returns the exact mask."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates, shift

from anomalyclip.data.synthetic.noise import NOMINAL_SIZE, Brush, Field, coverage, smoothstep
from anomalyclip.data.synthetic.scene import Scene

Mask = NDArray[np.bool_]
Defect = Callable[[Scene, Brush], Mask]


def _somewhere(scene: Scene, brush: Brush, margin: float = 14.0) -> tuple[float, float]:
    """Draw a random place on the surface or the object."""
    if scene.foreground is None:
        x, y = brush.rng.uniform(margin, NOMINAL_SIZE - margin, 2)
        return float(x), float(y)
    places = np.argwhere(scene.foreground)
    row, column = (places[brush.rng.integers(len(places))] + 0.5) / brush.pixels
    return float(column), float(row)


def _on(scene: Scene, share: Field) -> Field:
    """Restrict a defect to the object."""
    return share if scene.foreground is None else share * scene.foreground


def _paint(scene: Scene, colour: Field, share: Field) -> None:
    """Blend a colour, (3,) or (S, S, 3), into the surface."""
    weight = share[..., None]
    scene.albedo[...] = np.clip(scene.albedo * (1 - weight) + colour * weight, 0.01, 1)


def _local_colour(scene: Scene, share: Field) -> Field:
    """Return the mean colour under a defect (3,)."""
    weight = share[..., None]
    mean: Field = (scene.albedo * weight).sum((0, 1)) / np.maximum(weight.sum(), 1e-3)
    return mean


def _contrast(scene: Scene, brush: Brush, share: Field, low: float = 0.18, high: float = 0.5) -> Field:
    """Draw a grey or brownish colour that differs from the colour under a defect."""
    under = _local_colour(scene, share)
    step = brush.rng.uniform(low, high)
    dark = under.mean() > 0.35 if brush.rng.random() < 0.75 else under.mean() > 0.6
    hue = brush.rng.normal(0, 0.06, 3)
    return np.clip(under + (-step if dark else step) + hue, 0.02, 0.98).astype(np.float32)


def _walk(
    brush: Brush, x: float, y: float, length: float, *, curl: float, kink: float = 0.0
) -> NDArray[np.float64]:
    """Random walk around a point, (N, 2): direction drifts by ``curl`` and jumps by ``kink`` (radians per step)."""
    count = max(6, int(length / 4))
    turns = brush.rng.normal(0, curl, count).cumsum() + brush.rng.normal(0, kink, count)
    heading = brush.rng.uniform(0, 2 * np.pi) + turns
    steps = np.stack([np.cos(heading), np.sin(heading)], 1) * (length / count)
    path: NDArray[np.float64] = np.concatenate([[[0.0, 0.0]], steps.cumsum(0)])
    path = path - path.mean(0) * brush.rng.uniform(0.3, 1) + (x, y)
    return path


def _taper(count: int, width: float, ends: float = 0.3) -> NDArray[np.float64]:
    """Half-widths of a line that becomes thinner towards its ends."""
    t = np.linspace(-1, 1, count)
    return width * (ends + (1 - ends) * np.sqrt(1 - t * t))


def scratch(scene: Scene, brush: Brush) -> Mask:
    """One to three grooves with raised rims; bright on glossy surfaces."""
    mask = np.zeros(scene.height.shape, np.float32)
    x, y = _somewhere(scene, brush)
    for _ in range(int(brush.rng.integers(1, 4))):
        path = _walk(brush, x, y, brush.rng.uniform(35, 110), curl=0.04)
        x, y = x + brush.rng.normal(0, 7), y + brush.rng.normal(0, 7)
        distance = brush.stroke(path, _taper(len(path), brush.rng.uniform(0.8, 1.7)))
        share = _on(scene, coverage(distance))
        _paint(scene, _contrast(scene, brush, share), share * np.float32(brush.rng.uniform(0.6, 0.95)))
        rim = _on(scene, smoothstep(2.2, 0.4, distance) * (1 - share))
        scene.height[...] += np.float32(0.5) * rim - np.float32(brush.rng.uniform(0.6, 1.6)) * share
        mask = np.maximum(mask, share)
    return mask > 0.5


def crack(scene: Scene, brush: Brush) -> Mask:
    """Jagged dark line with branches."""
    x, y = _somewhere(scene, brush)
    trunk = _walk(brush, x, y, brush.rng.uniform(50, 140), curl=0.12, kink=0.55)
    width = brush.rng.uniform(0.9, 2.2)
    distance = brush.stroke(trunk, _taper(len(trunk), width))
    for _ in range(int(brush.rng.integers(0, 4))):
        start = trunk[brush.rng.integers(len(trunk) // 4, 3 * len(trunk) // 4)]
        branch = _walk(brush, 0, 0, brush.rng.uniform(14, 45), curl=0.12, kink=0.5)
        branch = branch - branch[0] + start
        distance = np.minimum(distance, brush.stroke(branch, np.linspace(width * 0.7, 0.4, len(branch))))
    share = _on(scene, coverage(distance + np.float32(0.3) * brush.noise(4, 1.2)))
    _paint(scene, scene.albedo * np.float32(brush.rng.uniform(0.12, 0.4)), share)
    scene.height[...] -= np.float32(brush.rng.uniform(1.5, 3)) * share
    return share > 0.5


def hole(scene: Scene, brush: Brush) -> Mask:
    """Round or ragged hole through the surface."""
    x, y = _somewhere(scene, brush)
    distance = brush.blob(x, y, brush.rng.uniform(4.5, 14), lobes=0.2, rough=brush.rng.uniform(0, 1.6))
    share = _on(scene, coverage(distance))
    rim = _on(scene, smoothstep(3.5, 0, distance) * (1 - share))
    _paint(
        scene, np.clip(scene.albedo * np.float32(brush.rng.uniform(0.9, 1.5)), 0, 1), rim * np.float32(0.6)
    )
    depth = smoothstep(1.5, -3.5, distance)
    floor = scene.behind * np.float32(brush.rng.uniform(0.4, 0.9)) * (1 - 0.5 * depth[..., None])
    _paint(scene, floor, share)
    scene.height[...] += rim * np.float32(brush.rng.uniform(0, 1)) - np.float32(4) * _on(scene, depth)
    return share > 0.5


def stain(scene: Scene, brush: Brush) -> Mask:
    """Liquid that soaked in: tinted, often darker at its edge."""
    x, y = _somewhere(scene, brush)
    radius = brush.rng.uniform(9, 30)
    distance = brush.blob(x, y, radius, lobes=0.35, rough=brush.rng.uniform(0.5, 3))
    for _ in range(int(brush.rng.integers(0, 4))):
        dx, dy = brush.rng.normal(0, radius * 1.2, 2)
        distance = np.minimum(distance, brush.blob(x + dx, y + dy, radius * brush.rng.uniform(0.1, 0.35)))
    share = _on(scene, coverage(distance, brush.rng.uniform(1, 4)))
    ring = np.exp(-np.square((distance + 2.0) / np.float32(2.2)))
    strength = np.float32(brush.rng.uniform(0.35, 0.65))
    hue = brush.rng.uniform(0.75, 1.0, 3) ** brush.rng.uniform(0.5, 3)
    if _local_colour(scene, share).mean() > 0.2:
        tinted = scene.albedo * (hue * (1 - strength)).astype(np.float32)
    else:
        tinted = scene.albedo + strength * np.float32(0.7) * hue.astype(np.float32)
    weight = 0.8 + np.float32(brush.rng.uniform(0, 0.4)) * ring + 0.08 * brush.noise(12, 1.5)
    _paint(scene, tinted, np.clip(share * weight, 0, 1))
    return share > 0.5


def dent(scene: Scene, brush: Brush) -> Mask:
    """Bump or hollow, visible mainly through the lighting."""
    x, y = _somewhere(scene, brush)
    radius = brush.rng.uniform(9, 24)
    distance = brush.blob(x, y, radius, lobes=0.15)
    profile = _on(scene, smoothstep(0, -float(radius), distance))
    depth = radius * brush.rng.uniform(0.35, 0.8) * (-1 if brush.rng.random() < 0.7 else 1)
    scene.height[...] += np.float32(depth) * profile
    _paint(scene, scene.albedo * np.float32(0.85), profile * np.float32(brush.rng.uniform(0, 0.6)))
    return (profile > 0.04) if scene.foreground is None else (profile > 0.04) & scene.foreground


def contamination(scene: Scene, brush: Brush) -> Mask:
    """Foreign particles lying on the surface, in a cluster."""
    x, y = _somewhere(scene, brush)
    count = int(brush.rng.integers(1, 7))
    distance = np.full(scene.height.shape, 9, np.float32)
    for _ in range(count):
        dx, dy = brush.rng.normal(0, 12 if count > 1 else 0, 2)
        radius = brush.rng.uniform(2.2, 6) if count > 1 else brush.rng.uniform(5, 12)
        distance = np.minimum(distance, brush.blob(x + dx, y + dy, radius, lobes=0.5))
    share = _on(scene, coverage(distance))
    shadow = shift(share, brush.pixels * brush.rng.uniform(-2, 2, 2), order=1)
    _paint(
        scene, scene.albedo * np.float32(0.5), gaussian_filter(shadow, 1.2 * brush.pixels) * np.float32(0.7)
    )
    if brush.rng.random() < 0.4:
        colour = (
            (brush.rng.uniform(0.1, 0.8) + brush.rng.normal(0, 0.13, 3)).clip(0.03, 0.95).astype(np.float32)
        )
    else:
        colour = _contrast(scene, brush, share, 0.25, 0.6)
    grain = 1 + 0.15 * brush.noise(5, 1)
    _paint(scene, np.clip(colour * grain[..., None], 0, 1), share)
    lump = np.sqrt(np.clip(-distance, 0, 6))
    scene.height[...] = scene.height * (1 - 0.7 * share) + np.float32(1.6) * lump * share
    return share > 0.5


def cut(scene: Scene, brush: Brush) -> Mask:
    """Clean opening with lifted edges."""
    x, y = _somewhere(scene, brush)
    path = _walk(brush, x, y, brush.rng.uniform(25, 80), curl=0.05)
    distance = brush.stroke(path, _taper(len(path), brush.rng.uniform(1.6, 3.8), 0.1))
    share = _on(scene, coverage(distance))
    lip = _on(scene, smoothstep(6, 0, distance) * (1 - share))
    scene.height[...] += np.float32(brush.rng.uniform(1.5, 3.5)) * lip * (1 - share) - 3 * share
    _paint(scene, np.clip(scene.albedo * np.float32(1.25), 0, 1), lip * np.float32(0.4))
    _paint(scene, scene.behind * np.float32(brush.rng.uniform(0.5, 0.9)), share)
    return (share > 0.5) | (lip > 0.5)


def fold(scene: Scene, brush: Brush) -> Mask:
    """Crease: a ridge or valley along a line."""
    x, y = _somewhere(scene, brush, 40)
    path = _walk(brush, x, y, brush.rng.uniform(70, 170), curl=0.03)
    width = brush.rng.uniform(2.5, 5)
    # Negative widths towards the ends increase the distance there, so that the crease fades out gently.
    distance = brush.stroke(path, -14 * np.linspace(-1, 1, len(path)) ** 8, reach=14)
    profile = _on(scene, np.exp(-np.maximum(distance, 0) / np.float32(width)) * smoothstep(13.5, 8, distance))
    sign = -1 if brush.rng.random() < 0.5 else 1
    scene.height[...] += np.float32(sign * width * brush.rng.uniform(0.9, 1.6)) * profile
    worn = _on(scene, coverage(distance - np.float32(0.8)))
    _paint(scene, _contrast(scene, brush, worn, 0.1, 0.25), worn * np.float32(brush.rng.uniform(0.2, 0.6)))
    return profile > 0.3


def thread(scene: Scene, brush: Brush) -> Mask:
    """Loose thread, hair or fibre lying on top, with its shadow."""
    x, y = _somewhere(scene, brush, 40)
    path = _walk(brush, x, y, brush.rng.uniform(60, 180), curl=0.28)
    half = brush.rng.uniform(0.8, 2.0)
    distance = brush.stroke(path, np.full(len(path), half))
    share = _on(scene, coverage(distance))
    moved = shift(share, brush.pixels * brush.rng.uniform(-3, 3, 2), order=1)
    shadow = gaussian_filter(moved, 1.0 * brush.pixels)
    _paint(scene, scene.albedo * np.float32(0.45), _on(scene, shadow) * np.float32(0.8))
    if brush.rng.random() < 0.5:
        colour = (
            (brush.rng.uniform(0.1, 0.85) + brush.rng.normal(0, 0.15, 3)).clip(0.03, 0.95).astype(np.float32)
        )
    else:
        colour = _contrast(scene, brush, share, 0.25, 0.55)
    _paint(scene, colour, share)
    round_ = np.sqrt(np.clip(1 - np.square(np.clip(1 + distance / np.float32(half), 0, 1)), 0, 1))
    scene.height[...] = scene.height * (1 - 0.8 * share) + np.float32(half * 1.5) * round_ * share
    return share > 0.5


def _glyphs(brush: Brush, x: float, y: float) -> Field:
    """Distance to a row of strokes that look like smeared characters."""
    distance = np.full((brush.size, brush.size), 9, np.float32)
    heading, tall = brush.rng.normal(0, 0.2), brush.rng.uniform(8, 18)
    for k in range(int(brush.rng.integers(2, 6))):
        cx, cy = x + k * tall * 0.8 * np.cos(heading), y + k * tall * 0.8 * np.sin(heading)
        corners = brush.rng.uniform(-0.45, 0.45, (int(brush.rng.integers(3, 6)), 2)) * (0.7 * tall, tall) + (
            cx,
            cy,
        )
        distance = np.minimum(
            distance, brush.stroke(corners, np.full(len(corners), brush.rng.uniform(0.9, 1.6)))
        )
    return distance


def print_error(scene: Scene, brush: Brush) -> Mask:
    """Ink in the wrong place: characters, bars or a smear."""
    x, y = _somewhere(scene, brush, 30)
    choice = brush.rng.random()
    if choice < 0.5:
        distance = _glyphs(brush, x, y)
    elif choice < 0.75:
        path = _walk(brush, x, y, brush.rng.uniform(20, 60), curl=0.0)
        distance = brush.stroke(path, np.full(len(path), brush.rng.uniform(3, 7)))
    else:
        distance = brush.blob(x, y, brush.rng.uniform(8, 16), lobes=0.1)
        distance = np.maximum(distance, -(distance + np.float32(brush.rng.uniform(3, 5))))
    distance = distance + np.float32(0.5) * brush.noise(8, 1.5)
    ink = _on(scene, coverage(distance))
    patchy = np.clip(0.85 + 0.2 * brush.noise(14, 1.2, stretch=3, angle=brush.rng.uniform(0, np.pi)), 0.3, 1)
    _paint(
        scene, _contrast(scene, brush, ink, 0.3, 0.6), ink * patchy * np.float32(brush.rng.uniform(0.7, 1))
    )
    return ink > 0.5


def missing(scene: Scene, brush: Brush) -> Mask:
    """Piece broken out: from an object's edge, or the top layer of a surface."""
    if scene.foreground is None:
        x, y = _somewhere(scene, brush)
        distance = brush.blob(x, y, brush.rng.uniform(8, 22), lobes=0.4, rough=brush.rng.uniform(0.8, 2.2))
        share = coverage(distance)
        under = _local_colour(scene, share) * brush.rng.uniform(0.5, 0.8) + 0.12 * brush.rng.random()
        layer = np.clip(under.astype(np.float32) * (1 + 0.1 * brush.noise(5, 1.0))[..., None], 0.01, 1)
        bare = scene.behind if scene.behind.mean() < 0.1 or scene.behind.std() > 0.02 else layer
        _paint(scene, bare, share)
        scene.height[...] = np.where(share > 0.5, 0.3 * brush.noise(6, 1.2) - 2.0, scene.height).astype(
            np.float32
        )
        return share > 0.5
    inner = gaussian_filter(scene.foreground.astype(np.float32), 3 * brush.pixels)
    edge = scene.foreground & (inner < 0.65)
    places = np.argwhere(edge if edge.any() else scene.foreground)
    row, column = (places[brush.rng.integers(len(places))] + 0.5) / brush.pixels
    distance = brush.blob(
        column, row, brush.rng.uniform(9, 22), lobes=0.35, rough=brush.rng.uniform(0.3, 1.2)
    )
    share = _on(scene, coverage(distance))
    fracture = _on(scene, smoothstep(3.5, 0, distance) * (1 - share))
    _paint(scene, np.clip(scene.albedo * np.float32(brush.rng.uniform(0.6, 1.4)), 0, 1), fracture)
    _paint(scene, scene.behind, share)
    scene.height[...] = scene.height * (1 - share) - np.float32(1.5) * fracture
    return share > 0.5


def discolouration(scene: Scene, brush: Brush) -> Mask:
    """Patch that is paler, darker or has another hue, with a soft edge."""
    x, y = _somewhere(scene, brush)
    radius = brush.rng.uniform(14, 38)
    distance = brush.blob(x, y, radius, lobes=0.35, rough=2)
    share = _on(scene, coverage(distance, brush.rng.uniform(3, 9)))
    under = _local_colour(scene, share)
    factor = (
        brush.rng.uniform(1.3, 1.6)
        if under.mean() < 0.5 and brush.rng.random() < 0.6
        else brush.rng.uniform(0.5, 0.75)
    )
    hue = np.exp(brush.rng.normal(0, 0.14, 3))
    _paint(scene, np.clip(scene.albedo * (factor * hue).astype(np.float32), 0, 1), share)
    return share > 0.5


def distortion(scene: Scene, brush: Brush) -> Mask:
    """Structure pulled or twisted out of place."""
    x, y = _somewhere(scene, brush, 30)
    radius = brush.rng.uniform(18, 36)
    distance = brush.blob(x, y, radius, lobes=0.15)
    inside = smoothstep(0, -0.7 * radius, distance)
    scale = brush.pixels
    angle = brush.rng.uniform(0, 2 * np.pi)
    pull = brush.rng.uniform(9, 16) * scale
    dx, dy = np.float32(pull * np.cos(angle)) * inside, np.float32(pull * np.sin(angle)) * inside
    if brush.rng.random() < 0.4:
        turn = np.float32(brush.rng.uniform(0.6, 1.2)) * inside
        px, py = (brush.x - np.float32(x)) * np.float32(scale), (brush.y - np.float32(y)) * np.float32(scale)
        dx, dy = px * (np.cos(turn) - 1) - py * np.sin(turn), py * (np.cos(turn) - 1) + px * np.sin(turn)
    rows, columns = np.indices(scene.height.shape, np.float32)
    where = np.stack([rows + dy, columns + dx])

    def pulled(field: Field) -> Field:
        moved: Field = map_coordinates(field, where, order=1, mode="nearest")
        return moved

    reach = inside > 0
    # The ground around an object does not change, except where the object is now.
    if scene.foreground is not None:
        reach &= scene.foreground | (pulled(scene.foreground.astype(np.float32)) > 0.5)
    for channel in range(3):
        scene.albedo[reach, channel] = pulled(scene.albedo[..., channel])[reach]
    scene.height[reach] = pulled(scene.height)[reach]
    # The pulled area also bulges: on a surface without structure, the defect would be invisible otherwise.
    scene.height[reach] += np.float32(radius * brush.rng.uniform(0.08, 0.2)) * np.square(inside[reach])
    return reach & (inside > 0.12)


TRAINING_DEFECTS: dict[str, Defect] = {
    "scratch": scratch,
    "crack": crack,
    "hole": hole,
    "stain": stain,
    "dent": dent,
    "contamination": contamination,
    "cut": cut,
    "thread": thread,
    "missing": missing,
    "discolouration": discolouration,
    "distortion": distortion,
}
"""Kinds of defects that the embedded backbone is trained on."""

HELD_OUT_DEFECTS: dict[str, Defect] = {"fold": fold, "print": print_error}
"""Kinds of defects that the embedded backbone never sees."""
