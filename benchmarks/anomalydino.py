"""Time, memory and start-up of AnomalyDINO on a CPU: DINOv2 with random weights of its form, and some references.

Run from the repository's root, on a quiet machine:

    python -m benchmarks.anomalydino [--backbone dinov2-small] [--side 448] [--references 16] [--repeats 5]

The weights are written as a file of Meta's form and read like one. Scoring is measured from the picture in memory to
the prediction. The floor is the time of the blocks' matrix products and of the comparison with the references at the
rate of the fastest library for a large float32 product; start-up is a whole process that scores one picture with a
fitted memory. Peak memory is that of loading, fitting and scoring. OpenMP's threads rest as they do on the command line
(`anomalyclip.machine.let_threads_rest`).
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from anomalyclip.machine import let_threads_rest, peak_memory, processor

let_threads_rest()  # before PyTorch is loaded

import numpy as np
import torch
from PIL import Image

from anomalyclip import DetectorSpec, fit
from anomalyclip.backbone_speed import gflop_of
from anomalyclip.backbones.config import ViTConfig, tensor_shapes
from anomalyclip.backbones.table import KNOWN
from anomalyclip.engines.floor import best_time, limit
from anomalyclip.remembering import remember

_NAMES = (  # ours to Meta's
    ("class_embedding", "cls_token"),
    ("positional_embedding", "pos_embed"),
    ("register_embedding", "register_tokens"),
    ("conv1.", "patch_embed.proj."),
    ("ln_post.", "norm."),
    ("transformer.resblocks.", "blocks."),
    (".ln_1.", ".norm1."),
    (".ln_2.", ".norm2."),
    (".attn.in_proj_", ".attn.qkv."),
    (".attn.out_proj.", ".attn.proj."),
    (".ls_1", ".ls1.gamma"),
    (".ls_2", ".ls2.gamma"),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)


def random_file(config: ViTConfig, folder: Path) -> Path:
    """Write random weights as Meta publishes DINOv2."""
    torch.manual_seed(0)
    state = {"mask_token": torch.zeros(1, config.vision_width)}
    for name, shape in tensor_shapes(config).items():
        values = torch.randn(shape) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.02)
        if name.endswith(("ln_1.weight", "ln_2.weight", "ln_post.weight", "ls_1", "ls_2")):
            values = 1 + values
        for ours, theirs in _NAMES:
            name = name.replace(ours, theirs)
        if name in ("cls_token", "pos_embed", "register_tokens"):
            values = values.reshape(1, -1, config.vision_width)
        state[name] = values
    torch.save(state, folder / "dinov2_random_pretrain.pth")
    return folder / "dinov2_random_pretrain.pth"


def pictures(folder: Path, count: int) -> Path:
    """Write pictures of 800 x 800 pixels."""
    folder.mkdir()
    chance = np.random.default_rng(0)
    for number in range(count):
        coarse = chance.integers(0, 256, (50, 50, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((800, 800), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")
    return folder


def start_up(folder: Path, arguments: list[str], repeats: int) -> float:
    """Return the shortest time of a process that scores one picture."""
    times = []
    for number in range(repeats):
        start = time.perf_counter()
        command = [sys.executable, "-m", "anomalyclip", "predict", str(folder / "test" / "0.jpg"), *arguments]
        subprocess.run([*command, "--output", str(folder / f"out-{number}")], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--backbone", default="dinov2-small", choices=[n for n in KNOWN if n.startswith("dinov2")]
    )
    parser.add_argument("--side", type=int, default=448)
    parser.add_argument("--references", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    known = KNOWN[given.backbone]
    assert isinstance(known.config, ViTConfig)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = random_file(known.config, folder)
        spec = DetectorSpec(str(file), method="anomalydino", image_size=given.side, device="cpu")
        start = time.perf_counter()
        detector = spec.load()
        loading = time.perf_counter() - start
        start = time.perf_counter()
        memory = fit(detector, pictures(folder / "train", given.references))
        fitting = time.perf_counter() - start
        memory.save(folder / "few.memory")
        few_shot = remember(detector, memory)
        image = Image.open(pictures(folder / "test", 1) / "0.jpg").convert("RGB")
        seconds = best_time(lambda: few_shot.predict(image), repeats=given.repeats)
        peak = peak_memory()
        rate = limit(torch.device("cpu")).rate
        patches, width = (given.side // known.config.patch_size) ** 2, known.config.vision_width
        compared = 2e-9 * patches * memory.patches * width
        gflop = gflop_of(known, given.side) + compared
        options = ["--backbone", str(file), "--method", "anomalydino", "--image-size", str(given.side)]
        whole = start_up(folder, [*options, "--references", str(folder / "few.memory")], given.repeats)
    print(
        f"{given.backbone} at {given.side} x {given.side}, {given.references} references; {processor()}, ",
        end="",
    )
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"load {loading:.2f} s, fit {fitting:.2f} s, memory {memory.size / 1e6:.1f} MB of features")
    print(
        f"one image {seconds:.3f} s; floor {gflop / rate:.3f} s ({gflop:.0f} GFLOP, of which {compared:.0f} are the ",
        end="",
    )
    print(f"comparison, at {rate:.0f} GFLOP/s); ratio {seconds * rate / gflop:.2f}")
    print(f"a whole process for one image {whole:.2f} s; peak memory {peak:.0f} MB")


if __name__ == "__main__":
    main()
