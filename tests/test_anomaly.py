"""Similarities, maps and scores as pure functions."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from anomalyclip.anomaly import enlarge, highest, image_score, patch_probabilities, probabilities
from anomalyclip.detector import Detector
from tests.conftest import GOLDEN, golden_case, torch_scorer


def features(golden):
    patches = {layer: torch.from_numpy(golden.arrays[f"patch_features_{layer}"]) for layer in golden.layers}
    return patches, torch.from_numpy(golden.arrays["text_features"])


def test_scores_equal_the_published_ones(golden):
    image = torch.from_numpy(golden.arrays["image_features"])
    scores = probabilities(image, torch.from_numpy(golden.arrays["text_features"]))[:, 1]
    np.testing.assert_allclose(scores.numpy(), golden.arrays["score"], atol=1e-5)


@pytest.mark.parametrize(("sigma", "name"), [(0, "anomaly_map_unsmoothed"), (4, "anomaly_map")])
def test_maps_equal_the_published_ones(golden, sigma, name):
    grids = patch_probabilities(*features(golden))
    maps = enlarge(grids, golden.image_size, sigma=sigma)
    np.testing.assert_allclose(maps.numpy(), golden.published_map(name), atol=1e-5)


def test_the_probability_is_a_softmax_of_cosines_over_seven_hundredths():
    texts = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    normal, abnormal = probabilities(torch.tensor([5.0, 0.0]), texts)
    assert abnormal == pytest.approx(1 / (1 + np.exp((1 - 0.6) / 0.07)))
    assert normal + abnormal == pytest.approx(1)


@settings(deadline=None, max_examples=40)
@given(
    grid=st.integers(1, 9),
    size=st.integers(1, 60),
    sigma=st.sampled_from([0.0, 0.4, 1.0, 4.0, 20.0]),
    seed=st.integers(0, 9),
)
def test_enlarging_is_bilinear_upsampling_and_then_scipys_gaussian_filter(grid, size, sigma, seed):
    grids = torch.rand(2, grid, grid, generator=torch.Generator().manual_seed(seed))
    upsampled = F.interpolate(grids[None], (size, size), mode="bilinear", align_corners=False)[0].numpy()
    expected = [gaussian_filter(m.astype(np.float64), sigma) if sigma else m for m in upsampled]
    enlarged = enlarge(grids, size, sigma=sigma).numpy()
    np.testing.assert_allclose(enlarged, expected, atol=1e-5)
    assert enlarged.min() >= grids.min() - 1e-5
    assert enlarged.max() <= grids.max() + 1e-5


def test_maps_can_be_trained_through_even_after_inference_used_the_same_size():
    with torch.inference_mode():
        enlarge(torch.rand(1, 3, 3), 12)
    grids = torch.rand(1, 3, 3, requires_grad=True)
    enlarge(grids, 12).sum().backward()
    assert grids.grad.sum() == pytest.approx(144, rel=1e-5)


@pytest.mark.parametrize(("size", "count"), [(5, 1), (10, 1), (14, 1), (15, 2), (70, 49)])
def test_the_highest_hundredth_is_rounded_down_and_one_pixel_at_least(size, count):
    maps = torch.rand(2, size, size, generator=torch.Generator().manual_seed(size))
    expected = [np.sort(one.numpy().ravel())[-count:].mean() for one in maps]
    np.testing.assert_allclose(highest(maps, 0.01).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["paper", "multilayer"])
def test_image_scores_that_use_the_map_equal_the_published_rules(name, tiny_clip):
    """AdaptCLIP's, MRAD's and FAPrompt's, and MRAD's mean of the highest hundredth alone, in the whole detector."""
    case, rules = golden_case(name), json.loads((GOLDEN / "fusion.json").read_text())[name]
    published = {
        "text": case.arrays["score"],
        "max": rules["adaptclip"],
        "top1": (case.arrays["score"] + rules["top1_mean"]) / 2,
        "mrad": rules["mrad"],
        "faprompt": rules["faprompt_mean_layers"],  # of the map; published: of the last block's alone
    }
    settings = {"image_size": case.image_size, "layers": case.layers, "dpam_layers": case.dpam_layers}
    for rule, expected in published.items():
        detector = Detector(torch_scorer(tiny_clip, case.prompts, image_score=rule, **settings))
        predictions = detector.predict([str(path) for path in case.images])
        np.testing.assert_allclose([p.pred_score for p in predictions], expected, atol=1e-5)
        for prediction, expected_map in zip(predictions, case.published_map("anomaly_map"), strict=True):
            np.testing.assert_allclose(prediction.anomaly_map, expected_map, atol=1e-5)  # the same for all
        assert detector.identity()["image_score"] == rule


def test_the_mean_of_the_map_may_count_as_much_as_the_text():
    maps = torch.rand(2, 8, 8)
    expected = (torch.tensor([0.2, 0.8]) + maps.mean(dim=(1, 2))) / 2
    torch.testing.assert_close(image_score(torch.tensor([0.2, 0.8]), maps, "mean"), expected)


def test_without_an_option_the_image_score_is_the_published_one(golden, tiny_clip):
    settings = {"image_size": golden.image_size, "layers": golden.layers, "dpam_layers": golden.dpam_layers}
    detector = Detector(torch_scorer(tiny_clip, golden.prompts, **settings))
    assert detector.identity()["image_score"] == "text"
    text = torch.rand(3)
    assert torch.equal(image_score(text, torch.rand(3, 8, 8), "text"), text)
