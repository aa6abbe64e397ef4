"""The PyTorch engine: runs a method's `Core` on a device, in a given precision, compiled or not."""

import copy
import math
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomalyclip.core import Core
from anomalyclip.engines.half import serves as half_serves
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.scorer import Description

_NAN = "the weights are damaged, or half precision overflows (try --precision fp32)"
_DEVICES = ("cpu", "cuda", "mps", "xpu")

Encode = Callable[[Tensor], Any]
"""From normalised pixels (B, 3, S, S) to features."""

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Compared(NamedTuple):
    """What the texts say of images: a probability each (B,), maps (B, g, g), and these at full size (B, S, S)."""

    text: Tensor
    grids: Tensor
    maps: Tensor


class TorchScorer:
    """A method's core, ready to score in a `Detector`.

    Parameters
    ----------
    core : Core
        The method's mathematics; it is moved to `device`.
    identity : callable
        Returns what determines the scores, without the precision; see `anomalyclip.scorer.Scorer.identity`. Called only
        when needed, since it may have to hash a gigabyte.
    description : Description
        What reports say about it; the device is added.
    device : str
        ``auto`` (CUDA, then Apple's GPU, then the CPU) or a PyTorch device.
    precision : {"fp32", "bf16", "fp16", "auto"}
        Precision of the encoder's matrix products; similarities are always float32. ``auto`` is bf16 or fp16 on a GPU
        that supports it; on a CPU bf16 if it is faster there and close enough (`anomalyclip.engines.half`), else fp32.
    compiled : bool
        Whether to compile the encoder (`torch.compile`). It is compiled for the first batch, again when a second batch
        size occurs, and from then on for any batch size.

    Raises
    ------
    AnomalyCLIPError
        The machine does not support the device or precision.
    """

    def __init__(
        self,
        core: Core,
        *,
        identity: Callable[[], Mapping[str, Any]],
        description: Description,
        device: str = "auto",
        precision: str = "fp32",
        compiled: bool = False,
    ) -> None:
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.image_size, self.framing = core.image_size, core.framing
        packs = self.device.type == "cpu" and self.precision != "fp16" and not compiled
        if not packs:
            core.unpack()  # another scorer may have packed its weights
        self.core = core.to(self.device)
        if packs:
            self.core.pack()
        if self.device.type == "cuda":
            # The best layout for convolutions on CUDA, and that of decoded pixels.
            torch.nn.utils.convert_conv2d_weight_memory_format(self.core, torch.channels_last)
        self.compiled = compiled
        self._encode = torch.compile(core.encode) if compiled else core.encode
        self._identity, self._description = identity, description
        self._known_identity: dict[str, Any] | None = None
        self._process = os.getpid()
        if precision == "auto" and packs:
            self.precision = self._fastest_precision()

    def _fastest_precision(self) -> str:
        """Return bf16 if it serves on this CPU, else fp32."""
        exact, half = copy.copy(self), copy.copy(self)
        exact.precision, half.precision = "fp32", "bf16"
        return "bf16" if half_serves(exact, half, exact.identity, size=self.framing.blank) else "fp32"

    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Score a batch; see `anomalyclip.scorer.Scorer`.

        Raises
        ------
        AnomalyCLIPError
            The model returned NaN or infinite scores, or the process was forked from the one that loaded it and cannot
            use it.
        """
        return self.results(self.features(pixels))

    def results(self, features: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return scores and maps of what `features` returned; see `__call__`."""
        return self.finished(self.compared(features))

    def compared(self, features: Any) -> Compared:
        """Return what the texts say of what `features` returned, before the rule of the image score."""
        with torch.inference_mode():
            text, grids = self.core.compare(features)
            maps = self.core.enlarged(grids)
        # A sum is not finite if any value is not; it costs almost nothing.
        if not math.isfinite(float(text.sum() + maps.sum())):
            raise AnomalyCLIPError(
                f"the model returned NaN or infinite scores at precision {self.precision}: {_NAN}"
            )
        return Compared(text, grids, maps)

    def finished(self, compared: Compared) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return scores and maps of what `compared` returned; see `__call__`."""
        with torch.inference_mode():
            scores = self.core.scored(*compared)
        return scores.cpu().numpy(), compared.maps.cpu().numpy()

    def with_core(
        self, core: Core, *, identity: Callable[[], Mapping[str, Any]], description: Description
    ) -> "TorchScorer":
        """Return a scorer of another core with the same encoder, for which nothing is compiled or moved again.

        Parameters
        ----------
        core : Core
            Its `encode` must give the same as this one's; it differs in what features are compared with.
        identity, description
            As for the class.
        """
        other = copy.copy(self)
        other.core = core.to(self.device)  # its tower is this one's, packed or not
        other._identity, other._description, other._known_identity = identity, description, None
        return other

    def identity(self) -> dict[str, Any]:
        """Return what determines the scores; see `anomalyclip.scorer.Scorer`."""
        if self._known_identity is None:
            self._known_identity = {**self._identity(), "precision": self.precision}
        return dict(self._known_identity)

    def describe(self) -> Description:
        """Return what reports say about it."""
        facts = {**self._description.facts, "device": str(self.device)}
        return replace(self._description, facts=facts)

    def over_class(
        self, scores: NDArray[np.float32], highest: NDArray[np.float32]
    ) -> NDArray[np.float32] | None:
        """Return the image scores that a method was published with for all test images of a class together.

        Parameters
        ----------
        scores, highest : ndarray of float32
            (B,), of all images: their scores one by one, and the maxima of their maps.

        Returns
        -------
        ndarray of float32 or None
            None: the method scores every image alone.
        """
        found = self.core.over_class(torch.from_numpy(scores), torch.from_numpy(highest))
        return None if found is None else found.numpy()

    def remarks(self) -> list[str]:
        """Return what the images since the last call say about their fitness for this scorer; the count begins anew."""
        return self.core.remarks()

    def reference_pictures(self) -> tuple[bytes, ...]:
        """Return small JPEG pictures of the references, by their numbers; of the first ones, or none."""
        return self.core.reference_pictures()

    def _settle_after_fork(self) -> None:
        """Use one thread in a forked process: those of PyTorch's pools are not copied, and would be waited for forever.

        The number is one of each thread, so it is set whenever a thread comes.
        """
        if os.getpid() == self._process:
            return
        if self.device.type != "cpu" or self.compiled:
            what = "compiled" if self.compiled else f"on {self.device}"
            raise AnomalyCLIPError(
                f"the model was loaded by another process, and one that is {what} does not work after a fork: load it "
                "in each process (multiprocessing: start method spawn; gunicorn: without --preload)"
            )
        torch.set_num_threads(1)

    def _on_device(self, pixels: NDArray[np.uint8]) -> Tensor:
        self._settle_after_fork()  # whatever is computed begins here
        tensor = torch.from_numpy(pixels)
        if self.device.type == "cuda":
            # Copies from pinned memory are asynchronous, so this thread can queue the next work meanwhile.
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def normalised(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Return images, (B, S, S, 3) uint8 RGB, as the encoder takes them, on the device."""
        return self.core.normalise(self._on_device(pixels))

    def features(self, pixels: NDArray[np.uint8], *, encode: Encode | None = None) -> Any:
        """Return the features of images, (B, S, S, 3) uint8 RGB, by the core's encoder or another one."""
        with torch.inference_mode():
            return self.encode(self.normalised(pixels), encode=encode)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which encoders run in this scorer's precision."""
        dtype = PRECISIONS[self.precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32)

    def encode(self, pixels: Tensor, *, encode: Encode | None = None) -> Any:
        """Return what the core's encoder makes of normalised pixels (B, 3, S, S), in this scorer's precision.

        Parameters
        ----------
        pixels : Tensor
        encode : callable, optional
            Another encoder, such as one that serves several cores. None: the core's own.

        Raises
        ------
        AnomalyCLIPError
            The model cannot be compiled on this machine.
        """
        with self.autocast():
            try:
                return (encode or self._encode)(pixels)
            except Exception as error:
                if not self.compiled or not _is_compiler_error(error):
                    raise
                raise AnomalyCLIPError(
                    f"the model cannot be compiled here ({str(error).strip().splitlines()[0]}); torch.compile needs a "
                    "C++ compiler such as g++: install one, or run without --compile"
                ) from None


