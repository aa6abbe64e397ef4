"""AnomalyCLIP: zero-shot anomaly detection. Images go in, scores and maps come out.

Importing this package does not import PyTorch: the public names are resolved when they are first used.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomalyclip.detector import Detector as Detector
    from anomalyclip.errors import AnomalyCLIPError as AnomalyCLIPError
    from anomalyclip.errors import InputError as InputError
    from anomalyclip.prediction import Prediction as Prediction

__version__ = version("anomalyclip")

_HOMES = {
    "AnomalyCLIPError": "anomalyclip.errors",
    "Detector": "anomalyclip.detector",
    "InputError": "anomalyclip.errors",
    "Prediction": "anomalyclip.prediction",
}

__all__ = ["AnomalyCLIPError", "Detector", "InputError", "Prediction", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
