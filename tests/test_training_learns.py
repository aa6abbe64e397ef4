"""Learned prompts are worth something: on classes never seen they beat the untrained start, and words in most."""

import numpy as np
import pytest
import torch

from anomalyclip.backbones.table import ASSETS
from anomalyclip.clip.backbone import load_clip
from anomalyclip.data.listing import load_samples
from anomalyclip.data.synthetic import HELD_OUT_SURFACES, TRAINING_SURFACES
from anomalyclip.data.synthetic.writer import write_dataset
from anomalyclip.detector import Detector
from anomalyclip.images import read_mask
from anomalyclip.metrics import auroc, average_precision
from anomalyclip.prompts import load_prompts
from anomalyclip.texts import Phrases
from anomalyclip.training.start import prompt_ids, prompt_tokens, start_prompts
from tests.conftest import torch_scorer


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Twelve classes to learn from, mostly with defects as in MVTec AD's test split, and nine others to detect in."""
    folder = tmp_path_factory.mktemp("sets")
    write_dataset(folder / "known", sorted(TRAINING_SURFACES)[:12], normal=1, anomalous=24, seed=1)
    write_dataset(folder / "unseen", sorted(HELD_OUT_SURFACES), normal=6, anomalous=6, seed=2)
    return folder


def measure(clip, prompts, root):
    """Return image AUROC and AP, pixel AUROC and AP, F1 at 0.5, and the cosine between the two texts."""
    scorer = torch_scorer(clip, prompts)
    detector = Detector(scorer)
    samples = load_samples(root)
    predictions = list(detector.stream([root / sample.image for sample in samples]))
    size = scorer.image_size
    empty = np.zeros((size, size), bool)
    masks = np.stack([read_mask(root / sample.mask, size) if sample.mask else empty for sample in samples])
    maps = np.stack([prediction.anomaly_map for prediction in predictions])
    labels, scores = (
        np.array([sample.anomaly for sample in samples]),
        np.array([prediction.pred_score for prediction in predictions]),
    )
    hits = (labels & (scores >= 0.5)).sum()
    return {
        "image_auroc": auroc(labels, scores),
        "image_ap": average_precision(labels, scores),
        "pixel_auroc": auroc(masks, maps),
        "pixel_ap": average_precision(masks, maps),
        "f1": 2 * hits / max(labels.sum() + (scores >= 0.5).sum(), 1),
        "text_cosine": float(torch.dot(*scorer.core.text_features)),
    }


@pytest.mark.slow
def test_learned_prompts_beat_the_untrained_start_and_localise_better_than_words_on_unseen_classes(
    folders, cli, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    done = cli("train", folders / "known", "--backbone", "micro", "--cache", "features", "--output", "run")
    assert done.code == 0, done.err
    clip, home = load_clip("micro"), ASSETS / "micro"
    config = clip.config
    ids = prompt_ids(prompt_tokens(clip, home), length=0, context_length=config.context_length)
    figures = {
        "untrained": measure(clip, start_prompts(clip, home, seed=111), folders / "unseen"),
        "handwritten": measure(clip, Phrases(ids[:1], ids[1:]), folders / "unseen"),
        "learned": measure(clip, load_prompts("run/prompts.safetensors"), folders / "unseen"),
    }
    for name, values in figures.items():
        print(name, {key: round(float(value), 4) for key, value in values.items()})
    learned, untrained, handwritten = figures["learned"], figures["untrained"], figures["handwritten"]
    for metric in ("image_auroc", "pixel_auroc", "image_ap", "pixel_ap"):
        assert learned[metric] > untrained[metric] + 0.2, metric
    assert learned["pixel_auroc"] > max(0.95, handwritten["pixel_auroc"] + 0.05)
    assert learned["pixel_ap"] > handwritten["pixel_ap"] + 0.09
    assert learned["f1"] > max(untrained["f1"], handwritten["f1"]) + 0.04
    # The captions used "damaged" of most defects: as a word it ranks images as well as prompts from 300 images do.
    assert learned["image_auroc"] > handwritten["image_auroc"] - 0.04
    assert learned["text_cosine"] < min(untrained["text_cosine"], handwritten["text_cosine"])
