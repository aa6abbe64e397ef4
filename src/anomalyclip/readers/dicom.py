"""DICOM: what a scanner stored to what a radiologist sees, with the file's own window or the run's range.

The order is that of DICOM PS3.3 C.11: rescale or modality table, then window or table of interest, then MONOCHROME1 is
inverted. In enhanced files each frame has its own values for them. Pixels that are not square are resampled.

Patient data cannot get out because they are not read: only the attributes in `_READ` are, and none of them says who the
patient is.
"""

import math
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomalyclip.decoders import unsaid
from anomalyclip.depth import Deep, Range, Rendering
from anomalyclip.errors import InputError, reason
from anomalyclip.readers.base import Frame, Reader
from anomalyclip.readers.spacing import square, square_size

_PALETTE = [
    f"{kind}{color}PaletteColorLookupTable{part}"
    for color in ("Red", "Green", "Blue")
    for kind, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
]
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
"""Distances of rows and columns; the first one that is there counts."""
_GROUPS = ("PixelValueTransformationSequence", "FrameVOILUTSequence", "PixelMeasuresSequence")
"""Functional groups of a frame that change how it looks."""
_READ = [
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "PixelRepresentation", "PresentationLUTShape"),
    *("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *_SPACINGS,
    *_PALETTE,
]
_DEFLATED = "1.2.840.10008.1.2.1.99"
_MAGIC_AT = 128
"""How many bytes a file has before it says that it is DICOM."""


class DicomReader(Reader):
    """Reads DICOM images: one frame, several, or enhanced multi-frame; in folders also without a file extension.

    Examples
    --------
    >>> DicomReader().recognises("missing")
    False
    """

    suffixes = frozenset({".dcm", ".dicom", ".ima"})

    def recognises(self, path: str) -> bool:
        """Return whether a file says that it is DICOM."""
        try:
            with open(path, "rb") as file:
                return file.read(_MAGIC_AT + 4)[_MAGIC_AT:] == b"DICM"
        except OSError:
            return False

    def members(self, path: str) -> list[str]:
        """Return the images that a DICOMDIR lists."""
        if not _is_index(path):
            return [path]
        folder = os.path.dirname(path)
        listed = []
        for record in (
            _library(path).dcmread(path, specific_tags=["DirectoryRecordSequence"]).DirectoryRecordSequence
        ):
            if record.get("DirectoryRecordType") != "IMAGE":
                continue
            parts = record.get("ReferencedFileID") or []
            file = PurePath(*([parts] if isinstance(parts, str) else parts))
            if file.is_absolute() or ".." in file.parts:
                raise InputError(f"{path}: lists {file}, which is not in its folder")
            listed.append(os.path.join(folder, file))
        if not listed:
            raise InputError(f"{path}: lists no images")
        return listed

    def frames(self, path: str) -> Iterator[Frame]:
        """Yield the frames of a file in order."""
        header = _header(path)
        count = _count(path, header)
        library, decoder = _library(path).pixels, _decoder(header)
        with (
            open(path, "rb") as file,  # pydicom would resolve a path, and files in memory have none then
            closing(library.iter_pixels(file, decoding_plugin=decoder)) as pixels,
        ):
            for index in range(count):
                with _decoding(header, path):
                    values = next(pixels)
                yield Frame(
                    path if count == 1 else f"{path}#{index + 1}", _image(header, index, values, path)
                )

    def open(self, path: str, number: int = 1) -> Image.Image | Deep:
        """Decode one frame alone."""
        header = _header(path)
        if number > _count(path, header):
            raise InputError(f"{path}#{number}: the file holds fewer images")
        with _decoding(header, path), open(path, "rb") as file:
            values = _library(path).pixels.pixel_array(
                file, index=number - 1, decoding_plugin=_decoder(header)
            )
        return _image(header, number - 1, values, path)

    def size(self, path: str, number: int = 1) -> tuple[int, int]:
        """Return (width, height) from the header alone, after resampling to square pixels."""
        header = _header(path)
        if number > _count(path, header):
            raise InputError(f"{path}#{number}: the file holds fewer images")
        return square_size((header.Columns, header.Rows), _aspect(_of_frame(header, number - 1)))


