"""Training micro on with photographs: what is drawn on them, that twins and masks are exact, that a run goes on."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from recipes.micro import ASSETS, captions, data, go_on, photographs, read_config, ship, views
from recipes.micro.album import Album, load_album, outline, read_album, save_album, words
from scipy.ndimage import binary_dilation

from anomalyclip.clip.backbone import load_clip
from anomalyclip.clip.tokenizer import Tokenizer
from anomalyclip.clip.weights import read_weights
from anomalyclip.data.synthetic import HELD_OUT_DEFECTS, TRAINING_DEFECTS, generate
from anomalyclip.errors import AnomalyCLIPError


def cup(red):
    """A red disc with a darker middle on white ground."""
    y, x = np.indices((192, 192)) - 96
    picture = np.full((192, 192, 3), 245, np.uint8)
    picture[np.hypot(x, y) < 60] = (red, 60, 50)
    picture[np.hypot(x, y) < 30] = (red // 2, 30, 25)
    return picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four pictures of three categories: textures, and things on plain ground."""
    root = tmp_path_factory.mktemp("photographs")
    for name, picture in {
        "Sea_Horse/1.png": generate("wood", seed=1, index=1).image,
        "Sea_Horse/2.png": generate("leather", seed=1, index=2).image,
        "cup/1.png": cup(200),
        "tea-cup/1.png": cup(120),
    }.items():
        (root / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture).resize((230, 208)).save(root / name)
    (root / "cup" / "notes.txt").write_text("no picture")
    return root


@pytest.fixture(scope="module")
def album(folder):
    return read_album(folder)


def test_an_album_holds_every_picture_as_a_square_with_its_category_in_words(album):
    assert album.pictures.shape == (4, 192, 192, 3)
    assert album.categories == ("sea horse", "sea horse", "cup", "tea cup")


def test_things_on_plain_ground_are_found_and_textures_have_no_outline(album):
    assert not album.outlines[:2].any()
    y, x = np.indices((192, 192)) - 95.5
    disc = np.hypot(x, y) < 60
    for found in album.outlines[2:]:
        assert (found == disc).mean() > 0.98


def test_a_frame_of_many_colours_is_no_plain_ground():
    picture = cup(200)
    picture[:, :60] = (20, 90, 20)
    assert not outline(picture).any()


def test_a_kept_album_is_the_same_album(album, tmp_path):
    save_album(album, tmp_path / "album")
    kept = load_album(tmp_path / "album")
    assert kept.digest() == album.digest()
    assert np.array_equal(kept.outlines, album.outlines)


def test_a_folder_without_photographs_and_a_broken_one_are_named(tmp_path):
    with pytest.raises(AnomalyCLIPError, match="no photographs: expected a folder for each category"):
        read_album(tmp_path)
    with pytest.raises(AnomalyCLIPError, match="no photographs"):
        read_album(tmp_path / "missing")
    (tmp_path / "cup").mkdir()
    (tmp_path / "cup" / "1.jpg").write_bytes(b"not a picture")
    with pytest.raises(AnomalyCLIPError, match=r"1\.jpg cannot be read as a picture"):
        read_album(tmp_path)


@pytest.fixture(scope="module")
def pairs(album):
    return [photographs.draw(album, 3, index) for index in range(24)]


def test_the_same_numbers_give_the_same_pixels(album, pairs):
    again = photographs.draw(album, 3, 7)
    for part in ("normal", "image", "mask"):
        assert np.array_equal(getattr(again, part), getattr(pairs[7], part))
    assert not np.array_equal(photographs.draw(album, 4, 7).image, again.image)


def test_every_defect_is_visible_and_inside_its_mask(pairs):
    """Light and shadow may reach a little further; of all that changed much, nearly everything is masked."""
    outside = []
    for pair in pairs:
        change = np.abs(pair.image.astype(np.float32) - pair.normal).mean(2) / 255
        assert pair.mask.sum() >= photographs.LEAST_PIXELS
        assert change[pair.mask].mean() > 0.6 * photographs.VISIBLE
        outside.append(change[~pair.mask].mean())
    assert np.median(outside) < 0.001
    assert max(outside) < 0.02


def test_a_whole_photograph_is_its_own_flawless_twin(album, monkeypatch):
    monkeypatch.setattr(views, "VIEWS", {views.WHOLE: 1.0})
    for index in range(4):
        pair = photographs.draw(album, 5, index)
        same = [np.array_equal(pair.normal, picture) for picture in album.pictures]
        assert pair.category == album.categories[same.index(True)]


