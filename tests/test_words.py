"""Words as prompts: what the published methods say, in whose sentences, and what their text features are."""

import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from anomalyclip import AnomalyCLIPError, DetectorSpec
from anomalyclip.backbones.table import ASSETS
from anomalyclip.clip.backbone import load_backbone
from anomalyclip.clip.tokenizer import Tokenizer
from anomalyclip.spec import TEMPLATES
from anomalyclip.texts import phrase_features
from anomalyclip.words import Words, templates_named, words_of
from tests.conftest import rival_arrays

ELSEWHERE = Path("nowhere/clip.pt")
PUBLISHED = {
    # count and sha256 of the sentences of "metal_nut", joined by newlines, as the public code made them
    ("winclip", "normal"): (147, "968a120232467cde2b0f4a7135171a698e1b0831ae6e5021b1236a6afa3bfaaa"),
    ("winclip", "abnormal"): (84, "df33ed29e85077da9d4aa009ab52d3b83b41dd1f3bd8c893c8d97168a0692e3c"),
    ("april-gan", "normal"): (245, "c6f43eb8527ef1320129d67986aecbdf9497a61db185bca60c96b9b70175d241"),
    ("april-gan", "abnormal"): (175, "0a32437cd22bd08de411f626e3c7be569bb7272cb186cb23bc929dd30c09e8d3"),
}


def published(name, *, templates=None, each_normalised=False, **spec):
    return words_of(
        DetectorSpec(**spec),
        ELSEWHERE,
        words=name,
        templates=templates or name,
        each_normalised=each_normalised,
    )


# --- what is said


@pytest.mark.parametrize("name", ["winclip", "april-gan"])
def test_the_sentences_of_published_methods_are_theirs_in_their_order(name):
    for side, texts in zip(("normal", "abnormal"), published(name).phrases("metal_nut"), strict=True):
        found = len(texts), sha256("\n".join(texts).encode()).hexdigest()
        assert found == PUBLISHED[name, side]


def test_winclips_sentences_have_the_published_slip_and_the_corrected_ones_do_not():
    slip, corrected = templates_named("winclip"), templates_named("winclip-22")
    assert (len(slip), len(set(slip)), len(set(corrected))) == (21, 20, 22)
    assert set(corrected) - set(slip) == {"a cropped photo of a {}.", "a jpeg corrupted photo of a {}."}


def test_every_set_of_sentences_says_where_it_is_from():
    content = json.loads((ASSETS / "words" / "words.json").read_text())
    assert tuple(content["templates"]) == TEMPLATES
    for one in content["templates"].values():
        assert one["source"]
        assert one["licence"]
        assert all("{}" in sentence for sentence in one["sentences"])
    assert all(one["source"] for one in content["words"].values())


def test_own_words_are_said_as_they_are_unless_sentences_are_asked_for():
    own = {"normal": ["flawless {}", "no scratch"], "abnormal": ["scratched {}"]}
    assert published("winclip", **own).phrases("nut") == (["flawless nut", "no scratch"], ["scratched nut"])
    said = published("winclip", **own, templates="imagenet")
    assert said.phrases("nut")[1] == ["scratched nut"]
    said = words_of(
        DetectorSpec(**own, templates="april-gan"), ELSEWHERE, words="winclip", templates="winclip"
    )
    assert len(said.phrases("nut")[0]) == 2 * 35
    assert said.phrases("nut")[1][0] == "a bad photo of a scratched nut."


def test_only_words_with_a_place_for_it_name_the_class():
    assert published("winclip").name_class
    own = published("winclip", normal=["flawless"], abnormal=["cracked"])
    assert not own.name_class
    assert own.phrases(None) == (["flawless"], ["cracked"])


def test_sentences_may_come_from_a_file(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("an X-ray of a {}\n\n  a slice of a {}  \n")
    assert templates_named(str(file)) == ("an X-ray of a {}", "a slice of a {}")


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "no line"), (b"a photo\n", r"'a photo' has no \{\}"), (b"\xff{}", "not a readable text file")],
)
def test_a_file_of_no_sentences_is_one_error_with_an_example(content, says, tmp_path):
    file = tmp_path / "mine.txt"
    file.write_bytes(content)
    with pytest.raises(AnomalyCLIPError, match=f"mine.txt.*{says}"):
        templates_named(str(file))


