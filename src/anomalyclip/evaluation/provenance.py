"""Which model was evaluated, and whether it was trained on what it is evaluated on."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from anomalyclip.data.identity import TRAINED_ON, TRAINED_ON_CONTENT, content_digest, same_data
from anomalyclip.data.meta import SampleList
from anomalyclip.errors import InputError

if TYPE_CHECKING:
    from anomalyclip.clip.model import CLIP
    from anomalyclip.deploy.runtime import ExportedScorer
    from anomalyclip.prompts import Prompts

_OWN = "the backbone's own"


@dataclass(frozen=True)
class Provenance:
    """What identifies a model.

    Parameters
    ----------
    about : dict
        For reports, JSON-ready: backbone, prompts, their hashes, trained_on.
    prompts_info : mapping
        What the prompts say of their making.
    """

    about: dict[str, Any]
    prompts_info: Mapping[str, Any] = field(default_factory=dict)


def load_model(backbone: str, prompts: str | None) -> "tuple[CLIP, Prompts, Provenance]":
    """Load a backbone and prompts by name or path, as `Detector.from_pretrained` does, and identify them.

    Raises
    ------
    AnomalyCLIPError
        They cannot be had or read.
    """
    from anomalyclip.clip.model import CLIP
    from anomalyclip.clip.registry import resolve_backbone
    from anomalyclip.clip.weights import fingerprint, read_weights
    from anomalyclip.loading import load_prompts_for

    weights = read_weights(resolve_backbone(backbone))
    digest = fingerprint(weights)
    clip = CLIP.frozen(weights.config, weights.state_dict)
    learned = load_prompts_for(clip, backbone, prompts)
    about = {
        "backbone": backbone,
        "weights_sha256": digest,
        "prompts": prompts or learned.info.get("name", _OWN),
        "prompts_sha256": learned.digest(),
        "trained_on": learned.info.get(TRAINED_ON),
    }
    return clip, learned, Provenance(about, learned.info)


def of_exported(scorer: "ExportedScorer") -> Provenance:
    """Identify an exported file by what it says of itself."""
    card = scorer.card
    about = {
        "model": str(scorer.path),
        "backbone": card.backbone.get("name", scorer.path.name),
        "backbone_sha256": card.backbone.get("sha256"),
        "prompts": card.prompts.get("name", _OWN),
        "text_features_sha256": card.text_features,
        "trained_on": card.prompts.get(TRAINED_ON),
    }
    return Provenance(about, card.prompts)


def trained_on_this(model: Provenance, key: str, data: SampleList) -> str | None:
    """Return a warning if the prompts were trained on the data set that they are evaluated on; None otherwise."""
    info = model.prompts_info
    digests = _digests(data) if TRAINED_ON_CONTENT in info else None
    return same_data(info, name=key, digests=digests)


def _digests(data: SampleList) -> Iterator[str]:
    """Yield the digest of each image; one that cannot be read is named by the evaluation."""
    for sample in data:
        with suppress(InputError):
            yield content_digest(data.root / sample.image)
