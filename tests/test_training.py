"""Training: the published losses and steps, features kept on disk, and what is learned from incomplete data."""

import json
import math
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from anomalyclip.clip.tokenizer import CLIP_TOKENS
from anomalyclip.data.identity import content_digest, content_fingerprint, same_data
from anomalyclip.errors import AnomalyCLIPError, InputError
from anomalyclip.prompts import load_prompts
from anomalyclip.training.batches import Batch, TrainingData
from anomalyclip.training.features import FeatureStore
from anomalyclip.training.journal import best_epoch, read_journal
from anomalyclip.training.learning import batch_loss
from anomalyclip.training.losses import image_loss, local_loss
from anomalyclip.training.of_prompts import PromptTask
from anomalyclip.training.plots import draw_losses
from anomalyclip.training.samples import TrainingImage, split
from anomalyclip.training.settings import TrainingSettings
from anomalyclip.training.start import prompt_ids, start_prompts
from anomalyclip.training.trainer import STATE, Trainer, epoch_groups
from anomalyclip.training.validation import Validation
from tests.conftest import torch_scorer

from .conftest import GOLDEN

SIZE = 70


@pytest.fixture(scope="module")
def published():
    return dict(np.load(GOLDEN / "train.npz"))


@pytest.fixture(scope="module")
def start():
    return load_prompts(GOLDEN / "train_start_prompts.safetensors")


@pytest.fixture(scope="module")
def scorer(tiny_clip, start):
    return torch_scorer(tiny_clip, start, image_size=SIZE)


@pytest.fixture
def images(tmp_path):
    """The golden batch of four: 1 and 3 are anomalous."""
    folder = tmp_path / "images"
    folder.mkdir()
    return [golden_image(folder, index) for index in range(4)]


def golden_image(folder, index):
    path, mask = (Path(shutil.copy(GOLDEN / f"train_{index}{kind}.png", folder)) for kind in ("", "_mask"))
    return TrainingImage(path, mask, "thing", bool(index % 2), content_digest(path), content_digest(mask))


@pytest.fixture
def store(scorer, tmp_path):
    return feature_store(scorer, tmp_path)


def feature_store(scorer, tmp_path, **options):
    messages = []
    options = {"weights": "tiny", "on_damage": messages.append, **options}
    store = FeatureStore(tmp_path / "features", scorer, **options)
    store.messages = messages
    return store


def fill(store, images, **options):
    encoded = []
    failed = store.fill(images, on_error=refuse, advance=lambda: encoded.append(1), **options)
    assert not failed
    return len(encoded)


def refuse(path, error):
    raise AssertionError(f"{path}: {error}")


def learned(prompts):
    return torch.cat([prompts.normal, prompts.abnormal, *prompts.deep_tokens]).flatten()


def trainer(clip, start, data, folder, *, settings=None, **options):
    settings = settings or TrainingSettings(epochs=3, batch_size=2)
    folder.mkdir(exist_ok=True)
    task = PromptTask(clip, start, local_weight=settings.local_weight)
    return Trainer(task, data, settings, folder, info={"trained_on": "golden"}, **options)


# --- the published figures


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_losses_gradients_and_three_steps_are_the_published_ones(
    published, start, scorer, tiny_clip, images, tmp_path, dtype
):
    store = feature_store(scorer, tmp_path, dtype=dtype)
    fill(store, images)
    data = TrainingData(store, images)
    run = trainer(tiny_clip, start, data, tmp_path / "run", settings=TrainingSettings(epochs=3))

    image, local = batch_loss(data.batch(np.arange(4)), run.learner(tiny_clip))
    (image + 4 * local).backward()
    gradients = {
        "grad_ctx_pos": run.learner.normal.grad,
        "grad_ctx_neg": run.learner.abnormal.grad,
        "grad_deep_0": run.learner.deep_tokens[0].grad,
        "grad_deep_7": run.learner.deep_tokens[7].grad,
    }
    for name, ours in gradients.items():
        theirs = torch.from_numpy(published[name]).reshape(ours.shape)
        assert (ours - theirs).norm() / theirs.norm() < 1e-3, name

    assert run.run()
    steps, _ = read_journal(tmp_path / "run")
    assert [record["image_loss"] for record in steps] == pytest.approx(published["image_loss"], abs=1e-4)
    assert [record["local_loss"] for record in steps] == pytest.approx(
        published["local_loss_times_lam"], abs=1e-4
    )
    after = learned(load_prompts(GOLDEN / "train_after3_prompts.safetensors"))
    ours = learned(load_prompts(tmp_path / "run" / "prompts.safetensors"))
    assert (ours - after).norm() / (after - learned(start)).norm() < 1e-3


