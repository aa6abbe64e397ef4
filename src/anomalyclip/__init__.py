"""AnomalyCLIP: zero-shot anomaly detection. Images go in, scores and maps come out.

Importing this package does not import PyTorch: the public names are resolved when they are first used.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomalyclip.detector import Detector as Detector
    from anomalyclip.engines.export import export as export
    from anomalyclip.errors import AnomalyCLIPError as AnomalyCLIPError
    from anomalyclip.errors import AnomalyCLIPWarning as AnomalyCLIPWarning
    from anomalyclip.errors import InputError as InputError
    from anomalyclip.evaluation.calibration import calibrate as calibrate
    from anomalyclip.evaluation.calibration import calibrate_labelled as calibrate_labelled
    from anomalyclip.evaluation.comparison import compare as compare
    from anomalyclip.evaluation.run import evaluate as evaluate
    from anomalyclip.evaluation.shots import evaluate_shots as evaluate_shots
    from anomalyclip.fitting import fit as fit
    from anomalyclip.predicting import predict as predict
    from anomalyclip.prediction import Prediction as Prediction
    from anomalyclip.prediction import Threshold as Threshold
    from anomalyclip.remembering import remember as remember
    from anomalyclip.spec import DetectorSpec as DetectorSpec
    from anomalyclip.tiling import Tiling as Tiling
    from anomalyclip.training.run import train as train

__version__ = version("anomalyclip")

_HOMES = {
    "AnomalyCLIPError": "anomalyclip.errors",
    "AnomalyCLIPWarning": "anomalyclip.errors",
    "Detector": "anomalyclip.detector",
    "DetectorSpec": "anomalyclip.spec",
    "InputError": "anomalyclip.errors",
    "Prediction": "anomalyclip.prediction",
    "Threshold": "anomalyclip.prediction",
    "Tiling": "anomalyclip.tiling",
    "calibrate": "anomalyclip.evaluation.calibration",
    "calibrate_labelled": "anomalyclip.evaluation.calibration",
    "compare": "anomalyclip.evaluation.comparison",
    "evaluate": "anomalyclip.evaluation.run",
    "evaluate_shots": "anomalyclip.evaluation.shots",
    "export": "anomalyclip.engines.export",
    "fit": "anomalyclip.fitting",
    "predict": "anomalyclip.predicting",
    "remember": "anomalyclip.remembering",
    "train": "anomalyclip.training.run",
}

__all__ = [
    "AnomalyCLIPError",
    "AnomalyCLIPWarning",
    "Detector",
    "DetectorSpec",
    "InputError",
    "Prediction",
    "Threshold",
    "Tiling",
    "__version__",
    "calibrate",
    "calibrate_labelled",
    "compare",
    "evaluate",
    "evaluate_shots",
    "export",
    "fit",
    "predict",
    "remember",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
