"""Training scenes of photographs, drawn without and with a defect.

The twin of a flawless scene (`recipes.micro.views`) has one defect: one of the generator's kinds, or a part that is
foreign, erased or repeated, as in CutPaste (Li et al., CVPR 2021) and NSA (Schlueter et al., ECCV 2022).
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from recipes.micro.album import Album
from recipes.micro.views import View, draw_view, enlarged_part
from scipy.ndimage import gaussian_filter, map_coordinates

from anomalyclip.data.synthetic.defects import TRAINING_DEFECTS
from anomalyclip.data.synthetic.noise import NOMINAL_SIZE, Brush, Field, coverage
from anomalyclip.data.synthetic.scene import Camera, Scene, photograph, set_up_camera

OWN_DEFECTS = {"patch": 0.2, "blank": 0.08, "repetition": 0.12}
"""Share of each kind of defect that is made of photographs; the rest are the generator's kinds."""

VISIBLE = 0.05
"""A defect that changes its pixels by less than this, on average, is invisible and drawn again."""

ATTEMPTS = 8
LEAST_PIXELS = 24


@dataclass(frozen=True)
class Pair:
    """A scene without and with its defect.

    Parameters
    ----------
    normal, image : ndarray of uint8 (S, S, 3)
        Without and with the defect.
    mask : ndarray of bool (S, S)
        The defect.
    category, defect : str
        What the scene shows, and the kind of defect.
    """

    normal: NDArray[np.uint8]
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    category: str
    defect: str


def draw(album: Album, seed: int, index: int) -> Pair:
    """Draw a scene and its defect; the same album and numbers give the same pixels.

    Returns
    -------
    Pair
        Its defect is visible, and its mask never empty; of `ATTEMPTS` invisible ones the most visible.
    """
    view = draw_view(album, default_rng([seed, index, 100]))
    normal = _pixels(view.image)
    best, best_change, attempt = None, -1.0, 0
    while best is None or (best_change <= VISIBLE and attempt < ATTEMPTS):
        rng = default_rng([seed, index, 101 + attempt])
        attempt += 1
        kind = choose_defect(rng)
        image, mask = with_defect(view, kind, album, rng)
        if mask.sum() < LEAST_PIXELS:
            continue
        damaged = _pixels(image)
        change = np.abs(damaged[mask].astype(np.float32) - normal[mask]).mean() / 255
        if change > best_change:
            best, best_change = Pair(normal, damaged, mask, view.category, kind), change
    return best


def choose_defect(rng: Generator) -> str:
    """Choose a kind of defect."""
    kinds = list(TRAINING_DEFECTS)
    rest = (1 - sum(OWN_DEFECTS.values())) / len(kinds)
    return str(rng.choice([*kinds, *OWN_DEFECTS], p=[*[rest] * len(kinds), *OWN_DEFECTS.values()]))


def with_defect(view: View, kind: str, album: Album, rng: Generator) -> tuple[Field, NDArray[np.bool_]]:
    """Return the scene with a defect, (S, S, 3) in [0, 1], and the defect's mask."""
    brush = Brush(len(view.image), rng, rng)
    if kind in TRAINING_DEFECTS:
        return _generated(view, kind, brush)
    share, radius = _region(view, brush)
    if kind == "patch":
        part = _foreign(
            view, enlarged_part(album.pictures[rng.integers(len(album.pictures))], rng), share, radius, rng
        )
    elif kind == "blank":
        part = _erased(view, share, radius, rng)
    else:
        part = _moved(view.image, radius, rng)
    weight = share[..., None]
    return view.image + weight * (part - view.image), share > 0.5


