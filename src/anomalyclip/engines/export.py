"""Export a detector as an ONNX or OpenVINO model; the file is kept only if its results match the PyTorch model's."""

import copy
import hashlib
import logging
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anomalyclip.addresses import require_here
from anomalyclip.core import Core
from anomalyclip.depth import Range, Scale
from anomalyclip.detector import Detector
from anomalyclip.engines import libraries
from anomalyclip.engines.card import KEY, ModelCard
from anomalyclip.engines.exported import ExportedScorer, first_line
from anomalyclip.engines.torch import TorchScorer
from anomalyclip.errors import AnomalyCLIPError, AnomalyCLIPWarning
from anomalyclip.files import check_writable, staging, writing
from anomalyclip.framing import Framing
from anomalyclip.inputs import find_images
from anomalyclip.loading import in_pytorch, measured
from anomalyclip.memory_core import MemoryCore
from anomalyclip.methods import METHODS
from anomalyclip.prediction import Threshold, as_threshold
from anomalyclip.readers import open_deep
from anomalyclip.scorer import Scorer
from anomalyclip.spec import DetectorSpec

TOLERANCES = {"fp32": 1e-4, "fp16": 5e-3, "int8": 0.25}
"""Largest allowed difference of a score or a map value from PyTorch's, for each precision.

int8 has no theoretical bound: its tolerance only catches broken files. What matters is the reported difference and its
effect on the AUROC.
"""

FORMATS = ("onnx", "openvino")

