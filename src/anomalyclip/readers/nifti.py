"""NIfTI: a volume to slices as a radiologist sees them: anterior or superior is up, the patient's right is on the left.

The axes are first put into the nearest anatomical order (nibabel's "closest canonical"), whatever order the file has.
Patient data cannot get out: of the header only numbers are read.
"""

import gzip
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomalyclip.depth import Deep, Range
from anomalyclip.errors import InputError
from anomalyclip.readers.base import Frame, Reader
from anomalyclip.readers.selection import AXES, Selection, holder, parted
from anomalyclip.readers.spacing import square, square_size

LARGEST = 1 << 31
"""Bytes that a compressed volume has at most once it is unpacked."""

_ACROSS = {"sagittal": 0, "coronal": 1, "axial": 2}
"""The axis from slice to slice, where the axes point to the right, to the front and up."""

_HEADERS = {348: "Nifti1Image", 540: "Nifti2Image"}
"""Sizes of the two headers, which the file begins with."""


class NiftiReader(Reader):
    """Reads the slices of NIfTI volumes, and of series of volumes one after the other.

    Examples
    --------
    >>> NiftiReader().recognises("missing.nii.gz#axis=coronal")
    False
    """

    suffixes = frozenset({".nii", ".nii.gz"})

    def recognises(self, path: str) -> bool:
        """Return whether a path selects slices of a volume, or a file begins as a volume does."""
        file, selection = parted(path)
        if selection != Selection():
            return os.path.isfile(file) and is_volume(file)
        try:
            with open(file, "rb") as content:
                return content.read(348)[344:] in (b"n+1\0", b"n+2\0")
        except OSError:
            return False

    def select(self, path: str, selection: Selection) -> str:
        """Return the path of the slices that are wanted of a volume."""
        return path if parted(path)[1] != Selection() else f"{path}{selection}"

    def frames(self, path: str) -> Iterator[Frame]:
        """Yield the slices of a file in order."""
        file, selection = parted(path)
        count = volume(file).count(selection.axis)
        wanted = selection.picker(file)
        for index in range(count):
            if wanted(index, None):  # the volume is not held in between: others may be open too
                image = volume(file).slice(index, selection.axis)
                yield Frame(file if count == 1 else f"{holder(path)}#{index + 1}", image)

    def open(self, path: str, number: int = 1) -> Image.Image | Deep:
        """Return one slice."""
        file, selection = parted(path)
        found = volume(file)
        _require(number, found, selection.axis, path)
        return found.slice(number - 1, selection.axis)

    def size(self, path: str, number: int = 1) -> tuple[int, int]:
        """Return (width, height) of one slice, after resampling to square pixels."""
        file, selection = parted(path)
        found = volume(file)
        _require(number, found, selection.axis, path)
        return square_size(found.grid(selection.axis), found.aspect(selection.axis))


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume, or several over time, with axes that point to the patient's right, front and top.

    Attributes
    ----------
    values : ndarray
        (X, Y, Z, T) as stored, or (X, Y, Z, T, 3) for colour.
    slope, intercept : float
        From stored values to the scanner's unit.
    spacing : tuple of float
        Distances of voxels along X, Y and Z.
    own : (float, float) or None
        What the file says is black and white.
    within : (float, float)
        The lowest and the highest value, in the scanner's unit.
    """

    values: NDArray[Any]
    slope: float
    intercept: float
    spacing: tuple[float, ...]
    own: Range | None
    within: Range

    def count(self, axis: str | None) -> int:
        """Return how many slices there are, of all times."""
        return int(self.values.shape[_ACROSS[axis or AXES[0]]]) * int(self.values.shape[3])

    def grid(self, axis: str | None) -> tuple[int, int]:
        """Return (width, height) of a slice in voxels."""
        across, up = self._in_plane(axis)
        return int(self.values.shape[across]), int(self.values.shape[up])

    def aspect(self, axis: str | None) -> float:
        """Return height over width of a voxel as a slice shows it."""
        across, up = self._in_plane(axis)
        return self.spacing[up] / self.spacing[across]

    def slice(self, index: int, axis: str | None) -> Image.Image | Deep:
        """Return a slice, counted from 0 through all times."""
        time, place = divmod(index, self.values.shape[_ACROSS[axis or AXES[0]]])
        stored = shown(np.take(self.values[:, :, :, time], place, axis=_ACROSS[axis or AXES[0]]))
        aspect = self.aspect(axis)
        if stored.ndim == 3:
            image = Image.fromarray(np.ascontiguousarray(stored))
            return image.resize(square_size(image.size, aspect), Image.Resampling.BILINEAR)
        if (self.slope, self.intercept) != (1.0, 0.0):
            stored = (stored.astype(np.float64) * self.slope + self.intercept).astype(np.float32)
        return Deep(square(stored, aspect), own=self.own, within=self.within)

    def _in_plane(self, axis: str | None) -> tuple[int, int]:
        across, up = (number for number in range(3) if number != _ACROSS[axis or AXES[0]])
        return across, up


class MapVolume:
    """The maps of a volume's slices, put together again.

    Parameters
    ----------
    path : str
        The volume, with ``#axis=...`` if it was not cut in the usual way.

    Raises
    ------
    InputError
        It cannot be read.
    """

    def __init__(self, path: str) -> None:
        self._file, selection = parted(path)
        self._axis = _ACROSS[selection.axis or AXES[0]]
        self._width, self._height = volume(self._file).grid(selection.axis)
        self._values = np.zeros(volume(self._file).values.shape[:4], np.float32)

    def put(self, number: int, anomaly_map: NDArray[np.float32]) -> None:
        """Put the map of a slice, counted from 1, in its place: at the size of the slice, turned as it is stored."""
        time, place = divmod(number - 1, self._values.shape[self._axis])
        resized = Image.fromarray(anomaly_map).resize((self._width, self._height), Image.Resampling.BILINEAR)
        planes = np.moveaxis(self._values[:, :, :, time], self._axis, 0)  # a view
        planes[place] = shown(np.asarray(resized).swapaxes(0, 1)).swapaxes(0, 1)

    def encoded(self) -> bytes:
        """Return a compressed NIfTI file with shape, affine and units of the volume, and nothing else of it."""
        nibabel, image = library(self._file), header_of(self._file)
        ways = nibabel.orientations
        back = ways.ornt_transform([[0, 1], [1, 1], [2, 1]], nibabel.io_orientation(image.affine))
        values = ways.apply_orientation(self._values, back).reshape(image.shape)
        whole = type(image)(values, image.affine)
        whole.header.set_xyzt_units(*image.header.get_xyzt_units())
        whole.set_sform(image.affine, code=int(image.header["sform_code"]) or 1)
        whole.set_qform(image.affine, code=int(image.header["qform_code"]))
        whole.header["cal_max"] = 1  # viewers show it in this range
        return gzip.compress(whole.to_bytes(), mtime=0)


def is_volume(path: str) -> bool:
    """Return whether a path is named like a volume, or selects slices of one.

    Examples
    --------
    >>> is_volume("scan.nii.gz#axis=coronal"), is_volume("scan.tif")
    (True, False)
    """
    return parted(path)[0].lower().endswith(tuple(NiftiReader.suffixes))


def shown(plane: NDArray[Any]) -> NDArray[Any]:
    """Return a plane of a volume as an image: rows from top to bottom, columns from the patient's right or front.

    Examples
    --------
    >>> shown(np.array([[1, 2, 3], [4, 5, 6]])).tolist()  # (X, Y) to rows
    [[6, 3], [5, 2], [4, 1]]
    """
    return plane[::-1, ::-1].swapaxes(0, 1)


def volume(file: str) -> Volume:
    """Return the volume of a file; the last two are kept in memory.

    Raises
    ------
    InputError
        The file is damaged, too large, or has values that are no numbers.
    """
    status = os.stat(file)
    return _read(file, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=2)
def _read(file: str, changed: int, size: int) -> Volume:
    nibabel = library(file)
    image = header_of(file)
    shape = (*image.shape, 1, 1, 1, 1)
    if any(extent != 1 for extent in shape[4:]) or 0 in image.shape or not image.shape:
        raise InputError(
            f"{file}: a volume of {' x '.join(map(str, image.shape))}; expected 2 to 4 dimensions"
        )
    unpacked = math.prod(image.shape) * image.dataobj.dtype.itemsize
    if file.lower().endswith(".gz") and unpacked > LARGEST:
        raise InputError(
            f"{file}: {unpacked} bytes when unpacked; expected at most {LARGEST}: unpack it first"
        )
    stored = np.asanyarray(image.dataobj.get_unscaled()).reshape(shape[:4])
    if stored.dtype.fields is not None and {"R", "G", "B"} <= stored.dtype.fields.keys():
        stored = np.stack([stored[name] for name in "RGB"], axis=-1)
    elif stored.dtype.kind not in "uif":
        raise InputError(f"{file}: voxels of type {stored.dtype}; expected real numbers or RGB")
    orientation = nibabel.io_orientation(image.affine)
    if not np.isfinite(orientation).all():
        raise InputError(f"{file}: its affine has no three directions, so it is not known where up is")
    values = nibabel.orientations.apply_orientation(stored, orientation)
    return _described(file, values, image, orientation)


def _described(file: str, values: NDArray[Any], image: Any, orientation: NDArray[Any]) -> Volume:
    slope, intercept = (float(number) for number in (image.dataobj.slope, image.dataobj.inter))
    low, high = (float(limit(values)) for limit in (np.min, np.max))
    if not (math.isfinite(low) and math.isfinite(high)):
        missing = int(np.count_nonzero(~np.isfinite(values)))
        raise InputError(
            f"{file}: {missing} of {values.size} voxels are NaN or infinite; expected numbers: replace them, for "
            "example by 0"
        )
    within = sorted((low * slope + intercept, high * slope + intercept))
    bottom, top = (float(image.header[name]) for name in ("cal_min", "cal_max"))
    own: Range | None = None
    if math.isfinite(bottom) and math.isfinite(top) and bottom < top:
        own = bottom, top
    elif values.dtype == np.uint8 and (slope, intercept) == (1.0, 0.0):
        own = 0.0, 255.0
    sizes = [float(size) if 0 < size < math.inf else 1.0 for size in (*image.header.get_zooms()[:3], 1, 1)]
    spacing = tuple(sizes[int(np.flatnonzero(orientation[:, 0] == axis)[0])] for axis in range(3))
    return Volume(values, slope, intercept, spacing, own, (within[0], within[1]))


def header_of(file: str) -> Any:
    """Return nibabel's image of a file, whose voxels are not read yet."""
    nibabel = library(file)
    with nibabel.openers.ImageOpener(file) as content:
        start = content.read(4)
    kind = next(
        (_HEADERS[n] for n in _HEADERS if start in (n.to_bytes(4, "little"), n.to_bytes(4, "big"))), None
    )
    if kind is None:
        raise InputError(f"{file}: not a NIfTI file (it begins with neither of the two headers)")
    places = getattr(nibabel, kind).make_file_map()
    places["image"].filename = file
    return getattr(nibabel, kind).from_file_map(places)


def library(file: str) -> Any:
    """Return nibabel."""
    try:
        import nibabel
        import nibabel.orientations
    except ImportError:
        raise InputError(f"{file}: NIfTI needs nibabel: pip install 'anomalyclip[nifti]'") from None
    return nibabel


def _require(number: int, found: Volume, axis: str | None, path: str) -> None:
    if number > found.count(axis):
        raise InputError(f"{path}#{number}: the file holds fewer images")
