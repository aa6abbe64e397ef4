"""Cost of `anomalyclip.compare` against `anomalyclip.evaluate` of one of the methods, on the same images.

    python benchmarks/compare.py [--images 6] [--repeats 2] [--architecture ViT-L-14-336] [--what shared|winclip|april-gan]

The weights are random: speed does not depend on their values. Both are run in this process in turn, and the best of each
counts. ``shared`` is anomalyclip, words, clip and clip-ac with four image scores each, which all share one pass. For the
others the ratio that their matrix products imply is printed too.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from anomalyclip import DetectorSpec, compare, evaluate
from anomalyclip.benchmark import ARCHITECTURES, random_model
from anomalyclip.clip.weights import Weights, save_weights
from anomalyclip.data.synthetic.writer import write_dataset
from anomalyclip.evaluation.contenders import variants

METHODS = {
    "shared": ["anomalyclip", "words", "clip", "clip-ac"],
    "winclip": ["anomalyclip", "winclip"],
    "april-gan": ["anomalyclip", "april-gan"],
}
SCORES = {"shared": {"image_score": ["text", "max", "top1", "mean"]}}


def best(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--architecture", default="ViT-L-14-336", choices=ARCHITECTURES)
    parser.add_argument("--what", default="shared", choices=METHODS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        half = (options.images + 1) // 2
        write_dataset(folder / "parts", ["slate"], normal=half, anomalous=options.images - half, seed=1)
        clip, prompts = random_model(ARCHITECTURES[options.architecture])
        save_weights(Weights(clip.config, clip.state_dict(), Path(name)), folder / "backbone.safetensors")
        prompts.save(folder / "prompts.safetensors")
        spec = DetectorSpec(
            folder / "backbone.safetensors", prompts=folder / "prompts.safetensors", device=options.device
        )
        what = METHODS[options.what]
        specs = variants(spec, what, SCORES.get(options.what, {}))
        size = {"batch_size": options.batch_size}

        def alone() -> object:
            return evaluate(spec, folder / "parts", output=folder / f"alone-{time.time_ns()}", **size)

        found = compare(specs, folder / "parts", **size)  # also remembers hashes, as every later run does
        alone()
        times = {"alone": 0.0, "together": 0.0}
        times["alone"] = best(alone, options.repeats)
        times["together"] = best(
            lambda: compare(specs, folder / "parts", output=folder / f"all-{time.time_ns()}", **size),
            options.repeats,
        )
    print(f"{options.architecture}, {options.images} images, {torch.get_num_threads()} threads")
    for label, seconds in times.items():
        print(f"{label}: {seconds:.2f} s, {seconds / options.images:.2f} s per image")
    print(f"ratio {times['together'] / times['alone']:.3f} for {len(specs)} compared")
    operations = {name: cost.gflop for name, cost in found.costs.items()}
    print(
        f"GFLOP per image: {', '.join(f'{name} {value:.0f}' for name, value in operations.items() if value)}"
    )


if __name__ == "__main__":
    main()
