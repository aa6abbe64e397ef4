"""The table of backbones, and `anomalyclip models`: what it lists, what is on this machine, what is measured."""

import json
import re
import shutil
from math import prod
from pathlib import Path

import pytest
import torch

from anomalyclip.backbone_speed import gflop_of, measure
from anomalyclip.backbones import config as vision
from anomalyclip.backbones.rotary import form_of
from anomalyclip.backbones.table import KNOWN, TABLE
from anomalyclip.clip.model import VisionTransformer
from anomalyclip.clip.registry import BACKBONES, cached_file, resolve_backbone
from anomalyclip.clip.weights import read_weights
from anomalyclip.clip_core import default_image_size
from anomalyclip.errors import AnomalyCLIPError


def test_every_backbone_has_a_licence_a_source_and_a_size():
    assert len(KNOWN) == len(TABLE)
    for one in TABLE:
        assert one.licence
        assert one.trained_on
        assert one.source == "included" or one.source.startswith("https://")
        assert one.normalisation in ("CLIP", "ImageNet", "0.5")
        assert one.config.image_size % one.config.patch_size == 0


def test_only_backbones_with_a_known_hash_are_downloaded_by_name():
    assert [one.name for one in TABLE if one.sha256 is not None or one.folder is not None] == list(BACKBONES)
    for one in TABLE:
        if one.sha256 is not None:
            assert re.fullmatch("[0-9a-f]{64}", one.sha256)
            assert f"/{one.sha256}/" in one.source  # OpenAI's addresses hold the hash


def test_the_table_says_of_micro_what_its_file_says():
    assert KNOWN["micro"].config == read_weights(resolve_backbone("micro")).config


@pytest.mark.parametrize(
    "name",
    ["ViT-B-32", "dinov2-small", "dinov2-small-registers", "dinov3-small-plus", "vit-small-16-augreg"],
)
def test_parameters_are_those_of_the_model(name):
    one = KNOWN[name]
    with torch.device("meta"):
        vit = isinstance(one.config, vision.ViTConfig)
        tower = form_of(one.config)(one.config) if vit else VisionTransformer(one.config)
    scales = (
        2 * 12 * 384 if vit and one.config.layer_scale else 0
    )  # multiplied into other weights when loaded
    assert one.parameters == sum(prod(tensor.shape) for tensor in tower.state_dict().values()) + scales


def test_the_published_sizes_are_those_that_people_quote():
    millions = {name: round(KNOWN[name].parameters / 1e6) for name in KNOWN}
    assert {name: millions[name] for name in ("dinov2-small", "dinov2-base", "dinov2-large")} == {
        "dinov2-small": 22,
        "dinov2-base": 87,
        "dinov2-large": 304,
    }
    sizes = {name: millions[f"dinov3-{name}"] for name in ("small", "small-plus", "base", "large")}
    assert sizes == {"small": 22, "small-plus": 29, "base": 86, "large": 303}  # the paper: 21, 29, 86, 300
    assert round(gflop_of(KNOWN["dinov2-small"], 448)) == 63


def test_a_backbone_by_file_says_where_it_is_and_under_which_licence():
    with pytest.raises(
        AnomalyCLIPError,
        match=r"'ViT-B-16-metaclip' is not downloaded by name: no hash.*b16_400m\.pt.*CC-BY-NC-4\.0.*hf download",
    ):
        resolve_backbone("ViT-B-16-metaclip")


def test_dinov3_is_never_downloaded_and_its_licence_is_named():
    with pytest.raises(
        AnomalyCLIPError,
        match=r"'dinov3-small' is not downloaded by name: .*dinov3-vits16-pretrain-lvd1689m.*DINOv3 License",
    ):
        resolve_backbone("dinov3-small")


def test_a_file_in_the_hubs_cache_is_found_by_name(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--facebook--dinov2-small" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"weights")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    assert resolve_backbone("dinov2-small") == snapshot / "model.safetensors"
    assert cached_file(KNOWN["dinov2-small"]) == snapshot / "model.safetensors"
    assert cached_file(KNOWN["dinov2-base"]) is None
    (snapshot / "model.safetensors").rename(snapshot / "pytorch_model.bin")
    assert resolve_backbone("dinov2-small") == snapshot / "pytorch_model.bin"
    clip = tmp_path / "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K"
    shutil.copytree(snapshot.parents[1], clip)
    (clip / "snapshots" / "abc" / "pytorch_model.bin").rename(
        clip / "snapshots" / "abc" / "open_clip_pytorch_model.bin"
    )
    assert resolve_backbone("ViT-B-32-laion2b") == clip / "snapshots" / "abc" / "open_clip_pytorch_model.bin"


def test_models_lists_the_table_and_what_is_on_this_machine(cli):
    rows = json.loads(cli("models", "--json").out)
    assert [row["name"] for row in rows] == list(KNOWN)
    assert {row["name"]: row["cached"] for row in rows}["micro"] == str(resolve_backbone("micro"))
    (one,) = json.loads(cli("models", "dinov2-small", "--json").out)
    assert one["by_file"]
    assert one["sha256"] is None
    assert one["abilities"] == ["references"]
    assert (one["parameters"], one["image_size"]) == (KNOWN["dinov2-small"].parameters, 448)


def test_the_list_is_a_table_for_people(cli):
    lines = cli("models", "micro", "dinov2-small").out.splitlines()
    assert lines[1].split() == ["micro", "1.3", "180", "1", "CLIP", "words,", "references", "MIT", "included"]
    assert lines[2].endswith("yours: --backbone FILE")


def test_an_unknown_name_is_refused_with_those_that_are_known(cli):
    done = cli("models", "dinov5")
    assert done.code == 2
    assert "dinov5: not a known backbone; expected one of ViT-L-14-336, " in done.err


def test_measuring_needs_no_weights_and_says_how_far_from_the_limit_it_is(cli, monkeypatch):
    monkeypatch.setattr("anomalyclip.engines.floor.SIDE", 256)
    (speed,) = measure([KNOWN["micro"]], repeats=1)
    assert speed.image_size == 180
    assert speed.gflop == gflop_of(KNOWN["micro"])
    assert speed.seconds > 0 < speed.floor
    assert speed.to_dict()["ratio"] == speed.seconds / speed.floor
    (row,) = json.loads(cli("models", "micro", "--measure", "--repeats", "1", "--json").out)
    assert row["ratio"] == pytest.approx(row["seconds"] / row["floor"])


def test_the_docs_have_the_same_table():
    page = (Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
    rows = [
        line for line in page.partition("backbones/table.py -->")[2].partition("##")[0].splitlines() if line
    ]
    assert rows[2:] == [
        f"| `{one.name}` | {one.parameters / 1e6:.1f} | {default_image_size(one.config)} | {gflop_of(one):.0f} | "
        f"{one.normalisation} | {one.trained_on} | {one.licence} | {f'`{one.hub}`' if one.hub else 'included'} | "
        f"{'words, references' if one.has_text else 'references'} |"
        for one in TABLE
    ]
