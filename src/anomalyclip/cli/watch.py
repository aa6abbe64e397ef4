"""``anomalyclip watch``: score what arrives in a folder."""

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Annotated, Any

import typer

from anomalyclip.cli import options, saving
from anomalyclip.cli.console import fail, note, out, printable, stoppable
from anomalyclip.cli.prediction_view import show
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.spec import DetectorSpec

_HOOKS = "For each anomalous image"


@options.with_options
def watch(
    context: typer.Context,
    spec: DetectorSpec,
    folder: Annotated[
        Path, typer.Argument(help="Folder to watch, searched recursively.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option(
            help="Folder for the results; a run that is there goes on.", show_default=False, file_okay=False
        ),
    ],
    every: options.Every = None,
    axis: options.Axis = None,
    save: saving.Save = None,
    threshold: options.Threshold = None,
    batch_size: options.BatchSize = 1,
    interval: Annotated[
        float, typer.Option(help="Seconds between two looks into the folder.", min=0.01)
    ] = 1.0,
    until_idle: Annotated[
        float | None,
        typer.Option(
            help="End when nothing has changed in the folder for so many seconds. Default: never.",
            min=0,
            show_default=False,
        ),
    ] = None,
    run: Annotated[
        list[str] | None,
        typer.Option(
            help="Run this command, without a shell; the image's path and its score are added as arguments, and its "
            "JSON line is the input. Repeat for several.",
            metavar="COMMAND",
            show_default=False,
            rich_help_panel=_HOOKS,
        ),
    ] = None,
    webhook: Annotated[
        list[str] | None,
        typer.Option(
            help="Post the image's JSON line to this address. Repeat for several.",
            metavar="URL",
            show_default=False,
            rich_help_panel=_HOOKS,
        ),
    ] = None,
    colormap: saving.Colors = saving.ColorMap.inferno,
    alpha: saving.Alpha = 0.7,
    scale: saving.Scale = None,
    no_caption: saving.NoCaption = False,
) -> None:
    """Score the images that arrive in a folder, until Ctrl-C.

    Results are those of `anomalyclip predict`: lines in OUTPUT/predictions.jsonl, a page, and files on request. A file
    is scored when it is complete, and only once, also after a restart. Images that are there already come first.
    """
    from anomalyclip import watching
    from anomalyclip.alerts import Command, Hook, Webhook
    from anomalyclip.engines.kept import of_run

    skipped: Counter[str] = Counter()
    hooks: list[Hook] = [Command.from_text(text) for text in run or []]
    hooks += [Webhook(url) for url in webhook or []]
    results = saving.results(
        save, colormap, alpha, scale, no_caption, batch_size=batch_size, masks=threshold or spec.model
    )
    spec = of_run(spec, watching.run_folder(folder, output))  # before the model is loaded
    if hooks and threshold is None and spec.model is None:
        raise AnomalyCLIPError(
            "--run and --webhook are for anomalous images: set a threshold, for example --threshold 0.5"
        )
    detector = spec.load(threshold=threshold)
    with stoppable("stopped at once; the same command goes on"), _stopping() as stop:
        note(f"watching {folder}; Ctrl-C ends")
        done = watching.watch(
            detector,
            folder,
            output,
            results=results,
            pace=watching.Pace(interval, until_idle),
            hooks=hooks,
            selection=options.selection(every, axis),
            stop=stop,
            skipped=skipped,
            on_scored=_print,
            tell=fail,
        )
    done.top.clear()  # they have been printed
    show(done, skipped)
    if done.failed:
        raise typer.Exit(1)


def _print(record: dict[str, Any]) -> None:
    """Print an image's score, verdict and path."""
    verdict = {None: "", True: "  anomalous", False: "  normal   "}[record["pred_label"]]
    out().print(printable(f"{record['pred_score']:.4f}{verdict}  {record['image_path']}"))


@contextmanager
def _stopping() -> Iterator[Event]:
    """Yield an event that Ctrl-C and SIGTERM set; the second Ctrl-C stops at once."""
    stop = Event()
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(*_: object) -> None:
        stop.set()
        restore()

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    for number in usual:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        restore()
