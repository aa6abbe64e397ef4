"""The PyTorch model behind a detector: squashed RGB pixels in, scores and maps out."""

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomalyclip.anomaly import enlarge, patch_probabilities, probabilities
from anomalyclip.clip.model import CLIP, CLIPConfig, ImageFeatures
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.images import MEAN, STD

if TYPE_CHECKING:
    from anomalyclip.prompts import Prompts

_NAN = "the weights are damaged, or half precision overflows (try --precision fp32)"
_DEVICES = ("cpu", "cuda", "mps", "xpu")

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchScorer:
    """CLIP and prompts, made ready: text features computed, the text tower let go.

    Parameters
    ----------
    clip : CLIP
        The frozen model; its image tower moves to `device`.
    prompts : Prompts
        The two prompts.
    image_size, layers, dpam_layers : optional
        None means the backbone's default (`default_image_size`, the last block, `default_dpam_layers`).
    sigma : float
        Gaussian smoothing of the maps in pixels; 0 does not smooth.
    device : str
        ``auto`` (CUDA, then Apple's GPU, then the CPU) or a PyTorch device.
    precision : {"fp32", "bf16", "fp16", "auto"}
        Of the image tower's matrix products; similarities are always float32. ``auto`` is bf16 or fp16 on a GPU that
        has it, fp32 elsewhere.
    compiled : bool
        Whether to compile the image tower (`torch.compile`). It is compiled when the first batch comes, again for each
        other batch size up to the second, and from then on for any.

    Raises
    ------
    AnomalyCLIPError
        A value that the backbone or the machine cannot have.
    """

    def __init__(
        self,
        clip: CLIP,
        prompts: "Prompts",
        *,
        image_size: int | None = None,
        layers: Sequence[int] | None = None,
        dpam_layers: int | None = None,
        sigma: float = 4.0,
        device: str = "auto",
        precision: str = "fp32",
        compiled: bool = False,
    ) -> None:
        config = clip.config
        self.config = config
        self.image_size = default_image_size(config) if image_size is None else image_size
        self.layers = tuple(layers) if layers else (config.vision_layers,)
        self.dpam_layers = default_dpam_layers(config) if dpam_layers is None else dpam_layers
        self.sigma = sigma
        self._check()
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        with torch.inference_mode():
            self.text_features = prompts.text_features(clip).to(self.device)  # 2 E
        if not self.text_features.isfinite().all():
            raise AnomalyCLIPError(
                "the prompts' text features are no numbers: the weights or the prompts are damaged"
            )
        self.prompts_info = prompts.info
        self.digest = _digest(clip, prompts)
        self.visual = clip.visual.to(self.device)
        if self.device.type == "cuda":
            # The layout that its convolutions want, and in which decoded pixels come.
            torch.nn.utils.convert_conv2d_weight_memory_format(self.visual, torch.channels_last)
        self._encode = torch.compile(self.visual) if compiled else self.visual
        self.compiled = compiled
        self._mean = torch.from_numpy(MEAN).to(self.device)
        self._std = torch.from_numpy(STD).to(self.device)

    def _check(self) -> None:
        config, size = self.config, self.image_size
        if size <= 0 or size % config.patch_size:
            near = max(round(size / config.patch_size), 1) * config.patch_size
            raise AnomalyCLIPError(
                f"image size {size}: expected a multiple of the backbone's patch size {config.patch_size}: use {near}"
            )
        depth = config.vision_layers
        for layer in self.layers:
            if not 1 <= layer <= depth:
                raise AnomalyCLIPError(
                    f"layer {layer} does not exist: the backbone's blocks are 1 to {depth}"
                )
        if not 0 <= self.dpam_layers <= depth:
            raise AnomalyCLIPError(
                f"{self.dpam_layers} DPAM layers: expected 0 to {depth}, the backbone's blocks"
            )
        if not 0 <= self.sigma <= size:
            raise AnomalyCLIPError(f"sigma {self.sigma}: expected 0 to {size} pixels, the image size")

    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Score a batch.

        Parameters
        ----------
        pixels : ndarray of uint8
            (B, S, S, 3) RGB.

        Returns
        -------
        scores : ndarray of float32
            (B,) within [0, 1].
        maps : ndarray of float32
            (B, S, S) within [0, 1].
        """
        with torch.inference_mode():
            scores, grids = self.score(self.features(self.normalise(self._on_device(pixels))))
            maps = enlarge(grids, self.image_size, sigma=self.sigma).clamp_(0, 1)
        # One sum tells whether any number is not finite, at no cost.
        if not math.isfinite(float(scores.sum() + maps.sum())):
            raise AnomalyCLIPError(
                f"the model gave scores that are no numbers at precision {self.precision}: {_NAN}"
            )
        return scores.cpu().numpy(), maps.cpu().numpy()

    def _on_device(self, pixels: NDArray[np.uint8]) -> Tensor:
        tensor = torch.from_numpy(pixels)
        if self.device.type == "cuda":
            # From pinned memory the copy is direct, and this thread goes on to queue the work behind it.
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return uint8 RGB (B, S, S, 3) as the image tower's float32 (B, 3, S, S); on CUDA channels last in memory."""
        normal = ((pixels.float() / 255 - self._mean) / self._std).permute(0, 3, 1, 2)
        return normal if self.device.type == "cuda" else normal.contiguous()

    def features(self, pixels: Tensor) -> ImageFeatures:
        """Return the features of normalised pixels (B, 3, S, S)."""
        dtype = PRECISIONS[self.precision]
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32):
            try:
                features: ImageFeatures = self._encode(
                    pixels, layers=self.layers, dpam_layers=self.dpam_layers
                )
            except Exception as error:
                if not self.compiled or not _is_compiler_error(error):
                    raise
                raise AnomalyCLIPError(
                    f"the model cannot be compiled here ({str(error).strip().splitlines()[0]}); torch.compile needs a "
                    "C++ compiler such as g++: install one, or go without --compile"
                ) from None
        return features

    def score(self, features: ImageFeatures) -> tuple[Tensor, Tensor]:
        """Return scores (B,) and patch maps (B, g, g), float32 within [0, 1]."""
        scores = probabilities(features.image, self.text_features)[:, 1]
        return scores, patch_probabilities(features.patches, self.text_features)

    def settings(self) -> dict[str, Any]:
        """Return what determines the scores besides weights and prompts, JSON-ready."""
        return {
            "image_size": self.image_size,
            "layers": list(self.layers),
            "dpam_layers": self.dpam_layers,
            "sigma": self.sigma,
            "precision": self.precision,
            "device": str(self.device),
        }


