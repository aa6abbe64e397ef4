"""The embedded micro backbone: what is shipped, and that it detects on families that it never saw."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import anomalyclip
from anomalyclip import Detector
from anomalyclip.clip.tokenizer import Tokenizer
from anomalyclip.clip.weights import read_weights
from anomalyclip.data.synthetic import HELD_OUT_SURFACES, TRAINING_DEFECTS, generate
from anomalyclip.evaluation.controls import CONTROLS
from anomalyclip.metrics import auroc
from anomalyclip.prompts import Prompts, load_prompts

ASSETS = Path(anomalyclip.__file__).parent / "assets" / "micro"


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.from_pretrained("micro", device="cpu")


@pytest.fixture(scope="module")
def unseen() -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Six flawless and six defective images of one product of each held-out surface."""
    kinds = list(TRAINING_DEFECTS)
    samples = []
    for number, name in enumerate(HELD_OUT_SURFACES):
        for index in range(12):
            defect = kinds[(number + index) % len(kinds)] if index >= 6 else None
            sample = generate(name, seed=77, index=index, defect=defect, style=77)
            samples.append((name, sample.image, sample.mask))
    return samples


def test_what_is_shipped_is_small_and_whole():
    files = {path.name: path.stat().st_size for path in ASSETS.iterdir() if path.is_file()}
    assert set(files) == {
        "README.md",
        "config.json",
        "model.safetensors",
        "prompts.safetensors",
        "threshold.json",
        "tokenizer.json",
        "words.json",
    }
    assert sum(files.values()) <= 8_000_000
    weights = read_weights(ASSETS)
    assert weights.config.patch_size == 12
    assert {str(tensor.dtype) for tensor in weights.state_dict.values()} == {"torch.float16"}


def test_the_vocabulary_has_what_prompts_need_and_the_end_token_is_the_largest():
    tokenizer = Tokenizer(ASSETS / "tokenizer.json", context_length=24)
    tokens = tokenizer.prompt_tokens()
    assert tokens.end == read_weights(ASSETS).config.vocab_size - 1
    row = tokenizer(["X X damaged object."])[0]
    expected = [
        tokens.start,
        tokens.placeholder,
        tokens.placeholder,
        tokens.damaged,
        tokens.object,
        tokens.period,
    ]
    assert row[:7].tolist() == [*expected, tokens.end]
    assert not row[7:].any()


def test_prompts_are_learned_vectors_around_the_words_object_and_damaged_object():
    prompts = load_prompts(ASSETS / "prompts.safetensors")
    config = read_weights(ASSETS).config
    assert prompts.length == 12
    assert len(prompts.deep_tokens) == config.text_layers - 1
    tokens = Tokenizer(ASSETS / "tokenizer.json", context_length=24).prompt_tokens()
    normal, abnormal = (row[row.nonzero()[:, 0]].tolist() for row in prompts.token_ids)
    fill = [tokens.start, *[tokens.placeholder] * 12]
    assert normal == [*fill, tokens.object, tokens.period, tokens.end]
    assert abnormal == [*fill, tokens.damaged, tokens.object, tokens.period, tokens.end]


def test_it_is_used_at_180_pixels_with_the_local_path_in_the_last_four_blocks(detector):
    assert detector.scorer.image_size == 180
    assert detector.identity()["dpam_layers"] == 4


def mean_aurocs(detector, unseen):
    """Image and pixel AUROC of each held-out surface, averaged."""
    predictions = [detector.predict(image) for _, image, _ in unseen]
    image_aurocs, pixel_aurocs = [], []
    for name in HELD_OUT_SURFACES:
        mine = [(p, mask) for p, (n, _, mask) in zip(predictions, unseen, strict=True) if n == name]
        image_aurocs.append(auroc([int(mask.any()) for _, mask in mine], [p.pred_score for p, _ in mine]))
        small = [np.asarray(Image.fromarray(mask).resize((180, 180))) for _, mask in mine]
        maps = np.stack([p.anomaly_map for p, _ in mine])
        pixel_aurocs.append(auroc(np.stack(small).astype(int), maps))
    return np.mean(image_aurocs), np.mean(pixel_aurocs)


def test_defects_on_unseen_surfaces_score_higher_and_are_where_the_map_says(detector, unseen):
    image_auroc, pixel_auroc = mean_aurocs(detector, unseen)
    assert image_auroc > 0.85
    assert pixel_auroc > 0.85
    for name, control in CONTROLS.items():
        of_control = mean_aurocs(Detector(control(180)), unseen)
        assert image_auroc > of_control[0] + 0.03, name
        assert pixel_auroc > of_control[1] + 0.1, name


def test_the_local_path_localises_and_learned_prompts_detect_as_well_as_words_of_the_captions(
    detector, unseen
):
    """Of the paper's order the safe part. `python -m recipes.micro.evaluate` has all of it, with more images: learned
    prompts a little above words that the captions used, and those far above the same words without the local path.
    """
    from anomalyclip.clip.backbone import load_clip
    from anomalyclip.texts import Phrases
    from tests.conftest import torch_scorer

    ids = Tokenizer(ASSETS / "tokenizer.json", context_length=24)(["object.", "damaged object."])
    words = Phrases(ids[:1], ids[1:])

    def found(prompts, layers):
        scorer = torch_scorer(load_clip("micro"), prompts, dpam_layers=layers, device="cpu")
        return mean_aurocs(Detector(scorer), unseen)

    plain, local, learned = found(words, 0), found(words, 4), mean_aurocs(detector, unseen)
    assert local[1] > plain[1] + 0.15
    assert learned[0] > local[0] - 0.02
    assert learned[1] > local[1] - 0.03


def test_learning_moved_the_prompts_from_chance_to_detection(detector, unseen):
    """The same prompts before training, which is what `anomalyclip train` starts from, detect far worse."""
    from anomalyclip.clip.backbone import load_clip
    from tests.conftest import torch_scorer

    clip = load_clip("micro")
    learned = load_prompts(ASSETS / "prompts.safetensors")
    start = Prompts.initial(
        learned.token_ids, width=learned.width, depth=4, generator=torch.Generator().manual_seed(0)
    )
    untrained = torch_scorer(clip, start, device="cpu")
    pixels = np.stack([np.asarray(Image.fromarray(image).resize((180, 180))) for _, image, _ in unseen])
    labels = np.array([mask.any() for *_, mask in unseen])
    assert auroc(labels, detector.scorer(pixels)[0]) > auroc(labels, untrained(pixels)[0]) + 0.1