@pytest.mark.parametrize("name", ["winklip", "", "."])
def test_an_unknown_name_of_sentences_lists_those_that_there_are(name):
    with pytest.raises(
        AnomalyCLIPError, match=rf"templates '{name}'.*winclip, winclip-22, april-gan.*nor a file"
    ):
        templates_named(name)


def test_the_digest_is_of_all_that_is_said_and_of_how_it_is_averaged():
    base = Words(("good {}",), ("bad {}",))
    others = [
        Words(("bad {}",), ("good {}",)),
        Words(("good {}", "bad {}"), ("bad {}",)),
        Words(("good {}",), ("bad {}",), ("a {}.",)),
        Words(("good {}",), ("bad {}",), each_normalised=True),
    ]
    assert Words(("good {}",), ("bad {}",)).digest() == base.digest()
    assert len({base.digest(), *(other.digest() for other in others)}) == 5


# --- ids of words


def test_clips_vocabulary_is_in_the_package(rivals):
    tokenizer = Tokenizer()
    plain = tokenizer(["a photo of a normal screw.", "a photo of an anomalous screw."])
    assert plain[:, :11].tolist() == rivals["plain_ids"].tolist()
    for side, name in zip(published("winclip").phrases("object"), ("normal", "abnormal"), strict=True):
        expected = rivals[f"ensemble_{name}_ids"]
        assert tokenizer(side)[:, : expected.shape[1]].tolist() == expected.tolist()


@pytest.mark.parametrize("text", ["metal_nut", "  Two   SPACES "])
def test_case_and_spaces_mean_nothing_and_an_underscore_is_a_word(text):
    tokenizer = Tokenizer()
    assert (
        tokenizer([text]).tolist() == tokenizer([" ".join(text.lower().replace("_", " _ ").split())]).tolist()
    )


def test_any_character_has_ids_in_clips_vocabulary():
    ids = Tokenizer()(["naïve 缺陷 🔧 it's 12%"])[0]
    assert ids[0] == 49406
    assert ids.max() == 49407
    assert (ids[1 : int(ids.argmax())] < 49406).all()


def test_an_unknown_word_of_a_small_vocabulary_is_named_with_those_that_there_are():
    tokenizer = Tokenizer(ASSETS / "micro" / "tokenizer.json", context_length=24)
    assert (len(tokenizer.words()), "x" in tokenizer.words()) == (172, False)  # "x" is only a placeholder
    with pytest.raises(
        AnomalyCLIPError, match=r"'a broken plate': the word 'broken'.*knows: a, accordion.*wood"
    ):
        tokenizer(["flawless plate", "a broken plate"])


# --- text features


@pytest.mark.parametrize(
    ("rule", "name", "options"),
    [
        ("winclip_normalised", "winclip", {}),
        ("april_quickgelu", "april-gan", {"each_normalised": True}),
        ("april_gelu", "april-gan", {"each_normalised": True}),
    ],
)
def test_text_features_equal_the_published_ones(rule, name, options, rival_backbone):
    activation = "gelu" if rule.endswith("_gelu") else None
    clip = load_backbone(rival_backbone, activation=activation).clip
    words, tokenizer, expected = published(name, **options), Tokenizer(), rival_arrays("text")
    for index, class_name in enumerate(expected["names"]):
        features = words.texts(tokenizer, str(class_name)).text_features(clip)
        if name == "winclip":
            sides = [phrase_features(clip, tokenizer(side)) for side in words.phrases(str(class_name))]
            raw = torch.stack([side.mean(dim=0) for side in sides])
            np.testing.assert_allclose(raw.numpy(), expected["winclip_raw_mean"][index], atol=1e-5)
        np.testing.assert_allclose(features.numpy(), expected[rule][index], atol=1e-5)


def test_imagenets_sentences_average_to_surgerys_text_feature(rival_backbone):
    """Its list has five more; they end in "in the scene." and are part of APRIL-GAN's."""
    clip, expected = load_backbone(rival_backbone).clip, rival_arrays("text")
    more = [sentence for sentence in templates_named("april-gan") if "in the scene" in sentence]
    sentences = [*templates_named("imagenet"), *more]
    assert len(sentences) == 85
    for name, feature in zip(expected["names"], expected["surgery_normalised"], strict=True):
        ids = Tokenizer()([sentence.replace("{}", str(name)) for sentence in sentences])
        raw = torch.nn.functional.normalize(phrase_features(clip, ids), dim=-1).mean(dim=0)
        np.testing.assert_allclose((raw / raw.norm()).numpy(), feature, atol=1e-5)
