"""``anomalyclip prepare``: list a data set's samples in ``meta.json``, and say what is wrong with it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomalyclip.cli.console import out, printable, track, warn
from anomalyclip.cli.tables import new_table, show, show_findings, warn_of
from anomalyclip.errors import AnomalyCLIPError

if TYPE_CHECKING:
    from anomalyclip.data.folder import Folder
    from anomalyclip.data.meta import Meta

_OWN = "Folders of your own, relative to ROOT; repeat an option for several"


def prepare(
    root: Annotated[Path, typer.Argument(help="The data set's folder, or its address.", show_default=False)],
    dataset: Annotated[
        str | None,
        typer.Option(help="Key of a known data set. Default: recognise the layout.", show_default=False),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Read the files and say what is wrong; exit code 1 if anything is."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="File or address to write. Default: ROOT/meta.json.", show_default=False),
    ] = None,
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="Follow links and paths that leave ROOT.")
    ] = False,
    normal_dir: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder of normal images: for training if there is a --normal-test-dir, otherwise for testing.",
            rich_help_panel=_OWN,
            show_default=False,
        ),
    ] = None,
    abnormal_dir: Annotated[
        list[str] | None,
        typer.Option(help="Folder of anomalous images.", rich_help_panel=_OWN, show_default=False),
    ] = None,
    normal_test_dir: Annotated[
        list[str] | None,
        typer.Option(help="Folder of normal test images.", rich_help_panel=_OWN, show_default=False),
    ] = None,
    mask_dir: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder of masks, named as their images or with _mask, _label, _Segmentation added.",
            rich_help_panel=_OWN,
            show_default=False,
        ),
    ] = None,
    image_suffix: Annotated[
        list[str] | None,
        typer.Option(
            help="Only images with this file name ending, such as .png.",
            rich_help_panel=_OWN,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Turn a folder of images into a data set: list its samples in meta.json, say what is wrong.

    Without --dataset the layout is recognised. Masks are paired with images by name.
    """
    from anomalyclip.data.check import check as find_faults
    from anomalyclip.data.folder import Folder
    from anomalyclip.data.meta import write_meta

    folder = Folder(
        normal_dir=tuple(normal_dir or ()),
        abnormal_dir=tuple(abnormal_dir or ()),
        normal_test_dir=tuple(normal_test_dir or ()),
        mask_dir=tuple(mask_dir or ()),
        image_suffix=tuple(image_suffix or ()),
    )
    meta, listed = _list(root, dataset, folder, allow_outside=allow_outside)
    out().print(f"{printable(str(meta.root))}: {printable(meta.source)}", markup=False)
    _show_samples(meta)
    if listed or output:
        out().print(f"wrote {printable(str(write_meta(meta, output)))}", markup=False)
    if not check:
        warn_of(meta.findings)
        return
    with track("Checking", sum(1 for _ in meta)) as advance:
        findings = find_faults(meta, progress=advance)
    out().print()
    if findings:
        show_findings(findings)
    faults = sum(not finding.note for finding in findings)
    read = "images by their headers, masks whole"  # an image that is cut off shows when it is scored
    out().print(f"{faults or 'no'} fault{'s' * (faults != 1)} found ({read})")
    if faults:
        raise typer.Exit(1)


def _list(root: Path, dataset: str | None, folder: "Folder", *, allow_outside: bool) -> "tuple[Meta, bool]":
    """Return the samples, and whether they were listed from the files, rather than read from a foreign meta.json."""
    from anomalyclip.data.folder import Folder
    from anomalyclip.data.listing import LayoutError, list_samples
    from anomalyclip.data.meta import FILE_NAME, has_meta, read_meta

    own = folder != Folder()
    if own and dataset:
        raise AnomalyCLIPError("--dataset cannot be combined with your own folders: give one or the other")
    if own and not (folder.normal_dir or folder.abnormal_dir or folder.normal_test_dir):
        raise AnomalyCLIPError("--mask-dir and --image-suffix need --normal-dir or --abnormal-dir as well")
    try:
        meta = list_samples(root, dataset, folder=folder if own else None, allow_outside=allow_outside)
    except LayoutError:
        if not has_meta(root):
            raise
        meta = read_meta(root, allow_outside=allow_outside)
        warn(f"unknown layout: the samples are those of {meta.root / FILE_NAME}, which stays as it is")
        return meta, False
    return meta, True


def _show_samples(meta: "Meta") -> None:
    from rich.text import Text

    table = new_table("phase", "class", *(numbers := ("normal", "anomalous", "masks")), right=numbers)
    for phase in meta.phases:
        samples = meta.phase(phase)
        counts = {name: [0, 0, 0] for name in samples.classes}
        for sample in samples:
            count = counts[sample.class_name]
            count[sample.anomaly] += 1
            count[2] += sample.anomaly and sample.mask is not None
        for name, count in counts.items():
            table.add_row(phase, Text(printable(name)), *map(str, count))
    show(table)
