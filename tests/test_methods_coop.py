"""CoOp-style prompts: one learned context before words that name the class, trained on whole images."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from anomalyclip import AnomalyCLIPError, Detector, DetectorSpec, evaluate, export, train
from anomalyclip.backbones.table import ASSETS
from anomalyclip.clip.backbone import load_clip
from anomalyclip.clip.tokenizer import Tokenizer
from anomalyclip.contexts import Context, load_context
from anomalyclip.demo import PICTURES
from anomalyclip.training.batches import Batch
from anomalyclip.training.of_contexts import ContextTask
from tests.generated_sets import make_set

MICRO = ASSETS / "micro"


@pytest.fixture(scope="module")
def clip():
    return load_clip("micro")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(MICRO / "tokenizer.json", context_length=24)


@pytest.fixture(scope="module")
def context():
    vectors = 0.02 * torch.randn(5, 128, generator=torch.Generator().manual_seed(3))
    return Context(vectors, "flawless {}.", "damaged {}.")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "parts"
    return make_set(folder, classes=("plate", "washer"), normal=2, anomalous=2, side=60)


# --- the texts


def test_a_context_of_word_embeddings_is_that_text(clip, tokenizer):
    """The vectors stand between the start token and the words, at the positions of words."""
    words = tokenizer(["a wood wall"])[0, 1:4]
    context = Context(clip.token_embedding(words), "flawless {}.", "damaged {}.")
    features = context.text_features(clip, tokenizer(["flawless plate.", "damaged plate."]))
    ids = tokenizer(["a wood wall flawless plate.", "a wood wall damaged plate."])
    expected = F.normalize(clip.encode_text(clip.token_embedding(ids), ids.argmax(dim=-1)), dim=-1)
    torch.testing.assert_close(features, expected, atol=1e-6, rtol=1e-5)


def test_the_loss_is_cross_entropy_with_the_texts_of_each_images_class(clip, tokenizer, context):
    def ids(name):
        return tokenizer([f"flawless {name}.", f"damaged {name}."])

    task = ContextTask(clip, context, ids)
    images, labels = torch.randn(3, 128), torch.tensor([False, True, True])
    classes = ("plate", "nut", "plate")
    batch = Batch(images, labels, torch.zeros(1, 0, 4, 128), torch.zeros(0, 8, 8, dtype=torch.bool), classes)
    image, local = task.losses(batch)
    single = []
    for feature, label, name in zip(images, labels, classes, strict=True):
        cosines = context.text_features(clip, ids(name)) @ (feature / feature.norm())
        single.append(-(cosines / 0.07).log_softmax(dim=0)[int(label)])
    assert image.item() == pytest.approx(float(torch.stack(single).mean()), abs=1e-5)
    assert local == 0
    image.backward()
    assert task.learner["vectors"].grad.abs().max() > 0


# --- files


def test_a_file_of_a_context_is_what_was_saved(context, tmp_path):
    context.save(tmp_path / "one.safetensors")
    again = load_context(tmp_path / "one.safetensors")
    assert (again.normal, again.abnormal, again.digest()) == (
        context.normal,
        context.abnormal,
        context.digest(),
    )
    assert Context(context.vectors, "flawless {}", "damaged {}.").digest() != context.digest()


def coop(trained, **options):
    return DetectorSpec("micro", method="coop", trained=str(trained), **{"class_name": "plate", **options})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda c, f: None, "no such file; expected a CoOp-style context"),
        (
            lambda c, f: f.write_bytes((MICRO / "prompts.safetensors").read_bytes()),
            "not a CoOp-style context",
        ),
        (lambda c, f: Context(c.vectors[:, :64], c.normal, c.abnormal).save(f), "text width 64.*128"),
        (lambda c, f: Context(c.vectors.repeat(6, 1), c.normal, c.abnormal).save(f), "30 of them.*takes 24"),
        (lambda c, f: Context(c.vectors * torch.nan, c.normal, c.abnormal).save(f), "NaN"),
        (lambda c, f: Context(c.vectors, "", c.abnormal).save(f), "incomplete"),
        (lambda c, f: Context(c.vectors, "rusty {}", c.abnormal).save(f), "the word 'rusty'"),
        (
            lambda c, f: Context(c.vectors, c.normal, c.abnormal, {"backbone_fingerprint": "ab" * 32}).save(
                f
            ),
            "trained on other weights",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_one_error(make, says, context, tmp_path):
    make(context, tmp_path / "context.safetensors")
    with pytest.raises(AnomalyCLIPError, match=says):
        coop(tmp_path / "context.safetensors").load()


def test_without_its_trained_part_or_a_class_name_it_is_one_error(context, tmp_path):
    with pytest.raises(AnomalyCLIPError, match="'coop' has a trained part: give --trained"):
        Detector.from_pretrained("micro", method="coop", class_name="plate")
    context.save(tmp_path / "c.safetensors")
    with pytest.raises(AnomalyCLIPError, match="'coop' puts the name.*--class-name"):
        coop(tmp_path / "c.safetensors", class_name=None).load()
    with pytest.raises(AnomalyCLIPError, match="'coop' has no normal"):
        coop(tmp_path / "c.safetensors", normal=["a"], abnormal=["a {}"]).load()


# --- from images to scores


def test_it_is_trained_and_evaluated_class_by_class(root, tmp_path, cli):
    cache = ["--cache", tmp_path / "features"]
    words = ["--normal", "flawless {}.", "--abnormal", "{} with a scratch."]
    model = ["--backbone", "micro", "--method", "coop", "--image-size", 96]
    done = cli("train", root, *model, *words, *cache, "--epochs", 4, "--output", tmp_path / "run")
    assert done.code == 0, done.err
    context = load_context(tmp_path / "run" / "context.safetensors")
    assert (len(context.vectors), context.abnormal) == (12, "{} with a scratch.")
    assert context.info["trained_on"] == "parts"
    spec = coop(tmp_path / "run" / "context.safetensors", image_size=96)
    detector = spec.load()
    assert (detector.identity()["class_name"], detector.identity()["dpam_layers"]) == ("plate", 0)
    result = evaluate(coop(tmp_path / "run" / "context.safetensors", image_size=96, class_name=None), root)
    assert "the same data as in this evaluation" in result.notes[0]
    scores = {image.image: image.score for one in result.results[0].classes for image in one.images}
    for path in (root / "plate" / "test" / "good").iterdir():
        name = path.relative_to(root).as_posix()
        assert scores[name] == pytest.approx(detector.predict(path).pred_score, abs=1e-6)


def test_training_lowers_the_loss_and_needs_no_masks(root, tmp_path):
    spec = DetectorSpec("micro", method="coop", image_size=96)
    run = train(root, spec, output=tmp_path / "run", cache=tmp_path / "f", epochs=10, learning_rate=0.01)
    losses = [epoch["loss"] for epoch in run.epochs]
    assert losses[-1] < losses[0]
    assert all(epoch["local_loss"] == 0 for epoch in run.epochs)
    assert run.learned.name == "context.safetensors"


@pytest.mark.parametrize(
    ("options", "settings", "says"),
    [
        ({}, {"prompt_length": 30}, "30 of them learned; the backbone takes 24"),
        ({}, {"prompt_length": 0}, "prompt length 0"),
        ({}, {"deep_length": 2}, "deep_length: not used"),
        ({"normal": ["a {}", "flawless {}"], "abnormal": ["cut"]}, {}, "one text of each side"),
        ({"templates": "winclip"}, {}, "templates: not used in training of method 'coop'"),
    ],
)
def test_a_training_that_cannot_be_is_refused_before_anything_is_encoded(
    options, settings, says, root, tmp_path
):
    spec = DetectorSpec("micro", method="coop", image_size=96, **options)
    with pytest.raises(AnomalyCLIPError, match=says):
        train(root, spec, output=tmp_path / "run", cache=tmp_path / "f", **settings)
    assert list(tmp_path.iterdir()) == []


def test_its_map_is_that_of_plain_clip_with_its_texts(context, tmp_path):
    context.save(tmp_path / "c.safetensors")
    scorer = coop(tmp_path / "c.safetensors").load().scorer
    plain = Detector.from_pretrained("micro", method="clip", class_name="plate").scorer
    assert scorer.core.taps == plain.core.taps
    plain.core.text_features = scorer.core.text_features
    pixels = np.random.default_rng(0).integers(0, 256, (1, 180, 180, 3)).astype(np.uint8)
    for ours, theirs in zip(scorer(pixels), plain(pixels), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_it_is_exported_with_its_context(context, tmp_path):
    context.save(tmp_path / "c.safetensors")
    spec = coop(tmp_path / "c.safetensors", image_score="mrad")
    report = export(spec, tmp_path / "out.onnx", dynamic_batch=True)
    assert max(report.score_difference, report.map_difference) < 1e-5
    exported, detector = Detector.from_exported(tmp_path / "out.onnx"), spec.load()
    assert exported.identity() == detector.identity()
    picture = PICTURES / "slate_crack.jpg"
    assert exported.predict(picture).pred_score == pytest.approx(
        detector.predict(picture).pred_score, abs=1e-5
    )


def test_an_export_without_a_class_name_is_one_message_and_no_file(context, tmp_path, cli):
    context.save(tmp_path / "c.safetensors")
    model = ["--backbone", "micro", "--method", "coop", "--trained", tmp_path / "c.safetensors"]
    done = cli("export", *model, "--output", tmp_path / "model.onnx")
    assert (done.code, done.err.count("error: "), "--class-name NAME" in done.err) == (2, 1, True)
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]
