"""Load the libraries that run exported files, with their telemetry switched off.

By default ONNX Runtime (1.29 and later) sends names and hashes of models to Microsoft, and OpenVINO and nncf send
events to Google Analytics. People who inspect products or patients have not agreed to that.
"""

import os
import sys
from functools import cache
from typing import Any


def onnx_runtime() -> Any:
    """Return the ``onnxruntime`` package.

    Its telemetry is controlled by the environment variable ``ORT_DISABLE_TELEMETRY``, which is read when the library is
    loaded. A value that is already set is kept.

    Raises
    ------
    ImportError
        It is not installed.
    """
    silent = os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1") == "1"
    import onnxruntime

    if silent:
        onnxruntime.disable_telemetry_events()  # in case it was already loaded
    return onnxruntime


@cache
def openvino_core() -> Any:
    """Return the only ``openvino.Core`` of this process.

    There must be only one: on processors with AMX, each core's plug-in sets an alternate signal stack for the thread
    and restores the previous one when the core is destroyed. If two cores are not destroyed in reverse order of
    creation, the thread is left with a stack that no longer exists, and the next handled signal kills the process.

    Raises
    ------
    ImportError
        It is not installed.
    """
    _silence_openvino()
    import openvino

    return openvino.Core()


def nncf() -> Any:
    """Return the ``nncf`` package.

    Raises
    ------
    ImportError
        It is not installed.
    """
    _silence_openvino()
    import nncf

    return nncf


def _silence_openvino() -> None:
    """Make the telemetry package of OpenVINO and nncf look as if it were not installed; they then report nothing."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
