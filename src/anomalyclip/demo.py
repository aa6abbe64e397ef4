"""The demo: prediction with the embedded micro backbone on bundled pictures, without download or set-up.

The pictures are generated (`recipes/micro/demo_pictures.py` has their seeds), and they belong to families that the
micro backbone was not trained on.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from anomalyclip.addresses import require_here
from anomalyclip.detector import Detector
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import open_output, replacing, writing
from anomalyclip.inputs import find_images
from anomalyclip.overview import PAGE, Thumbnails, check_page, summarize, write_page
from anomalyclip.prediction import Prediction, Threshold
from anomalyclip.readers import open_image
from anomalyclip.visualize import contact_sheet
from anomalyclip.writers import ERRORS, PREDICTIONS, PredictionWriter

PICTURES = Path(__file__).parent / "assets" / "demo"
"""The bundled pictures: ``<class>_<good or defect>.jpg``."""

THRESHOLD = Path(__file__).parent / "assets" / "micro" / "threshold.json"
"""Threshold file of the micro backbone. Its recipe sets it on generated images of other families than the pictures."""

SHEET = "demo.png"
COPIES = "pictures"
"""Folder of the results with copies of the pictures, for further experiments."""


def run(
    output: str | os.PathLike[str], *, on_prediction: Callable[[Prediction], None] | None = None
) -> list[Prediction]:
    """Score the bundled pictures and draw the results.

    Parameters
    ----------
    output : path
        Folder for copies of the pictures and of the threshold, predictions.jsonl, heat maps, the page
        index.html and the contact sheet demo.png; an earlier demo in it is replaced.
    on_prediction : callable, optional
        Called with each prediction as soon as it is made.

    Returns
    -------
    list of Prediction
        In the order of the file names.

    Raises
    ------
    AnomalyCLIPError
        The folder holds predictions or a threshold that were not made by the demo, or it cannot be written to.
    """
    require_here(output, "the demo")
    _check_is_ours(Path(output))
    check_page(Path(output))
    threshold = Threshold.from_file(THRESHOLD)
    detector = Detector.from_pretrained("micro", threshold=threshold)
    names = {os.fspath(path): path.name for path in _copy(Path(output) / COPIES)}
    threshold.to_file(Path(output) / THRESHOLD.name)
    predictions = []
    with PredictionWriter(output, save=["heatmap"], overwrite=True) as writer:
        thumbnails = Thumbnails(Path(output))
        for prediction in detector.stream(names, batch_size=4):
            assert prediction.image_path is not None
            image = thumbnails.draw(prediction)
            writer.write(prediction, name=names[prediction.image_path], image=image)
            thumbnails.settle(prediction)
            predictions.append(prediction)
            if on_prediction is not None:
                on_prediction(prediction)
    write_page(Path(output), summarize(Path(output)))
    cells = [(open_image(str(prediction.image_path)), prediction) for prediction in predictions]
    sheet = contact_sheet(cells, columns=3, tile_size=200)
    target = Path(output) / SHEET
    with writing(target), replacing(target) as temporary, open_output(temporary) as file:
        sheet.save(file, "PNG")
    return predictions


def _check_is_ours(output: Path) -> None:
    """Refuse a folder with other results: every version of the demo starts by copying its pictures."""
    mine = (PREDICTIONS, ERRORS, THRESHOLD.name, SHEET, PAGE)
    there = [name for name in mine if (output / name).exists()]
    if there and not any((output / COPIES / picture.name).exists() for picture in find_images([PICTURES])):
        raise AnomalyCLIPError(
            f"{output} was not made by the demo, but has {' and '.join(there)}; choose another folder with --output"
        )


def _copy(folder: Path) -> list[Path]:
    copies = []
    for picture in find_images([PICTURES]):
        copies.append(folder / picture.name)
        with writing(copies[-1]), replacing(copies[-1]) as temporary:
            shutil.copyfile(picture.path, temporary)
    return copies
