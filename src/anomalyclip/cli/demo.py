"""``anomalyclip demo``: the main job, offline, on bundled pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomalyclip.cli.console import out
from anomalyclip.cli.tables import new_table, verdict

if TYPE_CHECKING:
    from anomalyclip.prediction import Prediction

_ABOUT = """\
This was the embedded micro backbone (4 MB), which is small and makes mistakes; the real one, ViT-L-14-336 (0.9 GB), is
downloaded on its first use.

Your own pictures:  anomalyclip predict YOUR_FOLDER --save heatmap --output RESULTS
without a download: anomalyclip predict YOUR_FOLDER --backbone micro --save heatmap --output RESULTS"""


def demo(
    output: Annotated[
        Path, typer.Option(help="Folder for the results; an earlier demo in it is replaced.", file_okay=False)
    ] = Path("demo"),
) -> None:
    """Score bundled pictures with the embedded micro backbone: no download, a few seconds.

    Leaves the pictures, the threshold, predictions.jsonl, heat maps, a page to look at (index.html), and a contact
    sheet (demo.png).
    """
    from anomalyclip.demo import COPIES, SHEET, run
    from anomalyclip.overview import PAGE

    predictions = run(output)
    _show(predictions)
    places = f"Pictures: {output / COPIES}; heat maps: {output / 'heatmaps'}; one sheet: {output / SHEET}"
    places += f"\nTo look at them, open {output / PAGE}"
    out().print(f"\n{places}\n\n{_ABOUT}", markup=False)


def _show(predictions: "list[Prediction]") -> None:
    table = new_table("picture", "score", "verdict", "largest region", right=["score", "largest region"])
    for prediction in predictions:
        width, height = prediction.image_size
        share = max((region.area for region in prediction.regions), default=0) / (width * height)
        table.add_row(
            Path(str(prediction.image_path)).stem,
            f"{prediction.pred_score:.2f}",
            verdict(bool(prediction.pred_label)),
            f"{share:.1%}" if share else "none",
        )
    out().print(table)
