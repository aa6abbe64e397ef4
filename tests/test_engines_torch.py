"""PyTorch made faster: lower precision keeps the similarities exact, compilation changes nothing but the time."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from anomalyclip.engines import half
from anomalyclip.engines.export import probe_pixels
from anomalyclip.engines.torch import choose_precision
from anomalyclip.machine import Instructions
from tests.conftest import GOLDEN, torch_scorer

RUN_COMPILED = """
import sys
from anomalyclip.cli import main
sys.argv = ["anomalyclip", *sys.argv[1:]]
main()
"""


def test_bf16_stays_near_and_computes_similarities_in_float32(tiny_clip, paper_case):
    options = {"image_size": 70, "device": "cpu"}
    exact = torch_scorer(tiny_clip, paper_case.prompts, **options)
    rough = torch_scorer(tiny_clip, paper_case.prompts, precision="bf16", **options)
    pixels = probe_pixels(70)
    with torch.inference_mode():
        features = rough.features(pixels)
        error = (features.cls - exact.features(pixels).cls).norm() / features.cls.norm()
        assert 1e-3 < error < 0.1  # the tower did compute in it
        scores, grids = rough.core.compare(features)
        assert (scores.dtype, grids.dtype) == (torch.float32, torch.float32)
        # A similarity in bfloat16 has steps of 1/256 near 1, and its softmax few values; these are as fine as float32.
        assert (grids != grids.bfloat16().float()).float().mean() > 0.9
    for ours, theirs in zip(rough(pixels), exact(pixels), strict=True):
        assert 0 < np.abs(ours - theirs).max() < 0.1


def test_auto_is_float32_on_a_cpu_without_bfloat16(tiny_clip, paper_case, monkeypatch):
    monkeypatch.setattr(
        "anomalyclip.engines.half.instructions", lambda: Instructions("", 0, frozenset({"avx2"}))
    )
    assert torch_scorer(tiny_clip, paper_case.prompts, device="cpu", precision="auto").precision == "fp32"


@pytest.mark.parametrize(
    ("gain", "limit", "expected"), [(0.0, 0.01, "bf16"), (1e9, 0.01, "fp32"), (0.0, 1e-9, "fp32")]
)
def test_auto_is_bfloat16_on_a_cpu_where_it_is_faster_and_close(
    tiny_clip, paper_case, gain, limit, expected, monkeypatch, tmp_path
):
    monkeypatch.setenv("ANOMALYCLIP_CACHE", str(tmp_path))
    monkeypatch.setattr(half, "instructions", lambda: Instructions("", 0, frozenset({"avx512_bf16"})))
    monkeypatch.setattr(half, "_GAIN", gain)
    monkeypatch.setattr(half, "LARGEST_DIFFERENCE", limit)
    options = {"image_size": paper_case.image_size, "device": "cpu", "precision": "auto"}
    scorer = torch_scorer(tiny_clip, paper_case.prompts, **options)
    assert scorer.precision == scorer.identity()["precision"] == expected

    (note,) = (tmp_path / "bfloat16").iterdir()
    assert 1e-9 < json.loads(note.read_text())["difference"] < 0.01
    monkeypatch.setattr(half, "_compared", None)  # not measured again
    assert torch_scorer(tiny_clip, paper_case.prompts, **options).precision == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_takes_bfloat16_on_gpus_that_compute_in_it(monkeypatch, capability, expected):
    """No GPU here: only the choice is tested. PyTorch's own `is_bf16_supported` counts those that emulate it."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision("auto", torch.device("cuda")) == expected


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["g++", "/no/such/compiler"])
def test_compiling_works_or_says_what_it_needs(tiny_state, tmp_path, compiler):
    prefix = "visual.transformer.resblocks."
    state = {k: v for k, v in tiny_state.items() if not k.startswith(prefix) or int(k.split(".")[3]) < 2}
    torch.save(state, tmp_path / "small.pt")
    arguments = [GOLDEN / "paper_0.png", "--backbone", tmp_path / "small.pt", "--image-size", 70, "--compile"]
    arguments += ["--prompts", GOLDEN / "paper_prompts.safetensors", "--output", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-c", RUN_COMPILED, "predict", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"CXX": compiler, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
    )
    if compiler == "g++":
        assert (done.returncode, "1 scored" in done.stdout) == (0, True), done.stderr
    else:
        assert done.returncode == 2, done.stderr
        assert "error: the model cannot be compiled here" in done.stderr
        assert "Traceback" not in done.stderr


def test_on_cuda_images_stay_channels_last_as_they_were_decoded(tiny_clip, paper_case, monkeypatch):
    """No GPU here: only the layout is looked at, with tensors on the CPU."""
    core = torch_scorer(tiny_clip, paper_case.prompts, image_size=70, device="cpu").core
    pixels = torch.from_numpy(probe_pixels(70))
    usual = core.normalise(pixels)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    last = core.normalise(pixels)
    assert usual.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, usual)
