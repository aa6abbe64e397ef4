"""``anomalyclip models``: the backbones that are known by name, and how fast they are on this machine."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomalyclip.cli.console import out
from anomalyclip.cli.tables import new_table, show
from anomalyclip.errors import AnomalyCLIPError

if TYPE_CHECKING:
    from anomalyclip.backbones.table import KnownBackbone


def models(
    names: Annotated[list[str] | None, typer.Argument(help="Only these.", show_default=False)] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Time them on this machine's CPU, with random weights: nothing is downloaded."
        ),
    ] = False,
    repeats: Annotated[int, typer.Option(help="With --measure: runs of each; the best counts.", min=1)] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the backbones that are known by name: size, cost, licence, what they can do, and which are on this machine.

    Backbones whose files have a known hash are downloaded by name. The others are used by file: download them
    yourself and give --backbone FILE, or put them into the Hugging Face cache, where their names find them.
    """
    chosen = _chosen(names or [])
    rows = [_about(one) for one in chosen]
    if measure:
        _add_speed(chosen, rows, repeats)
    if as_json:
        import json

        typer.echo(json.dumps(rows, indent=1))
    else:
        _show(rows, measured=measure)


def _chosen(names: list[str]) -> "list[KnownBackbone]":
    from anomalyclip.backbones.table import KNOWN

    if unknown := [name for name in names if name not in KNOWN]:
        raise AnomalyCLIPError(
            f"{', '.join(unknown)}: not a known backbone; expected one of {', '.join(KNOWN)}"
        )
    return [KNOWN[name] for name in names or KNOWN]


def _about(one: "KnownBackbone") -> dict[str, Any]:
    from anomalyclip.backbone_speed import gflop_of
    from anomalyclip.clip.registry import cached_file
    from anomalyclip.clip_core import default_image_size

    found = cached_file(one)
    size = {"image_size": default_image_size(one.config), "gflop": round(gflop_of(one), 1)}
    return {**one.to_dict(), **size, "cached": None if found is None else str(found)}


def _add_speed(chosen: "list[KnownBackbone]", rows: list[dict[str, Any]], repeats: int) -> None:
    from anomalyclip.backbone_speed import measure
    from anomalyclip.machine import processor

    for row, speed in zip(rows, measure(chosen, repeats=repeats), strict=True):
        measured = speed.to_dict()
        row |= {name: measured[name] for name in ("seconds", "floor", "ratio")} | {"processor": processor()}


def _show(rows: list[dict[str, Any]], *, measured: bool) -> None:
    numbers = ["millions", "pixels", "GFLOP", *(["ms", "ratio"] if measured else [])]
    table = new_table("name", *numbers, "input", "for", "licence", "file", right=numbers)
    for row in rows:
        cells = [f"{row['parameters'] / 1e6:.1f}", str(row["image_size"]), f"{row['gflop']:.0f}"]
        if measured:
            cells += [f"{1000 * row['seconds']:.0f}", f"{row['ratio']:.2f}"]
        words = "words, references" if "words" in row["abilities"] else "references"
        table.add_row(row["name"], *cells, row["normalisation"], words, row["licence"], _where(row))
    show(table)
    out().print(
        "\nmillions: parameters of the image encoder. pixels: the side it is used at, and GFLOP there. input: "
        "how pixels are normalised.",
        markup=False,
    )
    if measured:
        out().print(
            f"ms: one image on the CPU ({rows[0]['processor']}), random weights; ratio: to the time of its matrix "
            "products at the rate of a large one.",
            markup=False,
        )
    out().print("Sources, hashes and architectures: anomalyclip models NAME --json", markup=False)


def _where(row: dict[str, Any]) -> str:
    if row["cached"] is not None:
        return "included" if row["source"] == "included" else "on this machine"
    return "yours: --backbone FILE" if row["by_file"] else "downloaded when first used"
