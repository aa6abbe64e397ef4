"""The recipe that made the micro backbone: what its captions say, that nothing half-done is used, what is measured."""

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from recipes.micro import ASSETS, captions, data, evaluate, learn_prompts, read_config, ship, train

from anomalyclip.clip.backbone import load_clip
from anomalyclip.clip.weights import read_weights
from anomalyclip.data.synthetic import (
    HELD_OUT_SURFACES,
    TRAINING_DEFECTS,
    TRAINING_OBJECTS,
    TRAINING_SURFACES,
)
from anomalyclip.data.synthetic.writer import write_dataset
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.prompts import load_prompts


def test_no_caption_says_object_so_that_the_object_agnostic_prompts_must_be_learned():
    words = {word for text in captions.all_captions() for word in text.split()}
    assert "object" not in words
    assert "damaged" in words


def test_what_is_no_damage_is_not_called_damaged():
    assert captions.anomalous_captions("brick", "crack") == [
        "brick wall with a crack",
        "damaged brick wall",
        "brick wall",
    ]
    assert captions.anomalous_captions("brick", "stain") == ["brick wall with a stain", "brick wall"]


def test_surfaces_and_objects_get_every_kind_of_defect_equally_often():
    """With colliding seeds, objects had two kinds and surfaces all others."""
    drawn = Counter()
    for index in range(4000):
        name, defect = data.choose(20260, index, 0.15)
        drawn[name in TRAINING_OBJECTS, defect] += 1
    for objects, share in ((False, 0.85), (True, 0.15)):
        expected = 4000 * share / len(TRAINING_DEFECTS)
        for defect in TRAINING_DEFECTS:
            assert 0.6 * expected < drawn[objects, defect] < 1.4 * expected, (objects, defect)
    for attempt in range(3):
        again, _ = data.choose(20260, 7, 0.15, attempt)
        assert (again in TRAINING_OBJECTS) == (data.choose(20260, 7, 0.15)[0] in TRAINING_OBJECTS)


def test_a_patch_that_a_thin_crack_crosses_is_half_or_more_anomalous():
    mask = torch.zeros(1, 1, 24, 24)
    mask[..., 5:7, :] = 1  # two pixels wide, through the upper two patches of 12
    expected = torch.tensor([[[2 / 3, 2 / 3], [0, 0]]])
    torch.testing.assert_close(train.patch_targets(mask, 2, 0.25), expected)
    assert train.patch_targets(torch.ones(1, 1, 24, 24), 2, 0.25).max() == 1