def _generated(view: View, kind: str, brush: Brush) -> tuple[Field, NDArray[np.bool_]]:
    """Draw a kind of the generator: the picture is the colour of a flat scene, and its changes are carried over.

    The generator's camera takes the scene with and without the defect. What became darker is multiplied by the ratio of
    the two, and what became brighter by the ratio of their distances from white, so nothing is clipped.
    """
    scene = Scene(
        np.clip(view.image, 0.02, 1),
        np.zeros(view.image.shape[:2], np.float32),
        float(brush.rng.uniform(0, 0.25)),
        view.ground,
        view.foreground,
    )
    camera = _clean(set_up_camera(brush))
    damaged = scene.copy()
    mask = TRAINING_DEFECTS[kind](damaged, brush)
    if not mask.any():
        return view.image, mask
    before, after = (photograph(taken, camera).astype(np.float32) / 255 for taken in (scene, damaged))
    darker = view.image * (after + 0.01) / (before + 0.01)
    brighter = 1 - (1 - view.image) * (1.01 - after) / (1.01 - before)
    return np.where(after < before, darker, brighter), mask


def _clean(camera: Camera) -> Camera:
    """Return the camera without noise: the photograph has its own."""
    return replace(camera, grain=np.zeros_like(camera.grain), blur=0.3)


def _region(view: View, brush: Brush) -> tuple[Field, float]:
    """Draw a region on the thing: its share of each pixel (S, S) and its radius."""
    rng = brush.rng
    if view.foreground is not None:
        places = np.argwhere(view.foreground)
        y, x = (places[rng.integers(len(places))] + 0.5) / brush.pixels
    else:
        x, y = rng.uniform(14, NOMINAL_SIZE - 14, 2)
    radius = float(rng.uniform(5, 26))
    if rng.random() < 0.35:  # CutPaste's bars
        turn = rng.uniform(0, np.pi)
        u, v = brush.x - np.float32(x), brush.y - np.float32(y)
        u, v = np.cos(turn) * u + np.sin(turn) * v, np.cos(turn) * v - np.sin(turn) * u
        distance = np.maximum(
            np.abs(u) - radius * rng.uniform(0.8, 2), np.abs(v) - radius * rng.uniform(0.15, 0.8)
        )
    else:
        distance = brush.blob(float(x), float(y), radius, lobes=rng.uniform(0, 0.6), rough=rng.uniform(0, 2))
    return coverage(distance, float(rng.uniform(1, 5))), radius


def _foreign(view: View, part: Field, share: Field, radius: float, rng: Generator) -> Field:
    """Return another photograph's part: as it is, with the brightness of the place, or only its details."""
    choice = rng.random()
    if choice < 0.4:
        return part
    if choice < 0.7:
        weight = share[..., None] / max(float(share.sum()), 1)
        shift = ((view.image - part) * weight).sum((0, 1)) * np.float32(rng.uniform(0.4, 0.9))
        part = part + shift
        return part.clip(0, 1)
    sigma = (radius, radius, 0)
    details = (part - gaussian_filter(part, sigma, truncate=2)) * np.float32(rng.uniform(1, 2))
    detailed: Field = gaussian_filter(view.image, sigma, truncate=2) + details
    return detailed.clip(0, 1)


def _erased(view: View, share: Field, radius: float, rng: Generator) -> Field:
    """Return the place without its structure: blurred, of one colour, or the ground."""
    choice = rng.random()
    if choice < 0.4:
        smooth: Field = gaussian_filter(view.image, (radius, radius, 0), truncate=2)
        return smooth
    if choice < 0.7 and view.foreground is not None:
        return view.ground
    weight = share[..., None] / max(float(share.sum()), 1)
    return np.broadcast_to((view.image * weight).sum((0, 1)), view.image.shape)


def _moved(image: Field, radius: float, rng: Generator) -> Field:
    """Return the picture shifted and turned, so that its parts appear again in the wrong place."""
    size, turn = len(image), rng.normal(0, 0.6)
    far, way = radius * rng.uniform(1.5, 4), rng.uniform(0, 2 * np.pi)
    rows, columns = np.indices(image.shape[:2], np.float32) - np.float32(size / 2)
    where = np.stack(
        [
            np.cos(turn) * rows + np.sin(turn) * columns + size / 2 + far * np.sin(way),
            np.cos(turn) * columns - np.sin(turn) * rows + size / 2 + far * np.cos(way),
        ]
    )
    return np.stack([map_coordinates(image[..., c], where, order=1, mode="mirror") for c in range(3)], -1)


def _pixels(image: Field) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = (np.clip(image, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    return pixels
