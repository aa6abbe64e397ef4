"""Named rivals with references: every number from pixels to scores against the published reproductions."""

import numpy as np
import pytest
import torch

from anomalyclip import Detector, DetectorSpec, evaluate, fit, remember
from anomalyclip.memory import nearest
from anomalyclip.references import Memory
from tests.conftest import GOLDEN, rival_arrays
from tests.generated_sets import make_set
from tests.test_methods_april import layers_of, spec_of


@pytest.fixture(scope="module")
def published():
    with np.load(GOLDEN / "few_shot.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("count", [1, 4])
def test_winclip_plus_is_the_published_one(count, published, rival_backbone, rival_inputs, tmp_path):
    detector = DetectorSpec(rival_backbone, method="winclip", image_size=56, class_name="screw").load()
    memory = fit(detector, list(published["references_56"][:count]))
    memory.save(tmp_path / "screw.memory")
    few_shot = remember(detector, Memory.load(tmp_path / "screw.memory"))
    core, pixels = few_shot.scorer.core, rival_inputs["pixels_56"][:2]
    with torch.inference_mode():
        found = core.encode(core.normalise(torch.from_numpy(pixels)))
        few = core.held.distances(core.held.features(found), core.banks).view(2, 4, 4)
        scores, grids = core.compare(found)
    np.testing.assert_allclose(few.numpy(), published[f"winclip_k{count}_few_map_grid"], atol=1e-4)
    np.testing.assert_allclose(2 * grids.numpy(), published[f"winclip_k{count}_map_grid"], atol=1e-4)
    np.testing.assert_allclose(scores.numpy(), published[f"winclip_k{count}_image_score"], atol=1e-4)


def test_winclip_adds_to_a_memory_too(published, rival_backbone, tmp_path):
    detector = DetectorSpec(rival_backbone, method="winclip", image_size=56, class_name="screw").load()
    at_once = fit(detector, list(published["references_56"]))
    first = fit(detector, list(published["references_56"][:2]))
    later = fit(detector, list(published["references_56"][2:]), add_to=first)
    for name, memory in (("a", at_once), ("b", later)):
        memory.save(tmp_path / f"{name}.memory")
    assert (tmp_path / "a.memory").read_bytes() == (tmp_path / "b.memory").read_bytes()


@pytest.fixture
def april(rival_backbone, tmp_path):
    layers_of(rival_arrays("april"), "56_screw").save(tmp_path / "layers.safetensors")
    return spec_of(rival_backbone, "56_screw", tmp_path / "layers.safetensors").load()


@pytest.mark.parametrize("count", [1, 4])
def test_april_gan_with_references_is_the_published_one(count, published, april, rival_inputs):
    few_shot = remember(april, fit(april, list(published["references_56"][:count])))
    core, pixels = few_shot.scorer.core, np.concatenate([rival_inputs["pixels_56"], published["more_56"]])
    with torch.inference_mode():
        found = core.encode(core.normalise(torch.from_numpy(pixels)))
        features = core.held.features(found)
        for number, (name, bank) in enumerate(core.banks.items()):
            apart = nearest(features[name], bank).view(-1, 4, 4)
            expected = published[f"april_k{count}_distance"][:, number]
            np.testing.assert_allclose(apart.numpy(), expected, atol=1e-4)
    scores, maps = few_shot.scorer(pixels)
    np.testing.assert_allclose(8 * maps[:1], published[f"april_k{count}_map"], atol=1e-4)  # a sum of 8
    highest = maps.max(axis=(1, 2))
    np.testing.assert_allclose(8 * highest, published[f"april_k{count}_map_max"], atol=1e-4)
    together = few_shot.scorer.over_class(scores, highest)
    np.testing.assert_allclose(together, published[f"april_k{count}_image_score"], atol=1e-4)


def test_one_image_of_april_gan_is_scored_without_the_others(published, april, rival_inputs):
    few_shot = remember(april, fit(april, list(published["references_56"])))
    pixels = rival_inputs["pixels_56"]
    scores, maps = few_shot.scorer(pixels)
    alone = np.concatenate([few_shot.scorer(image[None])[0] for image in pixels])
    np.testing.assert_allclose(alone, scores, atol=1e-5)
    text = april.scorer(pixels)[0]
    constant = maps.max(axis=(1, 2)) / (maps.max(axis=(1, 2)) + float(few_shot.scorer.core.scale))
    np.testing.assert_allclose(scores, (text + constant) / 2, atol=1e-5)


def test_an_evaluation_of_april_gan_scales_over_the_class_and_says_so(april, published, tmp_path):
    make_set(tmp_path / "set", classes=("screw",), side=56)
    few_shot = remember(april, fit(april, list(published["references_56"])))
    found = evaluate(few_shot, tmp_path / "set")
    assert any("scaled over all test images of a class" in note for note in found.notes)
    images = found.results[0].classes[0].images
    paths = [tmp_path / "set" / image.image for image in images]
    one_by_one = few_shot.predict(paths)
    highest = np.array([item.anomaly_map.max() for item in one_by_one])
    text = np.array([item.pred_score for item in april.predict(paths)])
    scaled = (highest - highest.min()) / (highest.max() - highest.min())
    np.testing.assert_allclose([image.score for image in images], (text + scaled) / 2, atol=1e-4)


@pytest.mark.slow
def test_references_stand_beside_every_method_of_words(rival_backbone, published, tmp_path):
    from PIL import Image

    for number, pixels in enumerate(published["references_56"][:2]):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    for method in ("clip", "words"):
        options = (
            {"class_name": "screw"} if method == "clip" else {"normal": ["a {}"], "abnormal": ["a bad {}"]}
        )
        spec = DetectorSpec(rival_backbone, method=method, image_size=56, references=tmp_path, **options)
        prediction = spec.load().predict(tmp_path / "0.png")
        alone = DetectorSpec(rival_backbone, method=method, image_size=56, **options).load()
        assert prediction.pred_score < alone.predict(tmp_path / "0.png").pred_score
        assert isinstance(spec.load(), Detector)
