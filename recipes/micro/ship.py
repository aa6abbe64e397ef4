"""Put the trained backbone into the package: averaged weights in half precision, configuration, tokenizer.

python -m recipes.micro.ship RUN [--photographs [--start FOLDER]]
"""

import argparse
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from recipes.micro import ASSETS, on_photographs, read_config
from recipes.micro import run as run_script
from recipes.micro.train import made_of
from torch import Tensor

from anomalyclip.clip.model import CLIPConfig
from anomalyclip.clip.weights import Weights, read_weights, save_weights
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import replacing


def read_finished(run: Path, config: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Read the last checkpoint of a finished run of this recipe, with these settings of its training.

    Raises
    ------
    AnomalyCLIPError
        There is no checkpoint, or it is from a pilot, another recipe or an unfinished run.
    """
    file = run / "checkpoint.pt"
    if not file.is_file():
        raise AnomalyCLIPError(
            f"{run} contains no run: expected checkpoint.pt, which recipes.micro.train writes"
        )
    state: dict[str, Any] = torch.load(file, weights_only=True)
    recipe = json.loads(state["recipe"])
    for part, value in made_of(config, settings).items():
        if recipe[part] != value:
            raise AnomalyCLIPError(f"{file} is from another recipe: its {part} differ from config.yaml's")
    if state["step"] != settings["steps"]:
        raise AnomalyCLIPError(
            f"{file} is at step {state['step']} of {settings['steps']}: finish the run first"
        )
    return state


def mixed(average: dict[str, Tensor], start: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return the weights with a share of another image tower's in their own, as WiSE-FT does.

    A tower that was trained on keeps more of what it knew that way (Wortsman et al., Robust fine-tuning of zero-shot
    models, CVPR 2022).
    """
    return {
        name: torch.lerp(tensor.float(), start[name].float(), share) if name.startswith("visual.") else tensor
        for name, tensor in average.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the assets and print their hashes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--photographs",
        action="store_true",
        help="the run is of recipes.micro.go_on instead of recipes.micro.train",
    )
    parser.add_argument(
        "--start",
        type=Path,
        metavar="FOLDER",
        help="with --photographs: the backbone that the run started from; its image tower is mixed in (start_share)",
    )
    options = parser.parse_args(arguments)
    if options.start is not None and not options.photographs:
        parser.error("--start is for runs of recipes.micro.go_on: give --photographs too")
    run, config = options.run, read_config()
    settings = on_photographs(config) if options.photographs else config["training"]
    state = read_finished(run, config, settings)
    average = state["average"]
    if options.start is not None:
        start = read_weights(options.start).state_dict
        average = mixed(average, start, config["photographs"]["start_share"])
    average = {name: tensor.half() for name, tensor in average.items()}
    numbers = {name: value for name, value in config["model"].items() if name != "dpam_layers"}
    architecture = CLIPConfig(**numbers, vocab_size=len(average["token_embedding.weight"]))
    save_weights(Weights(architecture, average, run), ASSETS)
    with replacing(ASSETS / "tokenizer.json") as temporary:
        shutil.copyfile(run / "tokenizer.json", temporary)
    assert read_weights(ASSETS).config == architecture
    print(f"step {state['step']}")
    for file in sorted(ASSETS.iterdir()):
        print(hashlib.sha256(file.read_bytes()).hexdigest(), f"{file.stat().st_size:>9}", file.name)


if __name__ == "__main__":
    run_script(main)