def test_the_pixels_loss_is_that_of_both_maps_upsampled_apart(published):
    torch.manual_seed(0)
    patches, texts = torch.randn(2, 25, 16), F.normalize(torch.randn(2, 16), dim=-1)
    masks = torch.from_numpy(published["mask"][:2]) > 0.5
    cosines = F.normalize(patches, dim=-1) @ texts.T / 0.07
    grids = cosines.softmax(-1).permute(0, 2, 1).reshape(2, 2, 5, 5)
    pair = F.interpolate(grids, SIZE, mode="bilinear")
    onehot = torch.stack([~masks, masks], dim=1).float()
    pt = (onehot.clamp(1e-5, 1 - 1e-5) * pair).sum(1) + 1e-5
    expected = (-((1 - pt) ** 2) * pt.log()).mean()
    for maps, truth in zip(pair.unbind(1), onehot.unbind(1), strict=True):
        overlap = [
            (2 * (m * t).sum() + 1) / (m.sum() + t.sum() + 1) for m, t in zip(maps, truth, strict=True)
        ]
        expected = expected + 1 - sum(overlap) / 2
    assert local_loss(patches, texts, masks).item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_pixels_loss_of_several_layers_is_the_sum_over_them_not_the_mean():
    torch.manual_seed(0)
    layers, texts = torch.randn(3, 2, 25, 16), F.normalize(torch.randn(2, 16), dim=-1)
    masks = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    masks[0, :30, 20:] = True
    batch = Batch(torch.randn(2, 16), torch.tensor([True, False]), layers, masks)
    image, local = batch_loss(batch, texts)
    each = [local_loss(patches, texts, masks).item() for patches in layers]
    assert len(set(each)) == 3
    assert local.item() == pytest.approx(sum(each), rel=1e-5)
    assert image.item() == image_loss(batch.images, texts, batch.labels).item()


def test_the_published_form_of_the_result_has_its_keys_shapes_and_types(
    start, store, tiny_clip, images, tmp_path
):
    fill(store, images)
    assert trainer(
        tiny_clip, start, TrainingData(store, images), tmp_path / "run", settings=TrainingSettings(epochs=1)
    ).run()
    state = torch.load(tmp_path / "run" / "prompts.pth", weights_only=True)["prompt_learner"]
    expected = {
        f"{name}_{sign}": shape
        for sign in ("pos", "neg")
        for name, shape in (
            ("ctx", (1, 1, 12, 64)),
            ("token_prefix", (1, 1, 1, 64)),
            ("token_suffix", (1, 1, 64, 64)),
            ("tokenized_prompts", (1, 1, 77)),
        )
    }
    for index in range(8):
        expected[f"compound_prompts_text.{index}"] = (4, 64)
        expected[f"compound_prompt_projections.{index}.weight"] = (896, 64)
        expected[f"compound_prompt_projections.{index}.bias"] = (896,)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected
    integers = {name for name, tensor in state.items() if tensor.dtype != torch.float32}
    assert integers == {"tokenized_prompts_pos", "tokenized_prompts_neg"}


# --- features on disk


def test_features_are_kept_normalised_and_the_image_feature_exactly(store, images):
    fill(store, images)
    exact, kept = store.encode(images[0].path), store.read(images[0])
    assert exact.shape == kept.shape == (1 + 25, 32)
    np.testing.assert_allclose(np.linalg.norm(exact, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(kept[0], exact[0], atol=1e-6)
    np.testing.assert_allclose(kept[1:], exact[1:], atol=5e-4)


def test_several_layers_are_kept_layer_after_layer(tiny_clip, start, images, tmp_path):
    scorer = torch_scorer(tiny_clip, start, image_size=SIZE, layers=[12, 24])
    both, last = (
        feature_store(scorer, tmp_path),
        feature_store(torch_scorer(tiny_clip, start, image_size=SIZE), tmp_path),
    )
    fill(both, images), fill(last, images)
    batch = TrainingData(both, images).batch(np.array([2, 3]))
    alone = TrainingData(last, images).batch(np.array([2, 3]))
    assert batch.patches.shape == (2, 2, 25, 32)
    torch.testing.assert_close(batch.patches[1], alone.patches[0])
    assert not torch.allclose(batch.patches[0], alone.patches[0])


def test_a_second_run_encodes_nothing_and_a_partial_cache_is_completed(store, images):
    assert fill(store, images[:2]) == 2
    assert fill(store, images) == 2
    assert fill(store, images) == 0


def test_features_belong_to_the_content_not_to_the_name(store, images, tmp_path):
    fill(store, images)
    moved = tmp_path / "elsewhere.png"
    shutil.copy(images[0].path, moved)
    assert store.missing([replace(images[0], path=moved)]) == []
    moved.write_bytes(images[1].path.read_bytes() + b"more")
    assert len(store.missing([replace(images[0], path=moved, digest=content_digest(moved))])) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 84},
        {"layers": [23]},
        {"dpam_layers": 3},
        {"precision": "bf16"},
        {"weights": "others"},
        {"dtype": "float32"},
    ],
)
def test_other_settings_or_weights_have_features_of_their_own(store, tiny_clip, start, tmp_path, change):
    of_scorer = {
        "image_size": SIZE,
        **{key: change[key] for key in change if key not in ("weights", "dtype")},
    }
    of_store = {key: change[key] for key in change if key in ("weights", "dtype")}
    other = feature_store(torch_scorer(tiny_clip, start, **of_scorer), tmp_path, **of_store)
    assert other.folder != store.folder


