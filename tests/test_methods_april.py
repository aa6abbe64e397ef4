"""APRIL-GAN: every number from pixels to maps, and of three steps of training, against its public code."""

import shutil
import tempfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from anomalyclip import AnomalyCLIPError, AnomalyCLIPWarning, Detector, DetectorSpec, evaluate, export, train
from anomalyclip.backbones.table import ASSETS
from anomalyclip.clip.backbone import load_backbone, load_clip
from anomalyclip.clip.weights import fingerprint
from anomalyclip.linear_layers import LinearLayers, load_linear_layers
from anomalyclip.methods.april_gan import block_map, default_blocks
from anomalyclip.training.batches import Batch, split_layers
from anomalyclip.training.journal import read_journal
from anomalyclip.training.learning import Optimizer
from anomalyclip.training.of_layers import LayersTask
from tests.conftest import rival_arrays
from tests.generated_sets import make_set

CASES = ["56_screw", "56_metal_nut", "70_gelu_screw", "70_screw"]
MICRO = ASSETS / "micro"


@pytest.fixture(scope="module")
def published():
    return rival_arrays("april") | rival_arrays("april_steps")


def layers_of(published, case, **info):
    """The case's linear layers; those of one size serve all its cases."""
    case = {"56_metal_nut": "56_screw", "70_screw": "70_gelu_screw"}.get(case, case)
    weight, bias = (
        torch.from_numpy(np.stack([published[f"{case}_linear_{index}_{kind}"] for index in range(4)]))
        for kind in ("weight", "bias")
    )
    return LinearLayers((6, 12, 18, 24), weight, bias, info)


def spec_of(backbone, case, trained, **options):
    size, name = case.replace("gelu_", "").split("_", 1)
    activation = "gelu" if "gelu" in case else None
    options = {"activation": activation, "class_name": name, **options}
    return DetectorSpec(backbone, method="april-gan", image_size=int(size), trained=str(trained), **options)


@pytest.mark.parametrize("case", CASES)
def test_texts_scores_and_maps_are_the_published_ones(
    case, published, rival_backbone, rival_inputs, tmp_path
):
    layers_of(published, case).save(tmp_path / "layers.safetensors")
    scorer = spec_of(rival_backbone, case, tmp_path / "layers.safetensors").load().scorer
    text = scorer.core.text_features.numpy()
    np.testing.assert_allclose(text, published[f"{case}_text"], atol=1e-5)
    pixels = rival_inputs[f"pixels_{scorer.image_size}"][:2]
    with torch.inference_mode():
        image = scorer.core.project(scorer.features(pixels).cls)
    normalised = torch.nn.functional.normalize(image, dim=-1).numpy()
    np.testing.assert_allclose(normalised, published[f"{case}_image_feature"], atol=2e-5)
    scores, maps = scorer(pixels)
    np.testing.assert_allclose(scores, published[f"{case}_text_probability"], atol=5e-5)
    # the published map is the sum over blocks, ours their mean
    np.testing.assert_allclose(4 * maps[:1], published[f"{case}_map"], atol=1e-5)


# --- files


@pytest.fixture
def micro_layers():
    return LinearLayers.initial(load_clip("micro").config, (1, 3, 4, 6), seed=0)


