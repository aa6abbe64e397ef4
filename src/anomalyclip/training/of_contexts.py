"""Training of a CoOp-style context: cross-entropy of whole images with the two texts of their class."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalyclip.anomaly import TEMPERATURE
from anomalyclip.clip.model import CLIP
from anomalyclip.contexts import Context
from anomalyclip.training.batches import Batch
from anomalyclip.training.task import Task
from anomalyclip.training.validation import Detect, by_texts


class ContextTask(Task):
    """Learns context vectors.

    Parameters
    ----------
    clip : CLIP
        The frozen model; its text tower is used.
    start : Context
        The context to start from.
    ids : callable
        Gives the (2, L) token ids of both sides' words for a class.
    """

    name = "context"
    start: Context
    learner: nn.ParameterDict

    def __init__(self, clip: CLIP, start: Context, ids: Callable[[str], Tensor]) -> None:
        super().__init__(clip, start, nn.ParameterDict({"vectors": start.vectors.clone()}))
        self.ids = ids

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy of the images, and zero."""
        texts = {name: self._texts(name) for name in dict.fromkeys(batch.classes)}
        of_images = torch.stack([texts[name] for name in batch.classes])  # B 2 E
        cosines = (of_images @ F.normalize(batch.images, dim=-1)[..., None])[..., 0]  # B 2
        loss = F.cross_entropy(cosines / TEMPERATURE, batch.labels.long())
        return loss, loss.new_zeros(())

    def detector(self) -> Detect:
        """Return what compares an image's features with the two texts of its class."""
        known: dict[str, Tensor] = {}

        def detect(image: Tensor, layers: Tensor, class_name: str) -> tuple[float, Tensor]:
            if class_name not in known:
                known[class_name] = self._texts(class_name)
            return by_texts(image, layers, known[class_name])

        return detect

    def save(self, path: Path, info: Mapping[str, str]) -> None:
        """Write the context as safetensors."""
        self._value(self.learner["vectors"].detach().cpu(), info).save(path)

    def _texts(self, class_name: str) -> Tensor:
        return self._value(self.learner["vectors"]).text_features(self.clip, self.ids(class_name))

    def _value(self, vectors: Tensor, info: Mapping[str, str] | None = None) -> Context:
        return replace(self.start, vectors=vectors, info=info or {})
