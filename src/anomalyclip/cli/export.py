"""``anomalyclip export``: a detector as one file that needs no PyTorch."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from anomalyclip.cli import options
from anomalyclip.cli.console import err, out
from anomalyclip.cli.models import warn_of_other_settings


class Format(str, Enum):
    """What is written."""

    onnx = "onnx"
    openvino = "openvino"


class Weights(str, Enum):
    """Precision of the weights."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


def export(
    output: Annotated[
        Path,
        typer.Option(
            help="The file: NAME.onnx, or NAME.xml for OpenVINO (its weights go beside it, into NAME.bin).",
            dir_okay=False,
        ),
    ],
    format: Annotated[Format, typer.Option(help="For ONNX Runtime, or OpenVINO's own form.")] = Format.onnx,
    precision: Annotated[
        Weights, typer.Option(help="Of the weights. int8 needs --calibration.")
    ] = Weights.fp32,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            help="For int8: images like those that will come (file, folder or pattern); repeat. Of more than 128, as "
            "many are taken, evenly spread.",
            show_default=False,
        ),
    ] = None,
    dynamic_batch: Annotated[
        bool, typer.Option("--dynamic-batch", help="Let the file take any number of images at once.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --output if it is there.")] = False,
    threshold: options.Threshold = None,
    backbone: options.Backbone = "ViT-L-14-336",
    prompts: options.Prompts = None,
    image_size: options.ImageSize = None,
    layers: options.Layers = None,
    dpam_layers: options.DpamLayers = None,
    sigma: options.Sigma = 4.0,
) -> None:
    """Write a detector as one file that needs no PyTorch: RGB image in, score and anomaly map out.

    Text features, preprocessing and threshold are in the file. It is run beside PyTorch on several images first; if
    the results differ by more than its precision allows, no file is written.
    """
    from anomalyclip.deploy.export import check_options
    from anomalyclip.deploy.export import export as write
    from anomalyclip.detector import Detector
    from anomalyclip.files import check_writable
    from anomalyclip.inputs import find_images

    images = [image.path for image in find_images(calibration or [])]
    check_options(output, format=format.value, precision=precision.value, calibrated=bool(images))
    for file in (output, output.with_suffix(".bin")) if format is Format.openvino else (output,):
        check_writable(file, overwrite=overwrite)
    detector = Detector.from_pretrained(
        backbone,
        prompts=prompts,
        image_size=image_size,
        layers=layers,
        dpam_layers=dpam_layers,
        sigma=sigma,
        threshold=threshold,
        device="cpu",
    )
    warn_of_other_settings(detector.scorer, detector.threshold, precision=precision.value)
    names = {"backbone": Path(backbone).name} | ({} if prompts is None else {"prompts": Path(prompts).name})
    with err().status("Exporting, and comparing with PyTorch"):
        report = write(
            detector,
            output,
            format=format.value,
            precision=precision.value,
            dynamic_batch=dynamic_batch,
            calibration=images,
            names=names,
        )
    out().print(f"{', '.join(map(str, report.files))}: {report.size / 1e6:.1f} MB")
    if images:
        out().print(f"calibrated on {report.images} of {len(images)} images")
    out().print(
        f"largest difference from PyTorch over {report.images} images: score {report.score_difference:.1e}, "
        f"map {report.map_difference:.1e} (allowed for {precision.value}: {report.tolerance:g})"
    )