def test_a_damaged_file_is_named_and_made_anew_with_the_same_content(store, images):
    fill(store, images)
    path = store.path(images[2])
    good = path.read_bytes()
    path.write_bytes(good[:500] + bytes([good[500] ^ 1]) + good[501:])
    rows = store.read(images[2])
    assert len(store.messages) == 1
    assert str(path) in store.messages[0]
    assert path.read_bytes() == good
    np.testing.assert_array_equal(rows, store.read(images[2]))
    assert len(store.messages) == 1


def test_a_file_cut_short_counts_as_missing(store, images):
    fill(store, images)
    path = store.path(images[1])
    path.write_bytes(path.read_bytes()[:-7])
    assert store.missing(images) == [images[1]]
    store.read(images[1])
    assert str(images[1].path) in store.messages[0]


def test_a_disk_that_fills_up_is_one_message_and_leaves_no_half_file(store, images):
    fill(store, images[:1])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (store.record_bytes - 100, limits[1]))
    try:
        with pytest.raises(AnomalyCLIPError, match=r"\.npy cannot be written: File too large"):
            fill(store, images)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in store.folder.glob("*/*")] == [store.path(images[0]).name]
    assert fill(store, images) == 3


def test_too_little_room_is_said_before_anything_is_encoded(store):
    with pytest.raises(
        AnomalyCLIPError, match=r"the features of 1000000000000 images need .* GB, but only .* are free"
    ):
        store.check_room(10**12)


