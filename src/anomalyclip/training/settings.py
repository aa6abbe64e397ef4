"""`TrainingSettings`: data and hyperparameters of a training run; the defaults are the published ones."""

import math
from dataclasses import dataclass
from pathlib import Path

from anomalyclip.addresses import require_here
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.settings import Settings, option

_LEARNING, _PROMPTS, _FEATURES, _VALIDATION = "Learning", "Prompts", "Features", "Validation"

SPEC_OPTIONS = (
    *(
        "backbone",
        "method",
        "image_size",
        "layers",
        "dpam_layers",
        "local_attention",
        "ln_post",
        "activation",
    ),
    *("normal", "abnormal", "templates", "class_name", "value_range", "range_from", "device", "precision"),
)
"""The fields of a `DetectorSpec` that training takes; `anomalyclip.training.tasks` says which a method uses."""


@dataclass(frozen=True)
class Learning(Settings):
    """Training hyperparameters: everything except the features and the initial prompts that determines the result.

    Attributes
    ----------
    epochs, batch_size : int
        Passes over the images, and images per step; the last step of an epoch may have fewer.
    learning_rate : float
        Adam's learning rate, constant.
    local_weight : float
        Lambda, the weight of the pixel loss.
    seed : int
        Determines the order of the images, and the prompts to start from.
    betas : tuple of float
        Adam's betas.
    """

    epochs: int = option(15, "Number of passes over the images.", group=_LEARNING, minimum=1)
    batch_size: int = option(8, "Images per step.", group=_LEARNING, minimum=1)
    learning_rate: float = option(1e-3, "Learning rate of Adam.", group=_LEARNING)
    local_weight: float = option(4.0, "Weight of the pixel loss (lambda).", group=_LEARNING)
    seed: int = option(111, "Seed of the initial prompts and of the order of the images.", group=_LEARNING)
    betas: tuple[float, float] = (0.5, 0.999)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise AnomalyCLIPError(
                f"learning rate {self.learning_rate}: expected a number above 0, such as 0.001"
            )
        if not (math.isfinite(self.local_weight) and self.local_weight >= 0):
            raise AnomalyCLIPError(
                f"local weight {self.local_weight}: expected 0 or more; the published one is 4"
            )
        if self.seed < 0:
            raise AnomalyCLIPError(f"seed {self.seed}: expected 0 or more")


@dataclass(frozen=True)
class TrainingSettings(Learning):
    """Data and hyperparameters of a training run; None means the default of the backbone or of the published training.

    Attributes
    ----------
    dataset : str, optional
        Key of the data set in the catalogue; None detects the layout.
    phase : str
        The split to train on; "test", as published, is the one with anomalies and masks.
    init_prompts : str or path, optional
        Prompts to start from; None draws random ones from the seed, with `prompt_length`, `prompt_depth` and
        `deep_length`.
    prompt_length, prompt_depth, deep_length : int, optional
        Learned vectors per prompt (default 12), text blocks that see learned tokens (9, or all if there are fewer),
        learned tokens in each of these blocks (4).
    cache : path, optional
        Folder of all features; None: ``features`` in the user's cache folder.
    feature_dtype : {"float16", "float32"}
        Type of the stored features.
    val_fraction : float, optional
        Fraction of the images to hold out.
    val_root : path, optional
        Folder of another data set to evaluate on; `val_dataset` is its key.

    The other attributes are those of `Learning`.

    Examples
    --------
    >>> TrainingSettings(epochs=2, cache="features").cache
    PosixPath('features')
    """

    dataset: str | None = option(
        None, "Key of the data set (see `anomalyclip datasets`). Default: detected from its layout."
    )
    phase: str = option(
        "test", "Split to learn from: test (as published: it has the anomalies and masks) or train."
    )
    init_prompts: str | None = option(None, "Prompts to start from: a name or a file.", group=_PROMPTS)
    prompt_length: int | None = option(None, "Learned vectors per prompt. Default: 12.", group=_PROMPTS)
    prompt_depth: int | None = option(
        None, "Text blocks that see learned tokens. Default: 9, or all that the backbone has.", group=_PROMPTS
    )
    deep_length: int | None = option(
        None, "Learned tokens in each of these blocks. Default: 4.", group=_PROMPTS
    )
    cache: Path | None = option(
        None,
        "Folder that keeps the features, for all runs. Default: features/ in the user's cache folder.",
        group=_FEATURES,
        file_okay=False,
    )
    feature_dtype: str = option(
        "float16",
        "Number format in which features are kept.",
        group=_FEATURES,
        flag="--feature-type",
        choices=("float16", "float32"),
    )
    val_fraction: float | None = option(
        None,
        "Share of the images to hold out for validation, between 0 and 1; not with --val-root. Default: none.",
        group=_VALIDATION,
    )
    val_root: Path | None = option(
        None,
        "Folder of another data set to evaluate on after each epoch.",
        group=_VALIDATION,
        file_okay=False,
    )
    val_dataset: str | None = option(None, "Key of that data set.", group=_VALIDATION)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_here(self.cache, "cached features")
        require_here(self.init_prompts, "prompts to start from")
