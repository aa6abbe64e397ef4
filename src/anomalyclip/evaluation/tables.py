"""Results as tables in the paper's layout: one row per class and then the mean, or one row per data set.

The paper's metrics come first (image AUROC and AP, pixel AUROC and AUPRO as published), in percent; a dash means that
a metric does not apply.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from anomalyclip.data.catalog import catalog
from anomalyclip.evaluation.results import EXTRA, METRICS, PAPER, DatasetResult, Metrics, mean_metrics

SOURCE = "AnomalyCLIP (ICLR 2024), tables 1 and 2; by class: the authors' own log"
"""Source of the figures in the columns "paper"."""

PROTOCOLS = {
    "paper": (*PAPER, *EXTRA),
    "exact": tuple(metric for metric in METRICS if metric != "pixel_aupro"),
}
"""Columns of a table: the paper's metrics and further ones, or all metrics except the published AUPRO."""

DASH = "–"


def signed(value: float, digits: int) -> str:
    """Return a difference with its sign; what is rounded to zero has none.

    Examples
    --------
    >>> signed(0.31, 1), signed(-0.31, 1), signed(-0.04, 1)
    ('+0.3', '-0.3', '0.0')
    """
    text = f"{value:+.{digits}f}"
    return text if text.strip("+-0.") else text[1:]


@dataclass(frozen=True)
class Row:
    """One row of a table: label, numbers of images, our metrics and the paper's, in [0, 1]."""

    label: str
    normal: int
    anomalous: int
    metrics: Mapping[str, float | None]
    paper: Mapping[str, float | None] = field(default_factory=dict)
    summary: bool = False


@dataclass(frozen=True)
class Column:
    """One column: "ours" (a metric), "paper" (the published figure) or "difference" (ours minus the paper's)."""

    metric: str
    source: str = "ours"

    @property
    def head(self) -> str:
        """Level and name for our metrics, otherwise "paper" or "diff."."""
        level, name = METRICS[self.metric]
        return {"ours": f"{level} {name}", "paper": "paper", "difference": "diff."}[self.source]

    def value(self, row: Row) -> float | None:
        """Return the percentage for a row; None if there is no value."""
        ours, paper = row.metrics.get(self.metric), row.paper.get(self.metric)
        if self.source == "difference":
            return None if ours is None or paper is None else 100 * (ours - paper)
        found = ours if self.source == "ours" else paper
        return None if found is None else 100 * found

    def text(self, row: Row) -> str:
        """Return the text of the cell."""
        value = self.value(row)
        if value is None:
            return DASH
        return signed(value, 1) if self.source == "difference" else f"{value:.1f}"


@dataclass(frozen=True)
class Table:
    """Rows under a title."""

    title: str
    first: str
    rows: tuple[Row, ...]
    protocol: str = "paper"
    compare: bool = False

    def columns(self, *, short: bool = False) -> list[Column]:
        """Return the columns; in a comparison, the short form has only the paper's metrics."""
        if not self.compare:
            return [Column(metric) for metric in PROTOCOLS[self.protocol]]
        compared = [Column(metric, source) for metric in PAPER for source in ("ours", "paper", "difference")]
        return compared if short else [*compared, *map(Column, EXTRA)]


def tables(
    results: Sequence[DatasetResult],
    controls: Sequence[DatasetResult] = (),
    *,
    protocol: str = "paper",
    compare: bool = False,
    method: str = "anomalyclip",
) -> list[Table]:
    """Return one table of a data set's classes; for several data sets, a summary and then one table for each.

    Parameters
    ----------
    results : sequence of DatasetResult
        Results of the model.
    controls : sequence of DatasetResult
        Results of the controls, on any of these data sets.
    protocol : {"paper", "exact"}
        Which metrics are shown; see `PROTOCOLS`.
    compare : bool
        Show the paper's figures next to ours, with either protocol.
    method : str
        Whose figures of the paper.
    """
    paper = paper_method(method) if compare else ""
    by_class = [
        Table(
            result.key,
            "class",
            (
                *_class_rows(result, paper),
                *_mean_rows([result, *(c for c in controls if c.key == result.key)], paper),
            ),
            protocol,
            compare,
        )
        for result in results
    ]
    if len(results) < 2:
        return by_class
    rows = [row for result in results for row in _dataset_rows(result, paper)]
    rows.append(
        Row("mean", *_sums(results), mean_metrics(row.metrics for row in rows), _mean_paper(rows), True)
    )
    for name in dict.fromkeys(control.scorer for control in controls):
        own = [control for control in controls if control.scorer == name]
        rows.append(
            Row(f"control: {name}", *_sums(own), mean_metrics(control.mean for control in own), {}, True)
        )
    return [Table(f"{len(results)} data sets", "data set", tuple(rows), protocol, compare), *by_class]


def _class_rows(result: DatasetResult, paper: str) -> list[Row]:
    return [
        Row(
            entry.name,
            entry.normal,
            entry.anomalous,
            entry.metrics,
            paper_class(result.key, entry.name) if paper == "AnomalyCLIP" else {},
        )
        for entry in result.classes
    ]


def _mean_rows(results: Sequence[DatasetResult], paper: str) -> list[Row]:
    return [
        Row(
            "mean" if result.scorer == "model" else f"control: {result.scorer}",
            *_sums([result]),
            result.mean,
            paper_of(result, paper) if result.scorer == "model" else {},
            True,
        )
        for result in results
    ]


def _dataset_rows(result: DatasetResult, paper: str) -> list[Row]:
    return [Row(result.key, *_sums([result]), result.mean, paper_of(result, paper))]


