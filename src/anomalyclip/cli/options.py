"""Options that several commands share: one spelling, one meaning."""

from pathlib import Path
from typing import Annotated

import typer

_MODEL = "Model"
_EXPORTED = "Exported model"
_LARGE = "Large images"

Backbone = Annotated[
    str,
    typer.Option(
        help="CLIP weights: a name (ViT-L-14-336, micro, ...) or a file or folder.", rich_help_panel=_MODEL
    ),
]
Prompts = Annotated[
    str | None,
    typer.Option(
        help="Learned prompts: mvtec, visa (what they were trained on) or a file. Default: mvtec for ViT-L-14-336, "
        "micro's own for micro; other backbones need a file. For MVTec AD itself take visa.",
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
        help="Block, counted from 1, whose patch features make the map; repeat for several. Default: the last.",
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
    float,
    typer.Option(help="Gaussian smoothing of the S x S map in pixels; 0: none.", rich_help_panel=_MODEL),
]
Device = Annotated[
    str,
    typer.Option(
        help="auto (CUDA, else Apple's GPU, else the CPU), cpu, cuda, cuda:1, mps.", rich_help_panel=_MODEL
    ),
]
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
ExportedModel = Annotated[
    Path | None,
    typer.Option(
        "--model",
        help="A file that `anomalyclip export` wrote, instead of backbone and prompts; needs no PyTorch.",
        show_default=False,
        dir_okay=False,
        rich_help_panel=_EXPORTED,
    ),
]
Provider = Annotated[
    list[str] | None,
    typer.Option(
        help="Where it runs. ONNX: cpu, cuda, tensorrt, openvino; repeat, first choice first. OpenVINO file: one of "
        "cpu, gpu, npu, auto. Default: cpu.",
        show_default=False,
        rich_help_panel=_EXPORTED,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        help="Threads of the CPU. Default: the runtime's choice.",
        show_default=False,
        min=1,
        rich_help_panel=_EXPORTED,
    ),
]
Tile = Annotated[
    int | None,
    typer.Option(
        help="Side in pixels of the tiles into which larger images are cut. Default: images are squashed whole.",
        show_default=False,
        rich_help_panel=_LARGE,
    ),
]
Overlap = Annotated[
    float, typer.Option(help="Share of a tile that overlaps the next, 0 to 0.9.", rich_help_panel=_LARGE)
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
    typer.Option(
        help="Folder for the results. Default: a new one, runs/COMMAND-1, -2, ...",
        show_default=False,
        file_okay=False,
    ),
]
