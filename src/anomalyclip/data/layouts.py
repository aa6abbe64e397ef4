"""The folder layouts of the known data sets: a few shapes, each of which turns a folder into samples."""

import csv
import io
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import ClassVar, Protocol

from anomalyclip.data.meta import Sample
from anomalyclip.data.pairing import Listing, Masks, is_mask_name, stem
from anomalyclip.data.tree import Tree, join, name_of
from anomalyclip.errors import AnomalyCLIPError, InputError


class Shape(Protocol):
    """A layout that a data set's folder can have."""

    title: ClassVar[str]
    pattern: ClassVar[str]

    def classes(self, tree: Tree, base: str) -> tuple[str, ...] | None:
        """Return the classes in the folder `base`; () if this shape has no class names; None if it does not match."""
        ...

    def samples(self, tree: Tree, base: str, class_name: str) -> Listing:
        """List the samples below `base`; `class_name` is used by shapes without class names."""
        ...


@dataclass(frozen=True)
class MVTecShape:
    """``<class>/{train,test}/<good or defect>/*`` with ``<class>/ground_truth/<defect>/*``, or just one such class.

    Parameters
    ----------
    normal : str or None
        Name of the folders of normal images; None if there are none.
    masks : str
        Name of the mask folder of a class, with one subfolder per defect, or with all masks directly in it.
    """

    title: ClassVar[str] = "MVTec-like"
    pattern: ClassVar[str] = "<class>/{train,test}/<good or defect>/*, <class>/ground_truth/<defect>/*"
    normal: str | None = "good"
    masks: str = "ground_truth"

    def classes(self, tree: Tree, base: str) -> tuple[str, ...] | None:
        """See `Shape`."""
        paths = self._classes(tree, base)
        marks = (f"train/{self.normal}", f"test/{self.normal}") if self.normal else (self.masks,)
        shaped = any(tree.has_folder(join(path, mark)) for path in paths.values() for mark in marks)
        return tuple(paths) if shaped else None

    @staticmethod
    def _classes(tree: Tree, base: str) -> dict[str, str]:
        """Return the class folders by name; if there are none, `base` itself may be a class."""

        def is_class(path: str) -> bool:
            return any(tree.folders(join(path, phase)) for phase in ("train", "test"))

        paths = {name: join(base, name) for name in tree.folders(base) if is_class(join(base, name))}
        if not paths and is_class(base):
            paths = {posixpath.basename(base) or name_of(tree.root): base}
        return paths

    def samples(self, tree: Tree, base: str, class_name: str) -> Listing:
        """See `Shape`."""
        paths = self._classes(tree, base)
        masked = any(tree.has_folder(join(path, self.masks)) for path in paths.values())
        listing = Listing(tree)
        for name, path in paths.items():
            for phase in listing.phases:
                for defect in tree.folders(join(path, phase)):
                    anomaly = defect != self.normal
                    masks = (
                        listing.masks(self._mask_folder(tree, path, defect)) if masked and anomaly else None
                    )
                    folder = join(join(path, phase), defect)
                    listing.add_folder(phase, folder, name, defect, anomaly=anomaly, masks=masks)
            for folder in tree.walk(join(path, self.masks)):
                listing.masks(folder)  # so that masks of defects without an image folder are reported too
        return listing.finish()

    def _mask_folder(self, tree: Tree, path: str, defect: str) -> str:
        masks = join(path, self.masks)
        own = join(masks, defect)
        return own if tree.has_folder(own) or tree.folders(masks) else masks


@dataclass(frozen=True)
class CSVSplitShape:
    """A table with the columns object, split, label, image, mask (VisA's ``split_csv/1cls.csv``).

    Parameters
    ----------
    file : str
        The table.
    """

    title: ClassVar[str] = "csv split"
    pattern: ClassVar[str] = "split_csv/1cls.csv with the columns object,split,label,image,mask"
    file: str = "split_csv/1cls.csv"
    _columns: ClassVar[tuple[str, ...]] = ("object", "split", "label", "image", "mask")

    def classes(self, tree: Tree, base: str) -> tuple[str, ...] | None:
        """See `Shape`."""
        rows = _rows(tree, join(base, self.file), self._columns)
        return None if rows is None else tuple(dict.fromkeys(row["object"] for row in rows))

    def samples(self, tree: Tree, base: str, class_name: str) -> Listing:
        """See `Shape`."""
        listing = Listing(tree)
        file = join(base, self.file)
        for number, row in enumerate(_rows(tree, file, self._columns) or (), start=2):
            if row["label"] not in ("normal", "anomaly") or row["split"] not in listing.phases:
                raise AnomalyCLIPError(
                    f"{tree.root / file}: row {number} has split {row['split']!r} and label {row['label']!r}, "
                    "expected train or test, and normal or anomaly"
                )
            image = tree.relative(join(base, row["image"]))
            mask = tree.relative(join(base, row["mask"])) if row["mask"] else None
            if not tree.has_file(image):
                listing.report(
                    "missing image", image, f"listed in row {number} of {file}, but does not exist: skipped"
                )
                continue
            if mask and not tree.has_file(mask):
                mask = None
            sample = Sample(image, mask, row["object"], "", row["label"] == "anomaly")
            listing.add(row["split"], sample, mask_expected=True)
        return listing


