"""Which detector a command's options mean: a backbone with prompts, or an exported file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from anomalyclip.cli.console import warn
from anomalyclip.errors import AnomalyCLIPError

if TYPE_CHECKING:
    from anomalyclip.detector import Detector, Scorer
    from anomalyclip.evaluation.provenance import Provenance
    from anomalyclip.prediction import Threshold
    from anomalyclip.tiling import Tiling

_DECIDED = ("backbone", "prompts", "image_size", "layers", "dpam_layers", "sigma", "precision", "compiled")
"""Options that an exported file has decided already."""

DETECTOR = (*_DECIDED, "device", "model", "provider", "threads")
"""Options that decide what an image is scored with, and how."""


def check_options(context: typer.Context) -> None:
    """Refuse options that an exported file has decided, and those that mean nothing without another one.

    Raises
    ------
    AnomalyCLIPError
        Naming them.
    """
    model = context.params["model"]
    if model is None:
        refuse(context, ("provider", "threads"), "is for exported files: give --model FILE too")
    else:
        refuse(context, ("device",), "is PyTorch's: with --model use --provider")
        refuse(
            context,
            _DECIDED,
            f"cannot be changed with --model: {model} fixes it; export another file instead",
        )
    if context.params.get("tile") is None:
        refuse(context, ("overlap",), "is for tiles: give --tile SIZE too")


def refuse(context: typer.Context, names: Sequence[str], why: str) -> None:
    """Refuse options that would be ignored, if any of them stands on the command line.

    Raises
    ------
    AnomalyCLIPError
        Naming them, and why.
    """
    if needless := [_spelled(name) for name in names if name in given(context)]:
        raise AnomalyCLIPError(f"{', '.join(needless)} {why}")


def given(context: typer.Context) -> set[str]:
    """Return the names of the parameters that stand on the command line."""
    return {
        name for name in context.params if str(context.get_parameter_source(name)).endswith("COMMANDLINE")
    }


def load_detector(
    *,
    model: Path | None,
    provider: Sequence[str] | None,
    threads: int | None,
    backbone: str,
    prompts: str | None,
    image_size: int | None,
    layers: Sequence[int] | None,
    dpam_layers: int | None,
    sigma: float,
    device: str,
    precision: str,
    compiled: bool,
) -> "tuple[Detector, Provenance]":
    """Load what is to be judged, and what identifies it. With an exported file PyTorch is not imported.

    Raises
    ------
    AnomalyCLIPError
        It cannot be had, read or used so.
    """
    from anomalyclip.detector import Detector
    from anomalyclip.evaluation.provenance import load_model, of_exported

    if model is not None:
        from anomalyclip.deploy.runtime import ExportedScorer

        exported = ExportedScorer(model, providers=provider, threads=threads)
        return Detector(exported, threshold=exported.card.limits), of_exported(exported)

    from anomalyclip.scorer import TorchScorer

    clip, learned, provenance = load_model(backbone, prompts)
    scorer = TorchScorer(
        clip,
        learned,
        image_size=image_size,
        layers=layers,
        dpam_layers=dpam_layers,
        sigma=sigma,
        device=device,
        precision=precision,
        compiled=compiled,
    )
    return Detector(scorer), provenance


def scoring_of(scorer: "Scorer", tiling: "Tiling | None" = None) -> dict[str, Any]:
    """Return what a threshold depends on, JSON-ready; the device changes only the last digits."""
    settings = {key: value for key, value in scorer.settings().items() if key != "device"}
    if (digest := getattr(scorer, "digest", None)) is not None:
        settings["digest"] = digest
    return settings | ({} if tiling is None else {"tile": tiling.size, "overlap": tiling.overlap})


def warn_of_other_settings(
    scorer: "Scorer",
    threshold: "Threshold | None" = None,
    tiling: "Tiling | None" = None,
    *,
    precision: str | None = None,
) -> None:
    """Warn where prompts or a threshold were made with other settings than these: scores would be silently off.

    `precision` is given where it will be another one than the scorer's, in an export.
    """
    now = scoring_of(scorer, tiling) | ({} if precision is None else {"precision": precision})
    learned = getattr(scorer, "prompts_info", {})
    made = {key: learned[key] for key in ("image_size", "layers", "dpam_layers") if key in learned}
    if differ := _differences(made, now):
        warn(f"the prompts were learned with other settings: {differ}")
    scoring = None if threshold is None else threshold.info.get("scoring")
    if isinstance(scoring, dict):
        common = {key: scoring[key] for key in scoring if key in now}
        if differ := _differences(common | {key: scoring.get(key) for key in ("tile", "overlap")}, now):
            warn(f"the threshold was made with other settings: {differ}; calibrate it anew")


def _differences(made: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return which settings differ, in words; all hashes together are one model."""
    differ = {key: value for key, value in made.items() if _text(value) != _text(now.get(key))}
    hashes = [key for key in differ if key == "digest" or key.endswith("_sha256")]
    words = [
        f"{key} {_text(value)} then, {_text(now.get(key))} now"
        for key, value in differ.items()
        if key not in hashes
    ]
    return ", ".join(words + ["another model"] * bool(hashes))


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _spelled(name: str) -> str:
    return "--compile" if name == "compiled" else f"--{name.replace('_', '-')}"
