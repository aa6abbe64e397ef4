"""Cost of `anomalyclip.compare` against `anomalyclip.evaluate` of its first method, on the same images.

    python benchmarks/compare.py [--images 6] [--repeats 2] [--architecture ViT-L-14-336] [--what winclip]

The weights are random: speed does not depend on their values. Both run in this process in turn, and the best of each
counts. ``--what shared`` (the default) is anomalyclip, words, clip and clip-ac with four image scores each, which share
one pass. The ratio that the matrix products of the passes imply is printed beside the measured one. Every method has two
texts: texts cost time per class, not per image, and a data set of six images would show nothing else.
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
from anomalyclip.machine import processor

METHODS = {
    "shared": ["anomalyclip", "words", "clip", "clip-ac"],
    "winclip": ["anomalyclip", "winclip"],
    "april-gan": ["anomalyclip", "april-gan"],
}
SCORES = {"shared": {"image_score": ["text", "max", "top1", "mean"]}}


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


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
            folder / "backbone.safetensors",
            prompts=folder / "prompts.safetensors",
            normal=["a normal part"],
            abnormal=["a damaged part"],
            templates="none",
            device=options.device,
        )
        what = METHODS[options.what]
        specs = variants(spec, what, SCORES.get(options.what, {}))
        size = {"batch_size": options.batch_size}

        def alone() -> object:
            return evaluate(specs[0], folder / "parts", output=folder / f"alone-{time.time_ns()}", **size)

        def together() -> object:
            return compare(specs, folder / "parts", output=folder / f"all-{time.time_ns()}", **size)

        found = compare(
            specs, folder / "parts", **size
        )  # first: what is hashed or compiled once is ready after it
        alone()
        times: dict[str, list[float]] = {"alone": [], "together": []}
        for _ in range(options.repeats):
            times["alone"].append(seconds(alone))
            times["together"].append(seconds(together))
    print(
        f"{options.architecture}, {options.images} images, {torch.get_num_threads()} threads, {processor()}"
    )
    for label, several in times.items():
        each = ", ".join(f"{one:.2f}" for one in several)
        print(f"{label}: {each} s; best {min(several) / options.images:.2f} s per image")
    shared = {frozenset([name, *cost.others]): cost.pass_gflop for name, cost in found.costs.items()}
    first = found.costs[found.reference].gflop
    print(
        f"{len(specs)} compared in {len(shared)} passes of {', '.join(f'{v:.0f}' for v in shared.values())} GFLOP"
    )
    print(
        f"ratio {min(times['together']) / min(times['alone']):.3f}; the passes alone imply "
        f"{sum(shared.values()) / first:.3f}"
    )


if __name__ == "__main__":
    main()