@dataclass(frozen=True)
class ImageMaskShape:
    """A folder of anomalous images and a folder of their masks.

    Parameters
    ----------
    images, masks : str
        The folders.
    defect : str
        Name of the kind of defect.
    """

    title: ClassVar[str] = "image folder + mask folder"
    pattern: ClassVar[str] = "images/*, masks/*"
    images: str = "images"
    masks: str = "masks"
    # Not compared: two data sets that differ only in this name have the same shape.
    defect: str = field(default="", compare=False)

    def classes(self, tree: Tree, base: str) -> tuple[str, ...] | None:
        """See `Shape`."""
        there = tree.images(join(base, self.images)) and tree.has_folder(join(base, self.masks))
        return () if there else None

    def samples(self, tree: Tree, base: str, class_name: str) -> Listing:
        """See `Shape`."""
        listing = Listing(tree)
        masks = listing.masks(join(base, self.masks))
        listing.add_folder(
            "test", join(base, self.images), class_name, self.defect, anomaly=True, masks=masks
        )
        return listing.finish()


@dataclass(frozen=True)
class LabelFoldersShape:
    """A folder of normal images and a folder of anomalous images, without masks; other folders are ignored.

    Parameters
    ----------
    normal, abnormal : str
        The folders; the first part of each path is the kind of defect.
    """

    title: ClassVar[str] = "folders named by their label, without masks"
    pattern: ClassVar[str] = "{no,yes}/*, {NORMAL,COVID}/*, {Normal,COVID}/images/*"
    normal: str
    abnormal: str

    def classes(self, tree: Tree, base: str) -> tuple[str, ...] | None:
        """See `Shape`."""
        return () if all(tree.images(join(base, folder)) for folder in (self.normal, self.abnormal)) else None

    def samples(self, tree: Tree, base: str, class_name: str) -> Listing:
        """See `Shape`."""
        listing = Listing(tree)
        for folder, anomaly in ((self.normal, False), (self.abnormal, True)):
            listing.add_folder("test", join(base, folder), class_name, folder.split("/")[0], anomaly=anomaly)
        return listing


@dataclass(frozen=True)
class DAGMShape:
    """``<class>/{Train,Test}/*`` with ``<class>/{Train,Test}/Label/*_label.*``; an image without a label is normal.

    A ``Labels.txt`` in the label folder lists the expected label files. Without it, an image whose label file was lost
    looks like a normal image, so every image without a label file is noted.
    """

    title: ClassVar[str] = "image + Label folder"
    pattern: ClassVar[str] = "<class>/{Train,Test}/*, <class>/{Train,Test}/Label/*_label.*"
    phases: ClassVar[tuple[str, ...]] = ("Train", "Test")
    masks: ClassVar[str] = "Label"

    def classes(self, tree: Tree, base: str) -> tuple[str, ...] | None:
        """See `Shape`."""
        names = [
            name
            for name in tree.folders(base)
            if any(tree.has_folder(join(base, f"{name}/{phase}/{self.masks}")) for phase in self.phases)
        ]
        return tuple(names) or None

    def samples(self, tree: Tree, base: str, class_name: str) -> Listing:
        """See `Shape`."""
        listing = Listing(tree, self.phases)
        for name in self.classes(tree, base) or ():
            for phase in self.phases:
                folder = join(base, f"{name}/{phase}")
                masks, labelled = listing.masks(f"{folder}/{self.masks}"), self._labelled(tree, folder)
                for image in tree.images(folder):
                    mask = masks.of(image)
                    anomaly = mask is not None or stem(image) in (labelled or ())
                    sample = Sample(join(folder, image), mask, name, "", anomaly)
                    listing.add(phase, sample, mask_expected=True)
                    if not anomaly and labelled is None:
                        listing.report("taken as normal", sample.image, "has no label file", note=True)
        return listing.finish()

    @staticmethod
    def _labelled(tree: Tree, folder: str) -> set[str] | None:
        """Return the stems of the images that have a label file according to ``Labels.txt``; None without that file."""
        file = f"{folder}/{DAGMShape.masks}/Labels.txt"
        return set(re.findall(r"(\w+)_label\.\w+", tree.read_text(file))) if tree.has_file(file) else None


