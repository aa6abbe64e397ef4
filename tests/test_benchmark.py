"""The benchmark counts what it claims to count."""

import math
import sys

import pytest
import torch

from anomalyclip import AnomalyCLIPError
from anomalyclip.benchmark import ARCHITECTURES, encoder_gflop, run
from anomalyclip.clip.model import CLIP, CLIPConfig
from anomalyclip.engines.floor import limit, operations_per_cycle
from anomalyclip.machine import Instructions
from anomalyclip.spec import DetectorSpec


def test_the_operations_are_those_that_pytorch_counts():
    """PyTorch's own counter sees the same matrix products, and the few outside the blocks."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    config = CLIPConfig(16, 56, 14, 128, 5, 2, 64, 1, 1, 20, 50)
    clip = CLIP(config).requires_grad_(False)
    with (
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):  # it does not see into fused ones
        clip.encode_image(torch.zeros(1, 3, 112, 112), layers=[5], dpam_layers=3)
    tokens, width = 65, 128
    outside = 2 * 64 * 3 * 14**2 * width + 2 * (tokens + 1) * width * 16  # patch embedding, projections
    last_cls = 2 * 10 * width**2 + 4 * tokens * width  # the last block's query, output and MLP of one token
    counted = counter.get_total_flops() - outside - last_cls
    assert encoder_gflop(config, image_size=112, dpam_layers=3) * 1e9 == pytest.approx(counted, rel=1e-6)


def test_the_default_architecture_needs_the_known_number_of_operations():
    gflop = encoder_gflop(ARCHITECTURES["ViT-L-14-336"], image_size=518, dpam_layers=19)
    assert gflop == pytest.approx(1177, abs=1.5)


def test_a_run_tells_every_stage_and_the_ratio_to_the_floor(monkeypatch):
    monkeypatch.setattr("anomalyclip.engines.floor.SIDE", 256)
    timing = run("ViT-B-32", DetectorSpec(image_size=64), repeats=1)
    assert list(timing.stages) == ["decode", "resize", "encode", "score", "smooth"]
    assert min(timing.stages.values()) > 0
    assert timing.floor == pytest.approx(timing.gflop / timing.gflops)
    assert timing.ratio == pytest.approx(timing.stages["encode"] / timing.floor)


def test_an_unknown_architecture_is_named():
    with pytest.raises(AnomalyCLIPError, match="architecture 'ResNet': expected one of ViT-L-14-336"):
        run("ResNet")


def test_the_limit_is_the_best_product_of_any_library(monkeypatch):
    monkeypatch.setattr("anomalyclip.engines.floor.SIDE", 256)
    found = limit(torch.device("cpu"), repeats=1)
    assert {"PyTorch", "oneDNN", "OpenVINO", "ONNX Runtime"} == set(
        found.rates
    )  # all are installed for tests
    assert found.rate == found.rates[found.library] == max(found.rates.values())
    assert 0.3 < found.clock < 12
    assert found.peak == pytest.approx(
        torch.get_num_threads() * found.clock * operations_per_cycle(), nan_ok=True
    )


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_other_precisions_have_limits_of_their_own(precision, monkeypatch):
    monkeypatch.setattr("anomalyclip.engines.floor.SIDE", 256)
    assert list(limit(torch.device("cpu"), precision, repeats=1).rates) == ["PyTorch"]


def test_a_library_that_is_missing_is_left_out(monkeypatch):
    monkeypatch.setattr("anomalyclip.engines.floor.SIDE", 64)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "ONNX Runtime" not in limit(torch.device("cpu"), repeats=1).rates


@pytest.mark.parametrize(
    ("vendor", "family", "flags", "operations"),
    [
        ("AuthenticAMD", 26, {"avx2", "fma", "avx512f"}, 64),
        ("AuthenticAMD", 25, {"avx2", "fma", "avx512f"}, 32),
        ("AuthenticAMD", 23, {"avx2", "fma"}, 32),
        ("GenuineIntel", 6, {"avx2", "fma", "avx512f"}, 64),
    ],
)
def test_the_peak_follows_the_instructions(vendor, family, flags, operations, monkeypatch):
    known = Instructions(vendor, family, frozenset(flags))
    monkeypatch.setattr("anomalyclip.engines.floor.instructions", lambda: known)
    assert operations_per_cycle() == operations


def test_an_unknown_processor_has_no_peak(monkeypatch):
    monkeypatch.setattr("anomalyclip.engines.floor.instructions", lambda: Instructions("", 0, frozenset()))
    assert math.isnan(operations_per_cycle())
