"""Which files below a folder are a data set's ground-truth masks, and no images to score."""

import os
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import cache, partial

from anomalyclip.addresses import Address, exists
from anomalyclip.data.catalog import catalog
from anomalyclip.data.layouts import SHAPES, BesideShape, DAGMShape, ImageMaskShape, MVTecShape
from anomalyclip.data.meta import FILE_NAME, read_meta
from anomalyclip.data.pairing import MASK_SUFFIXES, is_mask_name, stem
from anomalyclip.errors import AnomalyCLIPError


class GroundTruth:
    """Tells masks from images below a folder: by its ``meta.json``, and by the folders of the known layouts.

    A folder of masks is recognised by its name and by what is beside it: ``ground_truth`` beside ``test`` or ``train``,
    ``masks`` beside ``images``, ``Label`` in ``Train`` or ``Test``, and so on. Only what is below the folder counts:
    a folder ``ground_truth`` that is itself given is scored.

    Attributes
    ----------
    count : int
        Masks found so far.
    example : str or None
        The first of them.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> names = ["nut/test/bent/0.png", "nut/ground_truth/bent/0_mask.png", "ground_truth/1.png"]
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name in names:
    ...         path = Path(root, name)
    ...         path.parent.mkdir(parents=True, exist_ok=True)
    ...         path.touch()
    ...     is_mask = GroundTruth()
    ...     [name for name in names if is_mask(root, f"{root}/{name}")]
    ['nut/ground_truth/bent/0_mask.png']
    """

    def __init__(self) -> None:
        self.count = 0
        self.example: str | None = None
        self._below: dict[str, _Below] = {}

    def __call__(self, root: str | os.PathLike[str], path: str) -> bool:
        """Return whether a file below a root is a mask; of addresses, those in a folder of masks are."""
        if isinstance(root, Address) and isinstance(path, Address):
            below = self._below.setdefault(root, _Below(root.rstrip("/"), partial(_is_below, root)))
            found = below.is_in_masks(path)
        else:
            root = os.path.abspath(root)
            found = self._below.setdefault(root, _Below(root)).has_mask(os.path.abspath(path))
        self.count += found
        if found and self.example is None:
            self.example = path
        return found


class _Below:
    """What was found out about the folders below a root."""

    def __init__(self, root: str, is_folder: Callable[[str], bool] = os.path.isdir) -> None:
        self._root, self._is_folder = root, is_folder
        self._of_masks: dict[str, bool] = {root: False}
        self._listed: dict[str, frozenset[str]] = {}

    def has_mask(self, path: str) -> bool:
        folder = os.path.dirname(path)
        return self._is_of_masks(folder) or self._is_listed(path) or _is_beside(path)

    def is_in_masks(self, path: str) -> bool:
        return self._is_of_masks(os.path.dirname(path))

    def _is_of_masks(self, folder: str) -> bool:
        if folder not in self._of_masks:
            above, name = os.path.split(folder)
            self._of_masks[folder] = self._is_of_masks(above) or self._is_mask_folder(above, name)
        return self._of_masks[folder]

    def _is_mask_folder(self, above: str, name: str) -> bool:
        if name == DAGMShape.masks and os.path.basename(above) in DAGMShape.phases:
            return True
        besides = [beside for masks, beside in _mask_folders() if masks == name]
        return any(self._is_folder(os.path.join(above, beside)) for beside in besides)

    def _is_listed(self, path: str) -> bool:
        folder = path
        while folder != self._root:
            folder = os.path.dirname(folder)
            if folder not in self._listed:
                self._listed[folder] = _masks_of_meta(folder)
            if path in self._listed[folder]:
                return True
        return False


def _masks_of_meta(folder: str) -> frozenset[str]:
    """Return the masks in a folder's ``meta.json``; none if there is no such file, or it cannot be used."""
    if not os.path.isfile(os.path.join(folder, FILE_NAME)):
        return frozenset()
    try:
        samples = list(read_meta(folder))
    except AnomalyCLIPError:
        return frozenset()
    masks = {sample.mask for sample in samples if sample.mask} - {sample.image for sample in samples}
    return frozenset(os.path.normpath(os.path.join(folder, mask)) for mask in masks)


@cache
def _mask_folders() -> frozenset[tuple[str, str]]:
    """Return the names of the folders of masks in all known layouts, each with one that has to be beside it."""
    return frozenset(_pairs()) | {("Masks", "Images")}  # VisA names its folders in a table


def _pairs() -> Iterator[tuple[str, str]]:
    for shape in _shapes():
        if isinstance(shape, MVTecShape):
            yield from ((shape.masks, phase) for phase in ("train", "test"))
        elif isinstance(shape, ImageMaskShape):
            yield shape.masks, shape.images


@cache
def _shapes() -> tuple[object, ...]:
    layouts = [layout for dataset in catalog().values() for layout in dataset.layouts]
    return tuple(SHAPES[layout.shape](**layout.parameters) for layout in layouts)


def _is_below(root: Address, folder: str) -> bool:
    """Return whether there is a folder below an address; `folder` begins like the address."""
    return exists(root.below(folder[len(root.rstrip("/")) + 1 :]))


def _is_beside(path: str) -> bool:
    """Return whether it is a mask beside its image, in a folder of a known layout (``kos01/Part0_label.bmp``)."""
    folder, name = os.path.split(path)
    patterns = [shape.folders for shape in _shapes() if isinstance(shape, BesideShape)]
    if not is_mask_name(name) or not any(fnmatchcase(os.path.basename(folder), one) for one in patterns):
        return False
    plain = stem(name).lower()
    image = next(plain.removesuffix(suffix) for suffix in MASK_SUFFIXES if plain.endswith(suffix))
    return any(stem(other).lower() == image for other in os.listdir(folder))
