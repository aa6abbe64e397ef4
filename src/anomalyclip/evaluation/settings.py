"""`EvaluationSettings`: all options of an evaluation except the model and the data sets."""

from dataclasses import dataclass
from pathlib import Path

from anomalyclip.settings import Settings, option

_DATA, _RESULTS = "Data", "Results"

PROTOCOLS = ("paper", "exact")
"""Which metrics a table shows; see `anomalyclip.evaluation.tables`."""

FORMATS = ("json", "csv", "md", "html", "latex")
"""Formats of the results; ``html`` is the report."""

DEFAULT_FORMATS = ("json", "csv", "md", "html")


@dataclass(frozen=True)
class EvaluationSettings(Settings):
    """Options of an evaluation.

    Attributes
    ----------
    dataset : str or sequence of str, optional
        Key of each data set in the catalogue, in the order of the data. None: recognised.
    allow_outside : bool
        Follow links and paths that leave a data set's folder.
    maps : path, optional
        Evaluate the maps in this folder, as ``predict --save map`` writes them, instead of a detector.
    protocol : {"paper", "exact"}
        Which metrics the tables show.
    compare : bool
        Show the paper's figures next to the results.
    controls : bool
        Also evaluate two scorers that know nothing about defects, for comparison.
    formats : sequence of str
        Some of `FORMATS`.
    save : sequence of {"map"}
        Files to save for each image in addition to its score: its map (float32 ``.npy``).
    memory : float
        Megabytes for sorting the pixels of a class; does not change the results.
    batch_size : int
        Images per batch.

    Examples
    --------
    >>> EvaluationSettings(dataset="mvtec", formats=["json"])
    EvaluationSettings(dataset=('mvtec',), ... formats=('json',), save=(), memory=32, batch_size=1)
    """

    dataset: tuple[str, ...] | None = option(
        None,
        "Key of each data set, in the order of ROOTS (see: anomalyclip datasets). Default: detected from the layout.",
        group=_DATA,
    )
    allow_outside: bool = option(False, "Follow links that leave a root.", group=_DATA)
    maps: Path | None = option(
        None,
        "Evaluate the maps in this folder (as `predict --save map` writes them) instead of a model.",
        group=_DATA,
        flag="--from-maps",
        file_okay=False,
    )
    protocol: str = option(
        "paper",
        "paper: its four metrics, then others; exact: without the published AUPRO.",
        choices=PROTOCOLS,
    )
    compare: bool = option(False, "Show the paper's figures and the differences next to ours.")
    controls: bool = option(False, "Also evaluate two trivial scorers as a baseline to beat.")
    formats: tuple[str, ...] = option(
        DEFAULT_FORMATS,
        "Format of the results; repeat for several.",
        group=_RESULTS,
        flag="--format",
        choices=FORMATS,
    )
    save: tuple[str, ...] = option(
        (), "Also save: map (float32 .npy), for --from-maps.", group=_RESULTS, choices=("map",)
    )
    memory: float = option(
        32,
        "Megabytes for sorting the pixels of a class; does not change the results.",
        flag="--max-memory",
        minimum=4,
    )
    batch_size: int = option(1, "Images per batch.", minimum=1)