_OPSET = (
    18  # the newest that every execution provider runs; 23 has fused attention, but was not measurably faster
)
_ANY_SIZE = 1 << 40
_MAX_CALIBRATION = 128
_PACKAGES = ("anomalyclip", "torch", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf")


@dataclass(frozen=True)
class ExportReport:
    """The written files, and how much their results differ from the PyTorch model's.

    Attributes
    ----------
    files : tuple of Path
        The model; for OpenVINO the ``.xml`` and its ``.bin``.
    size : int
        Total size in bytes.
    images : int
        Number of images that both models were run on.
    listed : int
        Number of calibration images that were given.
    score_difference, map_difference : float
        The largest absolute differences on these images.
    tolerance : float
        The largest difference allowed.
    """

    files: tuple[Path, ...]
    size: int
    images: int
    listed: int
    score_difference: float
    map_difference: float
    tolerance: float


def export(
    detector: Detector | DetectorSpec,
    output: str | os.PathLike[str],
    *,
    format: str = "onnx",
    precision: str = "fp32",
    dynamic_batch: bool = False,
    calibration: Iterable[str | os.PathLike[str]] = (),
    threshold: float | Threshold | str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write a detector as one model that needs no PyTorch; it is kept only if its results match PyTorch's.

    Parameters
    ----------
    detector : Detector or DetectorSpec
        A detector with PyTorch weights in float32; its tiling is stored in the file.
    output : path-like
        The file: ``NAME.onnx``, or ``NAME.xml`` with OpenVINO's weights next to it in ``NAME.bin``.
    format : {"onnx", "openvino"}
        ONNX, for ONNX Runtime and other programs that read it, or OpenVINO's format.
    precision : {"fp32", "fp16", "int8"}
        Precision of the weights. fp16: half the size; for ONNX, the image tower also computes in fp16. int8: a quarter
        of the size; weights and activations of the blocks' linear layers are quantised, attention is not.
    dynamic_batch : bool
        Whether the file takes batches of any size; otherwise it takes one image at a time.
    calibration : iterable of path-like
        For int8: images (files, folders, patterns) like those that will be scored. They determine the ranges of the
        activations, and int8 is compared with PyTorch on them. If there are more than 128, an evenly spaced 128 are
        used.
    threshold : float, Threshold or path, optional
        The threshold to store in the file. None: the detector's own, if it has one.
    overwrite : bool
        Whether to replace an existing file.

    Returns
    -------
    ExportReport

    Raises
    ------
    AnomalyCLIPError
        An option is unknown or does not fit, the method cannot be exported, a package is missing, the file already
        exists or cannot be written, or its results differ from PyTorch's by more than `TOLERANCES` allows. No file is
        written then.
    """
    require_here(output, "an exported file")
    output = Path(output)
    listed = [image.path for image in find_images(list(calibration))]
    check_export(output, format=format, precision=precision, calibrated=bool(listed))
    for file in (output, output.with_suffix(".bin")) if format == "openvino" else (output,):
        check_writable(file, overwrite=overwrite)
    detector = _prepared(detector, threshold)
    scorer = _torch_scorer(detector)
    framing = fixed(scorer.core)
    images = _calibration_pixels(spread(listed, _MAX_CALIBRATION), framing, detector.value_range)
    card = _card(detector, scorer, precision, images, framing)
    for remark in detector.remarks():
        warnings.warn(remark, AnomalyCLIPWarning, stacklevel=2)
    with writing(output), staging(output.parent) as folder:
        graph = folder / "graph.onnx"
        _write_onnx(scorer, graph, card, half=precision == "fp16" and format == "onnx", dynamic=dynamic_batch)
        if format == "onnx" and (weights := graph.with_name(f"{graph.name}.data")).exists():
            raise AnomalyCLIPError(
                f"{output}: not written: {weights.stat().st_size / 1e9:.1f} GB of weights do not fit into one ONNX "
                f"file; use --format openvino{'' if precision == 'fp16' else ', or --precision fp16'}"
            )
        make = _finish_onnx if format == "onnx" else _finish_openvino
        files = make(graph, folder / output.name, card, images)
        probes = images if precision == "int8" else probe_pixels(*framing.blank)
        report = replace(_compare(scorer, files, probes, output), listed=len(listed))
        # The weights first, and never under another file's .xml: a half-replaced model must not load.
        if len(files) > 1:
            output.unlink(missing_ok=True)
        for file in reversed(files):
            os.replace(file, output.with_name(file.name))
    return report


def spread(items: Sequence[str | os.PathLike[str]], most: int) -> Sequence[str | os.PathLike[str]]:
    """Return at most this many items, evenly spaced: calibration images are listed by folder, one per product.

    Examples
    --------
    >>> spread(["a0", "a1", "a2", "b0", "b1", "b2"], 3)
    ['a0', 'a2', 'b2']
    """
    if len(items) <= most:
        return items
    return [items[int(index)] for index in np.linspace(0, len(items) - 1, most).round()]


def fixed(core: Core) -> Framing:
    """Return how images become the input of an export: of a method that keeps proportions, those of most references."""
    framing = core.framing
    if framing.patch is None or not isinstance(core, MemoryCore):
        return framing
    grids = Counter(core.memory.grid(piece) for piece in range(len(core.memory.piece_reference)))
    rows, columns = max(grids, key=lambda grid: grids[grid])
    return replace(framing, only=(rows * framing.patch, columns * framing.patch))


def probe_pixels(rows: int, columns: int | None = None) -> NDArray[np.uint8]:
    """Return very different images, (4, H, W, 3) uint8: noise, a ramp, black, and blocks; None: as wide as high."""
    columns = rows if columns is None else columns
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (rows, columns, 3))
    ramp = np.stack(np.broadcast_arrays(*np.ogrid[0 : 255 : rows * 1j, 0 : 255 : columns * 1j], 128), axis=-1)
    blocks = random.integers(0, 256, (8, 8, 3)).repeat(-(-rows // 8), axis=0).repeat(-(-columns // 8), axis=1)
    return np.stack([noise, ramp, np.zeros_like(noise), blocks[:rows, :columns]]).astype(np.uint8)


def check_export(output: Path, *, format: str, precision: str, calibrated: bool) -> None:
    """Refuse an impossible export before loading anything.

    Raises
    ------
    AnomalyCLIPError
        An option is unknown or does not fit, or a package is missing.
    """
    if format not in FORMATS:
        raise AnomalyCLIPError(f"format {format!r}: expected one of {', '.join(FORMATS)}")
    if precision not in TOLERANCES:
        raise AnomalyCLIPError(f"export precision {precision!r}: expected one of {', '.join(TOLERANCES)}")
    if calibrated != (precision == "int8"):
        raise AnomalyCLIPError(
            "int8 needs calibration images: give --calibration PATH with about 20 or more images like those to score"
            if precision == "int8"
            else f"calibration images are only for int8; {precision} needs none"
        )
    suffix = {"onnx": ".onnx", "openvino": ".xml"}[format]
    if output.suffix != suffix:
        raise AnomalyCLIPError(
            f"{output}: {format} output must end in {suffix}: use {output.with_suffix(suffix)}, or give --format "
            f"{'openvino' if format == 'onnx' else 'onnx'} for {'.xml' if format == 'onnx' else '.onnx'}"
        )
    needed = ["onnx", "onnxscript", "onnxruntime"] if format == "onnx" else ["onnx", "onnxscript", "openvino"]
    needed += ["nncf"] if (format, precision) == ("openvino", "int8") else []
    missing = [
        name for name in needed if find_spec(name) is None
    ]  # onnxruntime-gpu and other packages provide it as well
    if missing:
        extra = "export" if format == "onnx" else "export,openvino"
        raise AnomalyCLIPError(
            f"{format} export needs {', '.join(missing)}: pip install 'anomalyclip[{extra}]'"
        )


def _prepared(
    detector: Detector | DetectorSpec, threshold: float | Threshold | str | os.PathLike[str] | None
) -> Detector:
    """Return the detector in PyTorch, with its threshold."""
    limits = as_threshold(threshold)
    if isinstance(detector, DetectorSpec):
        if detector.model is not None:
            raise AnomalyCLIPError(f"{detector.model}: is already an exported file; give a backbone instead")
        spec = replace(measured(detector), device="cpu")
        detector = Detector(
            METHODS[spec.method](spec), tiling=spec.tiling, spec=spec, value_range=spec.value_range
        )
    detector = in_pytorch(detector)
    if limits is None:
        limits = detector.threshold
    return Detector(
        detector.scorer,
        threshold=limits,
        tiling=detector.tiling,
        spec=detector.spec,
        value_range=detector.value_range,
    )


def _torch_scorer(detector: Detector) -> TorchScorer:
    scorer = detector.scorer
    if not isinstance(scorer, TorchScorer):
        method = detector.identity().get("method", type(scorer).__name__)
        raise AnomalyCLIPError(
            f"method {method!r} cannot be exported: it does not run as one PyTorch module (anomalyclip.core.Core)"
        )
    if scorer.core.needs_references:
        raise AnomalyCLIPError(
            f"method {detector.identity().get('method')!r} compares images with normal ones: give references "
            "(--references PATH), which become part of the file"
        )
    if scorer.precision != "fp32":
        raise AnomalyCLIPError(
            f"the detector computes in {scorer.precision}, but exports are compared with fp32: load it with precision "
            '"fp32"'
        )
    return scorer


def _calibration_pixels(
    paths: Sequence[str | os.PathLike[str]], framing: Framing, value_range: Range | None
) -> NDArray[np.uint8]:
    scale = Scale(value_range)
    pixels = [framing(scale(open_deep(path), name=os.fspath(path))[0]) for path in paths]
    return np.stack(pixels) if pixels else np.zeros((0, *framing.blank, 3), np.uint8)


def _card(
    detector: Detector, scorer: TorchScorer, precision: str, images: NDArray[np.uint8], framing: Framing
) -> ModelCard:
    threshold, tiling, about = detector.threshold, detector.tiling, detector.describe()
    limits = None
    if threshold is not None:
        info = {
            name: value for name, value in threshold.info.items() if name != "spec"
        }  # its paths are those of this machine
        limits = {"score": threshold.score, "pixel": threshold.pixel, "info": info}
    # An int8 file depends on the calibration images as well as on the weights.
    ranges = {"calibration_sha256": hashlib.sha256(images.tobytes()).hexdigest()} if len(images) else {}
    shown: dict[str, Any] = {"patch": framing.patch, "shape": framing.only}
    if tiling is not None:
        shown |= {"tile": tiling.size, "overlap": tiling.overlap}
    return ModelCard(
        image_size=scorer.image_size,
        precision=precision,
        identity={**scorer.identity(), "precision": precision, **ranges},
        title=about.title,
        facts=_without_paths({name: value for name, value in about.facts.items() if name != "device"}),
        training=about.training,
        **shown,
        value_range=detector.value_range,
        threshold=limits,
        made_with=installed(),
    )


def _without_paths(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts with paths reduced to names, since the file may be given to other people."""
    names = {name: Path(facts[name]).name for name in ("backbone", "prompts") if facts.get(name)}
    return {**facts, **names}


def installed() -> dict[str, str]:
    """Return the versions of the installed packages that an exported file depends on."""
    found = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _write_onnx(scorer: TorchScorer, path: Path, card: ModelCard, *, half: bool, dynamic: bool) -> None:
    from onnxscript.optimizer import fold_constants

    # Two images for a dynamic batch: the exporter treats a dimension of 1 as fixed.
    example = torch.zeros(2 if dynamic else 1, *card.framing.blank, 3, dtype=torch.uint8)
    if card.shape is not None:
        scorer(
            example[:1].numpy()
        )  # the constants of this shape are made once, and are then part of the graph
    graph = exportable(scorer.core, half=half)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["image"],
            output_names=list(graph.outputs),
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},) if dynamic else None,
            opset_version=_OPSET,
        )
    assert program is not None
    model = program.model
    # Otherwise some weights would be sliced or transposed at run time, and int8 would miss them.
    fold_constants(model, input_size_limit=_ANY_SIZE, output_size_limit=_ANY_SIZE)
    for node in model.graph:  # the exporter stores paths and line numbers of this machine's source code
        node.metadata_props.clear()
    model.metadata_props[KEY] = card.to_json()
    program.save(path, external_data=False)


