"""``report.html`` of a comparison: tables, differences with their intervals, cost, and maps side by side."""

from collections.abc import Iterator, Mapping
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from anomalyclip.evaluation import plots
from anomalyclip.evaluation.differences import COMPARED
from anomalyclip.evaluation.disagreements import Disagreement
from anomalyclip.evaluation.html import (
    anchor,
    counted,
    drawing,
    facts,
    links,
    listed,
    notes,
    picture,
    write_page,
)
from anomalyclip.evaluation.results import METRICS
from anomalyclip.evaluation.standings import (
    SHOWN,
    Comparison,
    Line,
    Standing,
    milliseconds,
    percent,
    spelled_out,
)
from anomalyclip.evaluation.tables import DASH, SOURCE
from anomalyclip.metrics.paired import Difference

_HOW = (
    "Metric minus that of {reference}, in percent points, with the middle 95 % of differences when the images are "
    "resampled (within each class and label, the same draws for all methods). p: DeLong’s paired test of the image "
    "AUROC, not corrected for the number of methods. An interval that contains 0 shows no difference."
)

_LONGEST = 28
"""Characters of a cell in the table of costs."""


def write_comparison(found: Comparison, folder: Path) -> bool:
    """Write ``report.html``; pictures are taken from the data sets' folders below.

    Parameters
    ----------
    found : Comparison
    folder : Path
        Where its results are.

    Returns
    -------
    bool
        Whether it has the chart of differences: it needs matplotlib.

    Raises
    ------
    AnomalyCLIPError
        It cannot be written.
    """
    drawn = plots.available()
    keys = list(found.results)
    first, *others = found.standings
    write_page(
        folder,
        f"Comparison on {listed(keys)}",
        _subtitle(found),
        links(keys),
        [
            notes(found.notes),
            _standing(found, first, drawn=drawn),
            _cost(found),
            *(
                f'<div id="{escape(anchor(one.title))}">{_standing(found, one, drawn=False)}</div>'
                for one in others
            ),
            *(_disagreements(found, key, folder) for key in keys),
            _facts(found),
        ],
    )
    return drawn


def _subtitle(found: Comparison) -> str:
    results = [next(iter(of_set.values())) for of_set in found.results.values()]
    return f"{len(found.names)} methods on {counted(results)} The reference is {found.reference}."


def _standing(found: Comparison, one: Standing, *, drawn: bool) -> str:
    return _table(found, one) + _differences(found, one.title, drawn=drawn)


def _table(found: Comparison, one: Standing) -> str:
    say = (
        f"{one.normal} normal and {one.anomalous} anomalous images. Percent, the best of a column in bold. AUPRO is "
        "the published one, up to 30 % false positives; a dash: the metric does not apply."
    )
    if found.paper:
        say += f" Small: the paper’s figure of that method ({SOURCE})."
    levels = [
        f'<th class="level gap" colspan="{len(list(group))}">{level}</th>'
        for level, group in groupby(SHOWN, key=lambda metric: METRICS[metric][0])
    ]
    heads = "".join(f"<th{_gap(metric)}>{escape(METRICS[metric][1])}</th>" for metric in SHOWN)
    rows = "".join(_row(one, line) for line in one.lines)
    return (
        f'<section><h2>{escape(one.title)}</h2><p class="say">{escape(say)}</p><div class="scroll"><table><thead>'
        f"<tr><th></th>{''.join(levels)}</tr><tr><th>method</th>{heads}</tr></thead><tbody>{rows}</tbody></table>"
        "</div></section>"
    )


def _gap(metric: str) -> str:
    place = SHOWN.index(metric)
    return ' class="gap"' if place == 0 or METRICS[SHOWN[place - 1]][0] != METRICS[metric][0] else ""


def _row(one: Standing, line: Line) -> str:
    cells = []
    for metric in SHOWN:
        value = line.metrics.get(metric)
        text = percent(value)
        if value is not None and round(100 * value, 1) == one.best(metric):
            text = f"<b>{text}</b>"
        if (known := line.paper.get(metric)) is not None:
            text += f' <span class="paper">{percent(known)}</span>'
        cells.append(f"<td{_gap(metric)}>{text}</td>")
    return f"<tr><td>{escape(line.name)}</td>{''.join(cells)}</tr>"


def _differences(found: Comparison, title: str, *, drawn: bool) -> str:
    of_set = found.differences_of(title)
    if not of_set:
        return ""
    heads = "".join(f"<th>{' '.join(METRICS[metric])}</th>" for metric in COMPARED)
    rows = []
    for name, several in of_set.items():
        cells = []
        for metric in COMPARED:
            one = several.get(metric)
            clear = "" if one is None or one.low <= 0 <= one.high else "up" if one.value > 0 else "down"
            cells.append(f'<td class="{clear}">{escape(spelled_out(one))}</td>')
        rows.append(f"<tr><td>{escape(name)}</td>{''.join(cells)}</tr>")
    return (
        f"<section><h2>Difference from {escape(found.reference)}</h2>"
        f'<p class="say">{escape(_HOW.format(reference=found.reference))}</p><div class="scroll"><table><thead>'
        f"<tr><th>method</th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f"{_chart(of_set) if drawn else ''}</section>"
    )


