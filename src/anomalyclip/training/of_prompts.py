"""Training of AnomalyCLIP's prompts: the published losses of images and pixels."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from anomalyclip.clip.model import CLIP
from anomalyclip.files import writing
from anomalyclip.prompts import PromptLearner, Prompts
from anomalyclip.training.batches import Batch
from anomalyclip.training.learning import batch_loss
from anomalyclip.training.task import Task
from anomalyclip.training.validation import Detect, by_texts


class PromptTask(Task):
    """Learns prompts.

    Parameters
    ----------
    clip : CLIP
        The frozen model; its text tower is used.
    start : Prompts
        The prompts to start from.
    local_weight : float
        Lambda, the weight of the pixel loss.
    """

    name = "prompts"
    learner: PromptLearner

    def __init__(self, clip: CLIP, start: Prompts, *, local_weight: float = 4.0) -> None:
        super().__init__(clip, start, PromptLearner(start))
        self.local_weight = local_weight

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return cross-entropy of the images, and lambda times focal and dice losses of the pixels."""
        image, local = batch_loss(batch, self.learner(self.clip))
        return image, self.local_weight * local

    def detector(self) -> Detect:
        """Return what compares an image's features with the two texts."""
        text_features = self.learner(self.clip)
        return lambda image, layers, class_name: by_texts(image, layers, text_features)

    def summary(self) -> dict[str, float]:
        """Return the cosine between the two texts."""
        text_features = self.learner(self.clip)
        return {"text_cosine": float(text_features[0] @ text_features[1])}

    def save(self, path: Path, info: Mapping[str, str]) -> None:
        """Write the prompts as safetensors."""
        self.learner.value(info).save(path)

    def finish(self, folder: Path, info: Mapping[str, str]) -> None:
        """Write the prompts, in the published form too."""
        super().finish(folder, info)
        path = folder / "prompts.pth"
        with writing(path):
            self.learner.value(info).save_published(path, self.clip)
