"""Run an exported detector with ONNX Runtime or OpenVINO. This module never imports PyTorch, even indirectly."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomalyclip.engines import libraries
from anomalyclip.engines.card import KEY, ModelCard
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.likeness import Tally
from anomalyclip.scorer import Description

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
"""Short names of ONNX Runtime's execution providers; the full names are accepted too."""

_OPTIONS = {"CUDAExecutionProvider": {"use_tf32": "0"}}
"""Provider options: by default CUDA rounds factors of float32 products to 10 bits, beyond the export's tolerance."""

Results = tuple[NDArray[np.float32], ...]
"""Scores (B,), maps (B, H, W), and of files with references the shares (B,) of patches that are unlike them."""

Run = Callable[[NDArray[np.uint8]], Results]


class ExportedScorer:
    """A file written by ``anomalyclip export``, ready to score; a `Detector` uses it in place of the PyTorch model.

    Several threads may share one scorer.

    Parameters
    ----------
    path : path-like
        ``.onnx`` (run by ONNX Runtime) or OpenVINO's ``.xml`` with its ``.bin`` in the same folder.
    providers : sequence of str, optional
        For ONNX: execution providers in order of preference: cpu, cuda, tensorrt, openvino. For OpenVINO: one device
        (cpu, gpu, npu, auto). None: cpu.
    threads : int, optional
        Number of CPU threads. None: the runtime decides.

    Attributes
    ----------
    card : ModelCard
        The file's metadata.
    image_size : int
        Side S in pixels of the images it takes.

    Raises
    ------
    AnomalyCLIPError
        The file is missing, damaged, not an export or of a newer format; the runtime is not installed; a provider is
        not available.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
    ) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise AnomalyCLIPError(
                f"{self.path}: no such file; expected a file written by `anomalyclip export`"
            )
        if threads is not None and threads < 1:
            raise AnomalyCLIPError(f"{threads} threads: expected 1 or more")
        load = _load_openvino if _is_xml(self.path) else _load_onnx
        self.card, self.device, self._batch, self._run = load(self.path, providers, threads)
        self.image_size, self.framing = self.card.image_size, self.card.framing
        self._tally = Tally()

    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Score a batch; a file with a fixed batch size is run several times.

        Parameters
        ----------
        pixels : ndarray of uint8
            (B, H, W, 3) RGB; S x S, unless the file is of a method that keeps proportions.

        Returns
        -------
        scores : ndarray of float32
            (B,) within [0, 1].
        maps : ndarray of float32
            (B, H, W) within [0, 1].

        Raises
        ------
        AnomalyCLIPError
            The pixels have the wrong shape or type, or the results are NaN or infinite.
        """
        rows, columns = self.framing.blank
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (rows, columns, 3):
            raise AnomalyCLIPError(
                f"pixels of {pixels.dtype} {pixels.shape}; {self.path} takes uint8 (B, {rows}, {columns}, 3)"
            )
        step = self._batch or len(pixels)
        try:
            results = [self._run(pixels[i : i + step]) for i in range(0, len(pixels), step)]
            scores, maps, *unlike = (np.concatenate(parts) for parts in zip(*results, strict=True))
        except Exception as error:  # the runtimes' exceptions have no common base
            raise AnomalyCLIPError(
                f"{self.path}: does not run on {self.device} ({first_line(error)}); export it again"
            ) from None
        if scores.shape != (len(pixels),) or maps.shape != (len(pixels), rows, columns):
            raise AnomalyCLIPError(
                f"{self.path}: returned scores {scores.shape} and maps {maps.shape} for {len(pixels)} images; "
                "export it again"
            )
        if not np.isfinite(scores.sum() + maps.sum()):  # a sum is not finite if any value is not
            raise AnomalyCLIPError(
                f"{self.path}: returned NaN or infinite scores on {self.device}: the file is damaged, or "
                f"{self.card.precision} overflows there; export it again, or with --precision fp32"
            )
        if unlike:
            self._tally.add(*unlike)
        return scores, maps

    def remarks(self) -> list[str]:
        """Return what the images since the last call say about their fitness for the references in the file."""
        return self._tally.remarks()

    def identity(self) -> dict[str, Any]:
        """Return what determines the scores: the identity of the exported scorer, with the file's precision."""
        return dict(self.card.identity)

    def describe(self) -> Description:
        """Return the file's description, and the device it runs on."""
        facts = {"model": str(self.path), **self.card.facts, "device": self.device}
        return Description(self.card.title or self.path.name, facts, self.card.training)


_Loaded = tuple[ModelCard, str, int | None, Run]


def _outputs(there: Sequence[str]) -> list[str]:
    """Return the outputs that are read: not every file has references."""
    return ["score", "map", *(["unlike"] if "unlike" in there else [])]


def _is_xml(path: Path) -> bool:
    """Tell OpenVINO from ONNX by the file's first character, not by its name."""
    try:
        with path.open("rb") as file:
            return file.read(64).lstrip().startswith(b"<")
    except OSError as error:
        raise AnomalyCLIPError(f"{path}: cannot be read ({error.strerror})") from None