def _is_compiler_error(error: Exception) -> bool:
    """Tell whether `torch.compile` itself failed: its errors come from PyTorch's compiler packages."""
    return any(
        kind.__module__.startswith(("torch._dynamo", "torch._inductor")) for kind in type(error).__mro__
    )


def check_runnable(device: str, precision: str) -> None:
    """Refuse a device or precision that this machine does not support.

    Raises
    ------
    AnomalyCLIPError
        The machine does not support it; the message names it.
    """
    choose_precision(precision, choose_device(device))


def choose_device(name: str) -> torch.device:
    """Return the device of that name; ``auto`` is the fastest kind available."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in _DEVICES:
            raise RuntimeError(f"expected auto or one of {', '.join(_DEVICES)}")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        if "device type at start of device string" in reason:  # followed by every name that PyTorch knows
            reason = "expected auto, cpu, cuda, cuda:1, mps or xpu"
        raise AnomalyCLIPError(f"device {name!r} cannot be used ({reason}); try --device cpu") from None
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """Return the precision of that name, resolving ``auto`` for a device."""
    if name == "auto":
        if device.type != "cuda":
            return "fp32"
        # Ampere (8.0) or newer; PyTorch's own check also accepts older GPUs, which emulate bf16 slowly.
        return "bf16" if torch.version.hip or torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if name not in PRECISIONS:
        raise AnomalyCLIPError(f"precision {name!r}: expected one of {', '.join(PRECISIONS)}, auto")
    return name
