"""``anomalyclip synth``: write a data set of generated images with exact masks."""

import os
from pathlib import Path
from typing import Annotated

import typer

from anomalyclip.cli.console import fail, out, track


def synth(
    output: Annotated[Path, typer.Argument(help="Folder for the data set; it must not exist or be empty.")],
    classes: Annotated[
        list[str],
        typer.Option(help="Class to draw, e.g. leather or gear; repeat for several.", show_default=False),
    ],
    normal: Annotated[
        int, typer.Option(help="Flawless images a class, in train/good and in test/good.", min=0)
    ] = 20,
    anomalous: Annotated[int, typer.Option(help="Images with a defect a class, over all kinds.", min=0)] = 26,
    defects: Annotated[
        list[str] | None,
        typer.Option(
            help="Kind of defect, e.g. scratch; repeat for several. Default: all.", show_default=False
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed gives other products and images.", min=0)] = 0,
    size: Annotated[int, typer.Option(help="Side of the images in pixels.", min=32, max=2048)] = 192,
    workers: Annotated[int | None, typer.Option(help="Processes. Default: one a core.", min=1)] = None,
) -> None:
    """Write a data set of generated surfaces and objects, with natural-looking defects and their exact masks.

    The layout is MVTec AD's. The same options give the same pixels; all images of a class look like one product.
    An unknown class is answered with the list of classes.
    """
    from anomalyclip.data.synthetic.writer import write_dataset

    total = len(set(classes)) * (2 * normal + anomalous)
    with track("Drawing", total) as advance:
        try:
            count = write_dataset(
                output,
                classes,
                normal=normal,
                anomalous=anomalous,
                seed=seed,
                defects=defects,
                size=size,
                workers=workers or os.cpu_count() or 1,
                on_image=advance,
            )
        except KeyboardInterrupt:
            fail("stopped: nothing was kept")
            raise typer.Exit(130) from None
    out().print(f"{output}: images {count}, classes {len(set(classes))}", markup=False)
