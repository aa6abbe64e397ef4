"""Named rivals with references: every number from pixels to scores against the published reproductions."""

import numpy as np
import pytest
import torch

from anomalyclip import Detector, DetectorSpec, fit, remember
from anomalyclip.references import Memory
from tests.conftest import GOLDEN


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
