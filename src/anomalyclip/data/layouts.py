"""Folder shapes to samples: a few shapes serve all known data sets, and `Folder` serves one's own.

Masks are paired with images by name, never by position: ``000.png`` goes with ``000_mask.png``, ``000_label.bmp``,
``000_Segmentation.png`` or another file whose name without its ending is ``000``.
"""

import csv
import io
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import ClassVar, Protocol

from anomalyclip.data.meta import MISSING_MASK, Finding, Sample
from anomalyclip.data.tree import Tree, join, natural
from anomalyclip.errors import AnomalyCLIPError, InputError

MASK_SUFFIXES = ("_mask", "_label", "_segmentation", "")
"""What a mask's name adds to its image's (lower case), in the order of preference."""


def stem(name: str) -> str:
    """Return a file's name without its folder and its ending."""
    return posixpath.splitext(posixpath.basename(name))[0]


class Masks:
    """The masks in one folder, found by the names of their images.

    Parameters
    ----------
    folder : str
        Where they are.
    names : iterable of str
        The files.

    Examples
    --------
    >>> masks = Masks("masks", ["1_mask.png", "10_mask.png", "2.bmp"])
    >>> masks.of("images/1.jpg"), masks.of("images/2.jpg"), masks.of("images/3.jpg"), list(masks.unused)
    ('masks/1_mask.png', 'masks/2.bmp', None, ['masks/10_mask.png'])
    """

    def __init__(self, folder: str, names: Iterable[str]) -> None:
        self._by_stem: dict[str, list[str]] = {}
        self.unused: dict[str, None] = {}
        for name in names:
            path = join(folder, name)
            self._by_stem.setdefault(stem(name).lower(), []).append(path)
            self.unused[path] = None

    def of(self, image: str) -> str | None:
        """Return the mask of an image, or None."""
        name = stem(image)
        for suffix in MASK_SUFFIXES:
            paths = self._by_stem.get(name.lower() + suffix)
            if paths:
                # Where names differ in nothing but capitals, the image's own spelling decides.
                mask = min(paths, key=lambda path: not stem(path).startswith(name))
                self.unused.pop(mask, None)
                return mask
        return None


class Listing:
    """Samples and findings while they are collected.

    Parameters
    ----------
    tree : Tree
        What is listed.
    phases : sequence of str
        Names of the phases, in the order in which they are written.
    """

    def __init__(self, tree: Tree, phases: Sequence[str] = ("train", "test")) -> None:
        self.tree = tree
        self.phases: dict[str, list[Sample]] = {phase: [] for phase in phases}
        self.findings: list[Finding] = []
        self._masks: dict[str, Masks] = {}

    def masks(self, folder: str, names: Iterable[str] | None = None) -> Masks:
        """Return the masks of a folder: at first the files of these names, by default all images in it."""
        if folder not in self._masks:
            self._masks[folder] = Masks(folder, self.tree.images(folder) if names is None else names)
        return self._masks[folder]

    def has_masks(self, folder: str) -> bool:
        """Return whether the folder is known as one of masks."""
        return folder in self._masks

    def report(self, kind: str, path: str, detail: str, *, note: bool = False) -> None:
        """Add a finding."""
        self.findings.append(Finding(kind, path, detail, note))

    def add(self, phase: str, sample: Sample, *, mask_expected: bool = False) -> None:
        """Add a sample; where a mask is expected, an anomalous one without is a finding."""
        self.phases[phase].append(sample)
        if mask_expected and not sample.has_mask:
            self.report("missing mask", sample.image, MISSING_MASK)

    def add_folder(
        self,
        phase: str,
        folder: str,
        class_name: str,
        defect: str,
        *,
        anomaly: bool,
        masks: Masks | None = None,
    ) -> None:
        """Add all images of a folder, with masks from `masks`."""
        for name in self.tree.images(folder):
            mask = masks.of(name) if masks else None
            sample = Sample(join(folder, name), mask, class_name, defect, anomaly)
            self.add(phase, sample, mask_expected=masks is not None)

    def finish(self) -> "Listing":
        """Take away masks that several images lay claim to, report those that none does, and return the listing."""
        claims = Counter(sample.mask for samples in self.phases.values() for sample in samples)
        for phase, samples in self.phases.items():
            for index, sample in enumerate(samples):
                if sample.mask and claims[sample.mask] > 1:
                    self.phases[phase][index] = replace(sample, mask=None)
                    self.report(
                        "ambiguous mask",
                        sample.image,
                        f"other images have the same mask, {sample.mask}: {MISSING_MASK}",
                    )
        for masks in self._masks.values():
            for path in masks.unused:
                self.report(
                    "mask without image", path, "no image has this name, or another mask of that name is used"
                )
        return self