@dataclass(frozen=True)
class LabelsCSVShape:
    """Images in a flat folder and a table of their labels, with the columns id and, for example, hemorrhage (0 or 1).

    Parameters
    ----------
    file : str
        The table.
    label : str
        The column with the labels; its name is also the kind of defect.
    """

    title: ClassVar[str] = "flat folder + table of labels"
    pattern: ClassVar[str] = "*, labels.csv with the columns id,hemorrhage"
    file: str
    label: str

    def classes(self, tree: Tree, base: str) -> tuple[str, ...] | None:
        """See `Shape`."""
        return None if _rows(tree, join(base, self.file), ("id", self.label)) is None else ()

    def samples(self, tree: Tree, base: str, class_name: str) -> Listing:
        """See `Shape`."""
        listing = Listing(tree)
        file = join(base, self.file)
        labels = {}
        for number, row in enumerate(_rows(tree, file, ("id", self.label)) or (), start=2):
            if row[self.label] not in ("0", "1"):
                raise AnomalyCLIPError(
                    f"{tree.root / file}: row {number} has {self.label} {row[self.label]!r}, expected 0 or 1"
                )
            labels[_number(row["id"])] = row[self.label] == "1"
        missing = dict.fromkeys(labels)
        for image in (join(folder, name) for folder in tree.walk(base) for name in tree.images(folder)):
            number_or_name = _number(stem(image))
            if number_or_name not in labels:
                listing.report("unlabelled image", image, f"{file} has no row for it: skipped")
                continue
            missing.pop(number_or_name, None)
            anomaly = labels[number_or_name]
            defect = self.label if anomaly else "good"
            listing.add("test", Sample(image, None, class_name, defect, anomaly))
        for name in missing:
            listing.report(
                "missing image", name, f"listed in {file}, but there is no image with this name: skipped"
            )
        return listing


@dataclass(frozen=True)
class BesideShape:
    """Masks next to their images, ``kos01/Part0.jpg`` and ``kos01/Part0_label.bmp``; an all-black mask means normal.

    Parameters
    ----------
    folders : str
        Pattern for the folder names.
    """

    title: ClassVar[str] = "masks next to the images"
    pattern: ClassVar[str] = "kos01/Part0.jpg, kos01/Part0_label.bmp"
    folders: str

    def classes(self, tree: Tree, base: str) -> tuple[str, ...] | None:
        """See `Shape`."""
        folders = self._folders(tree, base)
        return () if any(is_mask_name(name) for folder in folders for name in tree.images(folder)) else None

    def _folders(self, tree: Tree, base: str) -> list[str]:
        return [join(base, name) for name in tree.folders(base) if fnmatchcase(name, self.folders)]

    def samples(self, tree: Tree, base: str, class_name: str) -> Listing:
        """See `Shape`."""
        listing = Listing(tree)
        for folder in self._folders(tree, base):
            names = tree.images(folder)
            masks = Masks(folder, filter(is_mask_name, names))
            for image in (join(folder, name) for name in names if not is_mask_name(name)):
                mask = masks.of(image)
                if mask is None:
                    listing.report(
                        "unlabelled image", image, "no mask next to it, so its label is unknown: skipped"
                    )
                    continue
                try:
                    anomaly = _has_defect(tree, mask)
                except InputError as error:
                    listing.report("unreadable", mask, f"{error}; the label of {image} is unknown: skipped")
                    continue
                defect = "defect" if anomaly else "good"
                listing.add("test", Sample(image, mask if anomaly else None, class_name, defect, anomaly))
            for path in masks.unused:
                listing.report("mask without image", path, "no image next to it has this name")
        return listing


def _has_defect(tree: Tree, mask: str) -> bool:
    from anomalyclip.images import read_mask

    return bool(read_mask(tree.root / mask).any())


def _number(text: str) -> str:
    """Return a number without leading zeros, so that 7 and 007 are equal; other names are returned unchanged."""
    return str(int(text)) if text.isdecimal() else text


def _rows(tree: Tree, path: str, columns: Sequence[str]) -> list[dict[str, str]] | None:
    """Return a table's rows; None if there is no such file or it lacks one of the columns.

    Column names may be in upper or lower case. Spaces around values are ignored, and semicolons or tabs may replace
    commas.
    """
    if not tree.has_file(path):
        return None
    text = tree.read_text(path)
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    try:
        names = [name.strip().lower() for name in next(reader, [])]
        if not set(columns) <= set(names):
            return None
        rows = [[cell.strip() for cell in row] for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise AnomalyCLIPError(f"{tree.root / path}, line {reader.line_num}: not a table ({error})") from None
    # Spreadsheets omit empty cells at the end of a row.
    return [dict(zip(names, row + [""] * len(names), strict=False)) for row in rows]


SHAPES: dict[str, type[Shape]] = {
    "mvtec": MVTecShape,
    "csv_split": CSVSplitShape,
    "image_mask": ImageMaskShape,
    "label_folders": LabelFoldersShape,
    "dagm": DAGMShape,
    "labels_csv": LabelsCSVShape,
    "beside": BesideShape,
}
"""The shapes by their names in ``catalog.yaml``."""
