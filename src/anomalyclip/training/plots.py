"""``loss.png``: curves of a training run, drawn from its ``metrics.jsonl``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalyclip.files import open_output, replacing, writing
from anomalyclip.training.journal import best_epoch, read_journal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PARTS = (
    ("loss", "total", "black"),
    ("image_loss", "image", "tab:blue"),
    ("local_loss", "pixels", "tab:orange"),
)
_VALIDATION = (
    ("val_image_auroc", "image AUROC", "tab:blue"),
    ("val_pixel_auroc", "pixel AUROC", "tab:orange"),
)


def draw_losses(folder: Path) -> Path | None:
    """Draw a run's losses, and its AUROCs if there was validation, into ``loss.png``.

    Parameters
    ----------
    folder : Path
        The run folder.

    Returns
    -------
    Path or None
        The picture; None if matplotlib is not installed (``pip install 'anomalyclip[report]'``).
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    steps, epochs = read_journal(folder)
    validated = any(name in record for record in epochs for name, _, _ in _VALIDATION)
    figure = Figure(figsize=(7, 6 if validated else 3.5), layout="constrained")
    axes = figure.subplots(1 + validated, 1, sharex=True, squeeze=False)[:, 0]
    _draw_training(axes[0], steps, epochs)
    if validated:
        _draw_validation(axes[1], epochs)
    axes[-1].set_xlabel("epoch")
    path = folder / "loss.png"
    with writing(path), replacing(path) as temporary, open_output(temporary) as file:
        figure.savefig(file, format="png", dpi=120)
    return path


def _draw_training(axes: "Axes", steps: list[dict[str, Any]], epochs: list[dict[str, Any]]) -> None:
    """Draw all steps as a thin line, and the mean of each epoch on top, at the epoch's end."""
    per_epoch = max((record["step"] for record in steps), default=1)
    moments = [record["epoch"] - 1 + record["step"] / per_epoch for record in steps]
    ends = [record["epoch"] for record in epochs]
    for name, label, color in _PARTS:
        axes.plot(moments, [record[name] for record in steps], color=color, alpha=0.3, linewidth=0.8)
        axes.plot(ends, [record[name] for record in epochs], color=color, marker=".", label=label)
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    axes.legend()


def _draw_validation(axes: "Axes", epochs: list[dict[str, Any]]) -> None:
    for name, label, color in _VALIDATION:
        points = [(record["epoch"], record[name]) for record in epochs if name in record]
        if points:
            axes.plot(*zip(*points, strict=True), color=color, marker=".", label=label)
    if best := best_epoch(epochs):
        axes.axvline(best, color="gray", linestyle=":", label=f"best epoch ({best})")
    axes.set_ylabel("held-out images")
    axes.legend()
