"""What is trained for each method that has a trained part, made ready from a spec."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from anomalyclip.clip.backbone import Backbone
from anomalyclip.clip.model import CLIP
from anomalyclip.clip.registry import resolve_backbone, resolve_prompts
from anomalyclip.clip.tokenizer import Tokenizer, tokenizer_of
from anomalyclip.clip_core import ClipCore
from anomalyclip.contexts import Context
from anomalyclip.engines.torch import TorchScorer
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.linear_layers import LinearLayers
from anomalyclip.methods import METHODS
from anomalyclip.methods.anomalyclip import assemble
from anomalyclip.methods.april_gan import AprilGANCore, default_blocks
from anomalyclip.methods.words import plain_core
from anomalyclip.prompts import Prompts, load_prompts
from anomalyclip.scorer import Description
from anomalyclip.spec import DetectorSpec
from anomalyclip.training.of_contexts import ContextTask
from anomalyclip.training.of_layers import LayersTask
from anomalyclip.training.of_prompts import PromptTask
from anomalyclip.training.settings import TrainingSettings
from anomalyclip.training.start import start_prompts
from anomalyclip.training.task import Task
from anomalyclip.words import naming, words_of

_CONTEXT = 12
"""Context vectors, where nothing else is said; as many as AnomalyCLIP has."""


@dataclass(frozen=True)
class Prepared:
    """What a method trains, and the encoder for it.

    Attributes
    ----------
    scorer : TorchScorer
        Gives the features.
    task : Task
        What is learned from them.
    classes : callable
        Told the name of every class that will come; refuses one that cannot be named.
    needs_masks : bool
        Whether nothing is learned from images without masks.
    """

    scorer: TorchScorer
    task: Task
    classes: Callable[[str], object] = lambda name: None
    needs_masks: bool = False


def prepare(spec: DetectorSpec, settings: TrainingSettings, backbone: Backbone) -> Prepared:
    """Return what the spec's method trains.

    Raises
    ------
    AnomalyCLIPError
        The method has no trained part, or an option is not one of its training.
    """
    make, _, unused = _TRAINED[spec.method]
    defaults = TrainingSettings()
    if needless := [name for name in unused if getattr(settings, name) != getattr(defaults, name)]:
        raise AnomalyCLIPError(
            f"{', '.join(needless)}: not used in training of method {spec.method!r}; leave it out"
        )
    return make(spec, settings, backbone)


def check_spec(spec: DetectorSpec) -> None:
    """Refuse a method without a trained part, and options that its training does not use.

    Raises
    ------
    AnomalyCLIPError
        Naming them.
    """
    METHODS[spec.method]  # an unknown one is another message
    if spec.method not in _TRAINED:
        raise AnomalyCLIPError(
            f"method {spec.method!r} has no training: expected one of {', '.join(_TRAINED)}"
        )
    used = (*_COMMON, *_TRAINED[spec.method][1])
    if needless := [name for name in spec.changed() if name not in used]:
        raise AnomalyCLIPError(
            f"{', '.join(needless)}: not used in training of method {spec.method!r}; leave it out (training uses "
            f"{', '.join(used)})"
        )


def _prompts(spec: DetectorSpec, settings: TrainingSettings, backbone: Backbone) -> Prepared:
    clip = backbone.clip
    start = _start(settings, clip, resolve_backbone(spec.backbone))
    scorer = assemble(clip, start, spec, weights_sha256=backbone.fingerprint)
    return Prepared(scorer, PromptTask(clip, start, local_weight=settings.local_weight))


def _start(settings: TrainingSettings, clip: CLIP, backbone: Path) -> Prompts:
    shape = {
        "length": settings.prompt_length,
        "depth": settings.prompt_depth,
        "deep_length": settings.deep_length,
    }
    given = {name: value for name, value in shape.items() if value is not None}
    if settings.init_prompts is None:
        return start_prompts(clip, backbone, seed=settings.seed, **given)
    if given:
        raise AnomalyCLIPError(
            f"the prompts to start from ({settings.init_prompts}) fix length and depth: leave out "
            "--prompt-length, --prompt-depth and --deep-length"
        )
    return load_prompts(resolve_prompts(settings.init_prompts))


def _layers(spec: DetectorSpec, settings: TrainingSettings, backbone: Backbone) -> Prepared:
    clip = backbone.clip
    words = words_of(
        spec,
        resolve_backbone(spec.backbone),
        words="april-gan",
        templates="april-gan",
        each_normalised=True,
    )
    tokenizer = _tokenizer(spec, clip)

    @cache
    def texts(name: str) -> Tensor:
        with torch.no_grad():
            return words.texts(tokenizer, name).text_features(clip)

    start = LinearLayers.initial(clip.config, spec.layers or default_blocks(clip.config), seed=settings.seed)
    with torch.no_grad():
        core = AprilGANCore(clip, spec, start, lambda: torch.zeros(2, clip.config.embed_dim))
    named = _named(spec, texts)
    task = LayersTask(clip, start, named, image_size=core.image_size)
    return Prepared(_encoder(core, spec), task, named, needs_masks=True)


def _context(spec: DetectorSpec, settings: TrainingSettings, backbone: Backbone) -> Prepared:
    clip = backbone.clip
    words = words_of(spec, resolve_backbone(spec.backbone), words="coop", templates="none")
    if len(words.normal) != 1 or len(words.abnormal) != 1:
        raise AnomalyCLIPError("method 'coop' learns a context for one text of each side: give each once")
    tokenizer = _tokenizer(spec, clip)
    generator = torch.Generator().manual_seed(settings.seed)
    count = _CONTEXT if settings.prompt_length is None else settings.prompt_length
    if count < 1:
        raise AnomalyCLIPError(f"prompt length {count}: expected 1 or more")
    vectors = 0.02 * torch.randn(count, clip.config.text_width, generator=generator)
    start = Context(vectors, words.normal[0], words.abnormal[0])
    named = _named(spec, lambda name: torch.cat(words.texts(tokenizer, name).sides))
    with torch.no_grad():
        core = plain_core(clip, spec, lambda: torch.zeros(2, clip.config.embed_dim))

    def check(name: str) -> None:
        with torch.no_grad():
            start.text_features(clip, named(name))

    return Prepared(_encoder(core, spec), ContextTask(clip, start, named), check)


def _tokenizer(spec: DetectorSpec, clip: CLIP) -> Tokenizer:
    config = clip.config
    source = resolve_backbone(spec.backbone)
    return tokenizer_of(source, vocabulary=config.vocab_size, context_length=config.context_length)


def _named(spec: DetectorSpec, of_class: Callable[[str], Tensor]) -> Callable[[str], Tensor]:
    """Return what gives something of each class, under the name that the spec or the data set gives it."""

    def named(name: str) -> Tensor:
        with naming(name):
            return of_class(spec.class_name or name)

    return named


def _encoder(core: ClipCore, spec: DetectorSpec) -> TorchScorer:
    return TorchScorer(
        core,
        identity=dict,
        description=Description(spec.method),
        device=spec.device,
        precision=spec.precision,
    )


_COMMON = ("method", "backbone", "image_size", "layers", "value_range", "range_from", "device", "precision")
"""Fields of the spec that every training uses."""

_Make = Callable[[DetectorSpec, TrainingSettings, Backbone], Prepared]
_PROMPTS_ONLY = ("prompt_depth", "deep_length", "init_prompts", "local_weight")

_TRAINED: dict[str, tuple[_Make, tuple[str, ...], tuple[str, ...]]] = {
    "anomalyclip": (_prompts, ("dpam_layers", "local_attention"), ()),
    "april-gan": (
        _layers,
        ("activation", "normal", "abnormal", "templates", "class_name"),
        ("prompt_length", *_PROMPTS_ONLY),
    ),
    "coop": (_context, ("activation", "normal", "abnormal", "class_name", "ln_post"), _PROMPTS_ONLY),
}
"""By method: what prepares it, options of the spec besides the common ones, and settings that mean nothing to it."""
