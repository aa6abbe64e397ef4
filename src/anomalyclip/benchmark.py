"""Measure how long each stage of a prediction takes, and compare the encoder with this machine's limit.

The limit is the rate of the best matrix product of any installed library, measured in the same process. Absolute
times mean little on shared machines; the ratio to this limit is more reliable.
"""

import io
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from anomalyclip.backbones.table import KNOWN
from anomalyclip.clip.model import CLIP, CLIPConfig, LocalPath
from anomalyclip.clip.registry import BACKBONES
from anomalyclip.clip.taps import Taps, gflop
from anomalyclip.clip_core import TextCore
from anomalyclip.engines.floor import best_time, limit
from anomalyclip.engines.torch import TorchScorer
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.images import squash
from anomalyclip.machine import peak_memory, processor
from anomalyclip.methods.anomalyclip import make_core
from anomalyclip.prompts import Prompts
from anomalyclip.scorer import Description
from anomalyclip.spec import DetectorSpec

ARCHITECTURES = {name: config for name in BACKBONES if isinstance(config := KNOWN[name].config, CLIPConfig)}
"""Architectures that can be timed with random weights: speed does not depend on the weights' values."""


@dataclass(frozen=True)
class Timing:
    """Result of `run`; times are in seconds, best of the repetitions.

    Attributes
    ----------
    gflop : float
        Multiplications and additions in the encoder's matrix products for one image, in 1e9.
    gflops : float
        This machine's rate in 1e9 operations per second: the best product of any installed library, in bf16 if the
        encoder runs in bf16, otherwise in float32.
    limit : dict
        All of them, and the processor's peak: `anomalyclip.engines.floor.Limit`.
    floor : float
        ``gflop / gflops``: the shortest possible time for one image.
    stages : dict of str to float
        Seconds per image: decode, resize, encode, score, smooth.
    ratio : float
        ``encode / floor``.
    peak_memory : float
        Peak resident memory of the process in MB; nan if the system does not report it.
    """

    architecture: str
    image_size: int
    batch_size: int
    gflop: float
    gflops: float
    limit: dict[str, Any]
    floor: float
    stages: dict[str, float]
    ratio: float
    peak_memory: float
    machine: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, JSON-ready; unknown values are None."""
        return asdict(self) | {"peak_memory": None if math.isnan(self.peak_memory) else self.peak_memory}


def encoder_gflop(config: CLIPConfig, *, image_size: int, dpam_layers: int) -> float:
    """Return the operations of the blocks' matrix products for one image in 1e9 (one multiply-add counts as two).

    Counted are the projections, MLP and attention of every block, the local path where it runs and, in the last block's
    original path, only what CLS needs.

    Examples
    --------
    >>> round(encoder_gflop(ARCHITECTURES["ViT-L-14-336"], image_size=518, dpam_layers=19))
    1176
    """
    last = (config.vision_layers,)
    taps = Taps(local=last, path=LocalPath(dpam_layers)) if dpam_layers else Taps(plain=last)
    return gflop(config, taps, image_size // config.patch_size)


def run(
    architecture: str = "ViT-L-14-336",
    spec: DetectorSpec | None = None,
    *,
    batch_size: int = 1,
    repeats: int = 3,
    seed: int = 0,
) -> Timing:
    """Time one architecture with random weights on a generated image.

    Parameters
    ----------
    architecture : str
        A key of `ARCHITECTURES`.
    spec : DetectorSpec, optional
        Image size, layers, device, precision and so on; backbone and prompts are ignored.
    batch_size : int
        Images per batch.
    repeats : int
        Runs of each stage; the best one counts.
    seed : int
        Seed of the weights.

    Raises
    ------
    AnomalyCLIPError
        An unknown architecture, or options it does not support.
    """
    if architecture not in ARCHITECTURES:
        raise AnomalyCLIPError(f"architecture {architecture!r}: expected one of {', '.join(ARCHITECTURES)}")
    config = ARCHITECTURES[architecture]
    core = _random_core(config, spec or DetectorSpec(), seed)
    scorer = _scorer(core, spec or DetectorSpec())
    found = limit(scorer.device, "bf16" if scorer.precision == "bf16" else "fp32")
    stages = _time_stages(scorer, batch_size=batch_size, repeats=repeats)
    rate = found.rate
    gflop = encoder_gflop(config, image_size=core.image_size, dpam_layers=core.dpam_layers)
    return Timing(
        architecture=architecture,
        image_size=scorer.image_size,
        batch_size=batch_size,
        gflop=gflop,
        limit=found.to_dict() | {"library": found.library},
        gflops=rate,
        floor=gflop / rate,
        stages=stages,
        ratio=stages["encode"] * rate / gflop,
        peak_memory=peak_memory(),
        machine=machine(scorer),
    )


def machine(scorer: TorchScorer) -> dict[str, Any]:
    """Return the conditions of a measurement."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": str(scorer.device),
        "precision": scorer.precision,
    }


def _random_core(config: CLIPConfig, spec: DetectorSpec, seed: int) -> TextCore:
    clip, prompts = random_model(config, seed=seed)
    with torch.inference_mode():
        return make_core(clip.visual, config, spec, lambda: prompts.text_features(clip))


def _scorer(core: TextCore, spec: DetectorSpec) -> TorchScorer:
    return TorchScorer(
        core,
        identity=dict,  # random weights need no identity
        description=Description("random weights"),
        device=spec.device,
        precision=spec.precision,
        compiled=spec.compiled,
    )


def random_model(config: CLIPConfig, *, seed: int = 0) -> tuple[CLIP, Prompts]:
    """Return a frozen CLIP and prompts with random weights."""
    torch.manual_seed(seed)
    clip = CLIP(config).requires_grad_(False).eval()
    ids = torch.tensor(
        [[49406, *[343] * 12, 14115, 269, 49407, 0], [49406, *[343] * 12, 13568, 14115, 269, 49407]]
    )
    return clip, Prompts.initial(ids, width=config.text_width)


def _time_stages(scorer: TorchScorer, *, batch_size: int, repeats: int) -> dict[str, float]:
    """Return the seconds per image of each stage on a generated 1024 x 768 JPEG."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((1024, 768)).save(buffer, "JPEG")
    image = Image.open(buffer).convert("RGB")
    pixels = np.stack([squash(image, scorer.image_size)] * batch_size)

    def timed(work: Callable[[], object], images: int) -> float:
        return best_time(work, repeats=repeats, device=scorer.device) / images

    with torch.inference_mode():
        core = scorer.core
        normal = core.normalise(torch.from_numpy(pixels).to(scorer.device))
        features = scorer.encode(normal)
        compared = core.compare(features)
        return {
            "decode": timed(lambda: Image.open(buffer).load(), 1),
            "resize": timed(lambda: squash(image, scorer.image_size), 1),
            "encode": timed(lambda: scorer.encode(normal), batch_size),
            "score": timed(lambda: core.compare(features), batch_size),
            "smooth": timed(lambda: core.finish(*compared), batch_size),
        }
