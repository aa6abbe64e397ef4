"""Pages to look at: one file each that needs no network. What the report of an evaluation and of a comparison share."""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from anomalyclip.evaluation.results import DatasetResult
from anomalyclip.files import replacing, writing

NAME = "report.html"


def write_page(folder: Path, title: str, subtitle: str, nav: str, sections: Iterable[str]) -> None:
    """Write the page; empty sections are left out.

    Raises
    ------
    AnomalyCLIPError
        It cannot be written.
    """
    text = Template((files(__package__) / NAME).read_text("utf-8")).substitute(
        title=escape(title),
        subtitle=escape(subtitle),
        nav=nav,
        body="\n".join(section for section in sections if section),
        footer=f"Made by anomalyclip on {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}.",
    )
    with writing(folder / NAME), replacing(folder / NAME) as temporary:
        temporary.write_text(
            text, encoding="utf-8", errors="backslashreplace"
        )  # names need not be valid text


def listed(names: Sequence[str]) -> str:
    """Return names of data sets as a sentence has them."""
    if len(names) > 4:
        return f"{len(names)} data sets"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def counted(results: Iterable[DatasetResult]) -> str:
    """Return what was evaluated, in words: ``"1 class, 20 normal and 63 anomalous images."``."""
    entries = [entry for result in results for entry in result.classes]
    normal, anomalous = sum(entry.normal for entry in entries), sum(entry.anomalous for entry in entries)
    classes = "1 class" if len(entries) == 1 else f"{len(entries)} classes"
    return f"{classes}, {normal} normal and {anomalous} anomalous images."


def links(names: Sequence[str]) -> str:
    """Return links to the parts of several data sets."""
    if len(names) < 2:
        return ""
    found = "".join(f'<a href="#{escape(anchor(name))}">{escape(name)}</a>' for name in names)
    return f'<nav>{found}<a href="#facts">Settings</a></nav>'


def anchor(name: str) -> str:
    """Return the name that links to a data set's part use."""
    return "data-" + "".join(char if char.isalnum() else "-" for char in name)


def notes(several: Sequence[str]) -> str:
    """Return what a reader must know."""
    if not several:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in several)
    return f'<section class="notes"><h2>Notes</h2><ul>{items}</ul></section>'


def figure(title: str, svg: str | None) -> str:
    """Return a drawing under a title."""
    if svg is None:
        return ""
    return f"<section><h2>{escape(title)}</h2>{drawing(title, svg)}</section>"


def drawing(words: str, svg: str) -> str:
    """Return a drawing as part of the page."""
    source = f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
    return f'<div class="scroll"><img class="figure" alt="{escape(words)}" src="{source}"></div>'


def picture(folder: Path, name: str | None, panel: str) -> str:
    """Return a JPEG file of the folder as part of the page."""
    if name is None or not (folder / name).is_file():
        return '<div class="none">–</div>'
    content = base64.b64encode((folder / name).read_bytes()).decode()
    return f'<img alt="{panel}" src="data:image/jpeg;base64,{content}">'


def facts(title: str, groups: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """Return settings by group; empty groups are left out."""
    shown = "".join(f"<div><h3>{escape(name)}</h3>{_list(group)}</div>" for name, group in groups if group)
    return f'<section id="facts"><h2>{escape(title)}</h2><div class="facts">{shown}</div></section>'


def _list(facts: Mapping[str, Any]) -> str:
    rows = []
    for name, value in facts.items():
        if value is None:
            continue
        text = escape(value if isinstance(value, str) else json.dumps(value))
        shown = f"<code>{text}</code>" if name.endswith("sha256") else text
        rows.append(f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{shown}</dd>")
    return f"<dl>{''.join(rows)}</dl>"
