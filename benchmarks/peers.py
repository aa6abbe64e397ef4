"""Ours against what a user would take instead, on the same machine, one after the other, each in its own process.

    python -m benchmarks.peers [--repeats 3] [--keep FOLDER] [--small] [--only published --only torch]

ours: OpenVINO's file (what ``--engine auto`` makes for many images where both extras are installed), and PyTorch.
published: the model in the form in which it was published (`benchmarks/published_form.py`). Weights are random, images
noise; timed is a resized image to its score and map. Installed size: packages with all that they need.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from anomalyclip.benchmark import ARCHITECTURES
from anomalyclip.clip.model import CLIPConfig
from anomalyclip.engines.comparison import Exports, conditions, in_a_process, measure, place_of

SMALL = CLIPConfig(32, 56, 14, 64, 4, 1, 64, 9, 1, 77, 49408)

WAYS = {
    "openvino-fp32": ("ours, OpenVINO's file", ("anomalyclip[export,openvino]",)),
    "torch": ("ours, PyTorch", ("anomalyclip",)),
    "published": ("published form", ("torch", "scipy", "pillow")),
}

ANOMALIB = (
    "anomalib (WinCLIP, its predict) is not in the table: it needs torchvision, of which there is no build for the "
    "PyTorch here, so that it cannot be installed beside it"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="folder that keeps weights and files for the next time")
    parser.add_argument("--small", action="store_true", help="a model of toy size")
    parser.add_argument("--only", action="append", choices=list(WAYS))
    asked = parser.parse_args()
    architecture = "small" if asked.small else "ViT-L-14-336"
    ARCHITECTURES["small"] = SMALL
    about = conditions(architecture)
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    print(
        f"{architecture} at {about['image_size']}; {about['processor']}, {about['cores']} cores; {versions}\n"
    )
    print("| | s per image | times ours | start-up s | peak MB | installed MB |\n|---|---|---|---|---|---|")
    with place_of(asked.keep) as folder:
        exports = Exports(folder, about)
        first = None
        for way in asked.only or WAYS:
            name, packages = WAYS[way]
            files, _ = exports.of("torch" if way == "published" else way)
            program = ("-m", "benchmarks.peers", "--measure") if way == "published" else None
            found = in_a_process(
                way,
                files[0],
                about["image_size"],
                1,
                asked.repeats,
                **({} if program is None else {"program": program}),
            )
            if "failure" in found:
                sys.exit(f"{name}: {found['failure']}")
            first = first or found["seconds"]
            print(
                f"| {name} | {found['seconds']:.3f} | {found['seconds'] / first:.2f} | {found['start_up']:.1f} "
                f"| {found['peak_memory']:.0f} | {megabytes(packages):.0f} |",
                flush=True,
            )
    print(f"\n{ANOMALIB}")


def measure_published(runtime: str, file: str, size: int, batch: int, repeats: int) -> dict[str, Any]:
    """Load the published form and measure it: the work of its process."""
    from benchmarks.published_form import scorer

    from anomalyclip.clip.backbone import load_clip
    from anomalyclip.clip_core import default_dpam_layers
    from anomalyclip.prompts import load_prompts

    clip = load_clip(file)
    prompts = load_prompts(Path(file).with_name("prompts.safetensors"))
    score = scorer(
        clip.state_dict(),
        clip.config,
        prompts,
        size=size,
        local_blocks=default_dpam_layers(clip.config),
    )
    return measure(score, size, batch, repeats)


def megabytes(packages: Iterable[str]) -> float:
    """Return the size of installed packages and all that they need, in 1e6 bytes."""
    found: dict[str, Distribution] = {}
    for package in packages:
        _collect(package, found)
    files = {path for one in found.values() for path in _files(one)}
    return sum(path.stat().st_size for path in files) / 1e6


def _collect(package: str, found: dict[str, Distribution]) -> None:
    from packaging.requirements import Requirement

    wanted = Requirement(package)
    key = re.sub(r"[-_.]+", "-", str(wanted)).lower()
    if key in found:
        return
    try:
        found[key] = one = distribution(wanted.name)
    except PackageNotFoundError:  # for another system
        return
    for text in one.requires or ():
        needed = Requirement(text)
        extras = wanted.extras or {""}
        if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
            needed.marker = None
            needed.specifier = type(needed.specifier)()
            _collect(str(needed), found)


def _files(one: Distribution) -> Iterator[Path]:
    if one.metadata["Name"] == "anomalyclip":  # it may be installed in place
        import anomalyclip

        yield from (path for path in Path(anomalyclip.__file__).parent.rglob("*") if path.is_file())
        return
    yield from (path for file in one.files or () if (path := Path(str(one.locate_file(file)))).is_file())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure_published(**json.loads(sys.argv[2]))))
    else:
        main()
