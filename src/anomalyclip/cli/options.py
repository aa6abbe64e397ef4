"""Options that several commands share: one spelling, one meaning."""

from pathlib import Path
from typing import Annotated

import typer

_MODEL = "Model"

Backbone = Annotated[
    str,
    typer.Option(
        help="CLIP weights: a name (ViT-L-14-336, micro, ...) or a file or folder.", rich_help_panel=_MODEL
    ),
]
Prompts = Annotated[
    str | None,
    typer.Option(
        help="Learned prompts: mvtec, visa (what they were trained on) or a file. Default: the backbone's own.",
        rich_help_panel=_MODEL,
        show_default=False,
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        help="Side in pixels to which images are squashed. Default: the backbone's own, 518 for ViT-L-14-336.",
        rich_help_panel=_MODEL,
        show_default=False,
    ),
]
Layers = Annotated[
    list[int] | None,
    typer.Option(
        help="Block whose patch features make the map; repeat for several. Default: the last.",
        rich_help_panel=_MODEL,
        show_default=False,
    ),
]
DpamLayers = Annotated[
    int | None,
    typer.Option(
        help="How many final blocks have the local path. Default: 19 of 24, in proportion.",
        rich_help_panel=_MODEL,
        show_default=False,
    ),
]
Sigma = Annotated[
    float, typer.Option(help="Gaussian smoothing of the map in pixels.", rich_help_panel=_MODEL)
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...", rich_help_panel=_MODEL)]
Precision = Annotated[
    str, typer.Option(help="Of the image encoder: fp32, bf16, fp16 or auto.", rich_help_panel=_MODEL)
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile the image encoder first (torch.compile): a minute or more, worth it for many images.",
        rich_help_panel=_MODEL,
    ),
]
BatchSize = Annotated[int, typer.Option(help="Images that go through the model at once.", min=1)]
Threshold = Annotated[
    str | None,
    typer.Option(
        help="From which score on something is called anomalous: a number from 0 to 1 for images and pixels both, or "
        "a threshold file. Without it there is no verdict.",
        show_default=False,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(help="Folder for the results.", show_default=False, file_okay=False),
]