class Shape(Protocol):
    """A shape that a data set's folder can have."""

    title: ClassVar[str]
    pattern: ClassVar[str]

    def classes(self, tree: Tree, base: str) -> tuple[str, ...] | None:
        """Return the classes that the folder `base` names; () if it names none; None if it has another shape."""
        ...

    def samples(self, tree: Tree, base: str, class_name: str) -> Listing:
        """List the samples below `base`; `class_name` is for shapes that name no class."""
        ...


@dataclass(frozen=True)
class MVTecShape:
    """``<class>/{train,test}/<good or defect>/*`` with ``<class>/ground_truth/<defect>/*``, or one such class alone.

    Parameters
    ----------
    normal : str or None
        Name of the folders of normal images; None if there are none.
    masks : str
        Name of the folder of masks in a class: with a folder for each defect, or all masks in one.
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
        """Return the folders of the classes by name; where there are none, `base` itself may be one."""

        def is_class(path: str) -> bool:
            return any(tree.folders(join(path, phase)) for phase in ("train", "test"))

        paths = {name: join(base, name) for name in tree.folders(base) if is_class(join(base, name))}
        if not paths and is_class(base):
            paths = {posixpath.basename(base) or tree.root.resolve().name: base}
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
                listing.masks(folder)  # so that masks of defects that have no folder are reported as well
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
                    "missing image", image, f"row {number} of {file} lists it, but it is not there: left out"
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
    # Only a name: two data sets that differ in nothing else have the same shape.
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
    """A folder of normal images and a folder of anomalous ones, without masks; other folders are ignored.

    Parameters
    ----------
    normal, abnormal : str
        The folders; the first part of each names the kind of defect.
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

    A ``Labels.txt`` in the label folder names the label files that there should be; without it a lost label file cannot
    be told from a normal image, and every image without one is noted.
    """

    title: ClassVar[str] = "image + Label folder"
    pattern: ClassVar[str] = "<class>/{Train,Test}/*, <class>/{Train,Test}/Label/*_label.*"
    _phases: ClassVar[tuple[str, ...]] = ("Train", "Test")

    def classes(self, tree: Tree, base: str) -> tuple[str, ...] | None:
        """See `Shape`."""
        names = [
            name
            for name in tree.folders(base)
            if any(tree.has_folder(join(base, f"{name}/{phase}/Label")) for phase in self._phases)
        ]
        return tuple(names) or None

    def samples(self, tree: Tree, base: str, class_name: str) -> Listing:
        """See `Shape`."""
        listing = Listing(tree, self._phases)
        for name in self.classes(tree, base) or ():
            for phase in self._phases:
                folder = join(base, f"{name}/{phase}")
                masks, labelled = listing.masks(f"{folder}/Label"), self._labelled(tree, folder)
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
        """Return the stems of the images that have a label file by ``Labels.txt``; None if there is no such table."""
        file = f"{folder}/Label/Labels.txt"
        return set(re.findall(r"(\w+)_label\.\w+", tree.read_text(file))) if tree.has_file(file) else None


@dataclass(frozen=True)
class LabelsCSVShape:
    """Images in a flat folder and a table of their labels, with the columns id and, say, hemorrhage (0 or 1).

    Parameters
    ----------
    file : str
        The table.
    label : str
        Its column of labels; it also names the kind of defect.
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
                listing.report("unlabelled image", image, f"{file} has no row for it: left out")
                continue
            missing.pop(number_or_name, None)
            anomaly = labels[number_or_name]
            defect = self.label if anomaly else "good"
            listing.add("test", Sample(image, None, class_name, defect, anomaly))
        for name in missing:
            listing.report(
                "missing image", name, f"{file} lists it, but there is no image of that name: left out"
            )
        return listing


