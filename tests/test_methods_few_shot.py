"""Named rivals with references: every number from pixels to scores against the published reproductions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from anomalyclip import Detector, DetectorSpec, evaluate, fit, remember
from anomalyclip.clip.model import CLIP
from anomalyclip.linear_layers import LinearLayers
from anomalyclip.memory import nearest
from anomalyclip.references import Memory
from tests.conftest import GOLDEN, TINY, rival_arrays
from tests.generated_sets import make_set
from tests.test_methods_april import layers_of, spec_of


@pytest.fixture(scope="module")
def published():
    with np.load(GOLDEN / "few_shot.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def other_sizes():
    """The same of pictures of 70 and 84 pixels, and of maps every fourth row and column."""
    with np.load(GOLDEN / "few_shot_sizes.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module", params=["56_screw", "84_screw", "84_gelu_screw"])
def winclip_case(request, published, other_sizes, rival_backbone):
    """A detector, references and published arrays, by name, of a case."""
    case = request.param
    size = case.split("_")[0]
    prefix = f"winclip_{case}_"
    arrays = {name[len(prefix) :]: value for name, value in other_sizes.items() if name.startswith(prefix)}
    if size == "56":
        arrays |= {name[8:]: value for name, value in published.items() if name.startswith("winclip_k")}
    activation = "gelu" if "gelu" in case else None
    options = {"image_size": int(size), "activation": activation, "class_name": "screw"}
    detector = DetectorSpec(rival_backbone, method="winclip", **options).load()
    return detector, (published | other_sizes)[f"references_{size}"], arrays


@pytest.mark.parametrize("count", [1, 4])
def test_winclip_plus_is_the_published_one(winclip_case, count, rival_inputs, tmp_path):
    detector, references, expected = winclip_case
    memory = fit(detector, list(references[:count]))
    memory.save(tmp_path / "screw.memory")
    few_shot = remember(detector, Memory.load(tmp_path / "screw.memory"))
    core, pixels = few_shot.scorer.core, rival_inputs[f"pixels_{detector.scorer.image_size}"][:2]
    with torch.inference_mode():
        found = core.encode(core.normalise(torch.from_numpy(pixels)))
        features = core.held.features(found)
        for kind, name in (("patches", "patch"), ("windows of 2", "2"), ("windows of 3", "3")):
            apart = nearest(features[kind], core.banks[kind]).numpy() / 2
            np.testing.assert_allclose(apart, expected[f"k{count}_distance_{name}"], atol=1e-4)
        few = core.held.distances(features, core.banks).view(expected[f"k{count}_few_map_grid"].shape)
        scores, grids = core.compare(found)
    np.testing.assert_allclose(few.numpy(), expected[f"k{count}_few_map_grid"], atol=1e-4)
    np.testing.assert_allclose(2 * grids.numpy(), expected[f"k{count}_map_grid"], atol=1e-4)
    np.testing.assert_allclose(scores.numpy(), expected[f"k{count}_image_score"], atol=1e-4)
    scores, maps = few_shot.scorer(pixels)
    np.testing.assert_allclose(scores, expected[f"k{count}_image_score"], atol=1e-4)
    np.testing.assert_allclose(2 * maps[:, ::4, ::4], expected[f"k{count}_map"], atol=1e-4)


def test_winclip_adds_to_a_memory_too(published, rival_backbone, tmp_path):
    detector = DetectorSpec(rival_backbone, method="winclip", image_size=56, class_name="screw").load()
    at_once = fit(detector, list(published["references_56"]))
    first = fit(detector, list(published["references_56"][:2]))
    later = fit(detector, list(published["references_56"][2:]), add_to=first)
    for name, memory in (("a", at_once), ("b", later)):
        memory.save(tmp_path / f"{name}.memory")
    assert (tmp_path / "a.memory").read_bytes() == (tmp_path / "b.memory").read_bytes()


@pytest.fixture(scope="module")
def april(rival_backbone, tmp_path_factory):
    path = tmp_path_factory.mktemp("april") / "layers.safetensors"
    layers_of(rival_arrays("april"), "56_screw").save(path)
    return spec_of(rival_backbone, "56_screw", path).load()


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


@pytest.fixture(scope="module", params=["70_screw", "70_gelu_screw"])
def april_case(request, rival_backbone, tmp_path_factory):
    path = tmp_path_factory.mktemp("april") / "layers.safetensors"
    layers_of(rival_arrays("april"), request.param).save(path)
    return request.param, spec_of(rival_backbone, request.param, path).load()


@pytest.mark.parametrize("count", [1, 4])
def test_april_gan_is_the_published_one_by_either_activation(april_case, count, other_sizes, rival_inputs):
    case, detector = april_case
    few_shot = remember(detector, fit(detector, list(other_sizes["references_70"][:count])))
    core, pixels = few_shot.scorer.core, rival_inputs["pixels_70"][:2]
    with torch.inference_mode():
        features = core.held.features(core.encode(core.normalise(torch.from_numpy(pixels))))
        apart = torch.stack([nearest(features[name], bank) for name, bank in core.banks.items()], dim=1)
    expected = {name: other_sizes[f"april_{case}_k{count}_{name}"] for name in ("distance", "map", "map_max")}
    np.testing.assert_allclose(apart.view(2, 4, 5, 5).numpy(), expected["distance"], atol=1e-4)
    maps = 8 * few_shot.scorer(pixels)[1]  # a sum of 8
    np.testing.assert_allclose(maps[:, ::4, ::4], expected["map"], atol=1e-4)
    np.testing.assert_allclose(maps.max(axis=(1, 2)), expected["map_max"], atol=1e-4)


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


@pytest.fixture(scope="module")
def short(rival_backbone, published, tmp_path_factory):
    """A folder with a backbone of two blocks, which is exported sooner, APRIL-GAN's layers, and pictures."""
    folder = tmp_path_factory.mktemp("short")
    prefix = "visual.transformer.resblocks."
    state = torch.load(rival_backbone, weights_only=True)
    kept = {k: v for k, v in state.items() if not k.startswith(prefix) or int(k.split(".")[3]) < 2}
    torch.save(kept, folder / "short.pt")
    clip = CLIP.frozen(replace(TINY, vision_layers=2), kept)
    LinearLayers.initial(clip.config, (1, 2), seed=0).save(folder / "layers.safetensors")
    for name, pictures in (("references", published["references_56"]), ("others", published["more_56"])):
        (folder / name).mkdir()
        for number, pixels in enumerate(pictures):
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("method", ["winclip", "april-gan"])
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_an_exported_file_gives_the_same_with_references(method, format, short, cli, tmp_path):
    file = tmp_path / ("few.onnx" if format == "onnx" else "few.xml")
    spec = DetectorSpec(
        str(short / "short.pt"),
        method=method,
        class_name="screw",
        image_size=56,
        references=str(short / "references"),
        trained=str(short / "layers.safetensors") if method == "april-gan" else None,
    )
    options = ["--backbone", spec.backbone, "--method", method, "--class-name", "screw", "--image-size", 56]
    options += ["--trained", spec.trained] if spec.trained else []
    options += ["--references", short / "references", "--format", format, "--dynamic-batch"]
    done = cli("export", *options, "--output", file)
    assert done.code == 0, done.err
    exported, detector = Detector.from_exported(file), spec.load()
    assert sorted(exported.describe().facts["references"]) == [f"{number}.png" for number in range(4)]
    paths = sorted((short / "others").iterdir())
    for one, other in zip(exported.predict(paths), detector.predict(paths), strict=True):
        assert one.pred_score == pytest.approx(other.pred_score, abs=1e-4)
        np.testing.assert_allclose(one.anomaly_map, other.anomaly_map, atol=1e-4)
    alone = replace(spec, references=None).load().predict(paths[0])
    assert abs(alone.anomaly_map - exported.predict(paths[0]).anomaly_map).max() > 0.05


@pytest.mark.slow
def test_references_stand_beside_every_method_of_words(rival_backbone, published, tmp_path):
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