def _load_onnx(path: Path, providers: Sequence[str] | None, threads: int | None) -> _Loaded:
    try:
        onnxruntime = libraries.onnx_runtime()
    except ImportError:
        raise AnomalyCLIPError(f"{path} needs ONNX Runtime: pip install onnxruntime") from None
    wanted = _provider_names(providers, onnxruntime.get_available_providers())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it would print with an error is in the exception, and names no file
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(
            path,
            options,
            providers=[(name, _OPTIONS.get(name, {})) for name in wanted],
            enable_fallback=0,  # to the CPU, with lines of its own on standard output
        )
    except Exception as error:  # its exceptions have no common base
        raise AnomalyCLIPError(
            f"{path}: not a model that ONNX Runtime {onnxruntime.__version__} can load ({first_line(error)}); "
            "expected a file written by `anomalyclip export`"
        ) from None
    # ONNX Runtime silently drops a provider whose libraries are missing, and would use another device than requested.
    if missing := set(wanted) - set(session.get_providers()):
        raise AnomalyCLIPError(
            f"execution provider {', '.join(sorted(missing))} is installed but does not start; are its drivers "
            "installed?"
        )
    card = ModelCard.from_json(session.get_modelmeta().custom_metadata_map.get(KEY), name=path)
    shapes = [tensor.shape for tensor in session.get_inputs()]
    if [len(shape) for shape in shapes] != [4]:
        raise AnomalyCLIPError(
            f"{path}: takes inputs of the shapes {shapes}; expected one, of images; export it again"
        )
    first = shapes[0][0]
    outputs = _outputs([tensor.name for tensor in session.get_outputs()])

    def run(pixels: NDArray[np.uint8]) -> Results:
        return tuple(session.run(outputs, {"image": pixels}))

    return card, wanted[0], first if isinstance(first, int) else None, run


def _provider_names(wanted: Sequence[str] | None, available: Sequence[str]) -> list[str]:
    names = []
    for name in wanted or ["cpu"]:
        full = PROVIDERS.get(name.lower(), name)
        if full not in available:
            short = {long: key for key, long in PROVIDERS.items()}
            there = ", ".join(short.get(name, name) for name in available)
            raise AnomalyCLIPError(
                f"execution provider {name!r} is not available; this ONNX Runtime has: {there}"
            )
        names.append(full)
    return names


def _load_openvino(path: Path, providers: Sequence[str] | None, threads: int | None) -> _Loaded:
    try:
        core = libraries.openvino_core()
    except ImportError:
        raise AnomalyCLIPError(f"{path} needs OpenVINO: pip install openvino") from None
    device = _openvino_device(providers, core.available_devices)
    model, card = _read_openvino(core, path)
    kind = device.split(".")[0]
    config: dict[str, Any] = {}
    if kind in ("CPU", "AUTO"):
        config["PERFORMANCE_HINT"] = "LATENCY"
    if kind in ("CPU", "AUTO") or (kind == "GPU" and card.precision == "fp32"):
        # By default it computes in 16 bits if the device supports it, far beyond the export's tolerance.
        config["INFERENCE_PRECISION_HINT"] = "f32"
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    try:
        compiled = core.compile_model(model, device, config)
    except RuntimeError as error:
        raise AnomalyCLIPError(
            f"{path}: OpenVINO cannot run it on {device.lower()} ({first_line(error)}); export it again, or try "
            "--provider cpu"
        ) from None
    first = model.inputs[0].partial_shape[0]
    outputs = _outputs([name for output in model.outputs for name in output.names])
    turn = Lock()  # all calls share one request, and each call overwrites the results of the one before

    def run(pixels: NDArray[np.uint8]) -> Results:
        with turn:
            results = compiled({"image": pixels})
            return tuple(results[name].copy() for name in outputs)

    return card, device, None if first.is_dynamic else first.get_length(), run


def _read_openvino(core: Any, path: Path) -> tuple[Any, ModelCard]:
    weights = path.with_suffix(".bin")
    with path.open("rb") as file:
        is_model = b"<net" in file.read(256)  # not other XML or a web page
    if is_model and not weights.is_file():
        raise AnomalyCLIPError(
            f"{path}: its weights, {weights.name}, are missing; put both files in the same folder"
        )
    try:
        model = core.read_model(path)
        text = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else None
    except (RuntimeError, UnicodeDecodeError) as error:
        raise AnomalyCLIPError(
            f"{path}: not a model that OpenVINO can read ({first_line(error)}); expected a file written by "
            "`anomalyclip export --format openvino`"
        ) from None
    return model, ModelCard.from_json(text, name=path)


def _openvino_device(wanted: Sequence[str] | None, available: Sequence[str]) -> str:
    names = [name.upper() for name in wanted or ["cpu"]]
    if len(names) > 1:
        raise AnomalyCLIPError(f"an OpenVINO model runs on one device, not on {', '.join(names)}; give one")
    if names[0] != "AUTO" and names[0].split(".")[0] not in {name.split(".")[0] for name in available}:
        there = ", ".join(name.lower() for name in available)
        raise AnomalyCLIPError(
            f"OpenVINO device {names[0].lower()!r} is not available; this machine has: {there}"
        )
    return names[0]


def first_line(error: BaseException) -> str:
    """Return the first informative line: OpenVINO's messages begin with places in its source code."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next(
        (line for line in lines if line and not line.startswith("Exception from")), type(error).__name__
    )