def test_a_file_of_layers_is_what_was_saved(micro_layers, tmp_path):
    micro_layers.save(tmp_path / "one.safetensors")
    micro_layers.save(tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    again = load_linear_layers(tmp_path / "one.safetensors")
    assert again.blocks == (1, 3, 4, 6)
    assert again.digest() == micro_layers.digest()
    assert LinearLayers.initial(load_clip("micro").config, (1, 3, 4, 6), seed=1).digest() != again.digest()


def test_published_layers_are_read_and_are_of_exact_gelu(published, tmp_path):
    layers = layers_of(published, "70_gelu_screw")
    state = {}
    for index in range(4):
        state |= {f"fc.{index}.weight": layers.weight[index], f"fc.{index}.bias": layers.bias[index]}
    torch.save({"trainable_linearlayer": state}, tmp_path / "visa.pth")
    read = load_linear_layers(tmp_path / "visa.pth")
    assert read.blocks == (6, 12, 18, 24)
    assert read.info["activation"] == "gelu"
    assert read.digest() == layers.digest()
    torch.save({"prompt_learner": {}}, tmp_path / "other.pth")
    with pytest.raises(AnomalyCLIPError, match="other.pth.*trainable_linearlayer"):
        load_linear_layers(tmp_path / "other.pth")


def test_layers_of_one_activation_are_not_mixed_with_tokens_of_the_other(published, rival_backbone, tmp_path):
    layers_of(published, "70_gelu_screw", activation="gelu").save(tmp_path / "gelu.safetensors")
    spec_of(rival_backbone, "70_gelu_screw", tmp_path / "gelu.safetensors").load()
    with pytest.raises(AnomalyCLIPError, match=r"gelu.safetensors.*of quick-gelu: give --activation gelu"):
        spec_of(rival_backbone, "70_screw", tmp_path / "gelu.safetensors").load()


def april(trained, **options):
    return DetectorSpec("micro", method="april-gan", class_name="plate", trained=str(trained), **options)


def test_it_predicts_with_layers_of_its_own_backbone(micro_layers, tmp_path):
    clip = load_clip("micro")
    info = {"backbone_fingerprint": fingerprint(clip.config, clip.state_dict()), "trained_on": "parts"}
    LinearLayers(micro_layers.blocks, micro_layers.weight, micro_layers.bias, info).save(
        tmp_path / "l.safetensors"
    )
    detector = april(tmp_path / "l.safetensors").load()
    prediction = detector.predict(np.full((50, 70, 3), 99, np.uint8))
    assert prediction.anomaly_map.shape == (180, 180)
    identity = detector.identity()
    assert (identity["layers"], identity["sigma"]) == ([1, 3, 4, 6], 0.0)
    assert identity["layers_sha256"] == micro_layers.digest()
    assert detector.describe().training["trained_on"] == "parts"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.unlink(), "no such file; expected APRIL-GAN's linear layers"),
        (lambda path: path.write_bytes(b"nothing"), "neither APRIL-GAN's linear layers"),
        (lambda path: path.write_bytes((MICRO / "prompts.safetensors").read_bytes()), "not APRIL-GAN's"),
        (lambda path: torch.save({"other": {}}, path), "not a readable checkpoint"),
        (lambda path: changed(path, lambda t: t.pop("block.3.bias")), "3.bias missing"),
        (lambda path: changed(path, lambda t: t.update({"block.3.bias": torch.zeros(5)})), "do not match"),
        (lambda path: changed(path, lambda t: t["block.3.bias"].fill_(torch.nan)), "NaN"),
        (lambda path: changed(path, lambda t: t.clear()), "no tensor"),
    ],
)
def test_a_file_that_is_no_such_layers_is_one_error(damage, says, micro_layers, tmp_path):
    file = tmp_path / "layers.safetensors"
    micro_layers.save(file)
    damage(file)
    with pytest.raises(AnomalyCLIPError, match=f"layers.safetensors.*{says}"):
        april(file).load()


def changed(path, change):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=header)


def test_layers_of_another_backbone_are_refused_by_name(published, micro_layers, tmp_path):
    file = tmp_path / "layers.safetensors"
    layers_of(published, "56_screw").save(file)
    with pytest.raises(
        AnomalyCLIPError, match=r"layers from width 64 to 32.*width 128, embedding 128 and 6 blocks"
    ):
        april(file).load()
    info = {"backbone_fingerprint": "ab" * 32}
    LinearLayers(micro_layers.blocks, micro_layers.weight, micro_layers.bias, info).save(file)
    with pytest.raises(AnomalyCLIPError, match=r"trained on other weights \(SHA-256 abababab"):
        april(file).load()


