"""A training run of two steps, for its checkpoint and its features."""

import shutil
import tempfile
from functools import cache
from pathlib import Path

from anomalyclip.data.identity import content_digest
from anomalyclip.training.batches import TrainingData
from anomalyclip.training.features import FeatureStore
from anomalyclip.training.of_prompts import PromptTask
from anomalyclip.training.samples import TrainingImage
from anomalyclip.training.settings import TrainingSettings
from anomalyclip.training.trainer import Trainer
from tests.conftest import GOLDEN, torch_scorer
from tests.fuzz.corpus import small_clip, small_prompts


@cache
def trained() -> Path:
    """Return the folder of a finished run; it goes away with the process's temporary folder."""
    folder = Path(tempfile.mkdtemp())
    assert trainer_in(folder, folder / "features").run()
    return folder


def trainer_in(folder: Path, features: Path) -> Trainer:
    """Return the trainer of a run; with the state of another one in its folder it can go on there."""
    settings = TrainingSettings(epochs=1, batch_size=1)
    data = training_data(features)
    return Trainer(
        PromptTask(small_clip(), small_prompts()), data, settings, folder, info={"trained_on": "golden"}
    )


def training_data(features: Path) -> TrainingData:
    """Return two golden images with their features."""
    images = []
    for index in range(2):
        files = [GOLDEN / f"train_{index}{kind}.png" for kind in ("", "_mask")]
        digests = [content_digest(file) for file in files]
        images.append(TrainingImage(*files, "thing", bool(index % 2), *digests))
    scorer = torch_scorer(small_clip(), small_prompts(), image_size=56)
    store = FeatureStore(features, scorer, weights="small", on_damage=print)
    store.fill(images, on_error=lambda path, error: None)
    return TrainingData(store, images)


def with_features(features: Path, file: Path) -> TrainingData:
    """Return the same with the features of one image replaced by a file."""
    data = training_data(features)
    shutil.copyfile(file, data.store.path(data.images[0]))
    return data
