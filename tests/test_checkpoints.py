"""PyTorch's checkpoints: plain tensors alone, and no more memory than the file has bytes."""

import zipfile

import pytest
import torch

from anomalyclip.clip.checkpoints import load_checkpoint
from anomalyclip.clip.weights import read_weights
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.prompts import load_prompts


def test_what_torch_saved_comes_back_in_both_of_its_forms(tmp_path):
    for zipped in (True, False):
        torch.save(
            {"a": torch.arange(3), "b": [1, "x"]}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped
        )
        content = load_checkpoint(tmp_path / "x.pt")
        assert content["a"].tolist() == [0, 1, 2]
        assert content["b"] == [1, "x"]


@pytest.mark.parametrize("read", [load_checkpoint, load_prompts, read_weights])
def test_a_compressed_archive_is_refused_before_it_is_unpacked(read, tmp_path):
    torch.save({"weight": torch.zeros(1_000_000)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.pt").stat().st_size < 20_000
    with pytest.raises(AnomalyCLIPError, match=r"bomb\.pt: a compressed archive \(400\d{4} bytes in \d{4}\)"):
        read(tmp_path / "bomb.pt")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: torch.zeros(1).expand(1000, 1000), r"of shape \(1000, 1000\) is not all there"),
        (lambda: torch.eye(3).to_sparse(), "is sparse"),
        (lambda: torch.empty(3, device="meta"), "has no content"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "is quantised"),
    ],
    ids=["expanded", "sparse", "meta", "quantised"],
)
def test_a_tensor_that_is_no_plain_array_is_refused_however_deep_it_lies(make, what, tmp_path):
    torch.save({"optimizer": {"state": [{"step": make()}]}}, tmp_path / "x.pt")
    with pytest.raises(AnomalyCLIPError, match=rf"x\.pt: a tensor .*{what}"):
        load_checkpoint(tmp_path / "x.pt")
