"""Random fields for drawing materials: fractal noise, cells, strokes, blobs. Lengths are in nominal pixels."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import scipy.fft
from numpy.random import Generator
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]

NOMINAL_SIZE = 192
"""Side of every generated scene in nominal pixels. An image of another size shows another scene at the same scale."""


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[Field, Field]:
    ticks = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(NOMINAL_SIZE / size)
    x, y = np.meshgrid(ticks, ticks)
    return x, y


@lru_cache(maxsize=8)
def _frequencies(size: int) -> tuple[Field, Field]:
    step = NOMINAL_SIZE / size
    fx = scipy.fft.rfftfreq(size, d=step).astype(np.float32)[None, :]
    fy = scipy.fft.fftfreq(size, d=step).astype(np.float32)[:, None]
    return fx, fy


def smoothstep(low: float, high: float, values: Field) -> Field:
    """Rise smoothly from 0 at ``low`` to 1 at ``high`` (falls if ``low > high``).

    Examples
    --------
    >>> smoothstep(0, 1, np.float32([-1, 0.5, 2])).tolist()
    [0.0, 0.5, 1.0]
    """
    t: Field = np.clip((values - np.float32(low)) / np.float32(high - low), 0, 1)
    return t * t * (3 - 2 * t)


def coverage(distance: Field, soft: float = 1.0) -> Field:
    """Share of a pixel that lies inside a shape, from its signed distance (negative inside) to the outline."""
    share: Field = np.clip(np.float32(0.5) - distance / np.float32(soft), 0, 1)
    return share


def standardised(field: Field) -> Field:
    """Scale a field of mean 0 to standard deviation 1, float32."""
    scaled: Field = (field / (field.std() + 1e-6)).astype(np.float32)
    return scaled


def hashed(cell: NDArray[np.int64], salt: int = 0) -> Field:
    """Return a pseudo-random number in [0, 1) for each integer, always the same.

    Examples
    --------
    >>> bool((hashed(np.arange(5)) == hashed(np.arange(5))).all())
    True
    """
    bits = cell.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt * 0x632BE5AB + 1)
    bits = (bits ^ (bits >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return ((bits >> np.uint64(40)).astype(np.float32)) * np.float32(1 / (1 << 24))


@dataclass(frozen=True)
class Cells:
    """A jittered lattice of cells, arranged like grains, bubbles or stones.

    Parameters
    ----------
    distance : ndarray of float32 (S, S)
        Distance to the nearest cell centre, in spacings.
    edge : ndarray of float32 (S, S)
        How much further away the second nearest centre is, in spacings: 0 on the border between two cells.
    ids : ndarray of int64 (S, S)
        The cell that each pixel belongs to.
    """

    distance: Field
    edge: Field
    ids: NDArray[np.int64]


@dataclass(frozen=True)
class Brush:
    """Tools for drawing a material: an image size and two random generators.

    Parameters
    ----------
    size : int
        Side of the image in pixels.
    style : numpy.random.Generator
        Draws the properties that all images of one product share (colour, grain, weave).
    rng : numpy.random.Generator
        Draws the properties that differ between images (the position of each grain).
    """

    size: int
    style: Generator
    rng: Generator

    @property
    def pixels(self) -> float:
        """Image pixels per nominal pixel."""
        return self.size / NOMINAL_SIZE

    @property
    def x(self) -> Field:
        """Abscissa of every pixel centre, (S, S), 0 to 192."""
        return _grid(self.size)[0]

    @property
    def y(self) -> Field:
        """Ordinate of every pixel centre, (S, S), 0 to 192, downwards."""
        return _grid(self.size)[1]

    def pick(self, low: float, high: float) -> float:
        """Draw a property of the style, uniform in [low, high)."""
        return float(self.style.uniform(low, high))

    def chance(self, probability: float) -> bool:
        """Decide at random whether the style has a feature."""
        return bool(self.style.random() < probability)

    def axes(self, wobble: float = 0.03, *, aligned: bool = False) -> tuple[Field, Field]:
        """Return coordinates (u, v) for regular patterns, rotated by the style's angle and shifted at random.

        Parameters
        ----------
        wobble : float
            Standard deviation, in radians, of the rotation between images.
        aligned : bool
            Stay close to the image's axes (for products that lie straight), instead of any angle.
        """
        angle = self.style.choice([0.0, np.pi / 2]) if aligned else self.style.uniform(0, np.pi)
        angle += self.rng.normal(0, wobble)
        u0, v0 = self.rng.uniform(0, 1000, 2)
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        return cos * self.x + sin * self.y + np.float32(u0), cos * self.y - sin * self.x + np.float32(v0)

    def noise(
        self, wavelength: float, slope: float = 2.0, *, stretch: float = 1.0, angle: float = 0.0
    ) -> Field:
        """Draw smooth noise of mean 0 and standard deviation 1.

        Parameters
        ----------
        wavelength : float
            Size of the largest features in nominal pixels.
        slope : float
            How fast the amplitude falls for smaller features: 1 is rough, 3 is smooth.
        stretch, angle : float
            Features are ``stretch`` times longer along ``angle`` (radians).

        Returns
        -------
        ndarray of float32 (S, S)
        """
        fx, fy = _frequencies(self.size)
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        along, across = (cos * fx + sin * fy) * np.float32(stretch), cos * fy - sin * fx
        squared = (along * along + across * across) * np.float32(wavelength * wavelength)
        gain = (1 + squared) ** np.float32(-slope / 2)
        gain[0, 0] = 0
        white = self.rng.standard_normal((self.size, self.size), dtype=np.float32)
        field = scipy.fft.irfft2(scipy.fft.rfft2(white) * gain, s=(self.size, self.size))
        return standardised(field)

    def spots(self, wavelength: float, width: float = 0.35) -> Field:
        """Draw noise whose features have about the same size (a band of frequencies); mean 0, standard deviation 1."""
        fx, fy = _frequencies(self.size)
        radius = np.sqrt(fx * fx + fy * fy) * np.float32(wavelength)
        gain = np.exp(-(((radius - 1) / np.float32(width)) ** 2))
        white = self.rng.standard_normal((self.size, self.size), dtype=np.float32)
        field = scipy.fft.irfft2(scipy.fft.rfft2(white) * gain, s=(self.size, self.size))
        return standardised(field)

    def cells(
        self,
        u: Field,
        v: Field,
        spacing: float,
        *,
        jitter: float = 0.9,
        stretch: float = 1.0,
        warp: float = 0.0,
    ) -> Cells:
        """Divide the plane of (u, v) into cells around jittered lattice points (Worley, SIGGRAPH 1996).

        Parameters
        ----------
        u, v : ndarray of float32 (S, S)
            Coordinates, e.g. from `axes`.
        spacing : float
            Mean distance between neighbouring centres in nominal pixels; along u it is ``stretch`` times larger.
        jitter : float
            0 for a square lattice, 1 for full disorder.
        warp : float
            Displacement of the borders, in nominal pixels, for ragged cells.
        """
        if warp:
            u, v = u + np.float32(warp) * self.noise(spacing), v + np.float32(warp) * self.noise(spacing)
        a, b = u / np.float32(spacing * stretch), v / np.float32(spacing)
        column, row = np.floor(a), np.floor(b)
        fa, fb = a - column, b - row
        column, row = (column - column.min()).astype(np.int64), (row - row.min()).astype(np.int64)
        wide = int(column.max()) + 3
        count = wide * (int(row.max()) + 3)
        centre = self.rng.random((2, count), dtype=np.float32) - np.float32(0.5)
        px, py = np.float32(0.5) + np.float32(jitter) * centre
        corner = row * wide + column
        first = np.full(a.shape, 9, np.float32)
        second, ids = first.copy(), corner.copy()
        for dy in range(3):
            for dx in range(3):
                cell = corner + (dy * wide + dx)
                d = np.square(px[cell] + np.float32(dx - 1) - fa) + np.square(
                    py[cell] + np.float32(dy - 1) - fb
                )
                closer = d < first
                np.minimum(second, np.maximum(first, d), out=second)
                np.minimum(first, d, out=first)
                np.copyto(ids, cell, where=closer)
        distance = np.sqrt(first)
        return Cells(distance, np.sqrt(second) - distance, ids)

    def stroke(
        self, points: NDArray[np.float64], half_widths: NDArray[np.float64], reach: float = 8.0
    ) -> Field:
        """Signed distance to a line of varying width through points, negative inside.

        Parameters
        ----------
        points : ndarray (N, 2)
            x, y in nominal pixels.
        half_widths : ndarray (N,)
            Half the width at each point, in nominal pixels.
        reach : float
            Distances are computed up to this far from the line; further away, they are ``reach``.
        """
        scale = self.pixels
        field = np.full((self.size, self.size), reach, np.float32)
        gx, gy = self.x, self.y
        for (x0, y0), (x1, y1), w0, w1 in zip(points, points[1:], half_widths, half_widths[1:], strict=False):
            margin = max(w0, w1) + reach
            left, right = sorted((x0, x1))
            top, bottom = sorted((y0, y1))
            rows = slice(max(0, int((top - margin) * scale)), max(0, int((bottom + margin) * scale) + 1))
            columns = slice(max(0, int((left - margin) * scale)), max(0, int((right + margin) * scale) + 1))
            px, py = gx[rows, columns] - np.float32(x0), gy[rows, columns] - np.float32(y0)
            if px.size == 0:
                continue
            dx, dy = np.float32(x1 - x0), np.float32(y1 - y0)
            t = np.clip((px * dx + py * dy) / (dx * dx + dy * dy + np.float32(1e-6)), 0, 1)
            d = np.sqrt(np.square(px - t * dx) + np.square(py - t * dy)) - (
                np.float32(w0) + t * np.float32(w1 - w0)
            )
            np.minimum(field[rows, columns], d, out=field[rows, columns])
        return field

    def blob(self, x: float, y: float, radius: float, *, lobes: float = 0.25, rough: float = 0.0) -> Field:
        """Signed distance, negative inside, to a smooth random outline around (x, y), roughened by ``rough`` pixels."""
        dx, dy = self.x - np.float32(x), self.y - np.float32(y)
        angle = self.rng.uniform(0, np.pi)
        flat = self.rng.uniform(0.55, 1.0)
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        dx, dy = cos * dx + sin * dy, (cos * dy - sin * dx) / np.float32(flat)
        theta = np.arctan2(dy, dx)
        outline = np.full(theta.shape, radius, np.float32)
        for k in (2, 3, 5):
            amplitude = radius * lobes / k * self.rng.normal()
            outline += np.float32(amplitude) * np.cos(k * theta + np.float32(self.rng.uniform(0, 2 * np.pi)))
        distance = np.sqrt(dx * dx + dy * dy) - outline
        if rough:
            distance = distance + np.float32(rough) * self.noise(max(6.0, radius), 1.6)
        return distance.astype(np.float32)
