"""The benchmark counts what it claims to count."""

import pytest
import torch

from anomalyclip import AnomalyCLIPError
from anomalyclip.benchmark import ARCHITECTURES, encoder_gflop, run
from anomalyclip.clip.model import CLIP, CLIPConfig
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
    monkeypatch.setattr("anomalyclip.benchmark.MATRIX", 256)
    timing = run("ViT-B-32", DetectorSpec(image_size=64), repeats=1)
    assert list(timing.stages) == ["decode", "resize", "encode", "score", "smooth"]
    assert min(timing.stages.values()) > 0
    assert timing.floor == pytest.approx(timing.gflop / timing.gflops)
    assert timing.ratio == pytest.approx(timing.stages["encode"] / timing.floor)


def test_an_unknown_architecture_is_named():
    with pytest.raises(AnomalyCLIPError, match="architecture 'ResNet': expected one of ViT-L-14-336"):
        run("ResNet")
