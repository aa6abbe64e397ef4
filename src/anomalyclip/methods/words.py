"""Words against image features, nothing trained: plain CLIP, CLIP-AC, and words on the local path.

References: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021; Zhou et
al., "AnomalyCLIP", ICLR 2024 (CLIP and CLIP-AC as baselines); Li et al., "CLIP Surgery", 2023; Gao et al., "AdaptCLIP",
2025 (words on the local path, its row without adapters).
"""

from typing import Any

from anomalyclip.clip.model import CLIP, PLAIN, LocalPath
from anomalyclip.clip_core import TextCore
from anomalyclip.engines.torch import TorchScorer
from anomalyclip.methods.anomalyclip import SIGMA, local_path
from anomalyclip.methods.worded import ClassScorer, TextFeatures, build_worded
from anomalyclip.spec import DetectorSpec


def clip(spec: DetectorSpec) -> TorchScorer | ClassScorer:
    """Return the scorer of plain CLIP: two sentences, and the patches of the original path."""
    return build_worded(spec, **WORDED["clip"])


def clip_ac(spec: DetectorSpec) -> TorchScorer | ClassScorer:
    """Return the scorer of CLIP-AC: the same with an ensemble of sentences for each side."""
    return build_worded(spec, **WORDED["clip-ac"])


def words(spec: DetectorSpec) -> TorchScorer | ClassScorer:
    """Return the scorer of WinCLIP's words, or the user's own, on AnomalyCLIP's local path."""
    return build_worded(spec, **WORDED["words"], class_name=OBJECT)


def plain_core(clip: CLIP, spec: DetectorSpec, text_features: TextFeatures) -> TextCore:
    """Return a core that compares with the patches of the original path."""
    return _core(clip, spec, text_features, PLAIN)


def local_core(clip: CLIP, spec: DetectorSpec, text_features: TextFeatures) -> TextCore:
    """Return a core that compares with the patches of the local path."""
    return _core(clip, spec, text_features, local_path(clip.config, spec))


def _core(clip: CLIP, spec: DetectorSpec, text_features: TextFeatures, path: LocalPath) -> TextCore:
    return TextCore(
        clip.visual,
        clip.config,
        text_features,
        image_size=spec.image_size,
        layers=spec.layers,
        path=path,
        sigma=SIGMA if spec.sigma is None else spec.sigma,
        score_rule=spec.image_score or "text",
        ln_post=bool(spec.ln_post),
        surgery=spec.feature_surgery,
    )


OBJECT = "object"
"""What ``words`` names where no class is given."""

WORDED: dict[str, Any] = {
    "clip": {"make_core": plain_core, "words": "clip", "templates": "none"},
    "clip-ac": {
        "make_core": plain_core,
        "words": "clip-ac",
        "templates": "imagenet",
        "each_normalised": True,
    },
    "words": {"make_core": local_core, "words": "winclip", "templates": "winclip"},
}
"""What `build_worded` is given for each method."""
