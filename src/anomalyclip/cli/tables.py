"""Tables for people and for pipes: as wide as their content where no terminal limits them."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from anomalyclip.cli.console import out, printable, warn

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from anomalyclip.data.meta import Finding

_NAMED = 10
_PIPE_WIDTH = 10_000


def new_table(*headers: str, right: Sequence[str] = (), gap: int = 2) -> "Table":
    """Return an empty table; the columns named in `right` hold numbers, `gap` spaces stand between columns."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, gap, 0, 0))
    for header in headers:
        table.add_column(header, justify="right" if header in right else "left", overflow="fold")
    return table


def show(table: "Table") -> None:
    """Print a table to standard output, without breaking its lines in a pipe."""
    from rich.console import Console

    console = out()
    (console if console.is_terminal else Console(highlight=False, width=_PIPE_WIDTH, markup=False)).print(
        table
    )


def verdict(anomalous: bool) -> "Text":
    """Return a verdict in its colour."""
    from rich.text import Text

    return Text("anomalous", "red") if anomalous else Text("normal", "green")


def show_findings(findings: Sequence["Finding"]) -> None:
    """Print all faults, a row each, and notes of one kind together."""
    from rich.text import Text

    table = new_table("finding", "file", "what")
    for finding in findings:
        if not finding.note:
            table.add_row(
                Text(finding.kind, "red"), Text(printable(finding.path)), Text(printable(finding.detail))
            )
    for kind, notes in _by_kind(finding for finding in findings if finding.note).items():
        many = f" and {len(notes) - 1} more" if len(notes) > 1 else ""
        table.add_row(
            f"note: {kind}", Text(printable(notes[0].path) + many), Text(printable(notes[0].detail))
        )
    show(table)


def warn_of(findings: Sequence["Finding"]) -> None:
    """Warn of the faults that a listing showed, a line for each kind, with the files' names."""
    for kind, faults in _by_kind(finding for finding in findings if not finding.note).items():
        names = ", ".join(printable(finding.path) for finding in faults[:_NAMED])
        more = f" and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        warn(f"{kind} ({len(faults)}): {names}{more}. {printable(faults[0].detail)}")


def _by_kind(findings: Iterable["Finding"]) -> "dict[str, list[Finding]]":
    kinds: dict[str, list[Finding]] = {}
    for finding in findings:
        kinds.setdefault(finding.kind, []).append(finding)
    return kinds
