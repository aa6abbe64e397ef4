"""Samples from folders that the user names, with the names of anomalib's ``Folder``."""

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from anomalyclip.data.meta import Sample
from anomalyclip.data.pairing import Listing, is_mask_name
from anomalyclip.data.tree import Tree, join, natural
from anomalyclip.errors import AnomalyCLIPError


@dataclass(frozen=True)
class Folder:
    """A data set with its own layout, described as in anomalib's ``Folder``. All folders are searched recursively.

    Parameters
    ----------
    normal_dir : tuple of str
        Folders of normal images, relative to the root: training images if `normal_test_dir` is given, otherwise test
        images, because nothing here is trained on normal images alone.
    abnormal_dir : tuple of str
        Folders of anomalous images, for the test phase. An image's kind of defect is the name of its folder.
    normal_test_dir : tuple of str
        Folders of normal test images.
    mask_dir : tuple of str
        Folders of masks, with the same subfolders as the images or without subfolders. May be the image folders.
    image_suffix : tuple of str
        File extensions of the images, such as ".png"; if empty, all known extensions.
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
                    raise AnomalyCLIPError(f"{folder}: named twice, for different kinds of images")
        return tops

    def _is_image(self, name: str, beside_masks: bool) -> bool:
        """Return whether a file is an image and not a mask; `beside_masks`: its folder holds masks too."""
        endings = tuple(f".{suffix.lower().lstrip('.')}" for suffix in self.image_suffix)
        return not (beside_masks and is_mask_name(name)) and (not endings or name.lower().endswith(endings))


def _existing_folder(tree: Tree, folder: str) -> str:
    path = tree.relative(folder)
    if not tree.is_folder(path):
        raise AnomalyCLIPError(f"{tree.root / path}: no such folder; expected a folder of images or masks")
    return path


def _own_folders(tree: Tree, top: str, tops: Iterable[str]) -> list[str]:
    """Return `top` and all folders below it, without those that belong to another named folder."""
    others = [other for other in tops if _is_below(other, top)]
    return [
        folder
        for folder in tree.walk(top)
        if not any(folder == other or _is_below(folder, other) for other in others)
    ]


def _is_below(folder: str, top: str) -> bool:
    return folder != top and (not top or folder.startswith(f"{top}/"))


def _mask_of(listing: Listing, image: str, top: str, mask_tops: Sequence[str]) -> str | None:
    """Return an image's mask, from mask folders with or without the images' subfolders; None if several fit.

    The closest match wins: first mask folders with the name of the image folder, then mask folders with the same
    subfolders, then the mask folders themselves.
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
                "ambiguous mask", image, f"several masks fit ({', '.join(sorted(found))}), so none is used"
            )
            return None
    return None
