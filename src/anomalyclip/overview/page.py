"""``index.html``: a run of predictions to look at, in one file that needs no network."""

import base64
import io
import os
from collections.abc import Iterator
from html import escape
from importlib.resources import files
from pathlib import Path, PurePath
from string import Template
from typing import Any
from urllib.parse import quote

from PIL import Image

from anomalyclip.addresses import Address, beginning, exists
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import parse_json, replacing, writing
from anomalyclip.overview.histogram import histogram
from anomalyclip.overview.summary import Entry, Summary, moment
from anomalyclip.overview.thumbnails import beside_path_of, path_of
from anomalyclip.runs import SETTINGS

PAGE = "index.html"

_BESIDE = 100
"""Images that are shown beside the reference that they were compared with, if there is one."""

_TEMPLATE = "page.html"
_MARK = b'<meta name="generator" content="anomalyclip predict">'


def write_page(folder: Path, summary: Summary) -> None:
    """Write ``index.html``: counts, a histogram, and the most anomalous images with their overlays.

    Parameters
    ----------
    folder : Path
        Of the run: its thumbnails, and what ``settings.json`` says of the model and the threshold.
    summary : Summary
        What its lines say.

    Raises
    ------
    AnomalyCLIPError
        It cannot be written.
    """
    page = Template((files(__package__) / _TEMPLATE).read_text("utf-8"))
    about = _about(folder)
    head, _, tail = page.substitute(
        title=_text(_title(summary, folder)),
        about="\n".join(f"<p>{_text(line)}</p>" for line in _lines(summary, about)),
        counts=_counts(summary),
        remarks="".join(f'<p class="warn">{_text(remark)}</p>' for remark in summary.remarks()),
        histogram=histogram(summary),
        errors=_errors(summary),
        verdicts=_VERDICTS if summary.threshold is not None else "",
        cards="\0",
        footer=_text(_footer(summary)),
    ).partition("\0")
    with (
        writing(folder / PAGE),
        replacing(folder / PAGE) as temporary,
        open(temporary, "w", encoding="utf-8", errors="replace", newline="\n") as file,
    ):
        file.write(head)
        file.writelines(_cards(folder, summary))
        file.write(tail)


def check_page(folder: Path, *, overwrite: bool = False) -> None:
    """Refuse a folder with an ``index.html`` that is not of a run; with `overwrite` the page of a run is deleted.

    Raises
    ------
    AnomalyCLIPError
        There is one, and it would be lost.
    """
    path = folder / PAGE
    if not path.is_file():
        return
    with writing(path):
        with path.open("rb") as file:
            mine = _MARK in file.read(1024)
        if not mine:
            raise AnomalyCLIPError(f"{path} {_FOREIGN}")
        if overwrite:
            path.unlink()


def check_remote_page(folder: Address) -> None:
    """Refuse an address with an ``index.html`` that is not of a run.

    Raises
    ------
    AnomalyCLIPError
        There is one, and it would be lost.
    """
    path = folder.below(PAGE)
    if exists(path) and _MARK not in beginning(path, 1024):
        raise AnomalyCLIPError(f"{path} {_FOREIGN}")


_FOREIGN = "is not from `anomalyclip predict` and would be lost: choose another folder"

_VERDICTS = (
    '<label>Verdict <select id="verdict"><option value="">all</option><option value="a">anomalous</option>'
    '<option value="n">normal</option></select></label>'
)


def _about(folder: Path) -> dict[str, Any]:
    try:
        return dict(parse_json((folder / SETTINGS).read_bytes()).get("about") or {})
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _text(text: str) -> str:
    """Return a text for HTML; control characters, of names for example, are replaced."""
    return escape("".join(char if char.isprintable() or char == "\n" else "�" for char in text))


def _title(summary: Summary, folder: Path) -> str:
    parts = PurePath(summary.folder or folder.name).parts[-2:]
    return f"Predictions for {'/'.join(part for part in parts if part != os.sep) or 'images'}"


def _lines(summary: Summary, about: dict[str, Any]) -> Iterator[str]:
    if summary.folder:
        yield f"Images in {summary.folder}"
    if isinstance(model := about.get("model"), str):
        yield f"Model: {model}"
    if summary.threshold is None and summary.pixel_threshold is None:
        yield "Without a threshold there are no verdicts: scores rank the images."
        return
    limits = [
        f"{value:.4f} for {what}"
        for value, what in ((summary.threshold, "images"), (summary.pixel_threshold, "pixels"))
        if value is not None
    ]
    origin = about.get("threshold")
    made = f" ({origin})" if isinstance(origin, str) else ""
    yield f"Threshold: {' and '.join(limits)}{made}"


