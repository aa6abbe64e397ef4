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

COMPARISON_FORMATS = DEFAULT_FORMATS
"""Forms of the results of a comparison."""


@dataclass(frozen=True)
class DataSettings(Settings):
    """How data sets are read and in what memory they are evaluated.

    Attributes
    ----------
    dataset : str or sequence of str, optional
        Key of each data set in the catalogue, in the order of the data. None: recognised.
    allow_outside : bool
        Follow links and paths that leave a data set's folder.
    memory : float
        Megabytes for sorting the pixels of a class; does not change the results.
    batch_size : int
        Images per batch.
    """

    dataset: tuple[str, ...] | None = option(
        None,
        "Key of each data set, in the order of ROOTS (see: anomalyclip datasets). Default: detected from the layout.",
        group=_DATA,
    )
    allow_outside: bool = option(False, "Follow links that leave a root.", group=_DATA)
    memory: float = option(
        32,
        "Megabytes for sorting the pixels of a class; does not change the results.",
        flag="--max-memory",
        minimum=4,
    )
    batch_size: int = option(1, "Images per batch.", minimum=1)


@dataclass(frozen=True)
class EvaluationSettings(DataSettings):
    """How data sets are evaluated.

    Attributes
    ----------
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
        What to keep of each image besides its score: its map (float32 ``.npy``).

    The rest is that of `DataSettings`.

    Examples
    --------
    >>> EvaluationSettings(dataset="mvtec", formats=["json"]).formats
    ('json',)
    """

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


@dataclass(frozen=True)
class ComparisonSettings(DataSettings):
    """How methods are compared.

    Attributes
    ----------
    paper : bool
        Show the paper's figures of each method next to ours.
    formats : sequence of str
        Some of `COMPARISON_FORMATS`.
    draws : int
        Number of bootstrap samples of the images for the intervals.
    seed : int
        Of the bootstrap.

    The rest is that of `DataSettings`.
    """

    paper: bool = option(False, "Show the paper's figures of each method next to ours.")
    formats: tuple[str, ...] = option(
        DEFAULT_FORMATS,
        "Format of the results; repeat for several.",
        group=_RESULTS,
        flag="--format",
        choices=COMPARISON_FORMATS,
    )
    draws: int = option(
        2000, "Number of bootstrap samples for the 95 % intervals.", group=_RESULTS, minimum=100
    )
    seed: int = option(0, "Seed of the bootstrap.", group=_RESULTS, minimum=0)


@dataclass(frozen=True)
class ShotSettings(Settings):
    """How references are drawn.

    Attributes
    ----------
    shots : sequence of int
        Numbers of references; empty: no few-shot evaluation.
    seeds : int
        Number of draws of references.
    """

    shots: tuple[int, ...] = option(
        (),
        "Few-shot: draw this many references from each class's normal training images; repeat for several.",
        group="Few-shot",
        minimum=1,
    )
    seeds: int = option(
        3,
        "Number of draws of references; the table shows their mean and spread.",
        group="Few-shot",
        minimum=1,
    )