@dataclass(frozen=True)
class BesideShape:
    """Masks beside their images, ``kos01/Part0.jpg`` and ``kos01/Part0_label.bmp``; an all-black mask means normal.

    Parameters
    ----------
    folders : str
        Pattern of the folders' names.
    """

    title: ClassVar[str] = "masks beside the images"
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
                        "unlabelled image", image, "no mask beside it, so its label is unknown: left out"
                    )
                    continue
                try:
                    anomaly = _has_defect(tree, mask)
                except InputError as error:
                    listing.report("unreadable", mask, f"{error}; the label of {image} is unknown: left out")
                    continue
                defect = "defect" if anomaly else "good"
                listing.add("test", Sample(image, mask if anomaly else None, class_name, defect, anomaly))
            for path in masks.unused:
                listing.report("mask without image", path, "no image beside it has this name")
        return listing


@dataclass(frozen=True)
class Folder:
    """A folder of one's own, with the names of anomalib's ``Folder``; all folders are searched with what is below them.

    Parameters
    ----------
    normal_dir : tuple of str
        Folders of normal images, relative to the root: training images if `normal_test_dir` is given, else test images,
        since nothing here is trained on normal images alone.
    abnormal_dir : tuple of str
        Folders of anomalous images, of the test phase. The folder that holds an image names its kind of defect.
    normal_test_dir : tuple of str
        Folders of normal test images.
    mask_dir : tuple of str
        Folders of masks, in the same subfolders as the images or in none. May be the images' own.
    image_suffix : tuple of str
        File name endings of the images, such as ".png"; none means all known.
    """

    normal_dir: tuple[str, ...] = ()
    abnormal_dir: tuple[str, ...] = ()
    normal_test_dir: tuple[str, ...] = ()
    mask_dir: tuple[str, ...] = ()
    image_suffix: tuple[str, ...] = ()

    def samples(self, tree: Tree, class_name: str) -> Listing:
        """List the samples below the tree's root."""
        listing = Listing(tree)
        mask_tops = [_existing_folder(tree, folder) for folder in self.mask_dir]
        tops = self._tops(tree)
        image_folders = {
            folder: (phase, top, anomaly)
            for top, (phase, anomaly) in tops.items()
            for folder in _own_folders(tree, top, [*tops, *mask_tops])
        }
        mask_folders = {folder for top in mask_tops for folder in tree.walk(top)}
        for folder in sorted(mask_folders, key=natural):
            names = tree.images(folder)
            listing.masks(
                folder,
                [name for name in names if not (folder in image_folders and self._is_image(name, True))],
            )
        for folder, (phase, top, anomaly) in image_folders.items():
            for name in tree.images(folder):
                if self._is_image(name, folder in mask_folders):
                    image = join(folder, name)
                    mask = _mask_of(listing, image, top, mask_tops) if anomaly else None
                    sample = Sample(image, mask, class_name, posixpath.basename(folder), anomaly)
                    listing.add(phase, sample, mask_expected=bool(mask_tops))
        return listing.finish()

    def _tops(self, tree: Tree) -> dict[str, tuple[str, bool]]:
        """Return phase and anomaly of each named folder of images."""
        tops: dict[str, tuple[str, bool]] = {}
        for folders, phase, anomaly in (
            (self.normal_dir, "train" if self.normal_test_dir else "test", False),
            (self.normal_test_dir, "test", False),
            (self.abnormal_dir, "test", True),
        ):
            for folder in folders:
                if tops.setdefault(_existing_folder(tree, folder), (phase, anomaly)) != (phase, anomaly):
                    raise AnomalyCLIPError(f"{folder}: named twice, as folders of different kinds of images")
        return tops

    def _is_image(self, name: str, beside_masks: bool) -> bool:
        """Return whether a file is an image, in a folder that also holds masks or not."""
        endings = tuple(f".{suffix.lower().lstrip('.')}" for suffix in self.image_suffix)
        return not (beside_masks and is_mask_name(name)) and (not endings or name.lower().endswith(endings))


