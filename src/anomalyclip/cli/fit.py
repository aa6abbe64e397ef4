"""``anomalyclip fit``: a memory of flawless images of a product."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from anomalyclip.cli import options
from anomalyclip.cli.console import fail, out, stoppable, track
from anomalyclip.cli.flattening import Fields
from anomalyclip.errors import AnomalyCLIPError, InputError
from anomalyclip.spec import DetectorSpec

_KEPT = ("augment", "max_patches")
"""Which of the references' patches the memory keeps: a spec has these for references that are given as images."""


@options.with_options
def fit(
    context: typer.Context,
    spec: Annotated[
        DetectorSpec,
        Fields(without=("references", *_KEPT, "image_score", "sigma", *options.OF_EXPORTED)),
    ],
    kept: Annotated[dict[str, Any], Fields(only=_KEPT, source=DetectorSpec)],
    normals: Annotated[
        list[str],
        typer.Argument(
            help="Flawless images of the product: files, folders (searched recursively) or patterns.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(help="The memory to write, for --references; its name ends in .memory.", dir_okay=False),
    ],
    every: options.Every = None,
    axis: options.Axis = None,
    add: Annotated[
        bool, typer.Option("--add", help="Add the images to the existing memory --output.")
    ] = False,
    no_pictures: Annotated[
        bool,
        typer.Option(
            "--no-pictures",
            help="Keep no small pictures of the references in the memory (256 pixels, for reports): they are private.",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --output if it exists.")] = False,
) -> None:
    """Remember flawless images of a product, so that others can be compared with them (few-shot).

    One image is enough to begin with; four to sixteen are better. Use the same model options as for predict. Give
    the memory to predict, calibrate, test and export with --references.
    """
    from anomalyclip.addresses import Address, as_place, exists
    from anomalyclip.files import check_writable
    from anomalyclip.fitting import fit as gather
    from anomalyclip.inputs import find_images
    from anomalyclip.spec import is_memory_file

    place = as_place(output)
    if not is_memory_file(place):
        better = os.path.splitext(place)[0]
        raise AnomalyCLIPError(
            f"{place}: the file name of a memory must end in .memory, for example {better}.memory"
        )
    if add:
        options.refuse(context, (*_KEPT, "no_pictures"), f"cannot be changed with --add: fixed by {place}")
        options.refuse(context, ("overwrite",), "cannot be combined with --add: give one of them")
        if not (exists(place) if isinstance(place, Address) else place.exists()):
            raise AnomalyCLIPError(f"{place}: there is no memory to add to; leave out --add")
    check_writable(place, overwrite=overwrite or add)
    failed = []

    def on_error(image: object, error: InputError) -> None:
        fail(str(error))
        failed.append(image)

    with stoppable("stopped: no memory was written"):
        memory = gather(
            spec,
            [image.path for image in find_images(normals, selection=options.selection(every, axis))],
            **kept,
            pictures=not no_pictures,
            add_to=place if add else None,
            on_error=on_error,
            track=track,
        )
    memory.save(place)
    count = f"{len(memory)} reference{'s' * (len(memory) != 1)}"
    out().print(
        f"{place}: {count}, {memory.patches} patches; {memory.size / 1e6:.1f} MB in memory", markup=False
    )
    if failed:
        raise typer.Exit(1)
