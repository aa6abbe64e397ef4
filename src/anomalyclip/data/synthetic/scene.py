"""A scene (colour, relief, gloss) and the light and camera that make an image of it."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from anomalyclip.data.synthetic.noise import NOMINAL_SIZE, Brush, Field


@dataclass(frozen=True)
class Scene:
    """The content in front of the camera, without lighting.

    Parameters
    ----------
    albedo : ndarray of float32 (S, S, 3)
        Colour of the surface as seen under white light, in [0, 1].
    height : ndarray of float32 (S, S)
        Relief in nominal pixels, upwards.
    gloss : float
        Strength of the highlights: 0 for felt, 1 for polished metal.
    behind : ndarray of float32 (S, S, 3)
        What is visible where the surface is missing.
    foreground : ndarray of bool (S, S), optional
        Where the object is; None for a surface that fills the image.
    """

    albedo: Field
    height: Field
    gloss: float
    behind: Field
    foreground: NDArray[np.bool_] | None = None

    def copy(self) -> "Scene":
        """Return a copy whose arrays can be changed without changing this scene."""
        return replace(self, albedo=self.albedo.copy(), height=self.height.copy())


def material(
    brush: Brush,
    albedo: Field,
    height: Field,
    gloss: float = 0.1,
    behind: tuple[float, float, float] | Field = (0.06, 0.06, 0.07),
) -> Scene:
    """Make a scene of a surface that fills the image."""
    shape = (brush.size, brush.size, 3)
    return Scene(
        np.clip(albedo, 0.01, 1).astype(np.float32),
        np.broadcast_to(height, shape[:2]).astype(np.float32),
        gloss,
        np.broadcast_to(np.asarray(behind, np.float32), shape),
    )


@dataclass(frozen=True)
class Camera:
    """Light and camera of one image.

    Parameters
    ----------
    light : tuple of float
        Direction to the light (x to the right, y downwards, z to the viewer), of length 1.
    ambient : float
        Share of the light that comes from all directions.
    tint : ndarray of float32 (3,)
        Colour and strength of the light.
    falloff : ndarray of float32 (S, S)
        Unevenness of the illumination: gradient, vignette.
    shininess : float
        Exponent of the highlights (Blinn and Phong).
    blur : float
        Standard deviation of the lens's blur in nominal pixels.
    grain : ndarray of float32 (S, S, 3)
        The sensor's noise.
    """

    light: tuple[float, float, float]
    ambient: float
    tint: Field
    falloff: Field
    shininess: float
    blur: float
    grain: Field


def set_up_camera(brush: Brush) -> Camera:
    """Draw light and camera at random: the set-up belongs to the style, small changes to each image."""
    azimuth = brush.pick(0, 2 * np.pi) + brush.rng.normal(0, 0.15)
    elevation = np.deg2rad(np.clip(brush.pick(32, 68) + brush.rng.normal(0, 3), 25, 75))
    light = (np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation))
    cx, cy = (brush.x / NOMINAL_SIZE - 0.5), (brush.y / NOMINAL_SIZE - 0.5)
    slope = brush.pick(0, 0.35)
    direction = brush.pick(0, 2 * np.pi) + brush.rng.normal(0, 0.3)
    ramp = np.float32(np.cos(direction)) * cx + np.float32(np.sin(direction)) * cy
    vignette = brush.pick(0, 0.5) if brush.chance(0.5) else 0.0
    falloff = (1 + np.float32(slope) * ramp) * (1 - np.float32(vignette) * (cx * cx + cy * cy))
    warmth = brush.pick(-0.06, 0.06)
    exposure = brush.pick(0.85, 1.2) * brush.rng.uniform(0.95, 1.05)
    grain = brush.rng.standard_normal((brush.size, brush.size, 3), dtype=np.float32)
    return Camera(
        light=light,
        ambient=brush.pick(0.25, 0.6),
        tint=np.asarray([1 + warmth, 1, 1 - warmth], np.float32) * np.float32(exposure),
        falloff=falloff.astype(np.float32),
        shininess=brush.pick(6, 45),
        blur=brush.pick(0.25, 0.75),
        grain=grain * np.float32(brush.pick(0.003, 0.012)),
    )


def photograph(scene: Scene, camera: Camera) -> NDArray[np.uint8]:
    """Render a scene as an image.

    Diffuse light by Lambert's law and highlights after Blinn and Phong, in linear light (a gamma of 2 instead of
    sRGB's 2.2, because squares and roots are fast), then lens blur and sensor noise.

    Returns
    -------
    ndarray of uint8 (S, S, 3)
    """
    size = scene.height.shape[0]
    scale = np.float32(size / NOMINAL_SIZE)
    slope_y, slope_x = (component * scale for component in np.gradient(scene.height))
    lx, ly, lz = (np.float32(value) for value in camera.light)
    length = 1 / np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
    diffuse = np.clip((lz - lx * slope_x - ly * slope_y) * length / lz, 0, 2.2)
    shade = (np.float32(camera.ambient) + np.float32(1 - camera.ambient) * diffuse) * camera.falloff
    image = scene.albedo * scene.albedo * (shade[..., None] * camera.tint)
    if scene.gloss > 0:
        norm = np.float32(1 / np.sqrt(lx * lx + ly * ly + (lz + 1) ** 2))
        facing = np.clip(((lz + 1) - lx * slope_x - ly * slope_y) * length * norm, 0, 1)
        highlight = np.float32(scene.gloss * 0.55) * facing ** np.float32(camera.shininess) * camera.falloff
        image += highlight[..., None] * camera.tint
    blur = camera.blur * float(scale)
    for channel in range(3):
        image[..., channel] = gaussian_filter(image[..., channel], blur, truncate=2.5)
    # A soft shoulder as in film and cameras, x / (1 + x^4)^(1/4), so that highlights are not clipped.
    image = np.maximum(image, 0)
    image = np.sqrt(image / np.sqrt(np.sqrt(1 + np.square(np.square(image))))) + camera.grain
    pixels: NDArray[np.uint8] = (np.clip(image, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    return pixels