def _existing_folder(tree: Tree, folder: str) -> str:
    path = tree.relative(folder)
    if not (tree.root / path).is_dir():
        raise AnomalyCLIPError(f"{tree.root / path}: no such folder; expected a folder of images or masks")
    return path


def _own_folders(tree: Tree, top: str, tops: Iterable[str]) -> list[str]:
    """Return the folders from `top` down, less those that another named folder below it claims."""
    others = [other for other in tops if _is_below(other, top)]
    return [
        folder
        for folder in tree.walk(top)
        if not any(folder == other or _is_below(folder, other) for other in others)
    ]


def _is_below(folder: str, top: str) -> bool:
    return folder != top and (not top or folder.startswith(f"{top}/"))


def _mask_of(listing: Listing, image: str, top: str, mask_tops: Sequence[str]) -> str | None:
    """Return an image's mask from folders that may mirror the images' or not; None where several would do.

    The nearest relation decides: a mask folder that names the images' folder, then one with the same subfolders, then the
    mask folders themselves.
    """
    name, below = posixpath.basename(top), posixpath.dirname(image)[len(top) :].strip("/")
    for folders in (
        [posixpath.join(mask_top, name, below) for mask_top in mask_tops]
        + [posixpath.join(mask_top, below) for mask_top in mask_tops if posixpath.basename(mask_top) == name],
        [posixpath.join(mask_top, below) for mask_top in mask_tops],
        mask_tops,
    ):
        known = [folder.rstrip("/") for folder in folders if listing.has_masks(folder.rstrip("/"))]
        found = {mask for folder in known if (mask := listing.masks(folder).of(image))}
        if len(found) == 1:
            return found.pop()
        if found:
            listing.report(
                "ambiguous mask", image, f"several masks would do ({', '.join(sorted(found))}), none is used"
            )
            return None
    return None


def is_mask_name(name: str) -> bool:
    """Return whether a file's name says that it is a mask.

    Examples
    --------
    >>> is_mask_name("Part0_label.bmp"), is_mask_name("Part0.jpg")
    (True, False)
    """
    return stem(name).lower().endswith(MASK_SUFFIXES[:-1])


def _has_defect(tree: Tree, mask: str) -> bool:
    from anomalyclip.images import read_mask

    return bool(read_mask(tree.root / mask).any())


def _number(text: str) -> str:
    """Return a number without leading zeros, so that 7 and 007 are one name; other names as they are."""
    return str(int(text)) if text.isdecimal() else text


def _rows(tree: Tree, path: str, columns: Sequence[str]) -> list[dict[str, str]] | None:
    """Return a table's rows; None if there is no such file or it lacks one of the columns.

    Names of columns count in any case; spaces around values and semicolons or tabs for commas are accepted.
    """
    if not tree.has_file(path):
        return None
    text = tree.read_text(path)
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    names = [name.strip().lower() for name in next(reader, [])]
    if not set(columns) <= set(names):
        return None
    rows = [[cell.strip() for cell in row] for row in reader if any(cell.strip() for cell in row)]
    # Spreadsheets leave empty cells at a row's end away.
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
"""The shapes by the names that ``catalog.yaml`` uses."""