def _digest(clip: CLIP, prompts: "Prompts") -> str:
    """Return what tells models apart: the prompts whole, and of the weights the last projection, which is enough."""
    digest = hashlib.sha256(prompts.digest().encode())
    digest.update(clip.visual.proj.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _is_compiler_error(error: Exception) -> bool:
    """Tell whether `torch.compile` itself failed: its errors come from its own packages."""
    return any(
        kind.__module__.startswith(("torch._dynamo", "torch._inductor")) for kind in type(error).__mro__
    )


def default_image_size(config: CLIPConfig) -> int:
    """Return the side that a backbone is used at: its native patch grid times 37/24, which is 518 for ViT-L/14@336.

    Examples
    --------
    >>> default_image_size(CLIPConfig(768, 336, 14, 1024, 24, 16, 768, 12, 12, 77, 49408))
    518
    """
    grid = round(config.image_size // config.patch_size * 37 / 24)
    return grid * config.patch_size


def default_dpam_layers(config: CLIPConfig) -> int:
    """Return how many final blocks have the local path: 19 of 24, in proportion for other depths.

    Examples
    --------
    >>> default_dpam_layers(CLIPConfig(512, 224, 16, 768, 12, 12, 512, 12, 8, 77, 49408))
    9
    """
    return config.vision_layers * 19 // 24


def choose_device(name: str) -> torch.device:
    """Return the device of that name; ``auto`` is the fastest kind that there is."""
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
        if "device type at start of device string" in reason:  # followed by all that PyTorch has a name for
            reason = "expected auto, cpu, cuda, cuda:1, mps or xpu"
        raise AnomalyCLIPError(f"device {name!r} cannot be used ({reason}); try --device cpu") from None
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """Return the precision of that name, resolving ``auto`` for a device."""
    if name == "auto":
        if device.type != "cuda":
            return "fp32"
        # From Ampere (8.0) on; PyTorch's own answer counts older GPUs too, which emulate it slowly.
        return "bf16" if torch.version.hip or torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if name not in PRECISIONS:
        raise AnomalyCLIPError(f"precision {name!r}: expected one of {', '.join(PRECISIONS)}, auto")
    return name