def _is_index(path: str) -> bool:
    return os.path.basename(path).upper() == "DICOMDIR"


def _library(path: str) -> Any:
    try:
        import pydicom
        import pydicom.pixels
    except ImportError:
        raise InputError(f"{path}: DICOM needs pydicom: pip install 'anomalyclip[dicom]'") from None
    return pydicom


def _header(path: str) -> Any:
    """Return the attributes that are needed, and no others; files that hold no image are refused."""
    pydicom = _library(path)
    try:
        with unsaid():
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_READ)
    except pydicom.errors.InvalidDicomError:
        raise InputError(f"{path}: not a DICOM file (no DICM at its 128th byte)") from None
    if header.file_meta.get("TransferSyntaxUID") == _DEFLATED:
        raise InputError(f"{path}: deflated DICOM; convert it first, for example with dcmtk's `dcmconv +te`")
    if not header.get("Rows") or not header.get("Columns"):
        raise InputError(f"{path}: a DICOM file without an image (a report, a plan, a signal)")
    if header.Rows * header.Columns > 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
        raise Image.DecompressionBombError(f"{header.Columns} x {header.Rows} pixels")
    return header


def _decoder(header: Any) -> str:
    from anomalyclip.readers.dicom_jpeg import decoder_for

    return decoder_for(header.file_meta.get("TransferSyntaxUID"))


@contextmanager
def _decoding(header: Any, path: str) -> Iterator[None]:
    """Say in one line what is wrong with pixels; pydicom lists what each of its decoders says."""
    try:
        yield
    except StopIteration:
        raise InputError(f"{path}: fewer frames than its header says ({_count(path, header)})") from None
    except Exception as error:
        kind = header.file_meta.get("TransferSyntaxUID")
        name = getattr(kind, "name", "no transfer syntax")
        said = reason(error).splitlines()
        raise InputError(
            f"{path}: its pixels cannot be decoded ({name}; {said[1 % len(said)].strip()})"
        ) from None


def _count(path: str, header: Any) -> int:
    try:
        with unsaid():
            return int(header.get("NumberOfFrames") or 1)
    except ValueError:
        raise InputError(f"{path}: its NumberOfFrames is no number; repair the file or convert it") from None


def _of_frame(header: Any, index: int) -> Any:
    """Return the attributes of one frame: its functional groups before the shared ones before the file's."""
    shared = header.get("SharedFunctionalGroupsSequence") or []
    own = header.get("PerFrameFunctionalGroupsSequence") or []
    if not shared and not own:
        return header
    attributes = _library("").Dataset()
    attributes.update(header)
    for groups in (*shared[:1], *([own[index]] if own else [])):
        for name in _GROUPS:
            if found := groups.get(name):
                attributes.update(found[0])
    return attributes


def _image(header: Any, index: int, values: NDArray[Any], path: str) -> Image.Image | Deep:
    attributes = _of_frame(header, index)
    aspect = _aspect(attributes)
    kind = str(header.get("PhotometricInterpretation", ""))
    if kind == "PALETTE COLOR":
        values = _painted(values, attributes, path)
    if values.ndim == 3:
        if values.dtype == np.uint8:
            image = Image.fromarray(values[..., :3])
            return image.resize(square_size(image.size, aspect), Image.Resampling.BILINEAR)
        return Deep(square(values[..., :3], aspect), own=(0.0, 2.0 ** int(header.BitsStored) - 1))
    values = square(_rescaled(values, attributes), aspect)
    inverted = kind == "MONOCHROME1" or header.get("PresentationLUTShape") == "INVERSE"
    return Deep(values, own=_own(attributes), inverted=inverted)


