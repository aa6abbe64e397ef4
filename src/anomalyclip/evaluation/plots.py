"""Curves and histograms of the report, drawn by matplotlib (extra ``report``)."""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from anomalyclip.errors import AnomalyCLIPWarning
from anomalyclip.evaluation.differences import COMPARED
from anomalyclip.evaluation.results import METRICS, ClassResult
from anomalyclip.metrics.paired import Difference

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES = {
    "image_roc": ("Image ROC", "false-positive rate", "true-positive rate"),
    "image_pr": ("Image precision and recall", "recall", "precision"),
    "pixel_roc": ("Pixel ROC", "false-positive rate", "true-positive rate"),
    "pixel_pr": ("Pixel precision and recall", "recall", "precision"),
    "pixel_pro": ("Per-region overlap (PRO)", "false-positive rate", "overlap"),
}
"""Title and axes of each curve."""

NORMAL, ANOMALOUS = "#4c78a8", "#d1495b"

_COLORS = (
    "#4c78a8", "#d1495b", "#59a14f", "#e0912f", "#8e6bb0", "#76b7b2", "#b07a56", "#e17fa5",
    "#7f7f7f", "#b5a642", "#2f4b7c", "#9c2f45", "#2d6a3e", "#8a5a00", "#523a78", "#17807e",
)  # fmt: skip
_STYLE: Any = {
    "font.size": 8.5,
    "font.family": "sans-serif",
    "axes.edgecolor": "#9aa0a6",
    "axes.labelcolor": "#5f6368",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlecolor": "#202124",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#eceff1",
    "xtick.color": "#5f6368",
    "ytick.color": "#5f6368",
    "svg.hashsalt": "anomalyclip",
    "text.parse_math": False,  # a class may be called $1
}
_LIMIT = 0.3  # of the false-positive rate under the PRO curve


def available() -> bool:
    """Return whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def warn_unavailable(what: str) -> None:
    """Warn that something was not drawn because matplotlib is not installed, and say how to install it."""
    message = f"{what} because matplotlib is not installed: pip install 'anomalyclip[report]'"
    warnings.warn(message, AnomalyCLIPWarning, stacklevel=3)


def draw_curves(classes: Sequence[ClassResult]) -> str | None:
    """Return an SVG of all available curves, with one line per class; None if there are none.

    Needs matplotlib.
    """
    import matplotlib

    kinds = [kind for kind in CURVES if any(kind in entry.curves for entry in classes)]
    if not kinds:
        return None
    columns = min(3, len(kinds))
    rows = math.ceil(len(kinds) / columns)
    with matplotlib.rc_context(_STYLE):
        figure = _figure(3.55 * columns, 3.3 * rows + 0.28 * math.ceil(len(classes) / 6))
        for place, kind in enumerate(kinds, start=1):
            _draw_curve(figure.add_subplot(rows, columns, place), kind, classes)
        if len(classes) > 1:
            handles, labels = figure.axes[0].get_legend_handles_labels()
            figure.legend(
                handles, labels, loc="outside lower center", ncols=min(6, len(classes)), frameon=False
            )
        return _svg(figure)


def _draw_curve(axes: "Axes", kind: str, classes: Sequence[ClassResult]) -> None:
    title, x_label, y_label = CURVES[kind]
    for index, entry in enumerate(classes):
        x, y = entry.curves.get(kind, ([], []))  # a class without this curve is still in the legend
        color, dashes = _COLORS[index % len(_COLORS)], "-" if index < len(_COLORS) else "--"
        step = "steps-post" if kind == "image_roc" else "default"
        axes.plot(
            x, y, color=color, linestyle=dashes, linewidth=1.3, label=_shown(entry.name), drawstyle=step
        )
    if kind == "image_roc":
        axes.plot([0, 1], [0, 1], color="#bdc1c6", linewidth=0.8, linestyle=":")
    axes.set(title=title, xlabel=x_label, ylabel=y_label, ylim=(0, 1.02))
    axes.set_xlim(0, _LIMIT if kind == "pixel_pro" else 1)


def draw_histograms(classes: Sequence[ClassResult], threshold: float | None) -> str | None:
    """Return an SVG with the scores of normal and anomalous images of each class; None if there are no images.

    Needs matplotlib.
    """
    import matplotlib

    shown = [entry for entry in classes if entry.images]
    if not shown:
        return None
    scores = [image.score for entry in shown for image in entry.images]
    low, high = min(scores), max(scores)
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    margin = 0.03 * (high - low) or 0.05
    bins = np.linspace(low - margin, high + margin, 31)
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    with matplotlib.rc_context(_STYLE):
        figure = _figure(10.65 if columns > 2 else 3.55 * columns + 1.2, 1.85 * rows + 0.4)
        for place, entry in enumerate(shown, start=1):
            _draw_histogram(figure.add_subplot(rows, columns, place), entry, bins, threshold)
        named: dict[str, Any] = {}
        for axes in figure.axes:
            named.update(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
        figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=3, frameon=False)
        return _svg(figure)


def _draw_histogram(axes: "Axes", entry: ClassResult, bins: Any, threshold: float | None) -> None:
    from matplotlib.ticker import MaxNLocator

    for anomaly, name, color in ((False, "normal", NORMAL), (True, "anomalous", ANOMALOUS)):
        scores = [image.score for image in entry.images if image.anomaly == anomaly]
        if scores:
            axes.hist(scores, bins=bins, color=color, alpha=0.65, label=name)
    if threshold is not None:
        axes.axvline(threshold, color="#202124", linewidth=1.2, linestyle="--", label="threshold")
    axes.set_title(_shown(entry.name))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))


def draw_differences(of_set: Mapping[str, Mapping[str, Difference]]) -> str | None:
    """Return an SVG of differences with their intervals, a panel for each metric; None if there are none.

    Needs matplotlib.
    """
    import matplotlib

    metrics = [metric for metric in COMPARED if any(metric in several for several in of_set.values())]
    if not metrics:
        return None
    with matplotlib.rc_context(_STYLE):
        figure = _figure(10.65, 0.9 + 0.3 * len(of_set))
        shared = None
        for place, metric in enumerate(metrics, start=1):
            axes = figure.add_subplot(1, len(metrics), place, sharey=shared)
            _draw_differences(axes, of_set, metric)
            if shared is None:
                axes.set_yticks(range(len(of_set)), [_shown(name) for name in of_set])
                axes.set_ylim(len(of_set) - 0.5, -0.5)
                shared = axes
            else:
                axes.tick_params(labelleft=False)
        return _svg(figure)


def _draw_differences(axes: "Axes", of_set: Mapping[str, Mapping[str, Difference]], metric: str) -> None:
    axes.axvline(0, color="#80868b", linewidth=0.9)
    for row, several in enumerate(of_set.values()):
        if (one := several.get(metric)) is None:
            continue
        unclear = one.low <= 0 <= one.high
        color = "#80868b" if unclear else "#186e3a" if one.value > 0 else "#b3261e"
        axes.plot([100 * one.low, 100 * one.high], [row, row], color=color, linewidth=1.8)
        axes.plot([100 * one.value], [row], "o", color=color, markersize=4.5)
    axes.set(title=" ".join(METRICS[metric]), xlabel="percent points")
    axes.margins(x=0.08)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -1), max(high, 1))  # what is far below a percent point shall not look large
    axes.locator_params(axis="x", nbins=5)


def _shown(name: str) -> str:
    """Return a name as matplotlib can draw it: valid text, on one line, not hidden by an underscore before it."""
    text = name.encode(errors="backslashreplace").decode()
    text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return f" {text}" if text.startswith("_") else text


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: "Figure") -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
