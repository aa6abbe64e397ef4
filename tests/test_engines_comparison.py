"""The comparison of runtimes measures what it says."""

import pytest

from anomalyclip import benchmark
from anomalyclip.clip.model import CLIPConfig
from anomalyclip.engines.comparison import compare
from anomalyclip.errors import AnomalyCLIPError


@pytest.mark.slow
def test_each_runtime_is_timed_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setitem(
        benchmark.ARCHITECTURES, "small", CLIPConfig(32, 56, 14, 64, 2, 1, 64, 9, 1, 77, 49408)
    )
    monkeypatch.setattr("anomalyclip.engines.floor.SIDE", 256)
    rows = list(
        compare(
            "small",
            image_size=56,
            runtimes=["torch", "torch-bf16", "onnx-fp32"],
            batch_sizes=[1, 2],
            repeats=1,
        )
    )
    assert [(row.runtime, row.batch_size, row.failure) for row in rows] == [
        ("torch", 1, ""),
        ("torch", 2, ""),
        ("torch-bf16", 1, ""),
        ("torch-bf16", 2, ""),
        ("onnx-fp32", 1, ""),
        ("onnx-fp32", 2, ""),
    ]
    assert all(0 < row.seconds < row.start_up for row in rows)
    torch, bf16, onnx = rows[0], rows[2], rows[4]
    assert onnx.peak_memory < torch.peak_memory  # the process without PyTorch is the smaller one
    assert onnx.megabytes < torch.megabytes  # and has no text tower
    assert onnx.difference < 1e-4
    assert torch.to_dict()["difference"] is None
    assert 1e-5 < bf16.difference < 0.05


def test_an_unknown_runtime_is_named():
    with pytest.raises(AnomalyCLIPError, match="runtime abacus: expected some of torch, torch-compiled"):
        next(compare(runtimes=["abacus"]))
