"""`Scorer`: the interface that a detector needs from a method. No PyTorch here: exported files implement it too."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Description:
    """What reports say about a scorer.

    Parameters
    ----------
    title : str
        One line, such as "micro, prompts default".
    facts : mapping
        JSON-ready: names of weights and prompts, device, versions, and anything else the method reports.
    training : mapping of str to str
        What is known about the training: ``trained_on``, ``trained_on_content`` (`anomalyclip.data.identity`),
        ``image_size``, ``layers``, ``dpam_layers``; of references their pixels (`anomalyclip.likeness.REFERENCES`).
        Empty if nothing was trained.
    """

    title: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, str] = field(default_factory=dict)


class Scorer(Protocol):
    """A method that is ready to score images.

    Attributes
    ----------
    image_size : int
        Side S in pixels of the images it takes.
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
        """Return everything that determines the scores, JSON-ready: scorers with equal identities give equal scores.

        It has the settings by name, and hashes over the *whole* content of everything learned or given (weights,
        prompts, references) under names that end in ``_sha256``. The device is left out: it changes only the last
        digits.
        """
        ...

    def describe(self) -> Description:
        """Return what reports say about it."""
        ...
