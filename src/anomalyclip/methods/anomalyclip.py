"""AnomalyCLIP: cosines between two texts and the features of a frozen CLIP with a local path (DPAM).

Reference: Zhou et al., "AnomalyCLIP: Object-agnostic Prompt Learning for Zero-shot Anomaly Detection", ICLR 2024.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from anomalyclip.clip.backbone import load_backbone
from anomalyclip.clip.model import CLIP, CLIPConfig, LocalPath, VisionTransformer
from anomalyclip.clip.weights import fingerprint
from anomalyclip.clip_core import TextCore, default_dpam_layers
from anomalyclip.engines.torch import TorchScorer, check_runnable
from anomalyclip.prompts import load_prompts_for
from anomalyclip.scorer import Description
from anomalyclip.spec import DetectorSpec
from anomalyclip.texts import Texts
from anomalyclip.trained import check_backbone

SIGMA = 4.0
"""Published smoothing of the map, in pixels."""

_DEFAULT = "default"


def build(spec: DetectorSpec) -> TorchScorer:
    """Return the scorer of a spec: backbone and prompts by name or path.

    Raises
    ------
    AnomalyCLIPError
        They cannot be downloaded or read, do not fit each other, or an option cannot be used with them.
    """
    check_runnable(spec.device, spec.precision)  # before downloading a gigabyte
    backbone = load_backbone(spec.backbone)
    prompts = load_prompts_for(backbone.clip, spec.backbone, spec.prompts)
    if "backbone_fingerprint" in prompts.info:  # it takes time to compute the backbone's
        file = spec.prompts or Path(spec.backbone, "prompts.safetensors")
        check_backbone(prompts.info, backbone.fingerprint(), Path(file))
    return assemble(backbone.clip, prompts, spec, weights_sha256=backbone.fingerprint)


def assemble(
    clip: CLIP,
    texts: Texts,
    spec: DetectorSpec | None = None,
    *,
    weights_sha256: Callable[[], str] | None = None,
) -> TorchScorer:
    """Return a scorer for a model in memory; the text tower is not kept.

    Parameters
    ----------
    clip : CLIP
        The frozen model; its image tower is used without a copy.
    texts : Texts
        The source of the two text features.
    spec : DetectorSpec, optional
        All other options; its backbone and prompts are only used as names.
    weights_sha256 : callable, optional
        Returns `anomalyclip.clip.weights.fingerprint` of the weights when it is needed. None computes it now.

    Raises
    ------
    AnomalyCLIPError
        An option cannot be used with this model.
    """
    spec = spec or DetectorSpec()
    with torch.inference_mode():
        core = make_core(clip.visual, clip.config, spec, lambda: texts.text_features(clip))
    if weights_sha256 is None:
        known = fingerprint(clip.config, clip.state_dict())
        weights_sha256 = lambda: known  # noqa: E731 (a function is what is kept)
    settings = {"method": "anomalyclip", **core.settings()}
    hashes = {"prompts_sha256": texts.digest()}
    return TorchScorer(
        core,
        identity=lambda: settings | {"weights_sha256": weights_sha256()} | hashes,
        description=_describe(spec, texts),
        device=spec.device,
        precision=spec.precision,
        compiled=spec.compiled,
    )


def make_core(
    visual: VisionTransformer,
    config: CLIPConfig,
    spec: DetectorSpec,
    text_features: Callable[[], Tensor],
) -> TextCore:
    """Return the mathematics of AnomalyCLIP: the local path's patches, and CLS without the final norm.

    Parameters
    ----------
    visual : VisionTransformer
        The image tower.
    config : CLIPConfig
        The model's architecture.
    spec : DetectorSpec
        Image size, layers, the local path, sigma and how the image score is computed.
    text_features : callable
        Returns (2, E) float, normalised, normal then abnormal; called only after all options have been checked.

    Raises
    ------
    AnomalyCLIPError
        A value that the backbone does not support, or text features that are NaN or infinite.
    """
    return TextCore(
        visual,
        config,
        text_features,
        image_size=spec.image_size,
        layers=spec.layers,
        path=local_path(config, spec),
        sigma=SIGMA if spec.sigma is None else spec.sigma,
        score_rule=spec.image_score or "text",
    )


def local_path(config: CLIPConfig, spec: DetectorSpec) -> LocalPath:
    """Return the local path of a spec: 19 of 24 blocks with V-V attention, unless the spec says otherwise."""
    blocks = default_dpam_layers(config) if spec.dpam_layers is None else spec.dpam_layers
    return LocalPath(blocks, spec.local_attention or "v")


def _describe(spec: DetectorSpec, texts: Texts) -> Description:
    prompts = spec.prompts or texts.info.get("name", _DEFAULT)
    trained_on = texts.info.get("trained_on")
    title = f"{Path(spec.backbone).name}, prompts {Path(prompts).name}" + (
        f", trained on {trained_on}" if trained_on else ""
    )
    facts = {"method": "anomalyclip", "backbone": spec.backbone, "prompts": prompts, "trained_on": trained_on}
    return Description(title, facts, dict(texts.info))