def _painted(values: NDArray[Any], attributes: Any, path: str) -> NDArray[np.uint8]:
    colors: NDArray[Any] = _library(path).pixels.apply_color_lut(values, attributes)
    if colors.dtype == np.uint8:
        return colors
    bits = attributes.RedPaletteColorLookupTableDescriptor[2]
    return (colors >> (bits - 8)).astype(np.uint8) if colors.max() > 255 else colors.astype(np.uint8)


def _rescaled(values: NDArray[Any], attributes: Any) -> NDArray[Any]:
    """Return the scanner's unit (Hounsfield, density) of stored values."""
    if table := attributes.get("ModalityLUTSequence"):
        return _looked_up(values, table[0])[0]
    slope, intercept = attributes.get("RescaleSlope"), attributes.get("RescaleIntercept")
    slope, intercept = (1.0 if slope is None else float(slope)), float(intercept or 0)
    if (slope, intercept) == (1.0, 0.0):
        return values
    return (values.astype(np.float64) * slope + intercept).astype(np.float32)


def _looked_up(values: NDArray[Any], item: Any) -> tuple[NDArray[Any], int]:
    """Return what a table makes of values, and how many bits its entries have."""
    count, first, bits = item.LUTDescriptor
    data = item.LUTData
    table = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.asarray(data, np.uint16)
    table = table[: count or 2**16]
    if len(table) == 0 or not 1 <= bits <= 16:
        raise ValueError(f"look-up table of {len(table)} entries of {bits} bits")
    at = np.clip(np.round(values).astype(np.int64) - first, 0, len(table) - 1)
    return table[at], bits


def _own(attributes: Any) -> Range | Rendering | None:
    """Return how the file wants to be seen; None if it does not say."""
    if attributes.get("VOILUTSequence"):
        table = attributes.VOILUTSequence[0]

        def by_table(values: NDArray[Any]) -> NDArray[Any]:
            bright, bits = _looked_up(values, table)
            return np.clip(bright / (2.0**bits - 1), 0, 1)

        return by_table
    center, width = _first(attributes, "WindowCenter"), _first(attributes, "WindowWidth")
    if center is not None and width is not None:
        return _windowed(center, width, str(attributes.get("VOILUTFunction") or "LINEAR"))
    bits = int(attributes.BitsStored)
    plain = not attributes.get("ModalityLUTSequence") and attributes.get("RescaleSlope") in (None, 1)
    if bits <= 8 and plain and not attributes.get("RescaleIntercept") and not attributes.PixelRepresentation:
        return 0.0, 2.0**bits - 1
    return None


def _windowed(center: float, width: float, function: str) -> Rendering:
    """Return a window as PS3.3 C.11.2.1.2 and C.11.2.1.3 define it."""
    if not (math.isfinite(center) and math.isfinite(width)) or width <= 0:
        raise ValueError(f"window of width {width:g}")

    def rendering(values: NDArray[Any]) -> NDArray[Any]:
        wide = values.astype(np.float64)
        if function == "SIGMOID":
            return 1 / (1 + np.exp(np.clip(-4 * (wide - center) / width, -700, 700)))
        if function == "LINEAR_EXACT":
            return np.clip((wide - center) / width + 0.5, 0, 1)
        if width <= 1:  # a threshold
            return (wide > center - 0.5).astype(np.float64)
        return np.clip((wide - (center - 0.5)) / (width - 1) + 0.5, 0, 1)

    return rendering


def _first(attributes: Any, name: str) -> float | None:
    """Return the first of one or several numbers: the window that is shown unless another one is chosen."""
    value = attributes.get(name)
    if value is None or value == "":
        return None
    return float(value if isinstance(value, int | float | str) else value[0])


def _aspect(attributes: Any) -> float:
    """Return height over width of a pixel."""
    for name in _SPACINGS:
        value = attributes.get(name)
        if value is not None and value != "" and len(value) == 2:
            rows, columns = map(float, value)
            if 0 < rows < math.inf and 0 < columns < math.inf:
                return rows / columns
    return 1.0
