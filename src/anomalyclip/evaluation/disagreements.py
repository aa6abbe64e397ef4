"""The images about which methods disagree most, with the maps of all of them side by side."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from anomalyclip.addresses import Address
from anomalyclip.errors import AnomalyCLIPWarning, InputError, concerning
from anomalyclip.evaluation.cases import photograph, picture_of_map, save_picture, truth
from anomalyclip.evaluation.maps import Scored, read_map

EACH = 2
"""Images of each class."""


@dataclass(frozen=True)
class Opinion:
    """One method's result for an image.

    Parameters
    ----------
    score : float
        Image score.
    rank : int
        Place of the image among those of its class, the most anomalous first, from 1; of equal ones the best.
    picture : str
        Its map, relative to the data set's results; empty if it could not be drawn.
    """

    score: float
    rank: int
    picture: str = ""


@dataclass(frozen=True)
class Disagreement:
    """An image, and each method's result.

    Parameters
    ----------
    class_name, image, defect : str
        The class, the path relative to the data set's root, and the kind of defect.
    anomaly : bool
        Whether it is anomalous.
    of : int
        Number of images of the class.
    spread : float
        Largest difference between the methods in the share of the class's images that are less anomalous, 0 to 1.
    pictures : dict of str to str
        "image" and "truth", relative to the data set's results.
    opinions : dict of str to Opinion
        By method; those with the same map of this image name the same picture.
    """

    class_name: str
    image: str
    defect: str
    anomaly: bool
    of: int
    spread: float
    pictures: dict[str, str]
    opinions: dict[str, Opinion]

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Disagreement":
        """Return what `dataclasses.asdict` made JSON-ready."""
        opinions = {name: Opinion(**one) for name, one in content["opinions"].items()}
        return cls(**{**content, "opinions": opinions})


def draw_disagreements(
    class_name: str,
    scored: Mapping[str, Sequence[Scored]],
    leads: Mapping[str, str],
    *,
    root: Path | Address,
    folder: Path,
    stem_of_class: str,
) -> list[Disagreement]:
    """Return the images of a class about which methods disagree most, and draw their maps.

    Methods have different score scales, so their rankings of the images are compared. Maps
    of a method are drawn on one scale, from 0 to the highest value in the images drawn.

    Parameters
    ----------
    class_name : str
    scored : mapping of str to sequence of Scored
        By method, all with the same images in the same order.
    leads : mapping of str to str
        By method, whose maps are the same.
    root, folder : Path
        Of the data set, and of its results, which get ``cases/``.
    stem_of_class : str
        What the names of the class's pictures begin with.
    """
    chosen = most_disputed({name: [item.score for item in items] for name, items in scored.items()})
    found = []
    tops = {
        lead: max((float(read_map(scored[lead][index].map_file).max()) for index, _ in chosen), default=1.0)
        for lead in dict.fromkeys(leads.values())
    }
    ranks = {name: rankdata([-item.score for item in items], method="min") for name, items in scored.items()}
    for number, (index, spread) in enumerate(chosen):
        items = {name: several[index] for name, several in scored.items()}
        first = next(iter(items.values()))
        stem = f"cases/{stem_of_class}-{number}"
        pictures, maps = _draw(items, leads, tops, root, folder, stem)
        found.append(
            Disagreement(
                class_name,
                first.sample.image,
                first.sample.defect,
                first.sample.anomaly,
                len(scored[next(iter(items))]),
                spread,
                pictures,
                {
                    name: Opinion(item.score, int(ranks[name][index]), maps.get(leads[name], ""))
                    for name, item in items.items()
                },
            )
        )
    return found


def most_disputed(scores: Mapping[str, Sequence[float]], count: int = EACH) -> list[tuple[int, float]]:
    """Return the images whose places in the orders of the methods are furthest apart, and how far, 0 to 1.

    Examples
    --------
    >>> most_disputed({"a": [0.1, 0.2, 0.3], "b": [0.9, 0.2, 0.5]}, count=1)
    [(0, 1.0)]
    """
    places: NDArray[np.float64] = np.array([rankdata(values) for values in scores.values()])
    if places.shape[1] < 2:
        return []
    spreads = np.ptp(places, axis=0) / (places.shape[1] - 1)
    order = np.argsort(-spreads, kind="stable")[:count]
    return [(int(index), float(spreads[index])) for index in order if spreads[index] > 0]


def _draw(
    items: Mapping[str, Scored],
    leads: Mapping[str, str],
    tops: Mapping[str, float],
    root: Path | Address,
    folder: Path,
    stem: str,
) -> tuple[dict[str, str], dict[str, str]]:
    """Return pictures of the image and of the truth, and by method those of its map."""
    pictures: dict[str, str] = {}
    maps: dict[str, str] = {}
    first = next(iter(items.values()))
    try:
        with concerning(first.sample.image, "cannot be drawn"):
            shown = photograph(first, root)
            drawn = {"image": shown, "truth": truth(first, root, shown.size)}
            for panel, picture in drawn.items():
                if picture is not None:
                    save_picture(picture, folder / (file := f"{stem}-{panel}.jpg"))
                    pictures[panel] = file
            different: dict[str, NDArray[np.float32]] = {}
            for number, lead in enumerate(dict.fromkeys(leads.values())):
                values = read_map(items[lead].map_file) / max(tops[lead], 1e-12)
                same = next(
                    (file for file, other in different.items() if np.array_equal(values, other)), None
                )
                maps[lead] = same or f"{stem}-map{number}.jpg"
                if same is None:
                    save_picture(picture_of_map(values, shown.size), folder / maps[lead])
                    different[maps[lead]] = values
    except InputError as error:  # its scores count all the same
        warnings.warn(f"not drawn in the report: {error}", AnomalyCLIPWarning, stacklevel=2)
    return pictures, maps
