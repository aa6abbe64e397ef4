"""Cost of `anomalyclip.compare` against `anomalyclip.evaluate` of its first method, for each image.

    python benchmarks/compare.py [--images 4] [--repeats 2] [--architecture ViT-L-14-336] [--what winclip]

The weights are random: speed does not depend on their values. ``--what shared`` (the default) is anomalyclip, words,
clip and clip-ac with four image scores each, which share one pass. Loading, texts and intervals cost time per run or
per class, not per image: so two numbers of images are run, and what counts is the time of the images that one has more.
Both run in this process in turn, and the best of each counts. The ratio that the passes' matrix products imply is
printed beside the measured one.
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
}
SCORES = {"shared": {"image_score": ["text", "max", "top1", "mean"]}}
FEW = 2


def seconds(work: Callable[[str], object], label: str) -> float:
    start = time.perf_counter()
    work(label)
    return time.perf_counter() - start


def specs_for(what: str, architecture: str, folder: Path, device: str) -> list[DetectorSpec]:
    clip, prompts = random_model(ARCHITECTURES[architecture])
    save_weights(Weights(clip.config, clip.state_dict(), folder), folder / "backbone.safetensors")
    prompts.save(folder / "prompts.safetensors")
    spec = DetectorSpec(
        folder / "backbone.safetensors",
        prompts=folder / "prompts.safetensors",
        normal=["a normal part"],
        abnormal=["a damaged part"],
        device=device,
    )
    return variants(spec, METHODS[what], SCORES.get(what, {}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--architecture", default="ViT-L-14-336", choices=ARCHITECTURES)
    parser.add_argument("--what", default="shared", choices=METHODS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=1)
    options = parser.parse_args()
    times: dict[str, list[float]] = {"alone": [], "together": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for label, count in (("few", FEW), ("many", FEW + options.images)):
            write_dataset(folder / label, ["slate"], normal=1, anomalous=count - 1, seed=1)
        specs = specs_for(options.what, options.architecture, folder, options.device)

        def alone(label: str) -> object:
            return evaluate(specs[0], folder / label, batch_size=options.batch_size)

        def together(label: str) -> object:
            return compare(specs, folder / label, batch_size=options.batch_size, draws=100)

        found = compare(specs, folder / "few", draws=100)  # first: what is done once is ready after it
        for _ in range(options.repeats):
            for kind, work in (("alone", alone), ("together", together)):
                few, many = (seconds(work, label) for label in ("few", "many"))
                times[kind].append((many - few) / options.images)
    print(f"{options.architecture}, {torch.get_num_threads()} threads, {processor()}")
    for kind, several in times.items():
        print(f"{kind}: {', '.join(f'{one:.2f}' for one in several)} s per image")
    shared = {frozenset([name, *cost.others]): cost.pass_gflop for name, cost in found.costs.items()}
    operations = [value for value in shared.values() if value is not None]
    print(
        f"{len(specs)} compared in {len(shared)} passes of {', '.join(f'{v:.0f}' for v in operations)} GFLOP"
    )
    implied = sum(operations) / (found.costs[found.reference].gflop or 1)
    print(f"ratio {min(times['together']) / min(times['alone']):.3f}; the passes alone imply {implied:.3f}")


if __name__ == "__main__":
    main()
