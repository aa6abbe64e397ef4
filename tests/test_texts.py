"""Texts that were not learned: plain phrases and ensembles of them, against what public code computed."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from anomalyclip.clip.model import CLIP, CLIPConfig
from anomalyclip.texts import Phrases
from tests.conftest import torch_scorer


def ids(array):
    return torch.from_numpy(array.astype(np.int64))


@pytest.fixture
def ensemble(rivals):
    """WinCLIP's states and templates around "object": 147 phrases of the normal side, 84 of the abnormal one."""
    return Phrases(ids(rivals["ensemble_normal_ids"]), ids(rivals["ensemble_abnormal_ids"]))


def phrases(count, *, length=12, seed=0):
    """Ids of that many phrases of 1 to 8 words, with the end token 49 and zeros behind it."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.zeros(count, length, dtype=torch.int64)
    for row in rows:
        words = int(torch.randint(1, 9, (), generator=draw))
        row[: words + 2] = torch.tensor([48, *torch.randint(1, 48, (words,), generator=draw), 49])
    return rows


@pytest.fixture
def small():
    torch.manual_seed(0)
    return CLIP(CLIPConfig(16, 28, 14, 64, 2, 1, 64, 3, 1, 20, 50)).requires_grad_(False).eval()


def one_by_one(clip, rows):
    """The raw feature of each phrase alone, cut after its end token."""
    found = []
    for row in rows:
        end = int((row == row.max()).nonzero()[0])
        found.append(clip.encode_text(clip.token_embedding(row[None, : end + 1]), torch.tensor([end]))[0])
    return torch.stack(found)


def test_one_phrase_a_side_has_the_published_text_features(rivals, worded_clip):
    normal, abnormal = ids(rivals["plain_ids"]).split(1)
    features = Phrases(normal, abnormal).text_features(worded_clip)
    np.testing.assert_allclose(features.numpy(), rivals["plain_text"], atol=1e-5)


def test_winclips_ensemble_has_its_published_text_features(rivals, worded_clip, ensemble):
    """The mean of raw features, then normalised: the mean of normalised ones differs in the third digit."""
    assert [len(side) for side in ensemble.sides] == [147, 84]
    features = ensemble.text_features(worded_clip)
    np.testing.assert_allclose(features.numpy(), rivals["ensemble_text"], atol=1e-5)
    other = torch.stack(
        [F.normalize(one_by_one(worded_clip, side), dim=-1).mean(dim=0) for side in ensemble.sides]
    )
    assert (F.normalize(other, dim=-1) - torch.from_numpy(rivals["ensemble_text"])).abs().max() > 1e-4


def test_without_learned_prompts_the_scorer_is_the_published_code_with_that_ensemble(
    rivals, worded_clip, ensemble
):
    """AnomalyCLIP's blocks and WinCLIP's words: the whole way from bytes to scores and patches."""
    scorer = torch_scorer(worded_clip, ensemble, image_size=56, sigma=0.0, device="cpu")
    scores, maps = scorer(rivals["pixels"])
    np.testing.assert_allclose(scores, rivals["untrained_score"], atol=1e-5)
    with torch.inference_mode():
        _, patches = scorer.core.compare(scorer.features(rivals["pixels"]))
    np.testing.assert_allclose(patches.numpy(), rivals["untrained_patches"], atol=1e-5)
    published = torch.from_numpy(rivals["untrained_patches"])[:, None]
    enlarged = F.interpolate(published, (56, 56), mode="bilinear", align_corners=False)[:, 0]
    np.testing.assert_allclose(maps, enlarged.numpy(), atol=1e-5)
    assert scorer.identity()["prompts_sha256"] == ensemble.digest()


@pytest.mark.parametrize("count", [1, 63, 64, 65, 130])
def test_many_phrases_together_are_the_mean_of_each_alone(small, count):
    normal, abnormal = phrases(count), phrases(3, seed=1)
    features = Phrases(normal, abnormal).text_features(small)
    means = torch.stack([one_by_one(small, side).mean(dim=0) for side in (normal, abnormal)])
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, means / means.norm(dim=-1, keepdim=True), atol=1e-6, rtol=1e-5)


def test_padding_changes_no_feature(small):
    short, long = (Phrases(phrases(5, length=n), phrases(4, length=n, seed=1)) for n in (10, 20))
    torch.testing.assert_close(short.text_features(small), long.text_features(small))


def test_the_digest_tells_what_was_said_on_which_side():
    three, two = phrases(3), phrases(2, seed=1)
    known = Phrases(three, two).digest()
    assert Phrases(three.clone(), two.clone()).digest() == known
    assert len(known) == 64
    changed = three.clone()
    changed[1, 1] += 1
    others = [
        Phrases(two, three),  # the sides exchanged
        Phrases(torch.cat([three, two[:1]]), two[1:]),  # a phrase that changed its side
        Phrases(changed, two),
    ]
    digests = {known, *(other.digest() for other in others)}
    assert len(digests) == 1 + len(others)
