"""Where the time of `anomalyclip predict` on one picture goes, from the start of the process to its end.

    python -m benchmarks.stages [--starts 3] [--small] [--save heatmap] [--before ../older/src]

The model has the size of ViT-L/14@336 and random weights, in half precision as they are published, in a temporary
folder. The first start hashes the file and measures the machine; later ones find both in the cache folder. A stage does
not contain the stages that it calls; "everything else" is what is left of the process's time. With ``--before`` each
start is followed by one of an older version, in turn, of which the total is taken.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STAGES = {
    "read the weights": ["anomalyclip.clip.backbone:read_weights"],
    "half to float": ["anomalyclip.clip.model:CLIP.frozen"],
    "hash the weights": ["anomalyclip.clip.fingerprints:fingerprint"],
    "texts": ["anomalyclip.prompts:Prompts.text_features"],
    "is oneDNN faster?": ["anomalyclip.clip.packed:_ratio"],
    "pack": ["anomalyclip.clip.packed:pack"],
    "decode and resize": ["anomalyclip.detector:Detector.prepare"],
    "encode": ["anomalyclip.engines.torch:TorchScorer.encode"],
    "write": ["anomalyclip.writers:PredictionWriter.write", "anomalyclip.predicting:finish"],
}
"""Functions whose time is the stage's."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a model of toy size")
    parser.add_argument("--save", action="append", default=[], help="as for predict")
    parser.add_argument("--before", type=Path, help="folder with the source of an older version: its src")
    asked = parser.parse_args()
    if asked.before and not (asked.before / "anomalyclip").is_dir():
        parser.error(f"--before {asked.before}: no folder anomalyclip in it")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _prepare(folder, small=asked.small)
        time.sleep(2.5)  # only the hash of a file that rests is remembered
        starts, older = [], []
        for number in range(asked.starts):
            starts.append(_start(folder, number, asked))
            if asked.before:
                older.append(_start_older(folder, number, asked))
    columns = [f"start {number}" for number in range(1, asked.starts + 1)]
    print(f"| seconds | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for stage in starts[0]:
        if any(start[stage] >= 0.0005 for start in starts):
            print(f"| {stage} | {' | '.join(f'{start[stage]:.3f}' for start in starts)} |")
    if older:
        print(f"| total before | {' | '.join(f'{total:.3f}' for total in older)} |")


def _prepare(folder: Path, *, small: bool) -> None:
    """Write weights, prompts and a picture."""
    import numpy as np
    from benchmarks.peers import SMALL
    from PIL import Image
    from safetensors.torch import save_file

    from anomalyclip.benchmark import ARCHITECTURES, random_model

    clip, prompts = random_model(SMALL if small else ARCHITECTURES["ViT-L-14-336"])
    save_file(
        {name: tensor.half() for name, tensor in clip.state_dict().items()}, folder / "weights.safetensors"
    )
    prompts.save(folder / "prompts.safetensors")
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((1024, 768)).save(folder / "part.jpg")


def _start(folder: Path, number: int, asked: argparse.Namespace) -> dict[str, float]:
    told = folder / f"stages-{number}.json"
    command = ["-m", "benchmarks.stages", "--child", told, time.time()]
    total = _seconds(folder, [*command, *_arguments(folder, f"run-{number}", asked)], "cache")
    found: dict[str, float] = json.loads(told.read_text())
    return {**found, "everything else": total - sum(found.values()), "total": total}


def _start_older(folder: Path, number: int, asked: argparse.Namespace) -> float:
    """Return the seconds of one start of the older version, which has a cache folder of its own."""
    command = ["-m", "anomalyclip", *_arguments(folder, f"older-{number}", asked)]
    return _seconds(folder, command, "older-cache", {"PYTHONPATH": str(asked.before.resolve())})


def _arguments(folder: Path, output: str, asked: argparse.Namespace) -> list[Any]:
    arguments = ["predict", folder / "part.jpg", "--backbone", folder / "weights.safetensors"]
    arguments += ["--prompts", folder / "prompts.safetensors", "--engine", "torch"]
    return [
        *arguments,
        "--output",
        folder / output,
        *(part for kind in asked.save for part in ("--save", kind)),
    ]


def _seconds(folder: Path, command: list[Any], cache: str, more: dict[str, str] | None = None) -> float:
    """Return how long a process of Python takes, from its start to its end."""
    environment = os.environ | {"ANOMALYCLIP_CACHE": str(folder / cache)} | (more or {})
    begun = time.time()
    done = subprocess.run(
        [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    return time.time() - begun


class Clock:
    """Adds up the seconds of stages; one that is called by another is taken from it."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(["start Python", "import PyTorch", *STAGES], 0.0)
        self._inside = threading.local()  # seconds of the stages that were called, for each that runs

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, whose time is added to a stage."""

        def wrapped(*arguments: Any, **named: Any) -> Any:
            inside = self._inside.__dict__.setdefault("seconds", [0.0])
            start = time.perf_counter()
            inside.append(0.0)
            try:
                return function(*arguments, **named)
            finally:
                took = time.perf_counter() - start
                self.seconds[stage] += took - inside.pop()
                inside[-1] += took

        return wrapped

    def attach(self) -> None:
        """Take the time of every stage whose function there is."""
        from importlib import import_module

        for stage, functions in STAGES.items():
            for place in functions:
                module, _, path = place.partition(":")
                *owners, name = path.split(".")
                owner: Any = import_module(module)
                for one in owners:
                    owner = getattr(owner, one)
                plain = owner.__dict__[name]
                if isinstance(plain, classmethod):
                    setattr(owner, name, classmethod(self.timed(stage, plain.__func__)))
                else:
                    setattr(owner, name, self.timed(stage, plain))


def child(told: str, begun: str, *arguments: str) -> None:
    """Run the command line with a clock on its stages: the work of one start."""
    clock = Clock()
    clock.seconds["start Python"] = time.time() - float(begun)
    from anomalyclip.machine import keep_memory, let_threads_rest

    let_threads_rest()  # before PyTorch is imported, as the command line does
    keep_memory()
    clock.timed("import PyTorch", lambda: __import__("torch"))()
    clock.attach()
    from anomalyclip.cli import main as command_line

    sys.argv = ["anomalyclip", *arguments]
    try:
        command_line()
    finally:
        Path(told).write_text(json.dumps(clock.seconds))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
