"""The recipe that made the micro backbone: what its captions say, and that a stopped run ends as if it had not been."""

import sys
from functools import partial

import pytest
import torch
from recipes.micro import captions, data, read_config, train


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


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """The recipe with a few small steps, on eight scenes; call it with the name of a run and the step to die in."""
    config = read_config()
    config["data"]["scenes"] = 8
    config["training"] |= {"steps": 4, "scenes_per_step": 3, "checkpoint_every": 2, "warm_up": 1}
    for module in (data, train):
        monkeypatch.setattr(module, "read_config", lambda: config)
    monkeypatch.setattr(train, "Validation", partial(train.Validation, count=4))
    monkeypatch.setattr(sys, "argv", ["data", str(tmp_path / "cache"), "--workers", "1"])
    data.main()

    def run(name, dies_in=None):
        steps, losses = iter(range(99)), train.losses

        def counted(*arguments):
            if next(steps) == dies_in:
                raise KeyboardInterrupt
            return losses(*arguments)

        arguments = ["train", str(tmp_path / "cache"), str(tmp_path / name), "--threads", "1"]
        with monkeypatch.context() as patch:
            patch.setattr(train, "losses", counted)
            patch.setattr(sys, "argv", arguments)
            train.main()
        return torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)

    return run


def test_a_run_that_was_stopped_ends_with_the_same_weights(recipe):
    whole = recipe("whole")
    with pytest.raises(KeyboardInterrupt):
        recipe("stopped", dies_in=3)  # its checkpoint is of step 2
    resumed = recipe("stopped")
    assert resumed["step"] == whole["step"] == 4
    for part in ("model", "average"):
        assert all(torch.equal(resumed[part][name], tensor) for name, tensor in whole[part].items())
