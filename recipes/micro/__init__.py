"""How the embedded micro backbone is made: images, training, prompts, evaluation. See README.md beside this file."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from anomalyclip.errors import AnomalyCLIPError

HERE = Path(__file__).parent
ASSETS = HERE.parents[1] / "src" / "anomalyclip" / "assets" / "micro"


def read_config() -> dict[str, Any]:
    """Return the recipe's settings."""
    config: dict[str, Any] = yaml.safe_load((HERE / "config.yaml").read_text())
    return config


def on_photographs(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the training that goes on with photographs."""
    settings: dict[str, Any] = config["training"] | config["photographs"]["training"]
    return settings


def run(main: Callable[[], None]) -> None:
    """Run a script of the recipe; like anomalyclip, it reports bad input in one line and exits with code 2."""
    try:
        main()
    except AnomalyCLIPError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
