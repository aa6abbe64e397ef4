"""How the embedded micro backbone is made: images, training, prompts, evaluation. See README.md beside this file."""

from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
ASSETS = HERE.parents[1] / "src" / "anomalyclip" / "assets" / "micro"


def read_config() -> dict[str, Any]:
    """Return the recipe's figures."""
    config: dict[str, Any] = yaml.safe_load((HERE / "config.yaml").read_text())
    return config