def test_without_its_trained_part_it_is_one_error(cli, tmp_path):
    done = cli("predict", tmp_path, "--backbone", "micro", "--method", "april-gan", "--class-name", "plate")
    assert done.code == 2
    with pytest.raises(AnomalyCLIPError, match="'april-gan' has a trained part: give --trained"):
        Detector.from_pretrained("micro", method="april-gan", class_name="plate")
    with pytest.raises(AnomalyCLIPError, match="'april-gan' puts the name.*--class-name"):
        Detector.from_pretrained("micro", method="april-gan")


# --- training


@pytest.mark.parametrize("case", ["56_screw", "70_gelu_screw", "70_screw"])
def test_losses_gradients_and_three_steps_are_the_published_ones(
    case, published, rival_backbone, rival_inputs
):
    start, size = layers_of(published, case), int(case[:2])
    scorer = assembled(rival_backbone, case, start)
    texts = scorer.core.text_features
    with torch.inference_mode():
        rows = scorer.core.rows(scorer.features(rival_inputs[f"pixels_{size}"])).clone()  # 4 1+LN D
    drawn = {"70_screw": "70_gelu_screw"}.get(case, case)  # masks do not depend on the activation
    masks = torch.from_numpy(published[f"{drawn}_train_mask"]).bool()
    rows = torch.from_numpy(rows.numpy().copy())
    batch = Batch(
        images=rows[:, 0],
        labels=torch.tensor([False, True] * 2),
        patches=split_layers(rows[:, 1:], 4),
        masks=masks,
        classes=("screw",) * 4,
        known=(0, 1, 2, 3),
    )
    clip = load_backbone(rival_backbone).clip
    task = LayersTask(clip, start, lambda name: texts.clone(), image_size=size)
    optimizer = Optimizer(task.learner.parameters(), task.losses, learning_rate=1e-3, betas=(0.5, 0.999))
    for step in range(3):
        np.testing.assert_allclose(
            task.block_losses(batch).detach().numpy(), published[f"{case}_train_loss"][step], atol=5e-5
        )
        losses = optimizer.step(batch, moment="the test")
        assert losses.local_loss == pytest.approx(published[f"{case}_train_loss"][step].sum(), abs=5e-4)
        assert losses.image_loss == 0
        if step == 0 and f"{case}_grad_0_weight" in published:
            for kind in ("weight", "bias"):
                for index, ours in enumerate(task.learner[kind].grad):
                    np.testing.assert_allclose(ours, published[f"{case}_grad_{index}_{kind}"], atol=5e-5)
    if f"{case}_after3_0_weight" in published:
        for kind in ("weight", "bias"):
            for index, ours in enumerate(task.learner[kind].detach()):
                np.testing.assert_allclose(ours, published[f"{case}_after3_{index}_{kind}"], atol=1e-5)


def assembled(backbone, case, layers):
    """The scorer of these layers in memory, by way of a file that does not stay."""
    with tempfile.TemporaryDirectory() as folder:
        layers.save(f"{folder}/layers.safetensors")
        return spec_of(backbone, case, f"{folder}/layers.safetensors").load().scorer


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "parts"
    return make_set(folder, classes=("plate", "washer"), normal=2, anomalous=2, side=60)


def test_it_is_trained_and_its_layers_are_evaluated(root, tmp_path, cli):
    cache = ["--cache", tmp_path / "features"]
    train = ["train", root, "--backbone", "micro", "--method", "april-gan", "--image-size", 96, *cache]
    done = cli(*train, "--epochs", 3, "--val-root", root, "--output", tmp_path / "run")
    assert done.code == 0, done.err
    file = tmp_path / "run" / "layers.safetensors"
    assert f"layers of the last epoch: {file}" in done.out
    layers = load_linear_layers(file)
    assert layers.blocks == (1, 3, 4, 6)
    assert (layers.info["method"], layers.info["activation"]) == ("april-gan", "quick-gelu")
    assert layers.info["trained_on"] == "parts"
    _, epochs = read_journal(tmp_path / "run")
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    assert {"val_image_auroc", "val_pixel_auroc"} <= set(epochs[-1])
    spec = DetectorSpec("micro", method="april-gan", trained=str(file), image_size=96)
    result = evaluate(spec, root)
    assert result.notes == [
        "this model was trained on parts, the same data as in this evaluation: its figures are not zero-shot"
    ]
    with pytest.warns(AnomalyCLIPWarning, match="other settings.*image_size: 96 then, 84 now"):
        DetectorSpec("micro", method="april-gan", trained=str(file), image_size=84, class_name="plate").load()


