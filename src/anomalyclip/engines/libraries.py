"""Loads the libraries that run exported files, silenced: none of them reports its use to its maker.

ONNX Runtime (from 1.29 on) sends the names and hashes of models to Microsoft, OpenVINO and nncf send events to Google
Analytics, all unless told otherwise. Who inspects a product or a patient has not agreed to that.
"""

import os
import sys
from functools import cache
from typing import Any


def onnx_runtime() -> Any:
    """Return the ``onnxruntime`` package.

    Its switch is the environment variable ``ORT_DISABLE_TELEMETRY``, read when the library is loaded; a value that is
    already there is left as it is.

    Raises
    ------
    ImportError
        It is not installed.
    """
    silent = os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1") == "1"
    import onnxruntime

    if silent:
        onnxruntime.disable_telemetry_events()  # in case the program had loaded it before
    return onnxruntime


@cache
def openvino_core() -> Any:
    """Return the one ``openvino.Core`` of this process.

    One, for on processors with AMX each core's plug-in gives the thread another stack for signals, and takes it away
    again when the core goes: of two that do not go in the order opposite to that in which they came, one leaves a stack
    that is no longer there, and the next signal with a handler ends the process.

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
    """Let the package through which OpenVINO and nncf report count as not installed; they then report nothing."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
