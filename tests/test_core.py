"""One module is the way from pixels to scores: PyTorch runs it, and the exporter exports it."""

import numpy as np
import pytest
import torch

from anomalyclip.core import Core
from anomalyclip.engines.export import exportable, probe_pixels
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.images import squash
from anomalyclip.readers import open_image
from anomalyclip.spec import IMAGE_SCORES
from tests.conftest import torch_scorer

SIZE = 70


@pytest.fixture(params=IMAGE_SCORES)
def scorer(request, tiny_clip, paper_case):
    return torch_scorer(
        tiny_clip, paper_case.prompts, image_size=SIZE, image_score=request.param, device="cpu"
    )


def contents(core):
    """Every tensor of a core, learned or constant, with its name; the constants are not in its state dict."""
    tensors = [*core.named_parameters(), *core.named_buffers()]
    return {name: (tensor.dtype, tensor.clone()) for name, tensor in tensors}


def test_the_scorer_gives_exactly_what_its_core_gives(scorer):
    pixels = probe_pixels(SIZE)
    with torch.inference_mode():
        expected = scorer.core(torch.from_numpy(pixels))
    for ours, core in zip(scorer(pixels), expected, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, core.numpy())


def test_the_core_of_the_scorer_is_what_is_exported(scorer):
    assert exportable(scorer.core, half=False) is scorer.core
    assert type(exportable(scorer.core, half=True)) is type(scorer.core)


def test_a_core_takes_bytes_and_normalises_them_as_published(golden, tiny_clip):
    scorer = torch_scorer(tiny_clip, golden.prompts, image_size=golden.image_size, device="cpu")
    pixels = np.stack([squash(open_image(path), golden.image_size) for path in golden.images])
    normalised = scorer.core.normalise(torch.from_numpy(pixels))
    assert normalised.is_contiguous()
    np.testing.assert_allclose(normalised.numpy(), golden.arrays["pixel_values"], atol=1e-6)


def test_a_half_precision_export_leaves_the_detector_as_it_was(scorer):
    pixels = probe_pixels(SIZE)
    tensors, results = contents(scorer.core), scorer(pixels)
    half = exportable(scorer.core, half=True)

    for name, (dtype, values) in contents(scorer.core).items():
        assert dtype == tensors[name][0] == torch.float32, name
        assert torch.equal(values, tensors[name][1]), name
    for before, after in zip(results, scorer(pixels), strict=True):
        np.testing.assert_array_equal(before, after)

    exact = {"mean", "std", "enlarging", "text_features"}  # what comes before and after the encoder
    for name, (dtype, _) in contents(half).items():
        assert dtype == (torch.float32 if name in exact else torch.float16), name
    with torch.inference_mode():
        rough = half(torch.from_numpy(pixels))
    for ours, theirs in zip(rough, results, strict=True):
        assert ours.dtype == torch.float32
        assert 0 < np.abs(ours.numpy() - theirs).max() < 5e-3


def test_constants_stay_out_of_the_state_dict(scorer):
    """So that what is saved of a core are CLIP's own weights."""
    assert {name.split(".")[0] for name in scorer.core.state_dict()} == {"visual"}


def test_a_method_without_a_half_precision_form_says_so():
    core = Core(image_size=28, grid=2, sigma=0.0, score_rule="text")
    with pytest.raises(AnomalyCLIPError, match="Core does not support half precision"):
        exportable(core, half=True)