def test_a_stopped_training_goes_on_to_the_same_bytes(root, tmp_path):
    spec, options = DetectorSpec("micro", method="april-gan", image_size=96), {"cache": tmp_path / "features"}
    options |= {"epochs": 2, "batch_size": 2}
    whole = train(root, spec, output=tmp_path / "whole", **options)
    steps = iter([False, True])  # after the second step: all features are there already
    part = train(root, spec, output=tmp_path / "part", stop=lambda: next(steps), **options)
    assert (part.finished, part.epoch, part.step) == (False, 1, 2)
    again = train(root, spec, output=tmp_path / "part", resume=True, **options)
    assert again.learned.read_bytes() == whole.learned.read_bytes()


@pytest.mark.parametrize(
    ("options", "settings", "says"),
    [
        ({"dpam_layers": 2}, {}, "dpam_layers: not used in training of method 'april-gan'"),
        ({"sigma": 1.0}, {}, "sigma: not used in training"),
        ({}, {"local_weight": 1.0}, "local_weight: not used in training of method 'april-gan'"),
        ({}, {"prompt_length": 4}, "prompt_length: not used"),
        ({"class_name": "gizmo"}, {}, "class 'plate'.*'gizmo'"),
        (
            {"method": "winclip"},
            {},
            "method 'winclip' has no training: expected one of anomalyclip, april-gan",
        ),
    ],
)
def test_a_training_that_cannot_be_is_refused_before_anything_is_encoded(
    options, settings, says, root, tmp_path
):
    options = {"method": "april-gan", "image_size": 96, **options}
    with pytest.raises(AnomalyCLIPError, match=says):
        train(
            root, DetectorSpec("micro", **options), output=tmp_path / "run", cache=tmp_path / "f", **settings
        )
    assert list(tmp_path.iterdir()) == []


def test_without_any_mask_there_is_nothing_to_learn(tmp_path):
    root = make_set(tmp_path / "parts", classes=("plate",), normal=1, anomalous=1, side=60)
    shutil.rmtree(root / "plate" / "ground_truth")
    with pytest.raises(AnomalyCLIPError, match="no anomalous image has a mask.*masks alone"):
        train(root, DetectorSpec("micro", method="april-gan"), output=tmp_path / "run", cache=tmp_path / "f")


def test_the_blocks_are_quarters_of_the_depth():
    assert default_blocks(load_clip("micro").config) == (1, 3, 4, 6)


def test_texts_may_differ_from_image_to_image():
    tokens, weight, bias = torch.randn(2, 9, 6), torch.randn(4, 6), torch.randn(4)
    texts = torch.nn.functional.normalize(torch.randn(2, 2, 4), dim=-1)
    both = block_map(tokens, weight, bias, texts, 10)
    for index in range(2):
        alone = block_map(tokens[index : index + 1], weight, bias, texts[index], 10)
        torch.testing.assert_close(both[index : index + 1], alone)


@pytest.mark.slow
def test_it_is_exported_with_its_layers(micro_layers, tmp_path):
    micro_layers.save(tmp_path / "layers.safetensors")
    spec = april(tmp_path / "layers.safetensors", image_score="max")
    report = export(spec, tmp_path / "out.onnx", dynamic_batch=True)
    assert max(report.score_difference, report.map_difference) < 5e-5
    assert Detector.from_exported(tmp_path / "out.onnx").identity() == spec.load().identity()
