"""``anomalyclip export``: a detector as one file that needs no PyTorch."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from anomalyclip.cli import options
from anomalyclip.cli.console import err, out
from anomalyclip.cli.flattening import Fields
from anomalyclip.spec import DetectorSpec


class FileFormat(str, Enum):
    """What is written."""

    onnx = "onnx"
    openvino = "openvino"


class WeightPrecision(str, Enum):
    """Precision of the weights."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


@options.with_options
def export(
    context: typer.Context,
    spec: Annotated[
        DetectorSpec,
        Fields(without=("device", "precision", "compiled", *options.OF_EXPORTED)),
    ],
    output: Annotated[
        Path,
        typer.Option(
            help="The file: NAME.onnx, or NAME.xml for OpenVINO (its weights go beside it, into NAME.bin).",
            dir_okay=False,
        ),
    ],
    format: Annotated[
        FileFormat, typer.Option(help="onnx, or openvino for OpenVINO's own format.")
    ] = FileFormat.onnx,
    precision: Annotated[
        WeightPrecision, typer.Option(help="Precision of the weights. int8 needs --calibration.")
    ] = WeightPrecision.fp32,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            help="For int8: images like those you will score (file, folder or pattern); repeat for several. At most "
            "128 are used, evenly spread.",
            show_default=False,
        ),
    ] = None,
    dynamic_batch: Annotated[
        bool, typer.Option("--dynamic-batch", help="Let the file take any number of images at once.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --output if it exists.")] = False,
    threshold: options.Threshold = None,
) -> None:
    """Write a detector as one file that needs no PyTorch: RGB image in, score and anomaly map out.

    Text features, preprocessing, tiling and threshold are in the file. It is first compared with PyTorch on several
    images; if the results differ by more than its precision allows, no file is written.
    """
    from anomalyclip.engines.export import export as write

    with err().status("Exporting, and comparing with PyTorch"):
        report = write(
            spec,
            output,
            format=format.value,
            precision=precision.value,
            dynamic_batch=dynamic_batch,
            calibration=calibration or [],
            threshold=threshold,
            overwrite=overwrite,
        )
    out().print(f"{', '.join(map(str, report.files))}: {report.size / 1e6:.1f} MB")
    if calibration:
        out().print(f"calibrated on {report.images} of {report.listed} images")
    out().print(
        f"largest difference from PyTorch over {report.images} images: score {report.score_difference:.1e}, "
        f"map {report.map_difference:.1e} (allowed for {precision.value}: {report.tolerance:g})"
    )
