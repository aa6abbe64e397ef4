"""``anomalyclip benchmark``: time per stage, and how far the encoder is from this machine's limit."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomalyclip.cli import options
from anomalyclip.cli.console import out
from anomalyclip.cli.flattening import Fields
from anomalyclip.cli.tables import new_table
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.spec import DetectorSpec

if TYPE_CHECKING:
    from anomalyclip.benchmark import Timing


@options.with_options
def benchmark(
    context: typer.Context,
    spec: Annotated[DetectorSpec, Fields(only=("image_size", "device", "precision", "compiled"))],
    architecture: Annotated[
        str, typer.Option(help="ViT-L-14-336, ViT-L-14, ViT-B-16 or ViT-B-32.")
    ] = "ViT-L-14-336",
    batch_size: options.BatchSize = 1,
    repeats: Annotated[int, typer.Option(help="Runs of each stage; the best one counts.", min=1)] = 3,
    runtimes: Annotated[
        bool,
        typer.Option(
            "--runtimes",
            help="Compare PyTorch (eager, compiled, bfloat16), ONNX Runtime and OpenVINO (float32, int8) instead, at "
            "batch 1 and 8 unless --batch-size says otherwise, on the CPU: half an hour at full size.",
        ),
    ] = False,
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            help="Compare only this one, such as torch, onnx-fp32 or openvino-fp32; repeat for several."
        ),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            help="With --runtimes: folder that keeps the exported files, so that the next comparison takes minutes.",
            file_okay=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time each stage of a prediction and compare the encoder with this machine's own limit.

    The weights are random: speed does not depend on their values, and nothing is downloaded. The limit (floor) is the
    time that the encoder's matrix products would take at the rate of a 4096 x 4096 x 4096 product by the fastest
    library that is installed (PyTorch, oneDNN, OpenVINO, ONNX Runtime), measured in the same process.
    """
    if runtimes or runtime:
        given = options.given(context)
        if fixed := sorted(given & {"device", "precision", "compiled"}):
            names = ", ".join(map(options.spelled, fixed))
            raise AnomalyCLIPError(f"{names}: --runtimes decides it itself; leave it out")
        asked: dict[str, Any] = {"image_size": spec.image_size, "repeats": repeats, "folder": keep}
        asked |= {"runtimes": runtime} if runtime else {}
        asked |= {"batch_sizes": (batch_size,)} if "batch_size" in given else {}
        _compare(architecture, asked, as_json=as_json)
        return
    if keep is not None:
        raise AnomalyCLIPError("--keep: only with --runtimes or --runtime, which export files")

    from anomalyclip.benchmark import run

    timing = run(architecture, spec, batch_size=batch_size, repeats=repeats)
    if as_json:
        out().print_json(json.dumps(timing.to_dict()))
    else:
        _show(timing)


def _show(timing: "Timing") -> None:
    machine = timing.machine
    out().print(
        f"{timing.architecture} at {timing.image_size} x {timing.image_size}, batch {timing.batch_size}, "
        f"{machine['precision']} on {machine['device']}: {machine['processor']}, {machine['threads']} threads, "
        f"torch {machine['torch']}"
    )
    table = new_table("stage", "ms per image", right=["ms per image"])
    for stage, seconds in timing.stages.items():
        table.add_row(stage, f"{1000 * seconds:.1f}")
    out().print(table)
    out().print(
        f"floor: {timing.gflop:.0f} GFLOP at {timing.gflops:.0f} GFLOP/s = {1000 * timing.floor:.0f} ms; "
        f"the encoder takes {timing.ratio:.2f} times that"
    )
    rates = ", ".join(f"{library} {rate:.0f}" for library, rate in timing.limit["rates"].items())
    peak = timing.limit["peak"]
    processor = f"; the processor's peak: {peak:.0f} at {timing.limit['clock']:.1f} GHz" if peak else ""
    out().print(f"GFLOP/s of a {timing.limit['precision']} product: {rates}{processor}")
    out().print(f"peak memory {timing.peak_memory:.0f} MB")


def _compare(architecture: str, asked: dict[str, Any], *, as_json: bool) -> None:
    """Print one line of a Markdown table as soon as it is measured."""
    from anomalyclip.engines.comparison import compare, conditions

    about = conditions(architecture, asked["image_size"])
    rows = compare(architecture, **asked)
    if as_json:
        out().print_json(json.dumps({**about, "rows": [row.to_dict() for row in rows]}))
        return
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    out().print(
        f"{architecture} at {about['image_size']} x {about['image_size']}, {about['gflop']:.0f} GFLOP per image"
    )
    out().print(f"{about['processor']}, {about['cores']} cores; {versions}\n", highlight=False)
    out().print(
        "| runtime | batch | s per image | of the floor | floor s | start-up s | MB | peak MB | differs by |"
    )
    out().print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        if row.failure:
            out().print(f"| {row.runtime} | {row.batch_size} | {row.failure} |", markup=False)
            continue
        difference = "" if row.difference != row.difference else f"{row.difference:.1g}"
        out().print(
            f"| {row.runtime} | {row.batch_size} | {row.seconds:.3f} | {row.ratio:.2f} | {row.floor:.3f} "
            f"| {row.start_up:.1f} | {row.megabytes:.0f} | {row.peak_memory:.0f} | {difference} |"
        )