def _sums(results: Sequence[DatasetResult]) -> tuple[int, int]:
    classes = [entry for result in results for entry in result.classes]
    return sum(entry.normal for entry in classes), sum(entry.anomalous for entry in classes)


def _mean_paper(rows: Sequence[Row]) -> Metrics:
    """Return the paper's means over the same data sets, for metrics that it reports for all of them."""
    mean = mean_metrics(row.paper for row in rows)
    complete = {
        metric: all(row.paper.get(metric) is not None for row in rows if row.metrics.get(metric) is not None)
        for metric in PAPER
    }
    return {metric: mean[metric] if complete[metric] else None for metric in PAPER}


def not_the_papers(result: DatasetResult) -> str | None:
    """Return which classes are missing or unknown compared with the paper's means; None if they are the same."""
    if result.key not in catalog():
        return None
    scored = (entry.name for entry in result.classes if entry.images)
    missing, unknown = catalog()[result.key].class_differences(scored)
    parts = [
        f"{what} {', '.join(names)}" for what, names in (("missing", missing), ("unknown", unknown)) if names
    ]
    return "; ".join(parts) or None


def paper_of(result: DatasetResult, method: str) -> Metrics:
    """Return the paper's means of a method, if ours are over the same classes; `method` as the paper calls it."""
    return {} if not method or not_the_papers(result) else paper_mean(result.key, method)


PAPER_METHODS = {
    "anomalyclip": "AnomalyCLIP",
    "clip": "CLIP",
    "clip-ac": "CLIP-AC",
    "winclip": "WinCLIP",
    "april-gan": "VAND",
    "coop": "CoOp",
}
"""What the paper calls our methods; APRIL-GAN won the VAND challenge."""


def paper_method(method: str) -> str:
    """Return what the paper calls a method; empty if it has no figures of it."""
    return PAPER_METHODS.get(method, "")


def paper_mean(key: str, method: str = "AnomalyCLIP") -> Metrics:
    """Return the paper's figures of a method for a data set, within [0, 1]; empty if it has none.

    Examples
    --------
    >>> paper_mean("mvtec")["pixel_aupro"], paper_mean("mvtec", "WinCLIP")["image_auroc"]
    (0.814, 0.918)
    """
    if key not in catalog():
        return {}
    figures = catalog()[key].paper
    if not any(level.get(method) for level in figures.values()):
        return {}
    found: Metrics = {}
    for level, names in (("image", PAPER[:2]), ("pixel", PAPER[2:])):
        pair = figures.get(level, {}).get(method)
        for index, name in enumerate(names):
            found[name] = round(pair[index] / 100, 5) if pair else None
    return found


def paper_class(key: str, name: str) -> Metrics:
    """Return the figures of the authors' log for a class, in [0, 1]; empty if there are none."""
    figures = catalog()[key].log.get(name) if key in catalog() else None
    if figures is None:
        return {}
    order = ("pixel_auroc", "pixel_aupro", "image_auroc", "image_ap")
    return {metric: round(value / 100, 5) for metric, value in zip(order, figures, strict=True)}


def to_csv(all_tables: Sequence[Table]) -> str:
    """Return all tables as CSV: metrics in [0, 1], not rounded, empty if they do not apply."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    compare = any(table.compare for table in all_tables)
    paper = [f"paper_{metric}" for metric in PAPER] if compare else []
    writer.writerow(["table", "row", "normal", "anomalous", *METRICS, *paper])
    for table in all_tables:
        for row in table.rows:
            values = [row.metrics.get(metric) for metric in METRICS]
            values += [row.paper.get(metric) for metric in PAPER] if compare else []
            cells = ["" if value is None else repr(float(value)) for value in values]
            writer.writerow([table.title, row.label, row.normal, row.anomalous, *cells])
    return buffer.getvalue()


def to_markdown(all_tables: Sequence[Table]) -> str:
    """Return all tables in Markdown, in percent.

    Examples
    --------
    >>> row = Row("nut", 3, 4, {"image_auroc": 0.915})
    >>> print(to_markdown([Table("mine", "class", (row,))]).splitlines()[4][:40])
    | nut | 3 | 4 | 91.5 | – | – | – | – | –
    """
    parts = []
    for table in all_tables:
        columns = table.columns()
        heads = [table.first, "normal", "anomalous", *(column.head for column in columns)]
        lines = [f"## {table.title}", "", _pipes(heads), _pipes(["---", *["---:"] * (len(heads) - 1)])]
        for row in table.rows:
            cells = [
                row.label,
                str(row.normal),
                str(row.anomalous),
                *(column.text(row) for column in columns),
            ]
            lines.append(_pipes([f"**{cell}**" if row.summary and cell != DASH else cell for cell in cells]))
        parts.append("\n".join(lines))
    note = f"\n\nPaper: {SOURCE}." if any(table.compare for table in all_tables) else ""
    return "\n\n".join(parts) + f"\n\nPercent. AUPRO as published, up to 30 % false positives.{note}\n"


def _pipes(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def to_latex(all_tables: Sequence[Table]) -> str:
    """Return all tables in LaTeX (package booktabs), in percent."""
    return "\n\n".join(map(_latex, all_tables)) + "\n"


def _latex(table: Table) -> str:
    columns = table.columns()
    lines = [
        f"% {table.title}",
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        " & ".join([table.first, *(column.head for column in columns)]) + r" \\",
        r"\midrule",
    ]
    ruled = False
    for row in table.rows:
        if row.summary and not ruled:
            lines.append(r"\midrule")
            ruled = True
        cells = [column.text(row).replace(DASH, "--") for column in columns]
        lines.append(" & ".join([_escaped(row.label), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    line = " ".join(text.split())
    return "".join(special.get(char, f"\\{char}" if char in "&%$#_{}" else char) for char in line)
