"""Plain CLIP, CLIP-AC and words on the local path: against public code, and as a user meets them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from anomalyclip import (
    AnomalyCLIPError,
    AnomalyCLIPWarning,
    Detector,
    DetectorSpec,
    calibrate,
    evaluate,
    train,
)
from anomalyclip.anomaly import feature_surgery, probabilities, similarities
from anomalyclip.clip.backbone import load_backbone
from anomalyclip.clip.tokenizer import Tokenizer
from anomalyclip.demo import PICTURES
from anomalyclip.methods import METHODS
from anomalyclip.texts import phrase_features
from anomalyclip.words import words_of
from tests.conftest import rival_arrays
from tests.generated_sets import make_set

SIZES = (56, 70)
PICTURE = sorted(PICTURES.glob("*.jpg"))[0]


@pytest.fixture(scope="module")
def plain():
    return rival_arrays("plain")


def scored(backbone, pixels, **options):
    """The scorer of a spec, and its scores and maps."""
    scorer = DetectorSpec(backbone, image_size=pixels.shape[1], sigma=0.0, **options).load().scorer
    return scorer, *scorer(pixels)


# --- the published figures


def plain_tokens(name):
    """Ids of the two sentences of plain CLIP."""
    words = words_of(DetectorSpec(), Path("clip.pt"), words="clip", templates="none")
    return torch.cat(words.texts(Tokenizer(), name).sides)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ln_post", [False, True])
def test_plain_clip_is_the_published_one(size, ln_post, plain, rival_backbone, rival_inputs):
    pixels = rival_inputs[f"pixels_{size}"][:2]
    options = {"method": "clip", "class_name": "screw", "ln_post": ln_post or None}
    scorer, scores, maps = scored(rival_backbone, pixels, **options)
    name = "ln_post" if ln_post else "bare"
    np.testing.assert_allclose(scorer.core.text_features.numpy(), plain[f"{size}_text"], atol=1e-5)
    np.testing.assert_allclose(scores, plain[f"{size}_image_score_{name}"], atol=1e-5)
    np.testing.assert_allclose(maps, plain[f"{size}_map"], atol=1e-5)
    with torch.inference_mode():
        found = scorer.features(pixels)
        image = scorer.core.features(found).image
        _, grids = scorer.core.compare(found)
        sharp = probabilities(image, scorer.core.text_features, temperature=0.01)[:, 1]
    np.testing.assert_allclose(grids.numpy(), plain[f"{size}_patch_probability"], atol=1e-5)
    np.testing.assert_allclose(sharp.numpy(), plain[f"{size}_image_score_{name}_x100"], atol=5e-5)
    clip, tokens = load_backbone(rival_backbone).clip, plain_tokens("screw")
    np.testing.assert_allclose(phrase_features(clip, tokens).numpy(), plain[f"{size}_text_raw"], atol=1e-5)
    normalised = torch.nn.functional.normalize(image, dim=-1).numpy()
    np.testing.assert_allclose(normalised, plain[f"{size}_image_feature_{name}"], atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_clip_ac_is_the_published_one(size, plain, rival_backbone, rival_inputs):
    pixels = rival_inputs[f"pixels_{size}"][:2]
    scorer, scores, _ = scored(rival_backbone, pixels, method="clip-ac", class_name="screw", ln_post=True)
    text = scorer.core.text_features.numpy()
    np.testing.assert_allclose(text, plain[f"{size}_ac_text_normalised_mean"], atol=1e-5)
    np.testing.assert_allclose(scores, plain[f"{size}_ac_image_score_normalised_mean"], atol=1e-5)
    words = words_of(DetectorSpec(), Path(rival_backbone), words="clip-ac", templates="imagenet")
    raw = words.texts(Tokenizer(), "screw").text_features(load_backbone(rival_backbone).clip)
    np.testing.assert_allclose(raw.numpy(), plain[f"{size}_ac_text_raw_mean"], atol=1e-5)
    scorer.core.text_features = raw
    np.testing.assert_allclose(scorer(pixels)[0], plain[f"{size}_ac_image_score_raw_mean"], atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_words_on_the_local_path_are_the_published_untrained_baseline(
    size, plain, rival_backbone, rival_inputs
):
    pixels = rival_inputs[f"pixels_{size}"][:2]
    scorer, scores, maps = scored(rival_backbone, pixels, method="words")
    np.testing.assert_allclose(scorer.core.text_features.numpy(), plain[f"{size}_object_text"], atol=1e-5)
    np.testing.assert_allclose(scores, plain[f"{size}_dpam_image_score"], atol=1e-5)
    np.testing.assert_allclose(maps, plain[f"{size}_dpam_map"], atol=1e-5)
    with torch.inference_mode():
        _, grids = scorer.core.compare(scorer.features(pixels))
    np.testing.assert_allclose(grids.numpy(), plain[f"{size}_dpam_patch_probability"], atol=1e-5)


@pytest.mark.parametrize("size", [56, 84])
def test_six_blocks_and_feature_surgery_are_clip_surgery(size, rival_backbone, rival_inputs):
    """Two of its five texts make the two sides; its similarities of them, then the usual softmax."""
    expected = rival_arrays("surgery")
    pixels = rival_inputs[f"pixels_{size}"][1:2]
    options = {"dpam_layers": 6, "ln_post": True, "feature_surgery": True}
    scorer, _, maps = scored(rival_backbone, pixels, method="words", **options)
    texts = torch.from_numpy(expected[f"{size}_text"])
    core = scorer.core
    with torch.inference_mode():
        image, patches = core.features(scorer.features(pixels))
        np.testing.assert_allclose(image.numpy(), expected[f"{size}_features"][:, 0], atol=2e-5)
        np.testing.assert_allclose(patches[24].numpy()[:, 1:], expected[f"{size}_features"][:, 1:], atol=2e-5)
        for name, those in (("all", texts), ("two", texts[[0, 4]])):
            of_image = similarities(image, those)
            found = feature_surgery(similarities(patches[24][:, 1:], those), of_image)
            np.testing.assert_allclose(found.numpy(), expected[f"{size}_similarity_{name}"][:, 1:], atol=1e-5)
        if size == 56:
            sides = found[0].T.unflatten(1, (4, 4))  # of the two texts
            enlarged = 2 * core.enlarged((sides + 1) / 2).permute(1, 2, 0) - 1  # maps are within [0, 1]
            np.testing.assert_allclose(enlarged.numpy(), expected["56_map_two_raw"][0], atol=1e-5)
        core.text_features = texts[[0, 4]]
        _, grids = core.compare(scorer.features(pixels))
    abnormal = expected[f"{size}_similarity_two"][:, 1:, 1].reshape(grids.shape)
    np.testing.assert_allclose(grids.numpy(), 1 / (1 + np.exp(-2 * abnormal / 0.07)), atol=1e-4)
    assert maps.shape == (1, size, size)


# --- with a backbone of its own vocabulary


@pytest.mark.parametrize("method", ["words", "clip", "clip-ac"])
def test_each_predicts_and_is_calibrated(method, cli, tmp_path):
    model = ["--backbone", "micro", "--method", method]
    model += [] if method == "words" else ["--class-name", "object"]
    done = cli("calibrate", PICTURES, *model, "--false-alarm-rate", 0.4, "--output", tmp_path / "t.json")
    assert (done.code, done.complaints) == (0, [])
    done = cli("predict", PICTURE, *model, "--threshold", tmp_path / "t.json", "--output", tmp_path / "out")
    assert (done.code, done.complaints) == (0, [])
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert (settings["method"], settings["class_name"]) == (method, "object")
    record = json.loads((tmp_path / "out" / "predictions.jsonl").read_text())
    assert 0 <= record["pred_score"] <= 1


def test_own_words_decide_the_score():
    def score(abnormal):
        detector = Detector.from_pretrained("micro", method="words", normal=["flawless"], abnormal=abnormal)
        return detector.predict(PICTURES / "slate_crack.jpg").pred_score

    assert score(["crack"]) != pytest.approx(score(["stain"]), abs=1e-3)


def test_reports_say_which_words():
    detector = Detector.from_pretrained("micro", method="words", normal=["a {}"], abnormal=["damaged {}"])
    about = detector.describe()
    assert about.title == "micro, method words"
    assert about.facts["abnormal"] == ["damaged {}"]
    assert about.facts["class_name"] == "object"


def test_other_words_are_another_identity():
    options = {"method": "words", "normal": ["a {}"], "abnormal": ["damaged {}"]}
    base = DetectorSpec("micro", **options).load().identity()
    for change in (
        {"abnormal": ["cut"]},
        {"class_name": "plate"},
        {"feature_surgery": True},
        {"ln_post": True},
    ):
        assert DetectorSpec("micro", **(options | change)).load().identity() != base
    assert DetectorSpec("micro", **options, activation="quick-gelu").load().identity() != base


# --- classes


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "parts"
    return make_set(folder, classes=("nut", "washer"), normal=2, anomalous=2, side=60)


def test_an_evaluation_names_each_class_by_itself(root):
    found = evaluate(DetectorSpec("micro", method="clip"), root)
    scores = {
        image.image: image.score for result in found.results for one in result.classes for image in one.images
    }
    assert found.about["identity"]["class_name"] is None
    for name in ("nut", "washer"):
        detector = Detector.from_pretrained("micro", method="clip", class_name=name)
        for image in (root / name / "test" / "good").iterdir():
            path = image.relative_to(root).as_posix()
            assert scores[path] == pytest.approx(detector.predict(image).pred_score, abs=1e-6)


def test_a_class_that_cannot_be_named_is_refused_before_anything_is_scored(tmp_path):
    root = make_set(tmp_path / "parts", classes=("nut", "gizmo"), normal=1, anomalous=1, side=60)
    with pytest.raises(AnomalyCLIPError, match=r"class 'gizmo'.*'gizmo' is not in.*--class-name"):
        evaluate(DetectorSpec("micro", method="clip"), root, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert (
        evaluate(DetectorSpec("micro", method="clip", class_name="nut"), root).mean["image_auroc"] is not None
    )


def test_without_a_class_name_a_method_refuses_to_guess(root, cli, tmp_path):
    spec = DetectorSpec("micro", method="clip")
    for use in (spec.load, lambda: calibrate(spec, root / "nut" / "test" / "good", false_alarm_rate=0.5)):
        with pytest.raises(AnomalyCLIPError, match=r"method 'clip' puts the name.*--class-name"):
            use()
    done = cli("predict", PICTURE, "--backbone", "micro", "--method", "clip", "--output", tmp_path / "out")
    assert (done.code, done.err.count("error: "), "--class-name" in done.err) == (2, 1, True)
    assert not (tmp_path / "out").exists()


def test_words_that_name_no_class_need_none():
    spec = DetectorSpec("micro", method="clip", normal=["flawless"], abnormal=["damaged"])
    assert spec.load().identity()["class_name"] is None


# --- what is refused


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "words", "templates": "winclip"}, "the word 'cropped' is not in"),
        ({"method": "words", "normal": ["flawless"], "abnormal": ["rusty {}"]}, "the word 'rusty'.*crack"),
        ({"method": "words", "class_name": "gizmo"}, "the word 'gizmo'"),
        ({"method": "words", "normal": ["a " * 30], "abnormal": ["cut"]}, "tokens.*at most 24"),
        ({"method": "words", "templates": "mine.txt"}, "templates 'mine.txt'"),
        ({"method": "words", "local_attention": "x"}, "local attention 'x'"),
        ({"method": "clip", "class_name": "nut", "dpam_layers": 2}, "'clip' has no dpam layers"),
        ({"method": "clip", "class_name": "nut", "prompts": "visa"}, "'clip' has no prompts"),
        ({"method": "anomalyclip", "class_name": "nut"}, "'anomalyclip' has no class name"),
        ({"method": "anomalyclip", "normal": ["a"], "abnormal": ["b"]}, "no normal and no abnormal"),
    ],
)
def test_what_cannot_be_is_one_clear_error(options, says):
    with pytest.raises(AnomalyCLIPError, match=says):
        DetectorSpec("micro", **options).load()


def test_a_backbone_with_its_own_vocabulary_and_no_tokenizer_is_one_error(tmp_path):
    from anomalyclip.backbones.table import ASSETS

    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((ASSETS / "micro" / name).read_bytes())
    with pytest.raises(AnomalyCLIPError, match="tokenizer.json: missing"):
        DetectorSpec(str(tmp_path), method="words").load()


def test_every_method_says_which_options_it_takes():
    assert {"clip", "clip-ac", "words"} < set(METHODS)
    assert METHODS["words"].options > {"feature_surgery", "dpam_layers", "normal", "templates"}


def test_prompts_say_with_which_local_attention_they_were_learned(root, tmp_path):
    spec = DetectorSpec("micro", image_size=96, local_attention="qkv")
    run = train(root, spec, output=tmp_path / "run", cache=tmp_path / "features", epochs=1)
    own = replace(spec, prompts=str(run.prompts))
    assert own.load().remarks() == []
    with pytest.warns(
        AnomalyCLIPWarning, match="prompts were learned with other settings.*local_attention: qkv then, v now"
    ):
        replace(own, local_attention=None).load()
    plain = train(
        root,
        DetectorSpec("micro", image_size=96),
        output=tmp_path / "v",
        cache=tmp_path / "features",
        epochs=1,
    )
    assert len(list((tmp_path / "features").iterdir())) == 2  # features of one are not taken for the other's
    assert run.prompts.read_bytes() != plain.prompts.read_bytes()
