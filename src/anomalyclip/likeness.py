"""Whether images look like the references at all, counted over a run; and whether they are references themselves."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

REFERENCES = "references_content"
"""Key of `anomalyclip.scorer.Description.training`: `pixels_digest` of every reference, separated by spaces."""


def pixels_digest(pieces: Iterable[NDArray[Any]]) -> str:
    """Return the SHA-256, in hex, of all pixels that a model is shown of an image.

    Examples
    --------
    >>> whole = np.zeros((2, 2, 3), np.uint8)
    >>> pixels_digest([whole]) == pixels_digest([whole[:1], whole[1:]]) != pixels_digest([whole + 1])
    True
    """
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece.tobytes())
    return digest.hexdigest()


@dataclass
class Tally:
    """How many images were scored, and how many of them look like another product than the references.

    Several scorers may have the same one.

    Examples
    --------
    >>> tally = Tally()
    >>> tally.add(np.array([0.9, 0.8, 0.1]))
    >>> tally.remarks()[0][:49], tally.remarks()
    ('2 of 3 images do not look like the references at ', [])
    """

    seen: int = 0
    unknown: int = 0

    def add(self, unknown: NDArray[np.float32]) -> None:
        """Count images by their shares (B,) of patches that are unlike the references."""
        self.seen += len(unknown)
        self.unknown += int((unknown > 0.5).sum())

    def remarks(self) -> list[str]:
        """Return a warning if most images since the last call look like another product; the count begins anew."""
        seen, unknown = self.seen, self.unknown
        self.seen = self.unknown = 0
        if 2 * unknown <= seen:
            return []
        return [
            f"{unknown} of {seen} images do not look like the references at all: are they of the same "
            "product, taken in the same way? Their scores are raised, and their maps follow the texts"
        ]
