"""``anomalyclip benchmark``: time per stage, and how far the encoder is from this machine's limit."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from anomalyclip.cli import options
from anomalyclip.cli.console import out

if TYPE_CHECKING:
    from anomalyclip.benchmark import Timing


def benchmark(
    architecture: Annotated[
        str, typer.Option(help="ViT-L-14-336, ViT-L-14, ViT-B-16 or ViT-B-32.")
    ] = "ViT-L-14-336",
    image_size: options.ImageSize = None,
    batch_size: options.BatchSize = 1,
    repeats: Annotated[int, typer.Option(help="Runs of each stage; the best one counts.", min=1)] = 3,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time each stage of a prediction and compare the encoder with this machine's own limit.

    The weights are random: speed does not depend on their values, and nothing is downloaded. The limit (floor) is the
    time that the encoder's matrix products would take at the rate of a plain 4096 x 4096 x 4096 float32 product,
    measured in the same process.
    """
    from anomalyclip.benchmark import run

    timing = run(
        architecture,
        image_size=image_size,
        batch_size=batch_size,
        repeats=repeats,
        device=device,
        precision=precision,
    )
    if as_json:
        out().print_json(json.dumps(timing.to_dict()))
    else:
        _show(timing)


def _show(timing: "Timing") -> None:
    from rich.table import Table

    machine = timing.machine
    out().print(
        f"{timing.architecture} at {timing.image_size} x {timing.image_size}, batch {timing.batch_size}, "
        f"{machine['precision']} on {machine['device']}: {machine['processor']}, {machine['threads']} threads, "
        f"torch {machine['torch']}"
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("stage")
    table.add_column("ms per image", justify="right")
    for stage, seconds in timing.stages.items():
        table.add_row(stage, f"{1000 * seconds:.1f}")
    out().print(table)
    out().print(
        f"floor: {timing.gflop:.0f} GFLOP at {timing.gflops:.0f} GFLOP/s = {1000 * timing.floor:.0f} ms; "
        f"the encoder takes {timing.ratio:.2f} times that"
    )
    out().print(f"peak memory {timing.peak_memory:.0f} MB")
