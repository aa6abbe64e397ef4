"""What ``anomalyclip predict`` prints: images that cannot be used, the most anomalous ones, and counts."""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from anomalyclip.cli.console import fail, out, printable
from anomalyclip.cli.tables import new_table, verdict
from anomalyclip.errors import InputError

if TYPE_CHECKING:
    from anomalyclip.predicting import PredictionRun

_NAMED = 20
"""Images that cannot be used and are named on the screen."""


def name_failures() -> Callable[[str, InputError], None]:
    """Return what names images that cannot be used: the first ones, for a broken disk may have a million."""
    count = 0

    def name(_: str, error: InputError) -> None:
        nonlocal count
        count += 1
        if count <= _NAMED:
            fail(str(error))

    return name


def show(run: "PredictionRun", skipped: Counter[str], *, in_parquet: bool = False) -> None:
    """Print the most anomalous images, and counts."""
    from rich.text import Text

    from anomalyclip.addresses import Address
    from anomalyclip.distributed.tables import PARTS
    from anomalyclip.overview import PAGE
    from anomalyclip.overview.summary import moment
    from anomalyclip.writers import ERRORS, PREDICTIONS

    lines, errors = (PARTS, PARTS) if in_parquet else (PREDICTIONS, ERRORS)
    if run.top:
        table = new_table("score", *["verdict"] * run.judged, "image", right=["score"])
        for record in run.top:
            at = f" at {moment(record['time'])}" if "time" in record else ""
            image = Text(printable(record["image_path"]) + at)
            table.add_row(
                f"{record['pred_score']:.4f}", *[verdict(bool(record["pred_label"]))] * run.judged, image
            )
        out().print(table)
        if run.scored > len(run.top):
            out().print(f"... the {len(run.top)} most anomalous of {run.scored}; all are in {lines}")
    if run.failed > _NAMED:
        fail(f"... and {run.failed - _NAMED} more images could not be used; all are in {errors}")
    counts = [f"{run.scored} scored"]
    if run.judged:
        counts.append(f"{run.anomalous} anomalous")
    others = "done before", "given more than once", f"failed ({errors})"
    numbers = run.skipped, run.repeated, run.failed
    counts += [f"{number} {what}" for number, what in zip(numbers, others, strict=True) if number]
    if skipped:
        kinds = ", ".join(f"{number} {printable(suffix)}" for suffix, number in skipped.most_common(5))
        counts.append(f"{skipped.total()} other files skipped ({kinds})")
    out().print(f"{', '.join(counts)}; results in {run.folder}", markup=False)
    if in_parquet:
        out().print(f"To look at them: anomalyclip summarize {run.folder}", markup=False)
        return
    page = run.folder.below(PAGE) if isinstance(run.folder, Address) else run.folder / PAGE
    out().print(f"To look at them, open {page}", markup=False)
