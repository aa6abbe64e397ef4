"""Which model was evaluated, and whether it was trained on what it is evaluated on."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomalyclip.clip.download import file_digest
from anomalyclip.clip.model import CLIP
from anomalyclip.clip.registry import PROMPTS, resolve_backbone
from anomalyclip.clip.weights import fingerprint, read_weights
from anomalyclip.data.meta import SampleList
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
        "prompts_sha256": prompts_digest(learned),
        "trained_on": trained_on,
    }
    return Model(clip, learned, about)


def prompts_digest(prompts: Prompts) -> str:
    """Return the SHA-256 of the prompts' tensors, whatever the format of their file."""
    digest = hashlib.sha256()
    for tensor in (prompts.normal, prompts.abnormal, prompts.token_ids, *prompts.deep_tokens):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def same_data(model: Model, key: str, data: SampleList) -> str | None:
    """Return a warning if the prompts were trained on the data set that they are evaluated on; None otherwise.

    Data sets are the same if they have the same name, or if the prompts' ``trained_on_content`` is that of the images,
    whatever their names and folders.
    """
    content = model.prompts.info.get("trained_on_content")
    same = model.trained_on == key or (content is not None and content == _content(data))
    if not same:
        return None
    return f"the prompts were trained on {model.trained_on}, which {key} is: its figures are not zero-shot"


def _content(data: SampleList) -> str:
    """Return the hash of all images' hashes, whatever their order."""
    return _joined(_digest(Path(os.path.join(data.root, sample.image))) for sample in data)


def _digest(path: Path) -> str:
    try:
        return file_digest(path, "sha256").removeprefix("sha256:")
    except OSError:  # the evaluation names it
        return ""


def _joined(digests: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()
