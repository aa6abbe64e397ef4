"""Distances to references: exact, as published, in bounded memory, and on a scale that the references alone give."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from anomalyclip.memory import (
    coreset,
    distance,
    flattened,
    lifted,
    nearest,
    nearest_rows,
    on_scale,
    scale_of,
    unknown_share,
    with_neighbours,
    within,
    without,
)

GOLDEN = Path(__file__).parent / "golden" / "few_shot.npz"


@pytest.fixture(scope="module")
def published():
    with np.load(GOLDEN) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture
def chance():
    return torch.Generator().manual_seed(0)


def unit(*shape, chance):
    return F.normalize(torch.randn(*shape, generator=chance), dim=-1)


@pytest.mark.parametrize("count", [1, 4])
def test_distances_of_raw_tokens_are_april_gans(published, count):
    tokens, references = published["april_tokens"], published["april_references"]
    for block in range(tokens.shape[1]):
        bank = F.normalize(references[:count, block].flatten(0, 1), dim=-1)
        found = nearest(F.normalize(tokens[:, block], dim=-1), bank).view(-1, 4, 4)
        torch.testing.assert_close(found, published[f"april_distance_{count}"][:, block], atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [1, 4])
def test_half_the_distances_of_windows_are_winclips(published, count):
    bank = F.normalize(published["winclip_references"][:count].flatten(0, 1), dim=-1)
    found = nearest(F.normalize(published["winclip_windows"], dim=-1), bank) / 2
    torch.testing.assert_close(found, published[f"winclip_distance_{count}"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("block", [1, 7, 4096])
def test_a_bank_in_blocks_gives_the_same_distances(chance, block):
    features, bank = unit(2, 9, 8, chance=chance), unit(20, 8, chance=chance)
    expected = 1 - (features @ bank.T).amax(dim=-1)
    torch.testing.assert_close(nearest(features, bank, block=block), expected)
    rows = nearest_rows(features, bank, block=block)
    assert torch.equal(rows, (features @ bank.T).argmax(dim=-1))


def test_the_distance_is_the_mean_over_banks(chance):
    features = {name: unit(1, 4, 8, chance=chance) for name in "ab"}
    banks = {name: unit(6, 8, chance=chance) for name in "ab"}
    both = [nearest(features[name], banks[name]) for name in "ab"]
    torch.testing.assert_close(distance(features, banks), (both[0] + both[1]) / 2)


def test_a_reference_is_compared_with_the_others_alone(chance):
    banks = {"a": unit(12, 8, chance=chance)}
    owner = torch.tensor([0] * 4 + [1] * 4 + [2] * 4)
    own = {"a": banks["a"][4:8][None]}
    assert distance(own, banks).abs().max() < 1e-6
    others = torch.cat([banks["a"][:4], banks["a"][8:]])
    found = distance(own, without(banks, {"a": owner}, 1))
    torch.testing.assert_close(found, nearest(own["a"], others))


def test_neighbours_are_the_mean_of_those_there_are():
    tokens = torch.zeros(1, 9, 2)
    tokens[..., 0], tokens[0, 0] = 3.0, torch.tensor([0.0, 5.0])  # one patch in the corner differs
    found = with_neighbours(tokens)[0]
    corner = F.normalize(torch.tensor([0.75, 1 + 0.25]), dim=0)  # itself and 3 neighbours
    centre = F.normalize(torch.tensor([1 + 8 / 9, 1 / 9]), dim=0)
    torch.testing.assert_close(found[0], corner)
    torch.testing.assert_close(found[4], centre)
    torch.testing.assert_close(found[8], torch.tensor([1.0, 0.0]))


def test_the_scale_comes_from_normal_patches_and_is_never_zero():
    assert scale_of(torch.arange(1001.0) / 1000) == pytest.approx(0.99)
    assert scale_of(torch.zeros(4, 4)) > 0
    assert on_scale(torch.tensor([0.0, 0.2, 1.8]), 0.2).tolist() == pytest.approx([0, 0.5, 0.9])


def test_an_image_of_another_product_keeps_its_level_and_loses_its_contrast():
    distances = torch.tensor([[0.01, 0.02, 0.03, 0.4], [0.3, 0.5, 0.7, 0.9]])
    unknown = unknown_share(distances, 0.1)
    assert unknown.tolist() == [0.25, 1.0]
    maps = on_scale(distances, 0.1)
    flat = flattened(maps, unknown)
    assert torch.equal(flat[0], maps[0])
    torch.testing.assert_close(flat[1], maps[1].mean().expand(4))


def test_what_is_of_another_product_is_not_called_normal_and_keeps_its_order():
    scores = torch.tensor([0.0, 0.1, 0.9])
    torch.testing.assert_close(lifted(scores, torch.zeros(3)), scores)
    assert lifted(scores, torch.ones(3)).tolist() == pytest.approx([0.75, 0.775, 0.975])


def test_of_a_grid_so_small_that_a_patch_has_no_others_nothing_is_known_of_distances_within():
    patches = F.normalize(torch.randn(1, 36, 8), dim=-1)
    assert within({"a": patches[:, :25]}, (5, 5)) is None
    assert within({"a": patches}, (6, 6)).amax() < 2


def test_a_coreset_holds_a_patch_of_every_cluster(chance):
    centres = unit(5, 32, chance=chance)
    members = F.normalize(
        centres.repeat_interleave(40, 0) + 0.02 * torch.randn(200, 32, generator=chance), dim=-1
    )
    chosen = coreset({"a": members}, 5)
    assert sorted((chosen // 40).tolist()) == [0, 1, 2, 3, 4]
    assert torch.equal(chosen, coreset({"a": members}, 5))  # nothing is left to chance
    assert torch.equal(coreset({"a": members}, 500), torch.arange(200))


def test_a_coreset_chosen_in_parts_covers_nearly_as_well_as_one_chosen_at_once(chance):
    """Of 3000 patches, most of which are alike, 300 are kept: the farthest patch is at most half as far again."""
    usual = unit(5, 8, chance=chance)[torch.randint(0, 5, (2400,), generator=chance)]
    usual = F.normalize(usual + 0.1 * torch.randn(2400, 8, generator=chance), dim=-1)
    members = torch.cat([usual, unit(600, 8, chance=chance)])
    at_once, in_parts = (coreset({"a": members}, 300, part=part) for part in (3000, 500))
    assert len(in_parts.unique()) == len(at_once.unique()) == 300
    at_random = torch.randperm(3000, generator=chance)[:300]
    farthest = [float(nearest(members, members[rows]).max()) for rows in (at_once, in_parts, at_random)]
    assert farthest[0] < farthest[1] < 1.5 * farthest[0] < farthest[2]


def test_a_coreset_covers_better_than_as_many_patches_at_random(chance):
    members = unit(600, 16, chance=chance)
    chosen = coreset({"a": members}, 60)
    worst = nearest(members, members[chosen]).max()
    assert worst < nearest(members, members[torch.randperm(600, generator=chance)[:60]]).max()