def _chart(of_set: Mapping[str, Mapping[str, Difference]]) -> str:
    svg = plots.draw_differences(of_set)
    return "" if svg is None else drawing("Differences and their intervals", svg)


def _cost(found: Comparison) -> str:
    heads = ("alone", "shared pass", "own part", "GFLOP", "texts, per class", "shares its pass with")
    rows = []
    for name, cost in found.costs.items():
        operations = DASH if cost.gflop is None else f"{cost.gflop:.3g}"
        others = ", ".join(cost.others) or "none"
        if len(others) > _LONGEST:
            others = f"{len(cost.others)} other{'s' if len(cost.others) > 1 else ''}"
        cells = [
            *(milliseconds(value) for value in (cost.alone, cost.shared, cost.own)),
            operations,
            milliseconds(cost.texts),
            others,
        ]
        rows.append(
            f"<tr><td>{escape(name)}</td>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        )
    say = (
        "Milliseconds per image on this machine. The pass through the backbone is shared by all that need nothing else "
        "of it; alone is what the method would take by itself: its own part, and the pass in proportion to its matrix "
        "products (GFLOP). What several methods compute alike is done once and counted for the first of them. "
        "Decoding and metrics are not counted."
    )
    return (
        f'<section><h2>Cost</h2><p class="say">{escape(say)}</p><div class="scroll"><table><thead><tr><th>method</th>'
        f"{''.join(f'<th>{head}</th>' for head in heads)}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        "</section>"
    )


def _disagreements(found: Comparison, key: str, folder: Path) -> str:
    cases = found.disagreements.get(key, ())
    if not cases:
        return ""
    say = (
        "Of each class the images whose places in the orders of the methods are furthest apart. Below a map: the image "
        "score, and the place of the image in its class, the most anomalous first. Methods with the same map are below "
        "one picture. Colours stand for the same map values in all pictures of one method in a class, but not across "
        "methods."
    )
    drawn = "".join(_case(case, folder / key) for case in cases)
    return (
        f"<section><h2>Where the methods disagree most: {escape(key)}</h2>"
        f'<p class="say">{say}</p>{drawn}</section>'
    )


def _case(case: Disagreement, folder: Path) -> str:
    tag, words = (
        ("faintest-defect", case.defect or "anomalous") if case.anomaly else ("clearest-defect", "normal")
    )
    panels = [_panel(folder, case.pictures.get(panel), {panel: ""}) for panel in ("image", "truth")]
    panels += [_panel(folder, file, said) for file, said in _maps(case)]
    return (
        f'<div class="case wide"><p><span class="tag {tag}">{escape(words)}</span>'
        f'<span class="file" title="{escape(case.image)}">{escape(case.class_name)}: {escape(case.image)}</span></p>'
        f'<div class="pictures many">{"".join(panels)}</div></div>'
    )


def _maps(case: Disagreement) -> Iterator[tuple[str | None, dict[str, str]]]:
    """Yield each map with what its methods say, by name; where none could be drawn, each method is alone."""
    several: dict[str, dict[str, str]] = {}
    for name, one in case.opinions.items():
        said = several.setdefault(one.picture or f"none of {name}", {})
        said[name] = f"{one.score:.3f}, place {one.rank} of {case.of}"
    for said in several.values():
        yield case.opinions[next(iter(said))].picture or None, said


def _panel(folder: Path, file: str | None, said: Mapping[str, str]) -> str:
    """Return a picture, and below it what is said, by name."""
    lines = ("<br>".join(map(escape, filter(None, [name, under]))) for name, under in said.items())
    caption = "".join(f"<span>{line}</span>" for line in lines)
    shown = picture(folder, file, escape(", ".join(said)))
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def _facts(found: Comparison) -> str:
    first, *others = found.contenders
    run = {"peak memory": f"{found.about.get('peak_memory_mb')} MB"}
    groups: list[tuple[str, Mapping[str, Any]]] = [
        (first.name, first.identity),
        *((f"{one.name}: what differs", _differing(first.identity, one.identity)) for one in others),
        *((f"Data: {entry['dataset']}", entry) for entry in found.about.get("data", [])),
        ("This run", run),
        ("Versions", found.about.get("versions", {})),
    ]
    return facts("Settings, versions and hashes", groups)


def _differing(first: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return what in an identity differs from that of the first method."""
    return {name: value for name, value in own.items() if first.get(name) != value or name == "method"}
