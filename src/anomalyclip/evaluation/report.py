"""``report.html``: a report of an evaluation, in one file that needs no network."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from anomalyclip.evaluation import plots
from anomalyclip.evaluation.html import (
    anchor,
    counted,
    facts,
    figure,
    links,
    listed,
    notes,
    picture,
    write_page,
)
from anomalyclip.evaluation.results import METRICS, PAPER, Case, ClassResult, DatasetResult
from anomalyclip.evaluation.summary import Evaluation
from anomalyclip.evaluation.tables import SOURCE, Column, Row, Table

_PANELS = ("image", "truth", "map", "overlay")


def write_report(evaluation: Evaluation, folder: Path) -> bool:
    """Write ``report.html``, with the pictures of best and worst cases from the data sets' folders in `folder`.

    Parameters
    ----------
    evaluation : Evaluation
        The results.
    folder : Path
        The folder of the results.

    Returns
    -------
    bool
        Whether the report has curves and histograms, which need matplotlib.

    Raises
    ------
    AnomalyCLIPError
        The report cannot be written.
    """
    drawn = plots.available()
    names = [result.key for result in evaluation.results]
    write_page(
        folder,
        f"Anomaly detection on {listed(names)}",
        _subtitle(evaluation),
        links(names),
        [
            _cards(evaluation),
            notes(evaluation.notes),
            *(_table(table) for table in evaluation.tables[:1]),
            _controls(evaluation),
            *(_data_set(evaluation, result, folder, drawn=drawn) for result in evaluation.results),
            _facts(evaluation),
        ],
    )
    return drawn


def _subtitle(evaluation: Evaluation) -> str:
    who = str(evaluation.about.get("title", "Unnamed scores"))
    return f"{who[:1].upper()}{who[1:]}. {counted(evaluation.results)}"


def _cards(evaluation: Evaluation) -> str:
    """Return the four metrics of the paper in large type: for the data set, or the mean over several."""
    last = next(row for row in evaluation.tables[0].rows if row.summary)
    cards = []
    for metric in PAPER:
        level, name = METRICS[metric]
        beside = (
            f" · paper {100 * value:.1f}" if evaluation.compare and (value := last.paper.get(metric)) else ""
        )
        what = f"{level} {name}{beside}"
        cards.append(f'<div class="card"><b>{Column(metric).text(last)}</b><span>{escape(what)}</span></div>')
    return f'<div class="cards">{"".join(cards)}</div>'


def _table(table: Table) -> str:
    say = "In percent. AUPRO as published, up to 30 % false positives. A dash means that the metric does not apply."
    if table.compare:
        say += f" Paper: {SOURCE}."
    return (
        f'<section><h2>{escape(table.title)}</h2><p class="say">{escape(say)}</p>'
        f'<div class="scroll"><table>{_head(table)}<tbody>{"".join(_row(table, row) for row in table.rows)}</tbody>'
        "</table></div></section>"
    )


def _head(table: Table) -> str:
    columns = table.columns()
    levels = [
        f'<th class="level gap" colspan="{len(list(group))}">{level}</th>'
        for level, group in _levels(columns)
    ]
    firsts = _firsts(columns)
    heads = [METRICS[column.metric][1] if column.source == "ours" else column.head for column in columns]
    names = [f"<th{_gap(index in firsts)}>{escape(head)}</th>" for index, head in enumerate(heads)]
    return (
        f"<thead><tr><th></th><th></th><th></th>{''.join(levels)}</tr>"
        f"<tr><th>{escape(table.first)}</th><th>normal</th><th>anomalous</th>{''.join(names)}</tr></thead>"
    )


def _levels(columns: Sequence[Column]) -> Iterable[tuple[str, Iterable[Column]]]:
    return groupby(columns, key=lambda column: METRICS[column.metric][0])


def _firsts(columns: Sequence[Column]) -> set[int]:
    """Return the positions at which a group of columns of one level starts."""
    firsts, place = set(), 0
    for _, group in _levels(columns):
        firsts.add(place)
        place += len(list(group))
    return firsts


def _gap(wide: bool) -> str:
    return ' class="gap"' if wide else ""


def _row(table: Table, row: Row) -> str:
    kind = "control" if row.label.startswith("control: ") else "mean" if row.summary else ""
    columns = table.columns()
    firsts = _firsts(columns)
    cells = []
    for index, column in enumerate(columns):
        classes = ["gap"] if index in firsts else []
        if column.source == "paper":
            classes.append("paper")
        if column.source == "difference" and (value := column.value(row)) is not None and abs(value) >= 0.05:
            classes.append("up" if value > 0 else "down")
        cells.append(f'<td class="{" ".join(classes)}">{column.text(row)}</td>')
    return (
        f'<tr class="{kind}"><td>{escape(row.label)}</td><td class="count">{row.normal}</td>'
        f'<td class="count">{row.anomalous}</td>{"".join(cells)}</tr>'
    )


def _controls(evaluation: Evaluation) -> str:
    if not evaluation.controls:
        return ""
    what = (
        "Two scorers that know nothing about defects were evaluated in the same way: for “centre”, pixels near the "
        "middle of the image are anomalous; for “contrast”, pixels that differ in brightness from their surroundings."
    )
    lost = evaluation.not_beaten()
    if not lost:
        return f'<section><h2>Controls</h2><p class="say">{what} The model beats both on every metric.</p></section>'
    items = "".join(f"<li>{escape(words)}</li>" for words in lost)
    return (
        f'<section class="notes"><h2>The model does not beat a control</h2><p class="say">{what} A model that does not '
        f"beat them has proved nothing on that metric:</p><ul>{items}</ul></section>"
    )


def _data_set(evaluation: Evaluation, result: DatasetResult, folder: Path, *, drawn: bool) -> str:
    parts = []
    if len(evaluation.results) > 1:
        parts += [_table(table) for table in evaluation.tables[1:] if table.title == result.key]
    parts.append(_verdicts(evaluation, result))
    if drawn:
        score = None if evaluation.threshold is None else evaluation.threshold.score
        parts.append(figure(f"Curves: {result.key}", plots.draw_curves(result.classes)))
        parts.append(figure(f"Image scores: {result.key}", plots.draw_histograms(result.classes, score)))
    else:
        parts.append(
            '<section><h2>No curves</h2><p class="say">Curves and histograms need matplotlib, which is not '
            "installed: pip install 'anomalyclip[report]'</p></section>"
        )
    parts.append(_cases(result, folder))
    return f'<div id="{escape(anchor(result.key))}">{"".join(parts)}</div>'


def _verdicts(evaluation: Evaluation, result: DatasetResult) -> str:
    """Return the verdicts at the threshold, per class."""
    limit = None if evaluation.threshold is None else evaluation.threshold.score
    if limit is None:
        return ""
    rows = []
    for name, entries in [
        *((entry.name, [entry]) for entry in result.classes),
        ("all", list(result.classes)),
    ]:
        cells = [_share(entries, limit, anomaly=anomaly) for anomaly in (False, True)]
        kind = ' class="mean"' if name == "all" else ""
        rows.append(f"<tr{kind}><td>{escape(name)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return (
        f"<section><h2>Verdicts at the threshold: {escape(result.key)}</h2>"
        f'<p class="say">Images with a score of {limit:.4g} or more are classified as anomalous.</p>'
        '<div class="scroll"><table><thead><tr><th>class</th><th>false alarms among normal images</th>'
        "<th>detected anomalous images</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _share(entries: Sequence[ClassResult], limit: float, *, anomaly: bool) -> str:
    scores = [image.score for entry in entries for image in entry.images if image.anomaly == anomaly]
    if not scores:
        return "–"
    above = sum(score >= limit for score in scores)
    return f"{above} of {len(scores)} ({100 * above / len(scores):.1f} %)"


def _cases(result: DatasetResult, folder: Path) -> str:
    groups = []
    for entry in result.classes:
        if entry.cases:
            drawn = "".join(_case(case, folder / result.key) for case in entry.cases)
            low, high = entry.cases[0].scale
            scale = f'<span class="scale">map values from {low:.3g} (black) to {high:.3g} (yellow)</span>'
            groups.append(f'<h3>{escape(entry.name)} {scale}</h3><div class="case-class">{drawn}</div>')
    if not groups:
        return ""
    say = (
        "For each class: the anomalous images with the highest and the lowest scores, and the normal images with the "
        "highest scores. In all pictures of a class, the same colour stands for the same map value."
    )
    title = f"Best and worst cases: {escape(result.key)}"
    return f'<section><h2>{title}</h2><p class="say">{say}</p>{"".join(groups)}</section>'


def _case(case: Case, folder: Path) -> str:
    pictures = "".join(
        f"<figure>{picture(folder, case.pictures.get(panel), panel)}<figcaption>{panel}</figcaption></figure>"
        for panel in _PANELS
    )
    tag = case.kind.replace(" ", "-")
    return (
        f'<div class="case"><p><span class="tag {tag}">{escape(case.kind)}</span>'
        f'<span class="file" title="{escape(case.image)}">{escape(case.image)}</span><b>{case.score:.3f}</b></p>'
        f'<div class="pictures">{pictures}</div>{_beside(case, folder)}</div>'
    )


def _beside(case: Case, folder: Path) -> str:
    """Return the strangest place of an image beside the place of a reference that is most like it."""
    if case.reference is None:
        return ""
    drawn = picture(folder, case.pictures.get("beside"), "beside")
    say = (
        f"Its strangest place, and the place of the references that is most like it: {escape(case.reference)}"
    )
    return f'<div class="beside">{drawn}<p>{say}</p></div>'


def _facts(evaluation: Evaluation) -> str:
    about = evaluation.about
    seconds = about.get("seconds", {})
    images = sum(len(entry.images) for result in evaluation.results for entry in result.classes)
    run = {
        "images": images,
        "scoring": f"{seconds.get('encode', 0.0):.1f} s",
        "metrics": f"{seconds.get('metrics', 0.0):.1f} s, in parallel with scoring the next class",
        "peak memory": f"{about.get('peak_memory_mb')} MB",
    }
    threshold = evaluation.threshold
    limits = (
        {} if threshold is None else {"score": threshold.score, "pixel": threshold.pixel, **threshold.info}
    )
    groups: list[tuple[str, Mapping[str, Any]]] = [
        ("Model", about.get("model", {"maps": about.get("maps")})),
        ("Identity", {**about.get("identity", {}), "protocol": evaluation.protocol}),
        *((f"Data: {entry['dataset']}", entry) for entry in about.get("data", [])),
        ("Threshold", limits),
        ("This run", run),
        ("Versions", about.get("versions", {})),
    ]
    return facts("Settings, versions, hashes, time and memory", groups)
