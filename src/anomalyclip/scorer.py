"""`Scorer`: what a method must offer to be a detector. No PyTorch here: exported files offer the same."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Description:
    """What a reader of results is told about a scorer.

    Parameters
    ----------
    title : str
        One line, such as "micro, prompts of its own".
    facts : mapping
        JSON-ready: names of weights and prompts, device, versions, whatever the method finds worth telling.
    training : mapping of str to str
        What the trained part says of its making: ``trained_on``, ``trained_on_content``
        (`anomalyclip.data.identity`), ``image_size``, ``layers``, ``dpam_layers``. Empty if nothing was trained.
    """

    title: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, str] = field(default_factory=dict)


class Scorer(Protocol):
    """A method made ready.

    Attributes
    ----------
    image_size : int
        Side S of the images that it takes, in pixels.
    """

    image_size: int

    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Score a batch.

        Parameters
        ----------
        pixels : ndarray of uint8
            (B, S, S, 3) RGB.

        Returns
        -------
        scores : ndarray of float32
            (B,) within [0, 1], higher is more anomalous.
        maps : ndarray of float32
            (B, S, S) within [0, 1].
        """
        ...

    def identity(self) -> dict[str, Any]:
        """Return all that decides the scores, JSON-ready: two scorers with one identity give the same scores.

        Settings by name, and hashes of everything learned or given (weights, prompts, references) over their *whole*
        content, under names that end in ``_sha256``. Not the device, which changes only the last digits.
        """
        ...

    def describe(self) -> Description:
        """Return what reports say of it."""
        ...
