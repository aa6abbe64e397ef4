"""Cost of the methods: time per image relative to `anomalyclip` alone, beside what their matrix products imply.

    python benchmarks/compare.py [--images 2] [--repeats 2] [--architecture ViT-L-14-336] [--case april-gan ...]

The weights are random: speed does not depend on their values. Cases:

- shared: `anomalyclip.compare` of anomalyclip, words, clip and clip-ac with four image scores each;
- april-gan: `anomalyclip.evaluate` of it, with linear layers that are not trained;
- winclip: the same, with ``--window-stride``. By default that is the largest without gaps, to keep the time short;
- winclip-published: all windows of one image, which take two minutes; only if it is asked for.

Loading, texts and intervals cost time per run or per class, not per image: so two numbers of images are run, and what
counts is the time of the images that one has more. All cases run in this process in turn, and the best of each counts.
The matrix products are counted by PyTorch, of the very modules that run. On two idle cores `--case shared` takes three
minutes; so do the other cases with --repeats 1.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from anomalyclip import DetectorSpec, compare, evaluate
from anomalyclip.benchmark import ARCHITECTURES, random_model
from anomalyclip.clip.taps import passes
from anomalyclip.clip.weights import Weights, save_weights
from anomalyclip.clip_core import ClipCore, default_image_size
from anomalyclip.data.synthetic.writer import write_dataset
from anomalyclip.engines.torch import TorchScorer
from anomalyclip.evaluation.contenders import variants
from anomalyclip.linear_layers import LinearLayers
from anomalyclip.machine import processor
from anomalyclip.methods.april_gan import default_blocks
from anomalyclip.methods.winclip import default_windows

ALONE, PUBLISHED = "anomalyclip", "winclip-published"
CASES = ("shared", "april-gan", "winclip")
FEW = 2
"""Images of the smaller run."""


@dataclass(frozen=True)
class Case:
    """What is timed: one method, or several that are compared in one run."""

    specs: Sequence[DetectorSpec]
    batch_size: int

    def seconds(self, data: Path) -> float:
        """Return the time of one run."""
        start = time.perf_counter()
        if len(self.specs) == 1:
            evaluate(self.specs[0], data, batch_size=self.batch_size)
        else:
            compare(self.specs, data, batch_size=self.batch_size, draws=100)
        return time.perf_counter() - start

    def of_one_image(self) -> float:
        """Return the time of one image, after loading."""
        detector = replace(self.specs[0], class_name="slate").load()
        image = Image.new("RGB", (256, 256), "gray")
        start = time.perf_counter()
        detector.predict(image)
        return time.perf_counter() - start

    def gflop(self) -> float:
        """Return the 1e9 operations of all matrix products for one image."""
        maps = [replace(spec, image_score=None) for spec in self.specs]  # the rule of the score needs none
        cores = [core_of(spec) for spec in dict.fromkeys(maps)]
        total = 0.0
        for union in passes(core.taps for core in cores):
            served = [core for core in cores if core.taps.fits(union)]
            side = served[0].image_size
            image = torch.empty(1, side, side, 3, dtype=torch.uint8, device="meta")
            with torch.inference_mode(), FlopCounterMode(display=False) as counter:
                features = served[0].encode_for(served[0].normalise(image), union)
                for core in served:
                    core.finish(*core.compare(features.of(core.taps.path)))
            total += counter.get_total_flops() / 1e9
        return total


def core_of(spec: DetectorSpec) -> ClipCore:
    """Return a core whose tensors have shapes and no content: it counts operations without doing any."""
    scorer = replace(spec, device="cpu").load().scorer
    assert isinstance(scorer, TorchScorer)
    core = scorer.core
    assert isinstance(core, ClipCore)
    core.unpack()
    return core.to("meta")


def cases_of(folder: Path, options: argparse.Namespace) -> dict[str, Case]:
    """Write random weights and return what is timed, by name."""
    clip, prompts = random_model(config := ARCHITECTURES[options.architecture])
    backbone, layers = folder / "backbone.safetensors", folder / "layers.safetensors"
    save_weights(Weights(config, clip.state_dict(), folder), backbone)
    prompts.save(folder / "prompts.safetensors")
    LinearLayers.initial(config, default_blocks(config), seed=0).save(layers)
    base = DetectorSpec(
        backbone,
        prompts=folder / "prompts.safetensors",
        normal=["a normal part"],
        abnormal=["a damaged part"],
        device=options.device,
    )
    stride = options.window_stride or default_windows(default_image_size(config) // config.patch_size)[0]

    def case(methods: Sequence[str], spec: DetectorSpec = base, scores: Sequence[str] = ("text",)) -> Case:
        return Case(variants(spec, methods, {"image_score": scores}), options.batch_size)

    return {
        ALONE: case(["anomalyclip"], replace(base, normal=None, abnormal=None)),
        "shared": case(["anomalyclip", "words", "clip", "clip-ac"], scores=("text", "max", "top1", "mean")),
        "april-gan": case(["april-gan"], replace(base, prompts=None, trained=layers)),
        "winclip": case(["winclip"], replace(base, prompts=None, window_stride=stride)),
        PUBLISHED: case(["winclip"], replace(base, prompts=None)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--architecture", default="ViT-L-14-336", choices=ARCHITECTURES)
    parser.add_argument("--case", action="append", choices=(*CASES, PUBLISHED))
    parser.add_argument("--window-stride", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for label, count in (("few", FEW), ("many", FEW + options.images)):
            write_dataset(folder / label, ["slate"], normal=1, anomalous=count - 1, seed=1)
        known = cases_of(folder, options)
        cases = {name: known[name] for name in (ALONE, *(options.case or CASES))}
        gflop = {name: case.gflop() for name, case in cases.items()}
        if "winclip" in cases:
            gflop.setdefault(PUBLISHED, known[PUBLISHED].gflop())
        times: dict[str, list[float]] = {name: [] for name in cases}
        cases[ALONE].seconds(folder / "few")  # what is done once is done after it
        if (published := cases.pop(PUBLISHED, None)) is not None:
            times[PUBLISHED].append(published.of_one_image())
        for _ in range(options.repeats):
            for name, case in cases.items():
                few, many = (case.seconds(folder / label) for label in ("few", "many"))
                times[name].append((many - few) / options.images)
    print(f"{options.architecture}, {torch.get_num_threads()} threads, {processor()}")
    print(f"{'':20}{'s per image':>12}{'ratio':>8}{'GFLOP':>8}{'implied':>9}")
    for name, count in gflop.items():
        best = min(times[name]) if name in times else None
        measured = " " * 20 if best is None else f"{best:12.2f}{best / min(times[ALONE]):8.3f}"
        print(f"{name:20}{measured}{count:8.0f}{count / gflop[ALONE]:9.3f}")


if __name__ == "__main__":
    main()
