"""Which model was evaluated, and whether it was trained on what it is evaluated on."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from anomalyclip.clip.model import CLIP
from anomalyclip.clip.registry import PROMPTS, resolve_backbone
from anomalyclip.clip.weights import fingerprint, read_weights
from anomalyclip.data.identity import TRAINED_ON, TRAINED_ON_CONTENT, content_digest, same_data
from anomalyclip.data.meta import SampleList
from anomalyclip.errors import InputError
from anomalyclip.loading import load_prompts_for
from anomalyclip.prompts import Prompts


@dataclass(frozen=True)
class Model:
    """A backbone and its prompts, with what identifies them."""

    clip: CLIP
    prompts: Prompts
    about: dict[str, Any]

    @property
    def trained_on(self) -> str | None:
        """Name of the data set that the prompts were learned on, if it is known."""
        name: str | None = self.about["trained_on"]
        return name


def load_model(backbone: str, prompts: str | None) -> Model:
    """Load a backbone and prompts by name or path, as `Detector.from_pretrained` does, and identify them.

    Raises
    ------
    AnomalyCLIPError
        They cannot be had or read.
    """
    folder = resolve_backbone(backbone)
    weights = read_weights(folder)
    digest = fingerprint(weights)
    clip = CLIP.frozen(weights.config, weights.state_dict)
    learned = load_prompts_for(clip, backbone, prompts)
    name = prompts
    if name is None and not (folder / "prompts.safetensors").is_file():
        name = "mvtec"  # what `load_prompts_for` took
    # Published checkpoints do not say what they were trained on; their names here do.
    trained_on = learned.info.get("trained_on") or (name if name in PROMPTS and name != "micro" else None)
    about = {
        "backbone": backbone,
        "weights_sha256": digest,
        "prompts": name or "the backbone's own",
        "prompts_sha256": learned.digest(),
        "trained_on": trained_on,
    }
    return Model(clip, learned, about)


def trained_on_this(model: Model, key: str, data: SampleList) -> str | None:
    """Return a warning if the prompts were trained on the data set that they are evaluated on; None otherwise."""
    info = dict(model.prompts.info)
    if model.trained_on is not None:
        info[TRAINED_ON] = model.trained_on
    digests = _digests(data) if TRAINED_ON_CONTENT in info else None
    return same_data(info, name=key, digests=digests)


def _digests(data: SampleList) -> Iterator[str]:
    """Yield the digest of each image; one that cannot be read is named by the evaluation."""
    for sample in data:
        with suppress(InputError):
            yield content_digest(data.root / sample.image)