@dataclass
class Recipe:
    """The recipe with a few small steps, on eight scenes."""

    cache: Path
    runs: Path
    steps_taken: int = 0

    def draw(self):
        data.main([str(self.cache), "--workers", "1"])

    def train(self, name, *options, dies_in=None):
        """Train a run to its end, or die in a step of this process; return its last checkpoint."""
        losses, self.steps_taken = train.losses, 0

        def counted(*arguments):
            if self.steps_taken == dies_in:
                raise KeyboardInterrupt
            self.steps_taken += 1
            return losses(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train, "losses", counted)
            train.main([str(self.cache), str(self.runs / name), "--threads", "1", *options])
        return torch.load(self.runs / name / "checkpoint.pt", weights_only=True)

    def logged(self, name):
        return [json.loads(line) for line in (self.runs / name / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def config(monkeypatch):
    config = read_config()
    config["data"]["scenes"] = 8
    config["training"] |= {"steps": 4, "scenes_per_step": 3, "checkpoint_every": 2, "warm_up": 1}
    config["evaluation"] |= {"styles": 1, "normal": 2, "anomalous": 2}
    for module in (data, train, ship, evaluate):
        monkeypatch.setattr(module, "read_config", lambda: config)
    monkeypatch.setattr(train, "Validation", partial(train.Validation, count=4))
    return config


@pytest.fixture
def recipe(config, tmp_path):
    recipe = Recipe(tmp_path / "cache", tmp_path)
    recipe.draw()
    return recipe


def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_weights(recipe):
    whole = recipe.train("whole")
    with pytest.raises(KeyboardInterrupt):
        recipe.train("stopped", dies_in=3)  # its checkpoint is of step 2
    resumed = recipe.train("stopped")
    assert recipe.steps_taken == 2
    assert resumed["step"] == whole["step"] == 4
    for part in ("model", "average"):
        assert all(torch.equal(resumed[part][name], tensor) for name, tensor in whole[part].items())
    without_speed = [
        [{k: v for k, v in line.items() if k != "images_per_second"} for line in recipe.logged(name)]
        for name in ("whole", "stopped")
    ]
    assert without_speed[0] == without_speed[1]
    assert [line["step"] for line in without_speed[0]] == [2, 4]


def test_lines_of_steps_that_were_lost_leave_the_log(recipe):
    recipe.train("run")
    with (recipe.runs / "run" / "log.jsonl").open("a") as log:
        log.write('{"step": 5}\n')
    recipe.train("run")
    assert [line["step"] for line in recipe.logged("run")] == [2, 4]


def test_a_checkpoint_of_another_recipe_is_refused(recipe, config):
    recipe.train("run")
    with pytest.raises(AnomalyCLIPError, match="another recipe"):
        recipe.train("run", "--steps", "6")
    config["data"]["seed"] += 1
    recipe.draw()
    with pytest.raises(AnomalyCLIPError, match="another recipe"):
        recipe.train("run")


def test_only_a_finished_run_of_this_recipe_is_shipped(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(ship, "ASSETS", tmp_path / "assets")
    (tmp_path / "assets").mkdir()
    with pytest.raises(AnomalyCLIPError, match="nothing contains no run: expected checkpoint.pt"):
        ship.main([str(tmp_path / "nothing")])
    recipe.train("pilot", "--steps", "2")
    with pytest.raises(AnomalyCLIPError, match="another recipe: its training"):
        ship.main([str(tmp_path / "pilot")])
    with pytest.raises(KeyboardInterrupt):
        recipe.train("run", dies_in=3)
    with pytest.raises(AnomalyCLIPError, match="at step 2 of 4"):
        ship.main([str(tmp_path / "run")])
    assert list((tmp_path / "assets").iterdir()) == []
    finished = recipe.train("run")
    ship.main([str(tmp_path / "run")])
    shipped = read_weights(tmp_path / "assets").state_dict
    assert torch.equal(shipped["visual.proj"], finished["average"]["visual.proj"].half())


def test_half_a_cache_is_refused(recipe, monkeypatch):
    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(data.json, "dumps", stop)
    with pytest.raises(KeyboardInterrupt):
        recipe.draw()  # over a complete one
    with pytest.raises(AnomalyCLIPError, match="no complete cache"):
        recipe.train("run")


def test_the_recipe_learns_the_same_prompts_again_and_its_losses_fall(config, capsys):
    settings = config["prompts"] | {"images": 12, "epochs": 3, "batch_size": 5}
    clip = load_clip("micro")
    token_ids = load_prompts(ASSETS / "prompts.safetensors").token_ids
    features = learn_prompts.frozen_features(
        clip, settings, data.Mixture(settings["data_seed"], config["data"]["objects"])
    )
    first, again = (learn_prompts.learn(clip, features, token_ids, settings) for _ in range(2))
    assert first.digest() == again.digest()
    assert first.digest() != learn_prompts.learn(clip, features, token_ids, settings | {"seed": 1}).digest()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3] * 3
    assert all(lines[at + 2]["loss"] < lines[at]["loss"] for at in (0, 3, 6))
    for line in lines:
        assert line["loss"] == pytest.approx(line["image_loss"] + line["local_loss"], abs=2e-4)


def test_the_evaluation_prints_every_way_of_every_held_out_class(config, capsys, tmp_path):
    evaluate.main(["--threads", "1", "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures.keys() == {"surfaces", "objects"}
    assert set(figures["surfaces"]) == set(HELD_OUT_SURFACES)
    for row in figures["surfaces"].values():
        assert list(row) == list(evaluate.COLUMNS)
        assert row["centre"][0] == 0.5, "it scores all images alike"
    printed = capsys.readouterr().out
    learned = 100 * figures["surfaces"]["linen"]["learned"][1]
    assert f"{learned:5.1f}" in next(line for line in printed.splitlines() if line.startswith("linen"))


def test_what_is_decided_by_training_families_has_nothing_that_is_held_out(config):
    config["evaluation"] |= {"normal": 1, "anomalous": 1}
    products = list(evaluate.generated(180, held_out=False))
    assert {product.name for product in products} == {*TRAINING_SURFACES, *TRAINING_OBJECTS}
    assert all(product.masks[1].any() and not product.masks[0].any() for product in products)


def test_the_evaluation_reads_a_data_set_and_wants_masks(capsys, tmp_path):
    write_dataset(tmp_path / "set", ["linen"], normal=1, anomalous=1, seed=1, defects=["hole"], size=64)
    evaluate.main(["--root", str(tmp_path / "set"), "--threads", "1"])
    assert "linen" in capsys.readouterr().out
    (tmp_path / "set/linen/ground_truth/hole/000_mask.png").unlink()
    with pytest.raises(AnomalyCLIPError, match=r"linen/test/hole/000.png: an anomalous image needs a mask"):
        evaluate.main(["--root", str(tmp_path / "set")])


def test_the_hashes_in_the_recipe_are_those_of_what_is_shipped():
    text = (Path(data.__file__).parent / "README.md").read_text()
    stated = dict(re.findall(r"`assets/micro/([a-z.]+)` \| ([0-9a-f]{64})", text))
    assert stated.keys() == {"model.safetensors", "tokenizer.json", "prompts.safetensors", "threshold.json"}
    for name, digest in stated.items():
        assert hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() == digest, name