def exportable(core: Core, *, half: bool) -> Core:
    """Return the core to export, on the CPU; with `half` its encoder computes in half precision.

    Similarities and maps stay in float32.
    """
    core = core.eval()
    if half or core.is_packed or next(core.buffers()).device.type != "cpu":
        core = copy.deepcopy(core).to("cpu")
    return core.half_encoder() if half else core


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporters' internal warnings from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _finish_onnx(graph: Path, target: Path, card: ModelCard, images: NDArray[np.uint8]) -> tuple[Path, ...]:
    if card.precision == "int8":
        _quantise_onnx(graph, target, images)
    else:
        graph.rename(target)
    return (target,)


def _quantise_onnx(graph: Path, target: Path, images: NDArray[np.uint8]) -> None:
    libraries.onnx_runtime()
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

    layers = _linear_layers(graph)
    ranges = _activation_ranges(graph, layers, images)
    with _quiet():
        quantiser = QDQQuantizer(
            load_model_with_shape_infer(graph),
            True,  # one scale per channel
            True,  # 7 bits: without VNNI, sums of 8-bit products would overflow 16 bits
            QuantType.QInt8,  # of weights
            QuantType.QUInt8,  # of activations
            TensorsData(CalibrationMethod.MinMax, ranges),
            layers,
            [],
            ["MatMul", "Gemm"],
            {},
        )
        quantiser.quantize_model()
        quantiser.model.save_model_to_file(target, False)


