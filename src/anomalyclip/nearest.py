"""What the strangest place of an image was compared with: the place of a reference that is most like it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, as shares of an image."""


def box_of(patch: int, grid: tuple[int, int]) -> Box:
    """Return where a patch is on a grid of rows and columns, row by row, as shares of the image.

    Examples
    --------
    >>> box_of(5, (2, 4))
    (0.25, 0.5, 0.5, 1.0)
    """
    rows, columns = grid
    row, column = divmod(patch, columns)
    return column / columns, row / rows, (column + 1) / columns, (row + 1) / rows


@dataclass(frozen=True)
class NearestNormal:
    """The patch of an image that is least like the references, and the patch of a reference that is most like it.

    Attributes
    ----------
    reference : str
        File name of the reference.
    number : int
        Its place in the memory (`anomalyclip.references.Memory.names`).
    box, reference_box : tuple of float
        Left, top, right and bottom of both patches, as shares of the image and of the reference.
    distance : float
        How far they are apart: 1 - cosine.
    """

    reference: str
    number: int
    box: Box
    reference_box: Box
    distance: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values, in a fixed order."""
        return {
            "reference": self.reference,
            "number": self.number,
            "box": list(self.box),
            "reference_box": list(self.reference_box),
            "distance": self.distance,
        }

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "NearestNormal | None":
        """Return what a line of predictions.jsonl says; None if it says nothing, or somebody changed it."""
        try:
            values = record["nearest"]
            own, reference = (_box(values[name]) for name in ("box", "reference_box"))
            number, distance = int(values["number"]), float(values["distance"])
            return cls(str(values["reference"]), number, own, reference, distance)
        except (KeyError, TypeError, ValueError, OverflowError):
            return None


def _box(values: Sequence[float]) -> Box:
    left, top, right, bottom = map(float, values)
    return left, top, right, bottom


_noted: ContextVar[list[NearestNormal] | None] = ContextVar("noted", default=None)


@contextmanager
def noting() -> Iterator[list[NearestNormal]]:
    """Yield a list that gets what scorers note in this thread until the block ends: one for each image, or nothing."""
    found: list[NearestNormal] = []
    token = _noted.set(found)
    try:
        yield found
    finally:
        _noted.reset(token)


def is_noting() -> bool:
    """Return whether anybody wants to know."""
    return _noted.get() is not None


def note(found: Iterable[NearestNormal]) -> None:
    """Note the nearest normal places of a batch of images, if anybody wants to know."""
    if (noted := _noted.get()) is not None:
        noted.extend(found)
