"""``anomalyclip datasets``: the data sets that are known by name."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from anomalyclip.cli.console import out
from anomalyclip.cli.tables import new_table, show

if TYPE_CHECKING:
    from anomalyclip.data.catalog import DataSet


def datasets(
    key: Annotated[str | None, typer.Argument(help="Show this data set only.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the data sets that are known by name: classes, counts, layouts, homes, the paper's figures."""
    import dataclasses
    import json

    from anomalyclip.data.catalog import catalog, known

    chosen = [known(key)] if key else list(catalog().values())
    if as_json:
        entries = [dataclasses.asdict(dataset) for dataset in chosen]
        typer.echo(json.dumps(entries[0] if key else entries, indent=1))
    elif key:
        _show_one(chosen[0])
    else:
        _show_all(chosen)


def _show_all(chosen: "list[DataSet]") -> None:
    numbers = ("classes", "normal", "anomalous")
    table = new_table("key", "name", *numbers, "metrics", "where", right=numbers)
    for dataset in chosen:
        mark = "" if dataset.counts_verified else "?"
        normal, anomalous = (f"{count}{mark}" for count in dataset.counts)
        metrics = "+".join(dataset.metrics)
        table.add_row(
            dataset.key,
            dataset.name,
            str(len(dataset.classes)),
            normal,
            anomalous,
            metrics,
            _host(dataset.home),
        )
    show(table)
    out().print("\nCounts are test images; ? marks unverified counts.")
    out().print(
        "More of one, with its layout and the paper's figures: anomalyclip datasets KEY", markup=False
    )


def _host(home: str) -> str:
    from urllib.parse import urlparse

    return ".".join(urlparse(home).netloc.split(".")[-2:]) or home.partition(" (")[0]


def _show_one(dataset: "DataSet") -> None:
    normal, anomalous = dataset.counts
    verified = "" if dataset.counts_verified else " (unverified: not counted from the files)"
    lines = [
        f"{dataset.name} ({dataset.key}), {dataset.domain}",
        f"  where    {dataset.home}",
        f"  license  {dataset.license or 'see home page'}",
        f"  images   {normal} normal and {anomalous} anomalous test images{verified}",
        f"  metrics  {' and '.join(dataset.metrics)} level",
        f"  classes  {len(dataset.classes)}: {', '.join(dataset.classes)}",
    ]
    for layout in dataset.layouts:
        lines += ["", "layout" if layout is dataset.layouts[0] else "or"]
        lines += [f"  {line}" for line in layout.tree.splitlines()]
    lines += ["", "The paper's figures, percent (AnomalyCLIP, ICLR 2024, tables 1 and 2):", ""]
    out().print("\n".join(lines), markup=False)
    _show_paper(dataset.paper)


_FIGURES = {"image": ("image AUROC", "image AP"), "pixel": ("pixel AUROC", "pixel AUPRO")}


def _show_paper(paper: "Mapping[str, Mapping[str, tuple[float, float] | None]]") -> None:
    headers = [figure for level in paper for figure in _FIGURES[level]]
    table = new_table("method", *headers, right=headers)
    for method in next(iter(paper.values())):
        pairs = [paper[level][method] or ("-", "-") for level in paper]
        table.add_row(method, *(str(figure) for pair in pairs for figure in pair))
    show(table)
