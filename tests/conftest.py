"""What several tests share: the golden cases and the small CLIP that they were computed with."""

import io
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch

from anomalyclip.clip.model import CLIP, CLIPConfig
from anomalyclip.engines.torch import TorchScorer
from anomalyclip.methods.anomalyclip import assemble
from anomalyclip.prompts import Prompts, load_prompts
from anomalyclip.spec import DetectorSpec
from anomalyclip.texts import Texts
from tests.serving import serving as serving

# No test is timed; a clean clone must give the same answer every time.
hypothesis.settings.register_profile("here", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("here")

# What a test finds in the cache folder was put there by tests.
_CACHE = tempfile.TemporaryDirectory(prefix="anomalyclip-cache-")
os.environ["ANOMALYCLIP_CACHE"] = _CACHE.name

torch.set_num_threads(1)  # small tensors: more threads only get into each other's way

GOLDEN = Path(__file__).parent / "golden"
TINY = CLIPConfig(32, 56, 14, 64, 24, 1, 64, 12, 1, 77, 49408)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Begin with one thread, whatever an earlier test of this process left: the last bits of sums depend on it."""
    torch.set_num_threads(1)


def torch_scorer(clip: CLIP, texts: Texts, **options: Any) -> TorchScorer:
    """Return the scorer of AnomalyCLIP with these options of a spec."""
    return assemble(clip, texts, DetectorSpec(**options))


@dataclass(frozen=True)
class GoldenCase:
    """What the published code computed of a batch of two images, with the settings it was given."""

    name: str
    settings: dict[str, Any]
    arrays: dict[str, np.ndarray]
    prompts: Prompts
    images: list[Path]

    @property
    def image_size(self) -> int:
        return int(self.settings["image_size"])

    @property
    def layers(self) -> list[int]:
        return list(self.settings["features_list"])

    @property
    def dpam_layers(self) -> int:
        return int(self.settings["dpam"]) - 1  # the published option counts one more than it replaces

    def published_map(self, name: str) -> np.ndarray:
        return self.arrays[name] / len(self.layers)  # the published map is a sum over layers, ours the mean


def golden_case(name: str) -> GoldenCase:
    return GoldenCase(
        name=name,
        settings=json.loads((GOLDEN / f"{name}.json").read_text()),
        arrays=dict(np.load(GOLDEN / f"{name}.npz")),
        prompts=load_prompts(GOLDEN / f"{name}_prompts.safetensors"),
        images=[GOLDEN / f"{name}_{i}.png" for i in range(2)],
    )


@pytest.fixture(params=["paper", "multilayer", "native_size"])
def golden(request: pytest.FixtureRequest) -> GoldenCase:
    return golden_case(request.param)


@pytest.fixture(scope="session")
def paper_case() -> GoldenCase:
    return golden_case("paper")


@pytest.fixture(scope="session")
def tiny_state() -> dict[str, torch.Tensor]:
    """The weights of the golden cases, in half precision under OpenAI's names."""
    with np.load(GOLDEN / "tiny_clip.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@pytest.fixture(scope="session")
def tiny_clip(tiny_state: dict[str, torch.Tensor]) -> CLIP:
    return CLIP.frozen(TINY, tiny_state)


@pytest.fixture(scope="session")
def tiny_backbone(tiny_state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as a file of OpenAI's form, for the command line."""
    path = tmp_path_factory.mktemp("openai") / "tiny.pt"
    torch.save(tiny_state, path)
    return path


@pytest.fixture(scope="session")
def rivals() -> dict[str, np.ndarray]:
    """What public code made of two pictures of 56 x 56 with these weights; docs/method.md says whose."""
    with np.load(GOLDEN / "rivals.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def worded_clip(tiny_state: dict[str, torch.Tensor], rivals: dict[str, np.ndarray]) -> CLIP:
    """The small CLIP with embeddings for the words of plain prompts, without which they would all be nearly zero."""
    words = tiny_state["token_embedding.weight"].clone()
    words[rivals["word_ids"].astype(np.int64)] = torch.from_numpy(rivals["word_embeddings"])
    return CLIP.frozen(TINY, tiny_state | {"token_embedding.weight": words})


def rival_arrays(name: str) -> dict[str, np.ndarray]:
    """What public code of a rival method computed; docs/methods.md says whose."""
    with np.load(GOLDEN / f"rival_{name}.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def rival_inputs() -> dict[str, np.ndarray]:
    """Pictures, and embeddings of all words that the rivals' sentences have."""
    return rival_arrays("inputs")


@pytest.fixture(scope="session")
def rival_backbone(
    tiny_state: dict[str, torch.Tensor],
    rival_inputs: dict[str, np.ndarray],
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """The small CLIP with these embeddings, as a file of OpenAI's form."""
    words = tiny_state["token_embedding.weight"].clone()
    words[rival_inputs["word_ids"].astype(np.int64)] = torch.from_numpy(rival_inputs["word_embeddings"])
    path = tmp_path_factory.mktemp("openai") / "tiny.pt"
    torch.save(tiny_state | {"token_embedding.weight": words}, path)
    return str(path)


@dataclass(frozen=True)
class Finished:
    """What a run of the command line left on the screen."""

    code: int
    out: str
    err: str

    @property
    def complaints(self) -> list[str]:
        """What standard error says besides what is only good to know."""
        return [line for line in self.err.splitlines() if not line.startswith("note: ")]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command line in this process, as `anomalyclip ARGS` would run."""

    def run(*args: object, stdin: str = "") -> Finished:
        from anomalyclip.cli import main

        monkeypatch.setattr(sys, "argv", ["anomalyclip", *map(str, args)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        captured = capsys.readouterr()
        return Finished(code, captured.out, captured.err)

    return run
