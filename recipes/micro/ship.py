"""Put the trained backbone into the package: averaged weights in half precision, configuration, tokenizer.

python -m recipes.micro.ship RUN
"""

import argparse
import hashlib
import shutil
from pathlib import Path

import torch
from recipes.micro import ASSETS, read_config

from anomalyclip.clip.model import CLIPConfig
from anomalyclip.clip.weights import Weights, read_weights, save_weights
from anomalyclip.files import replacing


def main() -> None:
    """Write the assets and print their hashes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    average = {name: tensor.half() for name, tensor in state["average"].items()}
    architecture = {name: value for name, value in read_config()["model"].items() if name != "dpam_layers"}
    config = CLIPConfig(**architecture, vocab_size=len(average["token_embedding.weight"]))
    save_weights(Weights(config, average, run), ASSETS)
    with replacing(ASSETS / "tokenizer.json") as temporary:
        shutil.copyfile(run / "tokenizer.json", temporary)
    assert read_weights(ASSETS).config == config
    print(f"step {state['step']}")
    for file in sorted(ASSETS.iterdir()):
        print(hashlib.sha256(file.read_bytes()).hexdigest(), f"{file.stat().st_size:>9}", file.name)


if __name__ == "__main__":
    main()