@pytest.mark.parametrize("view", [views.PLATE, views.TURNED, views.CUT_OUT])
def test_a_thing_on_plain_ground_covers_its_foreground_and_the_ground_is_plain(album, monkeypatch, view):
    monkeypatch.setattr(views, "VIEWS", {view: 1.0})
    cups = Album(album.pictures[2:], album.outlines[2:], album.categories[2:])
    for index in range(3):
        drawn = views.draw_view(cups, np.random.default_rng(index))
        assert 0.1 < drawn.foreground.mean() < 0.9
        assert drawn.category in views.CATEGORY_OF.values() or drawn.category in album.categories
        assert drawn.image.min() >= 0
        assert drawn.image.max() <= 1
        corner = drawn.image[:8, :8]
        assert corner.std((0, 1)).max() < 0.05


def test_defects_lie_on_the_thing(album):
    """Of a disc on plain ground, at least the place where a defect starts; threads and patches may hang over."""
    view = views.View(
        cup(200).astype(np.float32) / 255, np.ones((192, 192, 3), np.float32), outline(cup(200)), "cup"
    )
    for kind in ("scratch", "stain", "patch", "blank", "repetition"):
        _, mask = photographs.with_defect(view, kind, album, np.random.default_rng(2))
        assert (mask & view.foreground).any(), kind


def test_a_repeated_part_is_of_the_same_picture_and_a_foreign_one_is_of_another(album):
    grey = np.full((192, 192, 3), 0.5, np.float32)
    grey[:, 96:] = 0.8
    view = views.View(grey, grey, None, "")
    foreign = []
    for seed in range(4):
        image, _ = photographs.with_defect(view, "repetition", album, np.random.default_rng(seed))
        assert 0.499 < image.min() <= image.max() < 0.801
        image, mask = photographs.with_defect(view, "patch", album, np.random.default_rng(seed))
        foreign.append(np.abs(image - grey)[mask].max())
    assert max(foreign) > 0.2


def test_kinds_that_are_held_out_are_never_drawn_and_all_others_are():
    rng = np.random.default_rng(1)
    drawn = Counter(photographs.choose_defect(rng) for _ in range(3000))
    assert not set(drawn) & set(HELD_OUT_DEFECTS)
    assert set(drawn) == {*TRAINING_DEFECTS, *photographs.OWN_DEFECTS}
    assert 0.17 < drawn["patch"] / 3000 < 0.23


def test_a_mask_is_where_a_part_was_replaced_by_more_than_half(album):
    grey = np.full((192, 192, 3), 0.5, np.float32)
    view = views.View(grey, np.ones_like(grey), np.ones((192, 192), np.bool_), "")
    for seed in range(6):
        for kind in photographs.OWN_DEFECTS:
            image, mask = photographs.with_defect(view, kind, album, np.random.default_rng(seed))
            changed = np.abs(image - grey).max(2)
            assert 0 < mask.mean() < 0.3
            assert not changed[~binary_dilation(mask, iterations=6)].any()  # edges are at most 5 pixels soft


def test_darkening_is_carried_over_as_a_ratio_and_brightening_as_one_of_the_distances_from_white(monkeypatch):
    """Whatever the camera's exposure was: half the light halves a photograph, and nothing leaves black and white."""
    ramp = np.broadcast_to(np.linspace(0, 1, 192, dtype=np.float32)[None, :, None], (192, 192, 3))
    view = views.View(ramp, ramp, None, "")
    taken = {"before": 0.2, "darker": 0.1, "brighter": 0.6}

    def carried(change):
        shots = iter([taken["before"], taken[change]])
        monkeypatch.setattr(
            photographs, "photograph", lambda *_: np.full((192, 192, 3), round(255 * next(shots)), np.uint8)
        )
        return photographs.with_defect(view, "stain", None, np.random.default_rng(3))[0]

    np.testing.assert_allclose(carried("darker"), ramp / 2, atol=0.04)
    np.testing.assert_allclose(carried("brighter"), 1 - (1 - ramp) / 2, atol=0.01)


def test_captions_name_categories_of_photographs_and_their_kinds_of_defects():
    assert captions.anomalous_captions("sea horse", "patch") == [
        "sea horse with a foreign patch",
        "sea horse",
    ]
    texts = captions.all_captions(["sea horse"])
    assert "flawless sea horse" in texts
    assert "sea horse with a scratch" in texts
    assert "brick wall with a foreign patch" not in texts
    assert texts[: len(captions.CATEGORIES)] == captions.all_captions()[: len(captions.CATEGORIES)]


def test_a_mixture_has_its_share_of_photographs_and_generated_scenes_with_both_kinds_of_defects(
    album, tmp_path
):
    save_album(album, tmp_path / "album")
    mixture = data.Mixture(11, 0.3, 0.9, tmp_path / "album")
    names = [data.draw_scene(mixture, index)[2] for index in range(24)]
    assert 18 < sum(name not in captions.CATEGORIES for name in names) < 24
    generated = data.Mixture(11, 0.3)
    for index in range(4):
        assert data.draw_scene(generated, index)[2:] == data.draw_pair(11, index, 0.3)[2:]