def _activation_ranges(
    graph: Path, layers: Sequence[str], images: NDArray[np.uint8]
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Return the smallest and largest value of each input and output tensor of these nodes.

    ONNX Runtime's calibration records every tensor of the graph, including attention, and keeps them all until the end
    of a run: more than 24 GB for ViT-L/14 at 518 x 518.
    """
    import onnx

    onnxruntime = libraries.onnx_runtime()
    model = onnx.load(graph)
    weights = {tensor.name for tensor in model.graph.initializer}
    wanted = set(layers)
    names = dict.fromkeys(
        name
        for node in model.graph.node
        if node.name in wanted
        for name in (*node.input, *node.output)
        if name not in weights
    )
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    watched = graph.with_name("watched.onnx")
    onnx.save(model, watched)
    del model
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(watched, options, providers=["CPUExecutionProvider"])
    low, high = dict.fromkeys(names, np.inf), dict.fromkeys(names, -np.inf)
    for image in images:
        for name, values in zip(names, session.run(list(names), {"image": image[None]}), strict=True):
            low[name], high[name] = min(low[name], values.min()), max(high[name], values.max())
    del session
    watched.unlink()
    return {name: (np.array(low[name], np.float32), np.array(high[name], np.float32)) for name in names}


def _linear_layers(graph: Path) -> list[str]:
    """Return the names of the nodes of the blocks' linear layers: constant weights from or to the model's width."""
    import onnx

    model = onnx.load(graph)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    # Equal tensors are stored once, so that not every norm has a weight of its own name.
    norms = ("ln_pre.weight", "ln_1.weight", "ln_2.weight", "ln_post.weight")
    width = next(shape[0] for name, shape in shapes.items() if name.endswith(norms))
    return [
        node.name
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm")
        and len(shape := shapes.get(node.input[1], ())) == 2
        and width in shape
        and min(shape) >= width
    ]


def _finish_openvino(
    graph: Path, target: Path, card: ModelCard, images: NDArray[np.uint8]
) -> tuple[Path, ...]:
    model = libraries.openvino_core().read_model(graph)
    if card.precision == "int8":
        model = _quantise_openvino(model, _linear_layers(graph), images)
    model.set_rt_info(card.to_json(), [KEY])
    import openvino

    openvino.save_model(model, target, compress_to_fp16=card.precision == "fp16")
    return target, target.with_suffix(".bin")


def _quantise_openvino(model: Any, layers: Sequence[str], images: NDArray[np.uint8]) -> Any:
    """Quantise only these layers: with attention and projections in int8 too, ViT-L cannot be loaded on a CPU."""
    # OpenVINO separates the bias of a Gemm and gives the rest this name.
    wanted = {*layers, *(f"{name}/WithoutBiases" for name in layers)}
    products = (op for op in model.get_ops() if op.get_type_name() in ("MatMul", "Convolution"))
    others = [op.get_friendly_name() for op in products if op.get_friendly_name() not in wanted]
    with _quiet(), redirect_stdout(sys.stderr):  # nncf's progress bars
        nncf = libraries.nncf()
        return nncf.quantize(
            model,
            nncf.Dataset(images[:, None], lambda image: {"image": image}),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=others),
            # 7 bits, as in ONNX: without VNNI, sums of 8-bit products would overflow.
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
        )


def _compare(
    scorer: TorchScorer, files: Sequence[Path], pixels: NDArray[np.uint8], output: Path
) -> ExportReport:
    try:
        exported = ExportedScorer(files[0])
    except AnomalyCLIPError as error:
        raise AnomalyCLIPError(
            f"{output}: not written: its runtime cannot load it ({first_line(error.__context__ or error)})"
        ) from None
    tolerance = TOLERANCES[exported.card.precision]
    score, score_map = difference(exported, scorer, pixels)
    if not max(score, score_map) <= tolerance:
        raise AnomalyCLIPError(
            f"{output}: not written: the exported model differs from PyTorch by {score:.2g} in the score and "
            f"{score_map:.2g} in the map; at most {tolerance:g} is allowed for {exported.card.precision}"
        )
    size = sum(file.stat().st_size for file in files)
    final = tuple(output.with_name(file.name) for file in files)
    return ExportReport(final, size, len(pixels), 0, score, score_map, tolerance)


def difference(one: Scorer, other: Scorer, pixels: NDArray[np.uint8]) -> tuple[float, float]:
    """Return the largest absolute differences of scores and of map values; infinite if any value is NaN."""
    score = score_map = 0.0
    for start in range(0, len(pixels), 2):  # two at a time
        batch = pixels[start : start + 2]
        (scores, maps), (other_scores, other_maps) = one(batch), other(batch)
        score = max(score, _largest(scores, other_scores))
        score_map = max(score_map, _largest(maps, other_maps))
    return score, score_map


def _largest(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.nan_to_num(np.abs(a - b), nan=np.inf).max())
