"""Decoders of JPEG in DICOM for pydicom: which library decodes what, and one for lossless and 12-bit JPEG.

pydicom tries every library that is installed. GDCM is not used, even where it is: on damaged data it ends the process.
"""

from contextlib import suppress
from threading import Lock
from typing import Any

import numpy as np

_LABEL = "imagecodecs"
_BY_IMAGECODECS = ("1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
"""JPEG Extended, JPEG Lossless, JPEG Lossless SV1."""
_DECODERS = {
    "1.2.840.10008.1.2.4.50": "pillow",  # JPEG Baseline
    **dict.fromkeys(_BY_IMAGECODECS, _LABEL),
    **dict.fromkeys(("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"), "pyjpegls"),
    # JPEG 2000, and its high-throughput form
    **dict.fromkeys((f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203)), "pylibjpeg"),
}

_registering = Lock()

DECODER_DEPENDENCIES = dict.fromkeys(_BY_IMAGECODECS, (_LABEL,))
"""What pydicom says is missing where imagecodecs is not installed."""


def decoder_for(transfer_syntax: str | None) -> str:
    """Return the name of pydicom's plugin that decodes a transfer syntax; empty if pydicom does it itself.

    Examples
    --------
    >>> decoder_for("1.2.840.10008.1.2.4.90"), decoder_for("1.2.840.10008.1.2")
    ('pylibjpeg', '')
    """
    _register()
    return _DECODERS.get(str(transfer_syntax), "")


def _register() -> None:
    from pydicom.pixels.decoders.base import get_decoder

    with _registering:
        for uid in _BY_IMAGECODECS:
            with suppress(ValueError):  # it is registered already
                get_decoder(uid).add_plugin(_LABEL, (__name__, "decode_frame"))


def is_available(uid: str) -> bool:
    """Return whether a transfer syntax can be decoded; pydicom asks."""
    from importlib.util import find_spec

    return uid in _BY_IMAGECODECS and find_spec(_LABEL) is not None


def decode_frame(source: bytes, runner: Any) -> bytes:
    """Return the pixels of a frame, in the colours in which they are stored; pydicom calls it."""
    import imagecodecs

    same: dict[str, Any] = (
        {} if runner.samples_per_pixel == 1 else {"colorspace": "RGB", "outcolorspace": "RGB"}
    )
    values = imagecodecs.jpeg8_decode(source, **same)
    if values.size != runner.rows * runner.columns * runner.samples_per_pixel:
        raise ValueError(f"a JPEG of {values.shape}, but the header says {runner.columns} x {runner.rows}")
    wide = np.uint8 if runner.bits_allocated == 8 else np.uint16
    if runner.samples_per_pixel > 1:
        runner.set_option("planar_configuration", 0)
    pixels: bytes = values.astype(wide).tobytes()
    return pixels