def test_words():
    assert words("Joshua_tree") == "joshua tree"


@pytest.fixture
def config(monkeypatch):
    config = read_config()
    config["photographs"] |= {"scenes": 6, "share": 0.5, "validation": 1}
    config["photographs"]["training"] |= {"steps": 2, "checkpoint_every": 1, "warm_up": 1, "near_full": 0.0}
    config["training"]["scenes_per_step"] = 1
    for module in (data, go_on, ship):
        monkeypatch.setattr(module, "read_config", lambda: config)
    return config


def test_training_goes_on_from_the_shipped_backbone_and_after_an_interruption(
    config, folder, tmp_path, monkeypatch
):
    data.main([str(tmp_path / "cache"), "--photographs", str(folder), "--workers", "1"])
    labels = json.loads((tmp_path / "cache" / "labels.json").read_text())
    seen = {name for name, _ in labels}
    assert seen & {"sea horse", "cup", "tea cup", "turned part", "printed plate"}
    assert seen & set(captions.CATEGORIES)

    def run(name):
        go_on.main([str(tmp_path / "cache"), str(tmp_path / name), "--threads", "1"])
        return torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)

    whole = run("whole")
    step = go_on.GoingOn.step

    def dying(training, *arguments):
        if training.steps_done == 1:
            raise KeyboardInterrupt
        return step(training, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(go_on.GoingOn, "step", dying)
        with pytest.raises(KeyboardInterrupt):
            run("stopped")
    resumed = run("stopped")
    assert resumed["step"] == whole["step"] == 2
    assert all(torch.equal(resumed["average"][name], tensor) for name, tensor in whole["average"].items())
    shipped = load_clip("micro").state_dict()["visual.proj"].float()
    change = (whole["model"]["visual.proj"] - shipped).abs().max()
    assert 0 < change < 0.01  # two steps from the shipped weights, not from a random start
    monkeypatch.setattr(ship, "ASSETS", tmp_path / "assets")
    (tmp_path / "assets").mkdir()
    with pytest.raises(AnomalyCLIPError, match="another recipe: its training"):
        ship.main([str(tmp_path / "whole")])
    ship.main([str(tmp_path / "whole"), "--photographs"])
    assert read_weights(tmp_path / "assets").config.vocab_size == len(
        whole["model"]["token_embedding.weight"]
    )
    ship.main([str(tmp_path / "whole"), "--photographs", "--start", str(ASSETS)])
    mixed, average = read_weights(tmp_path / "assets").state_dict, whole["average"]
    assert torch.allclose(
        mixed["visual.proj"].float(), 0.8 * average["visual.proj"] + 0.2 * shipped, atol=2e-4
    )
    assert torch.equal(mixed["text_projection"], average["text_projection"].half())
    line = json.loads((tmp_path / "whole" / "log.jsonl").read_text().splitlines()[-1])
    assert {"surfaces_image", "photographs_image", "photographs_patch", "local"} <= set(line)


def test_the_image_tower_that_is_shipped_has_a_share_of_the_one_that_training_started_from():
    trained = {"visual.proj": torch.tensor([1.0, 2.0]), "text_projection": torch.tensor([5.0])}
    start = {
        "visual.proj": torch.tensor([3.0, 2.0], dtype=torch.float16),
        "text_projection": torch.tensor([9.0]),
    }
    found = ship.mixed(trained, start, 0.25)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "visual.proj": [1.5, 2.0],
        "text_projection": [5.0],
    }


def test_known_words_keep_their_vectors_in_the_larger_vocabulary(tmp_path):
    captions.write_tokenizer(tmp_path / "tokenizer.json", ["sea urchin"])
    shipped = load_clip("micro").state_dict()["token_embedding.weight"].float()
    known, ids = (go_on.vocabulary(file) for file in (ASSETS / "tokenizer.json", tmp_path / "tokenizer.json"))
    table = go_on.grown(shipped, known, ids)
    assert set(ids) - set(known) == {"urchin"}
    assert all(torch.equal(table[ids[word]], shipped[known[word]]) for word in set(known) & set(ids))
    tokens = Tokenizer(tmp_path / "tokenizer.json", context_length=24)(["flawless sea urchin"])[0]
    assert tokens.max() == tokens[4] == len(ids) - 1  # the end token has the largest number


def test_a_cache_without_photographs_cannot_be_gone_on_with(config, tmp_path):
    config["data"]["scenes"] = 1
    data.main([str(tmp_path / "cache"), "--workers", "1"])
    with pytest.raises(AnomalyCLIPError, match="has no photographs; make it with: .*--photographs FOLDER"):
        go_on.main([str(tmp_path / "cache"), str(tmp_path / "run")])
