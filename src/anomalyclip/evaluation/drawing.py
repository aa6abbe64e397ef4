"""Which training images are references: drawn at random for each class, the same for every method."""

import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from anomalyclip.data.listing import load_samples
from anomalyclip.data.meta import SampleList
from anomalyclip.data.tree import path_of
from anomalyclip.errors import AnomalyCLIPError, AnomalyCLIPWarning, InputError
from anomalyclip.readers import frames

Draw = Mapping[str, Mapping[str, Sequence[str]]]
"""By data set and class: the paths of references, relative to the data set's folder."""


def draw(
    samples: Sequence[str],
    shots: int,
    *,
    seed: int,
    name: str,
    usable: Callable[[str], bool] = lambda path: True,
) -> list[str]:
    """Draw references without replacement: the same for every method; a draw of 4 begins with the draw of 1.

    Parameters
    ----------
    samples : sequence of str
        Paths to draw from, in any order.
    shots : int
        How many.
    seed : int
        Which draw.
    name : str
        The class: each has its own draw.
    usable : callable
        Whether a path can be used; otherwise the next one is drawn.

    Returns
    -------
    list of str
        Fewer than `shots` if no more can be used.

    Examples
    --------
    >>> draw(["a", "b", "c"], 2, seed=0, name="nut") == draw(["c", "b", "a"], 3, seed=0, name="nut")[:2]
    True
    """
    ordered = sorted(samples)
    chance = np.random.default_rng([seed, zlib.crc32(name.encode())])
    drawn: list[str] = []
    for index in chance.permutation(len(ordered)):
        if len(drawn) == shots:
            break
        if usable(ordered[index]):
            drawn.append(ordered[index])
    return drawn


class Pool:
    """The normal training images of data sets, from which references are drawn.

    Parameters
    ----------
    sets : mapping of str to SampleList
        Data sets by name.
    wanted : int
        The most references that are drawn for a class.
    allow_outside : bool
        See `anomalyclip.data.listing.load_samples`.

    Raises
    ------
    AnomalyCLIPError
        There is no list of training images, or a class has fewer normal ones than wanted.
    """

    def __init__(self, sets: Mapping[str, SampleList], wanted: int, *, allow_outside: bool) -> None:
        if not wanted:
            raise AnomalyCLIPError("shots: expected at least one number of references")
        self._sets, self._readable = sets, dict[str, bool]()
        self._images = {
            key: _normal_training(samples, allow_outside=allow_outside) for key, samples in sets.items()
        }
        for key, samples in sets.items():
            for name in samples.classes:
                _check_enough(samples, name, wanted, len(self._images[key].get(name, ())), "")

    def draw(self, shots: int, seed: int) -> Draw:
        """Return references for every class; where an image cannot be read, the next one is drawn, with a warning.

        Raises
        ------
        AnomalyCLIPError
            Too few images of a class can be read.
        """
        return {
            key: {name: self._of_class(key, name, shots, seed) for name in samples.classes}
            for key, samples in self._sets.items()
        }

    def _of_class(self, key: str, name: str, shots: int, seed: int) -> list[str]:
        samples = self._sets[key]

        def is_readable(image: str) -> bool:
            path = path_of(samples.root, image)
            if path not in self._readable:
                self._readable[path] = _is_readable(path)
            return self._readable[path]

        drawn = draw(self._images[key][name], shots, seed=seed, name=name, usable=is_readable)
        _check_enough(samples, name, shots, len(drawn), " that can be read")
        return drawn


def _is_readable(path: str) -> bool:
    """Read an image as a whole, and warn where that is not possible."""
    try:
        for _ in frames(path):
            pass
    except InputError as error:
        warnings.warn(f"{error}; another reference is drawn in its place", AnomalyCLIPWarning, stacklevel=2)
        return False
    return True


def _check_enough(samples: SampleList, name: str, wanted: int, there: int, which: str) -> None:
    if there < wanted:
        raise AnomalyCLIPError(
            f"{samples.root}: class {name!r} has {there} normal training images{which}, and {wanted} references are "
            "to be drawn: use a smaller --shots, or another data set"
        )


def _normal_training(samples: SampleList, *, allow_outside: bool) -> dict[str, list[str]]:
    """Return the paths of normal training images by class."""
    try:
        training = load_samples(samples.root, samples.dataset, phase="train", allow_outside=allow_outside)
    except AnomalyCLIPError as error:
        raise AnomalyCLIPError(f"--shots draws normal training images: {error}") from None
    found: dict[str, list[str]] = {}
    for sample in training:
        if not sample.anomaly:
            found.setdefault(sample.class_name, []).append(sample.image)
    return found
