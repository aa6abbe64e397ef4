"""What a method has to learn: its parameters, its loss, and the files that it leaves."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from anomalyclip.clip.model import CLIP
from anomalyclip.files import writing
from anomalyclip.training.batches import Batch
from anomalyclip.training.validation import Detect


class Learned(Protocol):
    """What a method learns, as a value: prompts, linear layers, a context."""

    def digest(self) -> str:
        """Return the SHA-256 of its content, in hex."""
        ...


class Task(ABC):
    """The trained part of a method on one backbone, while it is trained.

    Parameters
    ----------
    clip : CLIP
        The frozen model.
    start : Learned
        What to start from.
    learner : Module
        Its parameters, which change.

    Attributes
    ----------
    name : str
        Of the file with what was learned, without its ending.
    sigma : float
        Gaussian smoothing of the maps of held-out images, as in detection.
    """

    name: str
    sigma: float = 4.0

    def __init__(self, clip: CLIP, start: Learned, learner: nn.Module) -> None:
        self.clip, self.start, self.learner = clip, start, learner

    def to(self, device: torch.device) -> "Task":
        """Move everything to a device; return the same task."""
        self.clip.to(device)
        self.learner.to(device)
        return self

    def digest(self) -> str:
        """Return the SHA-256 in hex of what it starts from."""
        return self.start.digest()

    @abstractmethod
    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the image loss and the weighted pixel loss of a batch, scalars with gradients to the learner."""

    @abstractmethod
    def detector(self) -> Detect:
        """Return what scores an image by its rows, with what is learned so far."""

    @abstractmethod
    def save(self, path: Path, info: Mapping[str, str]) -> None:
        """Write what is learned so far."""

    def summary(self) -> dict[str, float]:
        """Return numbers that tell how far it is, for each epoch's line; here none."""
        return {}

    def finish(self, folder: Path, info: Mapping[str, str]) -> None:
        """Write what was learned into the run's folder."""
        path = folder / f"{self.name}.safetensors"
        with writing(path):
            self.save(path, info)

    def remark(self) -> str | None:
        """Return what there is to say at the end; here nothing."""
        return None