def test_an_image_that_cannot_be_read_is_named_and_the_rest_goes_on(store, images, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    broken = TrainingImage(bad, None, "thing", False, content_digest(bad))
    named = []
    failed = store.fill([broken, *images], on_error=lambda *both: named.append(both))
    assert [path for path, _ in named] == [bad]
    assert isinstance(named[0][1], InputError)
    assert failed == {broken.digest}
    assert store.missing(images) == []


def test_encoding_stops_when_it_is_told_to(store, images):
    assert fill(store, images, stop=lambda: len(list(store.folder.glob("*/*.npy"))) == 2) == 2


# --- what there is to learn from


def test_anomalous_images_without_a_mask_take_part_in_the_image_loss_only(store, images):
    images[1] = replace(images[1], mask=None)
    fill(store, images)
    data = TrainingData(store, images)
    batch = data.batch(np.array([0, 1, 2, 3]))
    assert len(batch.images) == 4
    assert batch.patches.shape[:2] == (1, 3)
    assert batch.masks.sum(dim=(1, 2)).tolist() == [
        0,
        0,
        (np.load(GOLDEN / "train.npz")["mask"][3] > 0).sum(),
    ]
    assert data.remarks() == ["1 anomalous images have no mask: they are only used for the image loss"]


def test_a_normal_image_has_an_empty_mask_that_counts(store, images):
    images[0] = replace(images[0], mask=None)
    fill(store, images)
    data = TrainingData(store, images)
    assert [image.has_mask for image in images] == [True] * 4
    batch = data.batch(np.array([0, 1]))
    assert batch.masks.shape == (2, SIZE, SIZE)
    assert (batch.masks[0].any().item(), batch.masks[1].any().item()) == (False, True)
    assert data.remarks() == []


def test_without_any_mask_only_the_image_loss_is_used_and_that_is_said(
    store, start, tiny_clip, images, tmp_path
):
    images = [replace(image, mask=None) for image in images]
    fill(store, images)
    data = TrainingData(store, images)
    assert data.remarks() == [
        "no anomalous image has a mask: only the image loss is used, maps are not trained"
    ]
    assert trainer(tiny_clip, start, data, tmp_path / "run").run()
    steps, _ = read_journal(tmp_path / "run")
    assert all(record["local_loss"] == 0 and record["loss"] == record["image_loss"] for record in steps)


@pytest.mark.parametrize(("anomaly", "word"), [(False, "normal"), (True, "anomalous")])
def test_a_set_with_one_label_and_a_last_batch_of_one_is_learned_from(
    store, start, tiny_clip, images, tmp_path, anomaly, word
):
    images = [replace(image, anomaly=anomaly) for image in images[:3]]
    fill(store, images)
    data = TrainingData(store, images)
    assert data.remarks() == [f"all images are {word}: the prompts learn only one label"]
    assert trainer(tiny_clip, start, data, tmp_path / "run").run()
    steps, epochs = read_journal(tmp_path / "run")
    assert [record["step"] for record in steps] == [1, 2] * 3
    assert all(math.isfinite(record["loss"]) and record["local_loss"] > 0 for record in steps)
    assert epochs[-1]["loss"] < epochs[0]["loss"]


def test_every_epoch_takes_each_image_once_in_another_order_that_the_seed_decides():
    orders = [
        np.concatenate(epoch_groups(17, TrainingSettings(seed=seed), epoch))
        for seed, epoch in ((1, 1), (1, 2), (2, 1))
    ]
    assert all(sorted(order) == list(range(17)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    again = np.concatenate(epoch_groups(17, TrainingSettings(seed=1), 2))
    assert again.tolist() == orders[1].tolist()


def test_held_out_images_come_from_every_class_and_label():
    images = [
        TrainingImage(Path(f"{name}{i}"), None, name, i % 2 == 1, f"{name}{i}")
        for name in "ab"
        for i in range(20)
    ]
    training, held_out = split(images, 0.2, seed=3)
    assert len(training) == 32
    assert set(training) | set(held_out) == set(images)
    assert sorted((image.class_name, image.anomaly) for image in held_out) == sorted(
        [("a", False), ("a", True), ("b", False), ("b", True)] * 2
    )
    assert split(images, 0.2, seed=3) == (training, held_out)
    assert split(images, 0.2, seed=4) != (training, held_out)


def test_evaluating_on_the_training_set_is_noticed_by_name_and_by_content():
    info = {"trained_on": "mvtec", "trained_on_content": content_fingerprint(["a", "b"])}
    assert "trained on mvtec" in str(same_data(info, name="mvtec"))
    assert "trained on mvtec" in str(same_data(info, name="renamed", digests=["b", "a"]))
    assert same_data(info, name="renamed", digests=["b", "c"]) is None
    assert same_data({}, name=None) is None


# --- the prompts to start from


def test_the_start_is_drawn_by_seed_with_the_published_shapes(tiny_clip):
    first, again, other = (start_prompts(tiny_clip, "x.pt", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(learned(first), learned(again))
    assert not torch.equal(learned(first), learned(other))
    assert (first.length, len(first.deep_tokens), first.deep_tokens[0].shape) == (12, 8, (4, 64))
    assert learned(first).std().item() == pytest.approx(0.02, rel=0.05)


def test_the_token_ids_are_those_of_the_published_checkpoint(start):
    assert torch.equal(prompt_ids(CLIP_TOKENS, length=12, context_length=77), start.token_ids)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"length": 73}, "prompt length 73: expected 0 to 72"),
        ({"depth": 13}, "prompt depth 13: expected 1 to 12"),
        ({"deep_length": 15}, "15 deep tokens: expected 1 to 14"),
    ],
)
def test_prompts_that_do_not_fit_the_backbone_are_refused(tiny_clip, shape, message):
    with pytest.raises(AnomalyCLIPError, match=message):
        start_prompts(tiny_clip, "x.pt", seed=1, **shape)


# --- the run


def test_a_run_stopped_after_every_single_step_ends_with_the_same_bits(
    store, start, tiny_clip, images, tmp_path
):
    fill(store, images)
    data = TrainingData(store, images[:3])
    assert trainer(tiny_clip, start, data, tmp_path / "whole").run()
    for number in range(6):
        run = trainer(tiny_clip, start, data, tmp_path / "parts")
        assert run.resume() == (number > 0)
        assert run.run(stop=lambda: True) == (number == 5)
        if number < 5:
            with (tmp_path / "parts/metrics.jsonl").open("a") as file:
                file.write(
                    '{"epoch": 1, "step": 99}\n{"epo'
                )  # what a process killed after its checkpoint leaves
    for name in (
        "prompts.safetensors",
        "prompts.pth",
        "metrics.jsonl",
        "checkpoints/epoch_02.safetensors",
        STATE,
    ):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_damaged_checkpoint_is_one_message(store, start, tiny_clip, images, tmp_path):
    fill(store, images)
    run = trainer(tiny_clip, start, TrainingData(store, images), tmp_path / "run")
    run.run(stop=lambda: True)
    path = tmp_path / "run" / STATE
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(AnomalyCLIPError, match=r"state\.pt: cannot resume from this checkpoint"):
        run.resume()


@pytest.mark.parametrize(
    "damage", [b"{torn\n", b"3\n", b'{"epoch": 1, "step": 0}\n', b'{"epoch": 1, "loss": "low"}\n']
)
def test_a_damaged_journal_is_named_before_the_run_goes_on(store, start, tiny_clip, images, tmp_path, damage):
    fill(store, images)
    trainer(tiny_clip, start, TrainingData(store, images), tmp_path / "run").run(stop=lambda: True)
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_bytes(damage + path.read_bytes())
    run = trainer(tiny_clip, start, TrainingData(store, images), tmp_path / "run")
    assert run.resume()
    with pytest.raises(AnomalyCLIPError, match=r"metrics\.jsonl, line 1 is damaged"):
        run.run()


def test_a_loss_that_is_not_finite_stops_the_run(store, start, tiny_clip, images, tmp_path):
    fill(store, images)
    settings = TrainingSettings(epochs=3, learning_rate=1e30)
    with pytest.raises(
        AnomalyCLIPError, match=r"the loss is nan at step 1 of epoch 2: try a lower --learning-rate"
    ):
        trainer(tiny_clip, start, TrainingData(store, images), tmp_path / "run", settings=settings).run()


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"local_weight": -1.0},
        {"seed": -1},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(AnomalyCLIPError, match="expected"):
        TrainingSettings(**wrong)


