"""Which words matter: the scores without one of them are those of a detector that was never told it."""

import json

import pytest

from anomalyclip import AnomalyCLIPError, Detector, DetectorSpec, evaluate
from anomalyclip.demo import PICTURES
from anomalyclip.evaluation.wording import study_words
from tests.generated_sets import make_set

NORMAL, ABNORMAL = ["flawless {}", "{} without flaws"], ["{} with a crack", "damaged {}", "{} with a stain"]
IMAGES = sorted(PICTURES.glob("slate_*.jpg"))


def spec(**options):
    return DetectorSpec("micro", method="words", normal=NORMAL, abnormal=ABNORMAL, **options)


def scores(normal, abnormal, **options):
    options = {"method": "words", **options}
    detector = Detector.from_pretrained("micro", normal=normal, abnormal=abnormal, **options)
    return [prediction.pred_score for prediction in detector.predict(IMAGES)]


@pytest.mark.parametrize("image_score", ["text", "max"])
def test_the_change_is_that_of_a_detector_without_these_words(image_score):
    study = study_words(spec(image_score=image_score), IMAGES)
    assert (study.images, study.kept, study.auroc) == (2, (), None)
    whole = scores(NORMAL, ABNORMAL, image_score=image_score)
    assert study.score == pytest.approx(sum(whole) / 2, abs=1e-6)
    assert {(effect.side, effect.phrase) for effect in study.effects} == {
        *(("normal", phrase) for phrase in NORMAL),
        *(("abnormal", phrase) for phrase in ABNORMAL),
    }
    for effect in study.effects:
        rest = [[p for p in side if p != effect.phrase] for side in (NORMAL, ABNORMAL)]
        changes = [
            now - before for now, before in zip(scores(*rest, image_score=image_score), whole, strict=True)
        ]
        assert effect.score == pytest.approx(sum(changes) / 2, abs=1e-5)
        assert effect.largest == pytest.approx(max(changes, key=abs), abs=1e-5)
        assert effect.map > 0
    largest = [abs(effect.largest) for effect in study.effects]
    assert largest == sorted(largest, reverse=True)


def test_with_labels_the_change_of_the_auroc_is_that_of_two_evaluations(tmp_path):
    root = make_set(
        tmp_path / "parts", classes=("nut", "washer"), normal=3, anomalous=3, side=60, contrast=20
    )
    options = {"method": "clip", "image_size": 96, "normal": NORMAL, "abnormal": ABNORMAL}
    study = study_words(DetectorSpec("micro", **options), root, batch_size=2)
    whole = evaluate(DetectorSpec("micro", **options), root).mean["image_auroc"]
    assert study.auroc == pytest.approx(whole)
    for effect in study.effects:
        own = {side: [p for p in options[side] if p != effect.phrase] for side in ("normal", "abnormal")}
        without = evaluate(DetectorSpec("micro", **(options | own)), root).mean["image_auroc"]
        assert effect.auroc == pytest.approx(without - whole)


def test_the_command_shows_them_and_names_images_that_cannot_be_used(cli, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    words = [word for n in NORMAL for word in ("--normal", n)] + ["--abnormal", "damaged {}"]
    done = cli("words", *IMAGES, tmp_path / "broken.png", "--backbone", "micro", *words)
    assert done.code == 1
    assert "broken.png" in done.err
    assert all(phrase in done.out for phrase in NORMAL)
    assert "2 images" in done.out
    assert "alone on their side, so not left out: damaged {}" in done.out
    done = cli("words", *IMAGES, "--backbone", "micro", *words, "--json")
    content = json.loads(done.out)
    assert content["identity"]["method"] == "words"
    assert [effect["auroc"] for effect in content["effects"]] == [None, None]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "anomalyclip"}, "method 'anomalyclip': expected one of clip, clip-ac, words$"),
        ({"method": "clip"}, "'clip' puts the name.*--class-name"),
        ({"method": "words", "normal": ["flawless"], "abnormal": ["cut"]}, "each side has one text"),
        ({"method": "clip", "class_name": "nut", "dpam_layers": 2}, "'clip' has no dpam layers"),
        ({"method": "words", "tile": 64}, "tile 64: words are studied on whole images"),
    ],
)
def test_what_cannot_be_studied_is_one_error(options, says):
    with pytest.raises(AnomalyCLIPError, match=says):
        study_words(DetectorSpec("micro", **options), IMAGES)


def test_the_command_offers_the_methods_with_words_and_starts_from_words(cli):
    said = " ".join(cli("words", "--help").out.split())
    assert "words|clip|clip-ac" in said
    assert "[default: words]" in said
    assert "default: anomalyclip" not in said


def test_a_class_that_cannot_be_named_is_said_with_what_to_do(tmp_path):
    root = make_set(tmp_path / "parts", classes=("nut", "gizmo"), normal=1, anomalous=1, side=60)
    with pytest.raises(AnomalyCLIPError, match="class 'gizmo'.*--class-name NAME names all classes"):
        study_words(DetectorSpec("micro", method="clip", image_size=60), root)


def test_a_data_set_that_is_named_must_be_one(tmp_path):
    with pytest.raises(AnomalyCLIPError, match="dataset 'mvtec': give the folder"):
        study_words(spec(), IMAGES, dataset="mvtec")
    with pytest.raises(AnomalyCLIPError):
        study_words(spec(), tmp_path)
