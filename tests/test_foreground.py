"""Which patches show the object: the first principal component, the published threshold, side, dilation and closing."""

import shutil

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.decomposition import PCA

from anomalyclip import DetectorSpec, fit
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.foreground import THRESHOLD, first_component, foreground
from tests import vit_forms


def tokens_of(mask, seed, sign=1.0):
    """Patches (1, N, 16) that differ along one direction where the mask is set."""
    chance = np.random.default_rng(seed)
    direction = chance.normal(size=16)
    direction *= sign * np.sign(direction[np.abs(direction).argmax()]) / np.linalg.norm(direction)
    values = np.where(mask.reshape(-1, 1), 20.0, -20.0) * direction + chance.normal(size=(mask.size, 16))
    return torch.from_numpy(values).float()[None]


def test_the_component_is_scikit_learns():
    chance = np.random.default_rng(0)
    values = chance.normal(size=(2, 60, 8)) * np.linspace(3, 1, 8) + chance.normal(size=(1, 1, 8))
    found = first_component(torch.from_numpy(values).float())
    for own, expected in zip(found.numpy(), values, strict=True):
        np.testing.assert_allclose(own, PCA(1, svd_solver="full").fit_transform(expected)[:, 0], atol=1e-2)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_object_is_in_the_middle_whatever_the_sign(sign):
    mask = np.zeros((14, 16), bool)
    mask[5:10, 4:12] = True
    mask[7, 7] = False
    found = foreground(tokens_of(mask, 1, sign), mask.shape).view(mask.shape).numpy() > 0
    grown = ndimage.binary_dilation(mask, np.ones((3, 3)))
    np.testing.assert_array_equal(found, ndimage.binary_closing(grown, np.ones((3, 3))))
    assert found.sum() == 7 * 10


def test_where_nothing_stands_out_everything_counts():
    plain = torch.randn(1, 30, 16, generator=torch.Generator().manual_seed(0)) * THRESHOLD / 100
    assert foreground(plain, (5, 6)).min() == 1


def test_backgrounds_are_not_compared(tmp_path, monkeypatch):
    """The left half is background in every image: what is there changes nothing."""
    folder = vit_forms.timm_folder("dinov2", tmp_path / "dinov2")
    left = torch.zeros(6, 6)
    left[:, 3:] = 1

    def right_half(tokens, grid):
        return left.flatten().expand(len(tokens), -1)

    monkeypatch.setattr("anomalyclip.methods.anomalydino.foreground", right_half)
    chance = np.random.default_rng(0)
    references = [chance.integers(100, 140, (84, 84, 3), dtype=np.uint8) for _ in range(3)]
    detector = DetectorSpec(str(folder), method="anomalydino", image_size=84, foreground=True).load()
    memory = fit(detector, references)
    bank = memory.banks["block 2"].float().view(3, 36, 64)
    shown = bank.norm(dim=-1) > 0.5
    assert bool((shown == (left.flatten() > 0)).all())
    assert bool((memory.left_out[:, left == 0] == 0).all())
    assert bool((memory.left_out[:, left == 1] > 0).all())


def test_it_is_for_dinov2_alone(tmp_path):
    dinov3 = vit_forms.original_dinov3("plain", tmp_path)
    with pytest.raises(AnomalyCLIPError, match="foreground: its threshold is for DINOv2"):
        DetectorSpec(str(dinov3), method="anomalydino", foreground=True).load()
    with pytest.raises(AnomalyCLIPError, match="foreground: its threshold is for DINOv2"):
        DetectorSpec("micro", method="anomalydino", foreground=True).load()
    with pytest.raises(AnomalyCLIPError, match="foreground"):
        DetectorSpec("micro", method="words", foreground=True).load()


def load_with_foreground(path):
    DetectorSpec(str(path), method="anomalydino", foreground=True).load()


def test_other_transformers_with_layer_scale_are_no_dinov2(tmp_path):
    """DeiT III, for example."""
    refused = pytest.raises(AnomalyCLIPError, match="DINOv2, and .*(timm|deit3).* is not known to be one")
    config = vit_forms.timm_folder("dinov2", tmp_path / "timm") / "config.json"
    load_with_foreground(tmp_path / "timm")
    config.write_text(config.read_text().replace("vit_test_patch14_dinov2", "deit3_test_patch14"))
    with refused:
        load_with_foreground(tmp_path / "timm")
    for name in ("deit3_large", "vit_small_patch14_dinov2"):  # without a configuration
        shutil.copy(tmp_path / "timm" / "model.safetensors", tmp_path / f"{name}.safetensors")
    with refused:
        load_with_foreground(tmp_path / "deit3_large.safetensors")
    load_with_foreground(tmp_path / "vit_small_patch14_dinov2.safetensors")
    load_with_foreground(vit_forms.original_dinov2(tmp_path))
    load_with_foreground(vit_forms.transformers_folder("dinov2", tmp_path / "dinov2_transformers"))
