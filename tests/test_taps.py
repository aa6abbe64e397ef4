"""What methods need of the image tower is a value: several of them share one pass, and get what each would alone."""

import pytest
import torch

from anomalyclip.clip.model import CLIP, CLIPConfig, LocalPath
from anomalyclip.clip.taps import Taps, gflop, passes, run, starts, window_patches
from anomalyclip.errors import AnomalyCLIPError

DUAL = LocalPath(3)


@pytest.fixture
def small():
    torch.manual_seed(0)
    return CLIP(CLIPConfig(16, 28, 14, 64, 4, 1, 64, 2, 1, 20, 50)).requires_grad_(False).eval()


def look(clip, pixels, taps):
    side = pixels.shape[-1] // 14
    return run(clip.visual, pixels, clip.visual.positions(side, side, rule=taps.positions), taps)


def test_one_pass_gives_each_what_it_would_get_alone(small):
    needs = [
        Taps(local=(2, 4), path=DUAL),
        Taps(plain=(4,)),
        Taps(plain=(1, 3), windows=((2, 1),)),
        Taps(windows=((3, 2),)),
    ]
    assert len(passes(needs)) == 1
    shared = passes(needs)[0]
    assert shared == needs[0] | needs[1] | needs[2] | needs[3]
    pixels = torch.randn(2, 3, 70, 70)
    together = look(small, pixels, shared)
    for taps in needs:
        alone = look(small, pixels, taps)
        torch.testing.assert_close(together.cls, alone.cls)
        for kind in ("plain", "local", "windows"):
            kept, all_kept = getattr(alone, kind), getattr(together, kind)
            assert list(kept) == list(getattr(taps, kind))
            for name, tokens in kept.items():
                torch.testing.assert_close(tokens, all_kept[name])


def test_several_local_paths_share_a_pass_too(small):
    """What a block adds to a local path does not depend on where the path began."""
    needs = [
        Taps(local=(2, 4), path=DUAL),
        Taps(local=(1, 4), path=LocalPath(1)),
        Taps(local=(4,), path=LocalPath(2, "qkv")),
        Taps(plain=(4,)),
    ]
    (shared,) = passes(needs)
    assert (shared.path, shared.local) == (DUAL, (2, 4))
    assert dict(shared.more) == {LocalPath(2, "qkv"): (4,), LocalPath(1): (1, 4)}
    pixels = torch.randn(2, 3, 70, 70)
    together = look(small, pixels, shared)
    for taps in needs:
        alone, found = look(small, pixels, taps), together.of(taps.path)
        torch.testing.assert_close(found.cls, alone.cls)
        for kind in ("plain", "local"):
            for number, tokens in getattr(alone, kind).items():
                torch.testing.assert_close(getattr(found, kind)[number], tokens)
    assert passes(reversed(needs)) == [shared]
    assert shared | needs[1] == shared


def test_a_shorter_path_in_which_the_same_attends_costs_nothing(small):
    long, short, other = (Taps(local=(4,), path=LocalPath(*path)) for path in ((3,), (1,), (1, "q")))
    alone = gflop(small.config, long, 5)
    assert gflop(small.config, long | short, 5) == alone
    assert gflop(small.config, long | other, 5) > alone


def test_another_positional_table_needs_a_pass_of_its_own():
    needs = [Taps(plain=(4,)), Taps(local=(4,), path=DUAL), Taps(plain=(2,), positions="bicubic")]
    assert passes(needs) == [needs[1] | needs[0], needs[2]]
    with pytest.raises(AnomalyCLIPError, match="no pass"):
        needs[0] | needs[2]


def test_the_order_and_repetition_of_blocks_mean_nothing():
    assert Taps(plain=(3, 1, 3)) == Taps(plain=(1, 3))
    with pytest.raises(AnomalyCLIPError, match="no local path"):
        Taps(local=(4,))


def test_windows_cover_every_patch_whatever_the_step():
    for side in range(2, 9):
        for size in range(1, side + 1):
            for step in range(1, min(size, 3) + 1):
                patches = window_patches(side, (size, step))
                assert len(patches) == len(starts(side, (size, step))) ** 2
                assert {len(window) for window in patches} == {size**2}
                assert {patch for window in patches for patch in window} == set(range(side**2))
    assert window_patches(3, (2, 1)) == [[0, 1, 3, 4], [1, 2, 4, 5], [3, 4, 6, 7], [4, 5, 7, 8]]


def test_many_windows_are_those_of_each_alone(small, monkeypatch):
    taps = Taps(windows=((2, 1),))
    pixels = torch.randn(2, 3, 70, 70)
    at_once = look(small, pixels, taps).windows[2, 1]
    monkeypatch.setattr("anomalyclip.clip.taps._TOGETHER", 3)
    torch.testing.assert_close(look(small, pixels, taps).windows[2, 1], at_once)


def test_a_positional_table_can_be_resized_as_open_clip_does(small):
    table = small.visual.positional_embedding
    assert torch.equal(small.visual.positions(2, 2, rule="bicubic"), table)
    square = table[1:].T.reshape(1, -1, 2, 2)
    resized = torch.nn.functional.interpolate(
        square, (5, 5), mode="bicubic", antialias=True, align_corners=False
    )
    expected = torch.cat([table[:1], resized[0].flatten(1).T])
    torch.testing.assert_close(small.visual.positions(5, 5, rule="bicubic"), expected)
    assert (small.visual.positions(5, 5) - expected).abs().max() > 1e-3
