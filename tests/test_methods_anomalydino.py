"""AnomalyDINO: distances to references alone, images in their own proportions, any backbone."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy import ndimage

from anomalyclip import Detector, DetectorSpec, evaluate, export, fit
from anomalyclip.errors import AnomalyCLIPError, InputError
from anomalyclip.evaluation.shots import evaluate_shots
from anomalyclip.fitting import Memory
from anomalyclip.framing import Framing
from anomalyclip.remembering import left_out_scores, remember
from tests import vit_forms
from tests.generated_sets import make_set

SIDE = 84


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A DINOv2 of 2 blocks with random weights, in which what a patch shows counts more than its place."""
    folder = vit_forms.timm_folder("dinov2 registers", tmp_path_factory.mktemp("dinov2"))
    state = vit_forms.timm_state("dinov2 registers")
    for name in state:
        if name.endswith((".gamma", "pos_embed")):
            state[name] = 0.02 * state[name]
    chance = torch.Generator().manual_seed(0)
    state["patch_embed.proj.weight"] = 0.1 * torch.randn(64, 3, 14, 14, generator=chance)
    save_file(state, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def dinov3(tmp_path_factory):
    """The same of DINOv3: rotary positions, patches of 16 pixels, a gated MLP."""
    folder = tmp_path_factory.mktemp("dinov3")
    state = vit_forms.dinov3_state("gated")
    for name in state:
        if name.endswith(".gamma"):
            state[name] = 0.02 * state[name]
    chance = torch.Generator().manual_seed(0)
    state["patch_embed.proj.weight"] = 0.1 * torch.randn(128, 3, 16, 16, generator=chance)
    torch.save(state, folder / "dinov3_vits16plus.pth")
    return folder / "dinov3_vits16plus.pth"


def texture(seed, size=(120, 80), spot=None):
    """Smooth noise, (width, height); a spot is a red disc at (x, y)."""
    chance = np.random.default_rng(seed)
    width, height = size
    values = ndimage.gaussian_filter(chance.normal(size=(height, width, 3)), (3, 3, 0))
    values = 128 + 8 * values / values.std()
    if spot is not None:
        y, x = np.ogrid[:height, :width]
        values[(x - spot[0]) ** 2 + (y - spot[1]) ** 2 < 10**2] = (250, 30, 30)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


@pytest.fixture
def folder(tmp_path):
    for seed in range(4):
        texture(seed).save(tmp_path / f"{seed}.png")
    return tmp_path


def spec(backbone, **options):
    return DetectorSpec(str(backbone), method="anomalydino", image_size=SIDE, **options)


def patches_of(core, image):
    """The last block's patches after the norm, normalised, (N, D), and their grid: computed step by step."""
    pixels = Framing(SIDE, patch=14)(image)
    values = (pixels / np.float32(255) - np.float32([0.485, 0.456, 0.406])) / np.float32(
        [0.229, 0.224, 0.225]
    )
    tower = core.visual
    with torch.inference_mode():
        tokens = tower.run(tower.embed(torch.from_numpy(values).permute(2, 0, 1)[None].float()), plain=[2])
        found = tower.ln_post(tokens.plain[2])[0, 1:].numpy()
    found = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float16)  # as a memory has them
    return found.astype(np.float32), (pixels.shape[0] // 14, pixels.shape[1] // 14)


def test_scores_and_maps_are_those_of_the_formula(backbone, folder):
    """Cosine distance to the nearest patch; its top 1 %; bilinear, then a Gaussian of sigma 4; one fixed scale."""
    few_shot = spec(backbone, references=folder).load()
    core, image = few_shot.scorer.core, texture(9, spot=(40, 40))
    bank = np.concatenate([patches_of(core, Image.open(path))[0] for path in sorted(folder.iterdir())])
    own, grid = patches_of(core, image)
    assert grid == (6, 9)
    distances = 1 - (own @ bank.T).max(axis=1)  # 54 patches: the highest 1 % is one
    scale = float(core.scale)
    prediction = few_shot.predict(image)
    assert prediction.pred_score == pytest.approx(distances.max() / (distances.max() + scale), abs=1e-3)
    maps = torch.from_numpy(distances.reshape(1, 1, *grid)).float()
    full = torch.nn.functional.interpolate(maps, scale_factor=14, mode="bilinear")[0, 0].numpy()
    smooth = ndimage.gaussian_filter(full, 4.0)
    np.testing.assert_allclose(prediction.anomaly_map, smooth / (smooth + scale), atol=1e-3)


def test_the_scale_is_the_distance_below_which_99_percent_of_normal_patches_are(backbone, folder):
    few_shot = spec(backbone, references=folder).load()
    core = few_shot.scorer.core
    patches = [patches_of(core, Image.open(path))[0] for path in sorted(folder.iterdir())]
    apart = [
        1 - (one @ np.concatenate([*patches[:n], *patches[n + 1 :]]).T).max(axis=1)
        for n, one in enumerate(patches)
    ]
    assert float(core.scale) == pytest.approx(np.quantile(np.concatenate(apart), 0.99), abs=1e-3)


def test_a_spot_is_where_the_map_is_highest_in_images_that_are_wide_or_high(backbone, tmp_path):
    for number, size in enumerate([(200, 80), (80, 200), (100, 100)]):
        references = [texture(seed, size) for seed in range(3)]
        detector = spec(backbone).load()
        few_shot = remember(detector, fit(detector, references))
        x, y = size[0] * 3 // 4, size[1] // 3
        prediction = few_shot.predict(texture(50 + number, size, spot=(x, y)))
        height, width = prediction.anomaly_map.shape
        assert min(height, width) == SIDE
        assert width / height == pytest.approx(size[0] / size[1], rel=0.1)
        row, column = np.unravel_index(prediction.anomaly_map.argmax(), (height, width))
        assert abs(column / width * size[0] - x) < 25
        assert abs(row / height * size[1] - y) < 25


def test_a_dinov3_finds_the_spot_too_and_its_memory_is_for_it_alone(dinov3, backbone, folder, tmp_path):
    detector = DetectorSpec(str(dinov3), method="anomalydino", image_size=96).load()
    memory = fit(detector, folder)
    assert memory.grids.tolist() == [[6, 9]] * 4
    few_shot = remember(detector, memory)
    good, bad = few_shot.predict(texture(20)), few_shot.predict(texture(21, spot=(90, 40)))
    assert bad.pred_score > good.pred_score
    row, column = np.unravel_index(bad.anomaly_map.argmax(), bad.anomaly_map.shape)
    assert abs(column / 144 * 120 - 90) < 25
    assert abs(row / 96 * 80 - 40) < 25
    with pytest.raises(AnomalyCLIPError, match="other"):
        remember(spec(backbone).load(), memory)


def test_images_of_other_proportions_can_be_in_one_batch(backbone, folder):
    few_shot = spec(backbone, references=folder).load()
    images = [texture(7), texture(8, (80, 80)), texture(9, (80, 160)), texture(10)]
    together, alone = few_shot.predict(images, batch_size=4), [few_shot.predict(image) for image in images]
    for one, other in zip(together, alone, strict=True):
        assert one.pred_score == pytest.approx(other.pred_score, abs=1e-5)
        np.testing.assert_allclose(one.anomaly_map, other.anomaly_map, atol=1e-5)


def test_references_of_several_proportions_are_one_memory(backbone, folder, tmp_path):
    texture(20, (80, 120)).save(folder / "high.png")
    texture(21, (90, 90)).save(folder / "square.png")
    detector = spec(backbone).load()
    memory = fit(detector, folder)
    assert sorted(map(tuple, memory.grids.tolist())) == [(6, 6), *[(6, 9)] * 4, (9, 6)]
    assert memory.patches == 36 + 5 * 54
    memory.save(tmp_path / "all.memory")
    loaded = Memory.load(tmp_path / "all.memory")
    assert loaded.digest() == memory.digest()
    first = fit(detector, [folder / "0.png", folder / "square.png"])
    rest = [path for path in folder.glob("*.png") if path.name not in ("0.png", "square.png")]
    assert fit(detector, rest, add_to=first).digest() == memory.digest()
    few_shot = remember(detector, loaded)
    shapes = [found.shape for _, found in left_out_scores(few_shot)]
    assert sorted(shapes) == [(SIDE, SIDE), *[(SIDE, 126)] * 4, (126, SIDE)]
    nearest = few_shot.predict(folder / "high.png").nearest
    assert nearest.distance == pytest.approx(0, abs=1e-3)  # it is a reference itself


def test_a_single_reference_and_its_turned_views(backbone, folder):
    detector = spec(backbone).load()
    plain, turned = (fit(detector, folder / "0.png", augment=augment) for augment in (False, True))
    assert (plain.patches, turned.patches) == (54, 8 * 54)
    assert {tuple(grid) for grid in turned.grids.tolist()} == {(6, 9), (9, 6)}
    image = Image.open(folder / "0.png").transpose(Image.Transpose.ROTATE_90)
    apart = [remember(detector, memory).predict(image).nearest.distance for memory in (turned, plain)]
    assert apart[0] < 0.01
    assert apart[1] > 3 * apart[0]


def test_earlier_blocks_are_chosen_by_layers(backbone, folder):
    memory = fit(spec(backbone, layers=(1, 2)).load(), folder)
    assert sorted(memory.banks) == ["block 1", "block 2"]
    last = fit(spec(backbone).load(), folder)
    torch.testing.assert_close(memory.banks["block 2"], last.banks["block 2"])


def test_a_clip_is_a_backbone_too_and_large_images_can_be_cut(folder):
    few_shot = DetectorSpec("micro", method="anomalydino", references=folder).load()
    assert few_shot.predict(texture(5)).anomaly_map.shape == (180, 264)
    tiled = DetectorSpec("micro", method="anomalydino", references=folder, tile=60, image_size=60).load()
    assert tiled.predict(texture(5)).anomaly_map.shape == (80, 120)


def test_an_evaluation_compares_maps_with_masks_in_the_images_proportions(backbone, tmp_path):
    root = tmp_path / "data" / "cloth"
    for kind, spot in (("good", None), ("spot", (70, 40))):
        (root / "test" / kind).mkdir(parents=True)
        for seed in range(2):
            texture(30 + seed, spot=spot).save(root / "test" / kind / f"{seed}.png")
    mask = np.zeros((80, 120), np.uint8)
    mask[30:50, 60:80] = 255
    (root / "ground_truth" / "spot").mkdir(parents=True)
    (root / "train" / "good").mkdir(parents=True)
    for seed in range(2):
        Image.fromarray(mask).save(root / "ground_truth" / "spot" / f"{seed}_mask.png")
        texture(seed).save(root / "train" / "good" / f"{seed}.png")
    references = root / "train" / "good"
    result = evaluate(spec(backbone, references=references), tmp_path / "data", output=tmp_path / "run")
    assert result.mean["pixel_auroc"] > 0.95
    assert result.mean["image_auroc"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino"])
@pytest.mark.parametrize(("model", "side"), [("backbone", SIDE), ("dinov3", 96)])
def test_an_export_gives_the_same_for_images_of_the_references_proportions(
    model, side, format, request, folder, tmp_path
):
    file = str(request.getfixturevalue(model))
    few_shot = DetectorSpec(file, method="anomalydino", image_size=side, references=folder).load()
    path = tmp_path / ("few.onnx" if format == "onnx" else "few.xml")
    report = export(few_shot, path, format=format)
    assert max(report.score_difference, report.map_difference) < 1e-4
    exported = Detector.from_exported(path)
    assert (exported.scorer.card.shape, exported.scorer.card.version) == ((side, side * 3 // 2), 3)
    image = texture(9, spot=(40, 40))
    one, other = exported.predict(image), few_shot.predict(image)
    assert one.pred_score == pytest.approx(other.pred_score, abs=1e-4)
    np.testing.assert_allclose(one.anomaly_map, other.anomaly_map, atol=1e-4)
    texture(9, (80, 80)).save(tmp_path / "square.png")
    with pytest.raises(
        InputError,
        match=rf"square\.png: 80 x 80 pixels become {side} x {side}, .* takes {side * 3 // 2} x {side} alone",
    ):
        exported.predict(tmp_path / "square.png")


# --- refusals -----------------------------------------------------------------------------------------------


def test_without_references_it_says_that_it_needs_them(backbone):
    with pytest.raises(
        AnomalyCLIPError, match=r"'anomalydino' compares images with normal ones: give references"
    ):
        spec(backbone).load().predict(texture(0))


@pytest.mark.parametrize("command", ["predict", "test"])
def test_a_run_without_references_is_refused_before_a_folder_is_made(command, folder, tmp_path, cli):
    data = folder if command == "predict" else make_set(tmp_path / "parts", normal=1, anomalous=1, side=60)
    out = tmp_path / "out"
    done = cli(command, data, "--backbone", "micro", "--method", "anomalydino", "--output", out)
    assert (done.code, done.err.count("error: "), "give references (--references PATH)" in done.err) == (
        2,
        1,
        True,
    )
    assert not out.exists()


def test_an_export_without_references_is_refused_before_anything_is_written(backbone, tmp_path):
    with pytest.raises(
        AnomalyCLIPError, match=r"'anomalydino' compares images with normal ones: give references"
    ):
        export(spec(backbone), tmp_path / "none.onnx")
    assert list(tmp_path.iterdir()) == []


def test_shots_are_evaluated_without_a_run_that_has_none(backbone, tmp_path):
    for kind in ("train/good", "test/good", "test/spot"):
        (tmp_path / "data" / "cloth" / kind).mkdir(parents=True)
    for seed in range(3):
        texture(seed).save(tmp_path / f"data/cloth/train/good/{seed}.png")
        texture(10 + seed).save(tmp_path / f"data/cloth/test/good/{seed}.png")
        texture(20 + seed, spot=(40, 40)).save(tmp_path / f"data/cloth/test/spot/{seed}.png")
    found = evaluate_shots(spec(backbone), tmp_path / "data", (2,))
    assert {run.shots for run in found.runs} == {2}
    assert all(run.evaluation.mean["image_auroc"] == 1 for run in found.runs)


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("anomalyclip", {}),
        ("words", {}),
        ("winclip", {"class_name": "cloth"}),
    ],
)
def test_a_method_that_needs_texts_refuses_a_vision_only_backbone(method, more, backbone):
    with pytest.raises(
        AnomalyCLIPError, match=rf"method '{method}' needs texts: .*vision-only.*--method anomalydino"
    ):
        DetectorSpec(str(backbone), method=method, **more).load()


def test_an_image_that_is_too_long_is_named_and_the_others_are_scored(cli, backbone, folder, tmp_path):
    texture(0, (900, 60)).save(folder / "long.png")
    done = cli(
        *("predict", folder, "--backbone", backbone, "--method", "anomalydino", "--image-size", SIDE),
        *("--references", folder / "0.png", "--output", tmp_path / "out"),
    )
    assert done.code == 1
    (failed,) = (tmp_path / "out" / "errors.jsonl").read_text().splitlines()
    assert json.loads(failed)["image_path"].endswith("long.png")
    assert "900 x 60 pixels, one side more than 8 times as long" in failed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (3,)}, "layer 3 does not exist: the backbone's blocks are 1 to 2"),
        ({"prompts": "mvtec"}, "method 'anomalydino' has no prompts"),
        ({"class_name": "cloth"}, "method 'anomalydino' has no class name"),
        ({"image_score": "max"}, "method 'anomalydino' has no image score"),
    ],
)
def test_options_that_it_does_not_have_are_refused(options, message, backbone):
    with pytest.raises(AnomalyCLIPError, match=message):
        spec(backbone, **options).load()


def test_an_image_size_that_is_no_multiple_of_the_patch_is_refused(backbone):
    with pytest.raises(
        AnomalyCLIPError, match="image size 450: expected a multiple of .* patch size 14: use 448"
    ):
        DetectorSpec(str(backbone), method="anomalydino", image_size=450).load()


def test_a_memory_with_changed_grids_is_refused(backbone, folder, tmp_path):
    from dataclasses import replace

    memory = fit(spec(backbone).load(), folder)
    for changed in (
        replace(memory, grids=memory.grids[1:]),
        replace(memory, grids=memory.grids - 3),
        replace(memory, left_out_grids=memory.left_out_grids[1:]),
        replace(memory, left_out_grids=None),
    ):
        changed.save(tmp_path / "changed.memory")
        with pytest.raises(AnomalyCLIPError, match="damaged"):
            Memory.load(tmp_path / "changed.memory")
