"""Masks and images are paired by name, never by position.

``000.png`` is paired with ``000_mask.png``, ``000_label.bmp``, ``000_Segmentation.png``, or another file whose name
without its extension is ``000``.
"""

import posixpath
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from anomalyclip.data.meta import MISSING_MASK, Finding, Sample
from anomalyclip.data.tree import Tree, join
from anomalyclip.readers.base import is_unnamed

MASK_SUFFIXES = ("_mask", "_label", "_segmentation", "")
"""Suffixes (lower case) that a mask's name adds to the name of its image, in the order of preference."""


_DOUBLE = ".nii.gz"
"""The extension of two parts."""


def stem(name: str) -> str:
    """Return a file's name without its folder and its extension; DICOM files may be called by numbers with dots.

    Examples
    --------
    >>> stem("images/1.5.png"), stem("images/1.nii.gz"), stem("images/1.2.840.113")
    ('1.5', '1', '1.2.840.113')
    """
    base = posixpath.basename(name)
    if is_unnamed(base):
        return base
    return base[: -len(_DOUBLE)] if base.lower().endswith(_DOUBLE) else posixpath.splitext(base)[0]


def is_mask_name(name: str) -> bool:
    """Return whether a file's name marks it as a mask.

    Examples
    --------
    >>> is_mask_name("Part0_label.bmp"), is_mask_name("Part0.jpg")
    (True, False)
    """
    return stem(name).lower().endswith(MASK_SUFFIXES[:-1])


class Masks:
    """The masks in one folder, found by the names of their images.

    Parameters
    ----------
    folder : str
        The folder.
    names : iterable of str
        Names of the mask files.

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
                # If names differ only in upper and lower case, the image's own spelling wins.
                mask = min(paths, key=lambda path: not stem(path).startswith(name))
                self.unused.pop(mask, None)
                return mask
        return None


class Listing:
    """Samples and findings while they are collected.

    Parameters
    ----------
    tree : Tree
        The data set's folder.
    phases : sequence of str
        Names of the phases, in the order in which they are written.
    """

    def __init__(self, tree: Tree, phases: Sequence[str] = ("train", "test")) -> None:
        self.tree = tree
        self.phases: dict[str, list[Sample]] = {phase: [] for phase in phases}
        self.findings: list[Finding] = []
        self._masks: dict[str, Masks] = {}

    def masks(self, folder: str, names: Iterable[str] | None = None) -> Masks:
        """Return the masks of a folder. The first call sets their file names; by default, all images in the folder."""
        if folder not in self._masks:
            self._masks[folder] = Masks(folder, self.tree.images(folder) if names is None else names)
        return self._masks[folder]

    def has_masks(self, folder: str) -> bool:
        """Return whether the folder is known as a folder of masks."""
        return folder in self._masks

    def report(self, kind: str, path: str, detail: str, *, note: bool = False) -> None:
        """Add a finding."""
        self.findings.append(Finding(kind, path, detail, note))

    def add(self, phase: str, sample: Sample, *, mask_expected: bool = False) -> None:
        """Add a sample; if a mask is expected, an anomalous sample without one becomes a finding."""
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
        """Remove masks that match several images, report masks that match none, and return the listing."""
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
                    "mask without image",
                    path,
                    "no image has this name, or another mask with this name is used",
                )
        return self
