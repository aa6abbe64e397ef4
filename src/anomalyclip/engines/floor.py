"""The machine's own limit: the best matrix product of any library that is installed, and the processor's peak."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from anomalyclip.engines import libraries
from anomalyclip.machine import instructions

SIDE = 4096
"""Side of the square matrices whose product is timed."""


@dataclass(frozen=True)
class Limit:
    """What the best library reaches, in 1e9 operations per second; a multiply-add counts as two.

    Attributes
    ----------
    precision : str
        Of the products: ``fp32``, ``bf16`` or ``int8``.
    rates : dict of str to float
        The rate of each library's product.
    peak : float
        The processor's theoretical float32 rate: threads x clock x operations per cycle; nan if it is not known.
    clock : float
        Measured cycles per nanosecond (GHz); nan if it was not measured.
    """

    precision: str
    rates: dict[str, float]
    peak: float = float("nan")
    clock: float = float("nan")

    @property
    def library(self) -> str:
        """Name of the fastest library."""
        return max(self.rates, key=lambda name: self.rates[name])

    @property
    def rate(self) -> float:
        """The highest of `rates`."""
        return self.rates[self.library]

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, JSON-ready; unknown values are None."""
        return {key: None if value != value else value for key, value in asdict(self).items()}


def best_time(work: Callable[[], object], *, repeats: int, device: torch.device | None = None) -> float:
    """Return the shortest of several runs in seconds; waits for a GPU to finish."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        if device is not None and device.type != "cpu":
            torch.accelerator.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def limit(device: torch.device, precision: str = "fp32", *, repeats: int = 3) -> Limit:
    """Time the product of two square matrices with every library that is installed.

    Parameters
    ----------
    device : torch.device
        On a GPU only PyTorch's product is timed.
    precision : {"fp32", "bf16", "int8"}
        fp32: PyTorch's usual product, oneDNN's with packed weights, OpenVINO's and ONNX Runtime's. bf16 and int8:
        PyTorch's, which goes through oneDNN on a CPU.
    repeats : int
        Runs of each; the best one counts.

    Returns
    -------
    Limit
    """
    with torch.inference_mode():
        rates = {
            name: 2e-9 * SIDE**3 / best_time(work, repeats=repeats, device=device)
            for name, make in _products(device, precision).items()
            if (work := _made(make)) is not None
        }
    if device.type != "cpu":
        return Limit(precision, rates)
    ghz = clock()
    return Limit(precision, rates, peak=torch.get_num_threads() * ghz * operations_per_cycle(), clock=ghz)


_Work = Callable[[], object]


def _products(device: torch.device, precision: str) -> dict[str, Callable[[], _Work]]:
    if precision == "bf16":
        return {"PyTorch": lambda: _torch_product(device, torch.bfloat16)}
    if precision == "int8":
        return {"PyTorch": _int8_product}
    own = {"PyTorch": lambda: _torch_product(device, torch.float32)}
    others = {"oneDNN": _onednn_product, "OpenVINO": _openvino_product, "ONNX Runtime": _onnx_product}
    return {**own, **(others if device.type == "cpu" else {})}


def _made(make: Callable[[], _Work]) -> _Work | None:
    """Return the product after it has run once; None if its library is missing or has no such product."""
    with suppress(Exception):  # the libraries' exceptions have no common base
        work = make()
        work()
        return work
    return None


def _torch_product(device: torch.device, dtype: torch.dtype) -> _Work:
    a, b = torch.randn(2, SIDE, SIDE, device=device).to(dtype).unbind()
    return lambda: a @ b


def _int8_product() -> _Work:
    a, b = torch.randint(-64, 64, (2, SIDE, SIDE), dtype=torch.int8).unbind()
    return lambda: torch._int_mm(a, b)


def _onednn_product() -> _Work:
    from anomalyclip.clip.packed import Packed

    x, product = torch.randn(SIDE, SIDE), Packed(torch.randn(SIDE, SIDE), torch.zeros(SIDE), SIDE)
    return lambda: product(x)


def _openvino_product() -> _Work:
    core = libraries.openvino_core()
    from openvino import Model, opset13

    x = opset13.parameter([SIDE, SIDE], np.float32)
    weight = opset13.constant(np.random.default_rng(0).random((SIDE, SIDE), np.float32))
    model = Model([opset13.matmul(x, weight, False, True)], [x], "product")
    request = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    request.set_input_tensor(_openvino_tensor(np.ones((SIDE, SIDE), np.float32)))
    return lambda: request.infer()


def _openvino_tensor(array: "np.typing.NDArray[np.float32]") -> Any:
    from openvino import Tensor

    return Tensor(array)


def _onnx_product() -> _Work:
    onnxruntime = libraries.onnx_runtime()
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.random.default_rng(0).random((SIDE, SIDE), np.float32), "weight")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [SIDE, SIDE]) for name in "xy")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])], "product", [x], [y], [weight]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ones = np.ones((SIDE, SIDE), np.float32)
    return lambda: session.run(None, {"x": ones})


def clock(*, repeats: int = 20) -> float:
    """Return the processor's cycles per nanosecond (GHz) under load.

    Each addition of a running sum of integers waits for the one before, and takes one cycle on every processor of the
    last decades. The time of a call itself is removed by taking the difference of two lengths.
    """

    def seconds(count: int) -> float:
        numbers = torch.ones(count, dtype=torch.int64)
        sums = torch.empty_like(numbers)
        return (
            best_time(lambda: [torch.cumsum(numbers, 0, out=sums) for _ in range(100)], repeats=repeats) / 100
        )

    short, long = 8_000, 24_000
    return (long - short) / (seconds(long) - seconds(short)) * 1e-9


def operations_per_cycle() -> float:
    """Return the float32 operations of a core in one cycle: lanes x 2 (multiply and add) x units; nan if not known.

    Two units everywhere, except AMD's family 25 (Zen 4), whose two units of 256 bits work as one of 512.
    """
    known = instructions()
    if "avx512f" in known.flags:
        return 32.0 if (known.vendor, known.family) == ("AuthenticAMD", 25) else 64.0
    if "avx2" in known.flags and "fma" in known.flags:
        return 32.0
    return float("nan")
