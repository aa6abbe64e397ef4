"""Images much larger than the model's input: cut into overlapping tiles, scored in batches, blended into one map."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.framing import Framing

Score = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.float32]]]


@dataclass(frozen=True)
class Tiling:
    """How images are cut.

    Parameters
    ----------
    size : int
        Side of a tile in pixels of the image; each tile is squashed to the model's input. An image whose width and
        height are at most this is not cut.
    overlap : float
        Minimum overlap of neighbouring tiles, as a share of a tile, from 0 to 0.9.

    Raises
    ------
    AnomalyCLIPError
        A value is out of range.

    Examples
    --------
    >>> Tiling(100, overlap=0.25).starts(250)
    [0, 75, 150]
    """

    size: int
    overlap: float = 0.25

    def __post_init__(self) -> None:
        if self.size < 16:
            raise AnomalyCLIPError(f"tile size {self.size}: expected at least 16 pixels")
        if not 0 <= self.overlap <= 0.9:
            raise AnomalyCLIPError(f"overlap {self.overlap}: expected a share from 0 to 0.9 of a tile")

    def cuts(self, image_size: tuple[int, int]) -> bool:
        """Return whether an image of (width, height) is cut."""
        return max(image_size) > self.size

    def starts(self, length: int) -> list[int]:
        """Return where tiles start along a side: evenly spaced, the first at 0, the last ending at the side's end."""
        room = length - self.size
        if room <= 0:
            return [0]
        stride = max(1, int(self.size * (1 - self.overlap)))
        count = -(-room // stride) + 1
        return [round(index * room / (count - 1)) for index in range(count)]

    def weights(self, length: int) -> NDArray[np.float32]:
        """Return the weight of each tile along a side at each of its pixels.

        The weight is a raised cosine over the tile, divided by the sum over all tiles at that pixel. So seams are
        smooth, and the weights add up to 1 everywhere. The window of a tile is the product of its weights along both
        sides, so the same holds in two dimensions, without an array of the image's size.

        Returns
        -------
        ndarray of float32
            (tiles, min(size, length)).
        """
        starts, side = self.starts(length), min(self.size, length)
        window = np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2
        total = np.zeros(length)
        for start in starts:
            total[start : start + side] += window
        return np.stack([window / total[start : start + side] for start in starts]).astype(np.float32)


def score_tiles(
    score: Score, image: Image.Image, tiling: Tiling, *, framing: Framing, batch_size: int
) -> tuple[float, NDArray[np.float32]]:
    """Score an image by its tiles.

    Parameters
    ----------
    score : callable
        The model: pixels (B, H, W, 3) uint8 to scores (B,) and maps (B, H, W).
    image : PIL.Image.Image
        In any mode and size.
    tiling : Tiling
        How to cut it.
    framing : Framing
        How an image becomes the model's input.
    batch_size : int
        Tiles per batch.

    Returns
    -------
    score : float
        The mean of the whole image's score (squashed, as without tiling) and the highest score of a tile. The highest
        score alone would grow with the number of tiles, on flawless images too. The whole image's score counteracts
        this, and a defect that is visible only in a tile still raises the mean.
    anomaly_map : ndarray of float32
        (height, width) of the image, in [0, 1].
    """
    width, height = image.size
    whole = float(score(np.stack([framing(image)]))[0][0])
    rows, columns = tiling.weights(height), tiling.weights(width)
    anomaly_map = np.zeros((height, width), np.float32)
    highest = 0.0
    tiles = _tiles(tiling, width, height)
    while batch := list(islice(tiles, batch_size)):
        boxes = [(x, y, x + columns.shape[1], y + rows.shape[1]) for _, y, _, x in batch]
        scores, maps = score(np.stack([framing(image.crop(box)) for box in boxes]))
        highest = max(highest, float(scores.max()))
        for (row, y, column, x), tile_map in zip(batch, maps, strict=True):
            size = columns.shape[1], rows.shape[1]
            full = np.asarray(Image.fromarray(tile_map).resize(size, Image.Resampling.BILINEAR))
            weighted = full * rows[row][:, None] * columns[column]
            anomaly_map[y : y + size[1], x : x + size[0]] += weighted
    np.clip(anomaly_map, 0, 1, out=anomaly_map)
    return (whole + highest) / 2, anomaly_map


def pieces(image: Image.Image, tiling: Tiling | None, framing: Framing) -> Iterator[NDArray[np.uint8]]:
    """Yield all that the model is shown of an image, (H, W, 3) uint8: the whole, and then its tiles."""
    yield framing(image)
    if tiling is not None and tiling.cuts(image.size):
        width, height = image.size
        for _, y, _, x in _tiles(tiling, width, height):
            box = (x, y, min(x + tiling.size, width), min(y + tiling.size, height))
            yield framing(image.crop(box))


def _tiles(tiling: Tiling, width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield row number, y, column number and x of each tile."""
    for row, y in enumerate(tiling.starts(height)):
        for column, x in enumerate(tiling.starts(width)):
            yield row, y, column, x