def test_held_out_images_are_evaluated_every_epoch_and_the_best_epoch_marked(
    store, start, tiny_clip, images, tmp_path
):
    fill(store, images)
    run = trainer(
        tiny_clip, start, TrainingData(store, images), tmp_path / "run", validation=Validation(store, images)
    )
    assert run.run()
    _, epochs = read_journal(tmp_path / "run")
    qualities = [(record["val_image_auroc"] + record["val_pixel_auroc"]) / 2 for record in epochs]
    assert best_epoch(epochs) == 1 + qualities.index(max(qualities))
    with torch.inference_mode():
        measured = Validation(store, images)(
            load_prompts(tmp_path / "run/prompts.safetensors").text_features(tiny_clip)
        )
    assert measured["val_image_auroc"] == epochs[-1]["val_image_auroc"]
    assert measured["val_pixel_auroc"] == pytest.approx(epochs[-1]["val_pixel_auroc"], abs=1e-6)


def test_pixel_auroc_of_held_out_images_ranks_the_smoothed_maps(store, scorer, images):
    """A subset of the pixels is enough: it agrees with the one over all pixels of the detector's own maps."""
    from anomalyclip.images import read_mask, squash
    from anomalyclip.metrics import auroc
    from anomalyclip.readers import open_image

    fill(store, images)
    pixels = np.stack([squash(open_image(image.path), SIZE) for image in images])
    scores, maps = scorer(pixels)
    masks = np.stack([read_mask(image.mask, SIZE) for image in images])
    measured = Validation(store, images)(scorer.core.text_features)
    assert measured["val_image_auroc"] == auroc([0, 1, 0, 1], scores)
    assert measured["val_pixel_auroc"] == pytest.approx(auroc(masks, maps), abs=0.02)


def test_the_curves_are_drawn_and_left_out_without_matplotlib(
    store, start, tiny_clip, images, tmp_path, monkeypatch
):
    fill(store, images)
    options = {"validation": Validation(store, images)}
    assert trainer(tiny_clip, start, TrainingData(store, images), tmp_path / "run", **options).run()
    drawn = draw_losses(tmp_path / "run")
    assert drawn is not None
    with Image.open(drawn) as picture:
        assert picture.size == (840, 720)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert draw_losses(tmp_path / "run") is None


def test_every_line_of_the_metrics_is_json_of_a_step_or_an_epoch(store, start, tiny_clip, images, tmp_path):
    fill(store, images)
    assert trainer(tiny_clip, start, TrainingData(store, images), tmp_path / "run").run()
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line.get("step")) for line in lines] == [
        (epoch, step) for epoch in (1, 2, 3) for step in (1, 2, None)
    ]
    for epoch in (1, 2, 3):
        steps = [line["loss"] for line in lines if line["epoch"] == epoch and "step" in line]
        assert lines[3 * epoch - 1]["loss"] == pytest.approx(sum(steps) / 2)
