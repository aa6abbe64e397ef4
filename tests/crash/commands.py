"""Every command that writes, on data so small that a run takes about a second. A new command is one line."""

import json
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import yaml

from anomalyclip import predict
from anomalyclip.sharding import Shard
from tests.fuzz.corpus import small_spec
from tests.generated_sets import make_set

Files = dict[str, bytes]
"""By path relative to the folder of the run."""


@dataclass(frozen=True)
class Command:
    """A command with what it is to do.

    Parameters
    ----------
    name : str
    words : str
        With the names of `Inputs` in braces. Repeating them goes on with what is there, or begins again.
    growing : tuple of str
        Patterns of files that grow line by line: what is there after a kill begins as the whole does.
    moving : tuple of str
        Patterns of files that are replaced during the run: what is there after a kill is whole, but not the last.
    final : tuple of str
        Patterns of what a repetition refuses to write over: once it is there, it is complete.
    """

    name: str
    words: str
    growing: tuple[str, ...] = ()
    moving: tuple[str, ...] = ()
    final: tuple[str, ...] = ()


MODEL = "--backbone {backbone} --prompts {prompts} --image-size 56 --layers 1 --layers 2"
LINES = ("*predictions.jsonl", "*errors.jsonl", "*metrics.jsonl", "*shard.jsonl")

COMMANDS = [
    Command(
        "predict",
        f"predict {{images}} {MODEL} --threshold 0.5 --save map --save heatmap --save mask --output out --resume",
        growing=LINES,
    ),
    Command(
        "predict-overwrite-shard",
        f"predict {{images}} {MODEL} --threshold 0.5 --save map --shard 1/1 --output out --overwrite",
        growing=LINES,
    ),
    Command("merge", "merge {shards} --output out --save csv --overwrite", growing=LINES),
    Command(
        "watch",
        f"watch {{images}} {MODEL} --threshold 0 --save map --output out --interval 0.01 --until-idle 0 --run true",
        growing=(*LINES, "*alerts.jsonl"),
        moving=("*index.html",),
    ),
    Command("test", f"test {{data}} {MODEL} --controls --output out --resume", growing=LINES),
    Command(
        "train",
        "train {data} --backbone {backbone} --image-size 56 --epochs 3 --batch-size 2 --seed 1 --cache cache "
        "--output out --resume",
        growing=LINES,
        moving=("*state.pt",),
    ),
    Command(
        "compare",
        "compare {data} --backbone {backbone} --prompts {prompts} --image-size 56 --layers 1 --layers 2 "
        "--vary sigma=2,4 --draws 100 --output out --resume",
        growing=LINES,
    ),
    Command("calibrate", f"calibrate {{good}} {MODEL} --output out/threshold.json --overwrite"),
    Command("fit", f"fit {{good}} {MODEL} --output out/nut.memory --overwrite"),
    Command("prepare", "prepare {data} --output out/meta.json"),
    Command("export-onnx", f"export {MODEL} --output out/model.onnx --overwrite"),
    Command("export-openvino", f"export {MODEL} --format openvino --output out/model.xml --overwrite"),
    Command(
        "synth",
        "synth out/set --classes slate --normal 2 --anomalous 3 --seed 1 --size 64 --workers 2",
        final=("*",),
    ),
    Command("demo", "demo --output out", growing=LINES),
]


def make_inputs(folder: Path) -> dict[str, Path]:
    """Write what the commands read, and return where it is."""
    folder.mkdir()
    spec = small_spec(folder)
    data = make_set(folder / "parts", classes=("nut",), normal=3, anomalous=3, side=56)
    images = make_set(folder / "images", classes=("nut", "tile"), normal=4, anomalous=0, side=56)
    (images / "nut" / "test" / "good" / "damaged.png").write_bytes(b"no image")
    for index in (1, 2):
        predict(spec, images, folder / "shards", save=["map"], shard=Shard(index, 2))
    return {
        "shards": folder / "shards",
        "backbone": Path(spec.backbone),
        "prompts": Path(str(spec.prompts)),
        "data": data,
        "images": images,
        "good": data / "nut" / "test" / "good",
    }


def files_of(folder: Path) -> Files:
    """Return the files below a folder, without what tells when and how fast they were made."""
    return {
        path.relative_to(folder).as_posix(): timeless(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def timeless(path: Path) -> bytes:
    """Return the content of a file without times."""
    content = path.read_bytes()
    if path.suffix == ".json":
        try:
            return json.dumps(without_times(json.loads(content))).encode()
        except ValueError:
            return content
    if path.name == "config.yaml":
        return json.dumps(without_times(yaml.safe_load(content))).encode()
    if path.suffix in (".html", ".md"):
        content = re.sub(rb"(<h2>|## )Cost\b.*?(</table>|\n\n[^|\n]|\Z)", b"", content, flags=re.DOTALL)
        return re.sub(rb"[\d.]+(?= (s|ms|min|MB)\b)|\d{4}-\d\d-\d\d \d\d:\d\d", b"?", content)
    return content


def without_times(value: object) -> object:
    if isinstance(value, dict):
        return {
            key: without_times(inner)
            for key, inner in value.items()
            if key not in ("seconds", "peak_memory_mb", "cost")
        }
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
