"""``anomalyclip words``: which of a method's words matter on your own pictures."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomalyclip.cli import options
from anomalyclip.cli.console import fail, out, track
from anomalyclip.cli.flattening import Fields
from anomalyclip.cli.tables import new_table
from anomalyclip.spec import EXPORTED, LARGE, OPTIONS, DetectorSpec

if TYPE_CHECKING:
    from anomalyclip.evaluation.wording import WordStudy

_NOT_OF_WORDS = {
    "method",
    "prompts",
    "trained",
    "windows",
    "window_stride",
    "window_rule",
    "references",
    "augment",
}
_NOT_OF_WORDS |= {"max_patches", "foreground", "compiled", "engine"}
_TAKEN = tuple(
    name
    for name, option in OPTIONS.items()
    if name not in _NOT_OF_WORDS and option.metadata["group"] not in (EXPORTED, LARGE)
)


@options.with_options
def words(
    context: typer.Context,
    spec: Annotated[DetectorSpec, Fields(only=_TAKEN)],
    data: Annotated[
        list[str],
        typer.Argument(help="The folder of a data set, or images, folders and patterns.", show_default=False),
    ],
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Key of the data set (see: anomalyclip datasets). Default: detected from its layout.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="Method whose words are studied.", metavar="words|clip|clip-ac")
    ] = "words",
    batch_size: options.BatchSize = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show which words matter: how the scores of your own images change when each of them is left out.

    For a data set with labels, the change of the image AUROC is shown too. Wording can change results a lot, so look
    before you choose.
    """
    from dataclasses import replace

    from anomalyclip.evaluation.wording import study_words

    paths: list[str | Path] = list(data)
    study = study_words(
        replace(spec, method=method), paths, dataset=dataset, batch_size=batch_size, track=track
    )
    if as_json:
        out().print_json(json.dumps(study.to_dict()))
    else:
        _show(study)
    for why in study.failed.values():
        fail(why)
    if study.failed:
        raise typer.Exit(1)


def _show(study: "WordStudy") -> None:
    from anomalyclip.evaluation.tables import signed

    labelled = study.auroc is not None
    heads = ["score", "largest", "map", *["AUROC"] * labelled]
    table = new_table("without", "side", *heads, right=heads)
    for effect in study.effects:
        cells = [signed(effect.score, 4), signed(effect.largest, 4), f"{effect.map:.4f}"]
        cells += [signed(100 * effect.auroc, 2)] if effect.auroc is not None else []
        table.add_row(effect.phrase, effect.side, *cells)
    out().print(table)
    figures = [f"{study.images} images", f"mean score {study.score:.4f}"]
    figures += [f"image AUROC {100 * study.auroc:.2f}"] if study.auroc is not None else []
    out().print(f"with all words: {', '.join(figures)}", markup=False)
    if study.kept:
        out().print(f"alone on their side, so not left out: {', '.join(study.kept)}", markup=False)
