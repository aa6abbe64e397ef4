"""Weights in oneDNN's layout: the same results, the same weights back, and only where it is faster."""

import copy
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from anomalyclip import Detector
from anomalyclip.backbones.config import ViTConfig, periods
from anomalyclip.backbones.rotary import RotaryViT
from anomalyclip.clip import packed
from anomalyclip.clip.model import CLIP, CLIPConfig, LocalPath
from anomalyclip.clip.weights import fingerprint
from anomalyclip.engines.export import exportable, probe_pixels
from tests.conftest import TINY, torch_scorer

ROOM = CLIPConfig(32, 112, 7, 256, 3, 4, 64, 12, 1, 77, 49408)
"""Wide enough to be packed, and with enough patches (17 x 17 at 119) for attention in parts."""


def tower(config: CLIPConfig = ROOM) -> CLIP:
    torch.manual_seed(0)
    return CLIP(config).requires_grad_(False).eval()


@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("attends", ["v", "qkv"])
def test_a_packed_tower_gives_the_same_tokens(quick_gelu, threads, attends, monkeypatch):
    monkeypatch.setattr(packed, "_AT_ONCE", 20_000)  # 68 of 290 queries at once
    visual = tower(replace(ROOM, quick_gelu=quick_gelu)).visual
    pixels, path = torch.randn(2, 3, 119, 119), LocalPath(2, attends)
    with torch.inference_mode():
        tokens = visual.embed(pixels)
        plain = visual.run(tokens, plain=(1, 3), local=(2, 3), path=path)
        last = visual.run(tokens, local=(3,), path=path)
        packed.pack(visual, tokens=290)
        torch.set_num_threads(threads)
        try:
            fast = visual.run(tokens, plain=(1, 3), local=(2, 3), path=path)
            fast_last = visual.run(tokens, local=(3,), path=path)
        finally:
            torch.set_num_threads(1)

    for one, other in zip(plain.plain.values(), fast.plain.values(), strict=True):
        torch.testing.assert_close(other, one, atol=2e-5, rtol=1e-5)
    for one, other in zip(plain.local.values(), fast.local.values(), strict=True):
        torch.testing.assert_close(other, one, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(fast_last.cls, last.cls, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(fast_last.local[3], last.local[3], atol=2e-5, rtol=1e-5)


def test_a_packed_dinov3_gives_the_same_tokens_and_its_weights_back(monkeypatch):
    """Its queries and keys are rotated, and its MLP is gated."""
    monkeypatch.setattr(packed, "_AT_ONCE", 20_000)
    torch.manual_seed(0)
    config = ViTConfig(0, 16, 256, 2, 4, registers=2, gated=384, rotary=periods(100.0, 64))
    visual = RotaryViT(config).requires_grad_(False).eval()
    state = {name: tensor.clone() for name, tensor in visual.state_dict().items()}
    with torch.inference_mode():
        positions = visual.positions(16, 18)
        tokens = visual.embed(torch.randn(1, 3, 256, 288))
        plain = visual.run(tokens, positions=positions, plain=(1, 2)).plain
    packed.pack(visual, tokens=291)
    with torch.inference_mode():
        fast = visual.run(tokens, positions=positions, plain=(1, 2)).plain
    for number, expected in plain.items():
        torch.testing.assert_close(fast[number], expected, atol=2e-5, rtol=1e-5)
    assert packed.is_packed(visual)
    packed.unpack(visual)
    assert all(torch.equal(tensor, state[name]) for name, tensor in visual.named_parameters())


@pytest.mark.parametrize("faster", [True, False])
def test_large_products_are_equal_by_either_library(faster, monkeypatch):
    monkeypatch.setattr(packed, "is_faster", lambda: faster)
    x, rows = torch.randn(2, 300, 64), torch.randn(10_000, 64)  # the last part is too small for oneDNN
    with torch.inference_mode():
        largest = packed.largest_products(x, rows.split(4_000))
    torch.testing.assert_close(largest, (x @ rows.T).amax(dim=-1), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("faster", [True, False])
@pytest.mark.parametrize("turned", [True, False])
def test_large_layers_are_equal_by_either_library(faster, turned, monkeypatch):
    monkeypatch.setattr(packed, "is_faster", lambda: faster)
    x, bias = torch.randn(2, 700, 512), torch.randn(400)
    weight = torch.randn(512, 400).T if turned else torch.randn(400, 512)  # the projection is stored turned
    with torch.inference_mode():
        expected = torch.nn.functional.linear(x, weight, bias)
        torch.testing.assert_close(packed.linear(x, weight, bias), expected, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(packed.linear(x, weight), expected - bias, atol=1e-4, rtol=1e-5)


@pytest.fixture
def fast_machine(monkeypatch):
    """A machine on which oneDNN is faster, for models of any width and products of any size."""
    monkeypatch.setattr(packed, "is_faster", lambda: True)
    monkeypatch.setattr(packed, "SMALLEST_WIDTH", 1)
    monkeypatch.setattr(packed, "_LARGE", 1)


def golden_scorer(case, state, **options):
    settings = {"image_size": case.image_size, "layers": case.layers, "dpam_layers": case.dpam_layers}
    return torch_scorer(CLIP.frozen(TINY, state), case.prompts, **settings | options)


def test_packed_weights_give_the_published_figures(golden, tiny_state, fast_machine):
    scorer = golden_scorer(golden, tiny_state)
    predictions = Detector(scorer).predict([str(path) for path in golden.images])

    assert scorer.core.is_packed
    for i, prediction in enumerate(predictions):
        assert prediction.pred_score == pytest.approx(golden.arrays["score"][i], abs=1e-5)
        np.testing.assert_allclose(prediction.anomaly_map, golden.published_map("anomaly_map")[i], atol=1e-5)


def test_what_leaves_a_packed_model_is_plain_and_has_the_same_weights(paper_case, tiny_state, fast_machine):
    visual = golden_scorer(paper_case, tiny_state).core.visual
    expected = CLIP.frozen(TINY, tiny_state).visual.state_dict()

    given = visual.state_dict()
    assert list(given) == list(expected)
    assert all(torch.equal(given[name], tensor) for name, tensor in expected.items())
    assert not packed.is_packed(copy.deepcopy(visual))
    packed.unpack(visual)
    assert not packed.is_packed(visual)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in visual.named_parameters())


def test_packing_changes_neither_fingerprint_nor_identity(paper_case, tiny_state, fast_machine):
    clip = CLIP.frozen(TINY, tiny_state)
    before = fingerprint(clip.config, clip.state_dict())
    first = torch_scorer(clip, paper_case.prompts, image_size=paper_case.image_size)
    second = torch_scorer(clip, paper_case.prompts, image_size=paper_case.image_size)

    assert first.core.is_packed
    assert second.identity() == first.identity()
    assert second.identity()["weights_sha256"] == before


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_a_packed_tower_keeps_nothing_of_the_file_that_it_was_read_from(tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file(tower().state_dict(), file)
    with safe_open(file, framework="pt") as archive:
        weights = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
    visual = CLIP.frozen(ROOM, weights).visual
    del archive, weights
    assert str(file) in Path("/proc/self/maps").read_text()
    packed.pack(visual, tokens=290)
    assert str(file) not in Path("/proc/self/maps").read_text()


def test_an_export_is_made_of_plain_weights(paper_case, tiny_state, fast_machine):
    scorer = golden_scorer(paper_case, tiny_state)
    core = exportable(scorer.core, half=False)
    assert scorer.core.is_packed
    assert not core.is_packed


def test_bfloat16_differs_by_its_rounding_and_leaves_float32_as_it_was(paper_case, tiny_state, fast_machine):
    clip = CLIP.frozen(TINY, tiny_state)
    settings = {"image_size": paper_case.image_size, "layers": paper_case.layers}
    exact = torch_scorer(clip, paper_case.prompts, **settings)
    half = torch_scorer(clip, paper_case.prompts, precision="bf16", **settings)
    pixels = probe_pixels(paper_case.image_size, paper_case.image_size)
    expected, found = exact(pixels), half(pixels)

    assert half.core.is_packed
    for one, other in zip(expected, found, strict=True):
        assert 1e-6 < np.abs(one - other).max() < 2e-2
    for one, other in zip(expected, exact(pixels), strict=True):
        np.testing.assert_array_equal(one, other)


def test_half_precision_is_not_packed(paper_case, tiny_state, fast_machine):
    clip = CLIP.frozen(TINY, tiny_state)
    assert torch_scorer(clip, paper_case.prompts, image_size=paper_case.image_size).core.is_packed
    half = torch_scorer(clip, paper_case.prompts, image_size=paper_case.image_size, precision="fp16")
    assert not half.core.is_packed


def test_many_threads_share_a_packed_model(paper_case, tiny_state, fast_machine):
    scorer = golden_scorer(paper_case, tiny_state)
    pixels = [np.random.default_rng(seed).integers(0, 256, (1, 56, 56, 3), np.uint8) for seed in range(4)]
    pixels = [np.resize(one, (1, scorer.image_size, scorer.image_size, 3)) for one in pixels]
    alone = [scorer(one)[0] for one in pixels]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: scorer(pixels[i % 4])[0], range(32)))
    assert [float(score[0]) for score in together] == [float(score[0]) for score in alone * 8]


def test_small_models_and_slow_machines_stay_plain(paper_case, tiny_state, monkeypatch):
    monkeypatch.setattr(packed, "is_faster", lambda: True)
    assert not golden_scorer(paper_case, tiny_state).core.is_packed
    monkeypatch.setattr(packed, "SMALLEST_WIDTH", 1)
    monkeypatch.setattr(packed, "is_faster", lambda: False)
    assert not golden_scorer(paper_case, tiny_state).core.is_packed


def test_the_measurement_is_made_once_for_a_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("ANOMALYCLIP_CACHE", str(tmp_path))
    measured = iter([1.7])
    monkeypatch.setattr(packed, "_ratio", lambda: next(measured))
    for _ in range(2):
        packed._is_faster.cache_clear()  # as in a new process
        assert packed.is_faster()
    (note,) = (tmp_path / "speed").iterdir()
    assert json.loads(note.read_text())["ratio"] == 1.7


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"ratio": "fast"}', '{"ratio": null}', '{"ratio": NaN}'])
def test_a_damaged_note_is_measured_again(damage, monkeypatch, tmp_path):
    monkeypatch.setenv("ANOMALYCLIP_CACHE", str(tmp_path))
    monkeypatch.setattr(packed, "_ratio", lambda: 0.9)
    packed._is_faster.cache_clear()
    packed.is_faster()
    (note,) = (tmp_path / "speed").iterdir()
    note.write_text(damage)
    monkeypatch.setattr(packed, "_ratio", lambda: 2.0)
    packed._is_faster.cache_clear()
    assert packed.is_faster()
    assert json.loads(note.read_text())["ratio"] == 2.0


def test_a_cache_that_cannot_be_written_costs_only_time(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ANOMALYCLIP_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(packed, "_ratio", lambda: 2.0)
    packed._is_faster.cache_clear()
    assert packed.is_faster()


@pytest.fixture(autouse=True)
def forget():
    yield
    packed._is_faster.cache_clear()


@pytest.mark.slow
def test_a_forked_process_computes_the_same(tmp_path):
    """Its threads are gone after the fork; it must not wait for them."""
    program = """
import os, numpy as np, torch
from anomalyclip.clip import packed
from anomalyclip.clip.model import CLIP
from tests.test_packed import ROOM, tower
from tests.conftest import torch_scorer
from anomalyclip.benchmark import random_model
packed.is_faster = lambda: True
torch.set_num_threads(2)
clip, prompts = random_model(ROOM)
scorer = torch_scorer(clip, prompts, image_size=119)
assert scorer.core.is_packed
pixels = np.random.default_rng(0).integers(0, 256, (1, 119, 119, 3), np.uint8)
before = scorer(pixels)[1]
if os.fork() == 0:
    os._exit(0 if np.abs(scorer(pixels)[1] - before).max() < 1e-5 else 3)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
"""
    environment = {**os.environ, "ANOMALYCLIP_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, timeout=60, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