def _counts(summary: Summary) -> str:
    counts = [("", summary.scored, "scored")]
    if summary.threshold is not None:
        counts += [
            ("bad", summary.anomalous, "anomalous"),
            ("good", summary.scored - summary.anomalous, "normal"),
        ]
    if summary.failed:
        counts.append(("", summary.failed, "failed"))
    return "".join(
        f'<div><b class="{kind}">{number:,}</b><span>{what}</span></div>' for kind, number, what in counts
    )


def _errors(summary: Summary) -> str:
    if not summary.failed:
        return ""
    items = "".join(f"<li>{_text(reason)}</li>" for _, reason in summary.errors)
    more = summary.failed - len(summary.errors)
    rest = f"<p>... and {more:,} more in errors.jsonl</p>" if more else ""
    what = "image could" if summary.failed == 1 else "images could"
    return (
        f'<details class="errors"{" open" if summary.failed <= 5 else ""}><summary>{summary.failed:,} {what} not be '
        f"used</summary><ul>{items}</ul>{rest}</details>"
    )


def _footer(summary: Summary) -> str:
    if len(summary.top) < summary.scored:
        which = f"This page shows the {len(summary.top):,} most anomalous of {summary.scored:,} images"
    else:
        which = (
            f"This page shows all {summary.scored:,} images"
            if summary.scored != 1
            else "This page shows 1 image"
        )
    return f"{which}. All scores are in predictions.jsonl. Made by anomalyclip predict."


def _cards(folder: Path, summary: Summary) -> Iterator[str]:
    for number, entry in enumerate(summary.top):
        verdict = {None: "", True: ' data-v="a"', False: ' data-v="n"'}[entry.label]
        path = PurePath(entry.image_path)
        inside = _inside(entry.image_path, summary.folder)
        yield (
            f'<li title="{_text(entry.image_path)}"{verdict}>{_open(entry)}'
            f'<span class="pic">{_picture(folder, entry)}</span><span class="words">'
            f"<span><b>{entry.score:.4f}</b>{_verdict(entry)}</span><bdi>{_text(path.name)}</bdi>"
            f'<bdi class="in">{_text(inside)}</bdi>{_moment(entry)}</span>'
            f"{_beside(folder, entry) if number < _BESIDE else ''}{'</a>' if entry.heatmap else '</span>'}</li>\n"
        )


def _open(entry: Entry) -> str:
    if entry.heatmap:
        return f'<a class="card" href="{quote(os.fsencode(entry.heatmap))}">'
    return '<span class="card" tabindex="0">'


def _verdict(entry: Entry) -> str:
    if entry.label is None:
        return ""
    return '<span class="bad">anomalous</span>' if entry.label else '<span class="good">normal</span>'


def _moment(entry: Entry) -> str:
    return "" if entry.time is None else f'<bdi class="in">at {moment(entry.time)}</bdi>'


def _inside(path: str, folder: str | None) -> str:
    """Return the folder of an image below the folder that all have in common."""
    inside = os.path.dirname(path)
    return inside.removeprefix(folder).lstrip("/\\") if folder else inside


def _beside(folder: Path, entry: Entry) -> str:
    """Return the strangest place of an image beside the place of a reference that is most like it."""
    try:
        content = beside_path_of(folder, entry.image_path).read_bytes()
    except OSError:  # it was not compared with references, or they have no pictures
        return ""
    name = _text(entry.reference or "")
    return (
        f'<span class="near"><img loading="lazy" decoding="async" alt="" src="{_data(content)}">'
        f'<span>this image</span><span title="{name}">nearest normal<bdi>{name}</bdi></span></span>'
    )


def _data(content: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"


def _picture(folder: Path, entry: Entry) -> str:
    path = path_of(folder, entry.image_path)
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as thumbnail:
            width, height = thumbnail.width // 2, thumbnail.height
    except (OSError, ValueError):  # none could be drawn, or somebody changed it
        return "no picture"
    share = width / max(width, height)
    return (
        f'<img loading="lazy" decoding="async" alt="" style="--share:{share:.3f};aspect-ratio:{width}/{height}" '
        f'src="{_data(content)}">'
    )
