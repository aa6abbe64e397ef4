"""Images below addresses, listed as they arrive: what `anomalyclip.inputs` does for folders of this machine."""

import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from anomalyclip.addresses import Address, beginning, exists, fetched, is_folder, objects
from anomalyclip.errors import AnomalyCLIPError, InputError
from anomalyclip.readers import reader_for, suffixes
from anomalyclip.readers.archive import ARCHIVES
from anomalyclip.readers.base import is_unnamed

RESULTS = "predictions.jsonl"
"""A folder with such a file holds the results of an earlier run."""

_MAGIC = re.compile(r"[*?[]")
_HEADER = 1024
"""Bytes from which a file without an extension is recognised."""


@dataclass(frozen=True)
class Place:
    """What an address of a user stands for.

    Attributes
    ----------
    folder : Address
        The folder that is listed, or that of the one object.
    pattern : str or None
        What the names below the folder have to match; None: all images.
    object : Address or None
        The one object, if it is no folder and no pattern.
    """

    folder: Address
    pattern: str | None = None
    object: Address | None = None

    def images(
        self,
        is_image: Callable[[str], bool],
        *,
        skipped: Counter[str] | None = None,
        leave_out: Callable[[Address, Address], bool] | None = None,
    ) -> Iterator[Address]:
        """Yield the images, in the order in which the store lists them.

        Parameters
        ----------
        is_image : callable
            Called with a local file that begins like an object without a known extension.
        skipped : Counter, optional
            Counts other files by their extension.
        leave_out : callable, optional
            Called with the folder and an image in it; if it returns true, the image is left out.

        Raises
        ------
        AnomalyCLIPError
            There is none, or the store cannot be asked.
        """
        if self.object is not None:
            yield from _members(self.object)
            return
        found = False
        endings = tuple(suffixes())
        for address in objects(self.folder, _is_new):
            named, below = self._match(address)
            if not named and not below:
                continue
            if named or address.lower().endswith(endings) or begins_like_an_image(address, is_image):
                found = True
                if leave_out is None or not leave_out(self.folder, address):
                    yield address
            elif skipped is not None:
                skipped[os.path.splitext(address)[1].lower() or address.rpartition("/")[2]] += 1
        if not found and self.pattern is not None:
            raise AnomalyCLIPError(f"{self.folder.below(self.pattern)}: nothing matches this pattern")
        if not found:
            raise AnomalyCLIPError(
                f"{self.folder}: no images in this folder or its subfolders (looked for {' '.join(sorted(endings))})"
            )

    def _match(self, address: Address) -> tuple[bool, bool]:
        """Return whether the pattern names this object, and whether it names a folder that the object is in."""
        name = address[len(self.folder.rstrip("/")) + 1 :]
        if name.rpartition("/")[2].startswith("."):
            return False, False
        if self.pattern is None:
            return False, True
        matches = _matcher(self.pattern)
        above = [name[: slash.start()] for slash in re.finditer("/", name)]
        return bool(matches(name)), any(map(matches, above))


def place_of(address: Address) -> Place:
    """Return what an address stands for: an object, a folder, or a pattern.

    Raises
    ------
    AnomalyCLIPError
        There is nothing at it, or the store cannot be asked.
    """
    if address.is_web or address.inner:
        return _single(address)
    try:
        return Place(address) if is_folder(address) else _single(address)
    except FileNotFoundError:
        pass
    if _MAGIC.search(address.url):
        whole = address.url
        slash = whole.rindex("/", 0, _MAGIC.search(whole).start())  # type: ignore[union-attr]
        return Place(Address(whole[:slash]), whole[slash + 1 :])
    if any(_is_there(reading) for reading in list(address.readings())[1:]):
        return _single(address)
    raise AnomalyCLIPError(f"{address}: no such object or folder")


def _single(address: Address) -> Place:
    if address.rpartition("/")[2].upper() == "DICOMDIR":
        raise AnomalyCLIPError(
            f"{address}: a DICOMDIR is not followed in a store; give the folder that it is in"
        )
    return Place(address.parent, object=address)


def _is_there(address: Address) -> bool:
    return exists(address.object)


def _members(address: Address) -> list[Address]:
    """Return the address itself, or those of the images in an archive."""
    if not address.object.lower().endswith(ARCHIVES) or address.inner:
        return [address]
    with fetched(address, again=True) as (file, reading):
        try:
            members = reader_for(file).members(file)
        except InputError as error:
            raise InputError(str(error).replace(file, reading)) from None
        except Exception as error:  # of a damaged archive
            raise AnomalyCLIPError(f"{reading}: cannot read what is in it ({error})") from None
    return [Address(reading.url, member[len(file) :]) for member in members]


def _is_new(folder: Address) -> bool:
    """Return whether a folder is neither hidden nor the results of an earlier run."""
    name = folder.rstrip("/").rpartition("/")[2]
    return not name.startswith(".") and not exists(folder.below(RESULTS))


def _matcher(pattern: str) -> Callable[[str], object]:
    from fsspec.utils import glob_translate

    return re.compile(glob_translate(pattern)).match


def begins_like_an_image(address: Address, is_image: Callable[[str], bool]) -> bool:
    """Return whether an object whose name does not say what it is begins like an image; see `Place.images`."""
    name = address.rpartition("/")[2]
    if not is_unnamed(name) or name.upper() == "DICOMDIR":
        return False
    with tempfile.TemporaryDirectory(prefix="anomalyclip-") as folder:
        file = os.path.join(folder, "beginning")
        with open(file, "wb") as start:
            start.write(beginning(address, _HEADER))
        return is_image(file)
