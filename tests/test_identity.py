"""What one identity promises: results are resumed, thresholds used and data recognised only where it is the same."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from anomalyclip import (
    AnomalyCLIPError,
    AnomalyCLIPWarning,
    Detector,
    DetectorSpec,
    Threshold,
    calibrate,
    evaluate,
    train,
)
from anomalyclip.clip.model import CLIP, CLIPConfig
from anomalyclip.evaluation.controls import CONTROLS
from anomalyclip.identity import differences
from anomalyclip.methods import METHODS, register
from anomalyclip.prompts import load_prompts
from anomalyclip.scorer import Description
from tests.conftest import TINY, torch_scorer
from tests.generated_sets import make_set
from tests.toy_methods import Bright, Dark


@pytest.fixture
def toys():
    """Two methods with the same settings."""
    for method in (Dark, Bright):
        register(method.name, method, options=["image_size"])
    yield
    for method in (Dark, Bright):
        METHODS.remove(method.name)


@pytest.fixture
def backbone(tiny_backbone, tmp_path):
    """The tiny backbone as a file that may be written over."""
    path = tmp_path / "clip.pt"
    path.write_bytes(tiny_backbone.read_bytes())
    return path


@pytest.fixture
def model(backbone, paper_case, tmp_path):
    paper_case.prompts.save(tmp_path / "prompts.safetensors")
    return ["--backbone", backbone, "--prompts", tmp_path / "prompts.safetensors", "--image-size", 56]


@pytest.fixture
def root(tmp_path):
    return make_set(tmp_path / "parts", classes=("nut",), normal=3, anomalous=3, side=56)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def with_other_weights(state):
    """The weights with everything visual scaled by 1.05 but its projection."""
    return {
        name: weight * 1.05 if name.startswith("visual.") and name != "visual.proj" else weight
        for name, weight in state.items()
    }


# --- weights


def test_a_run_is_not_resumed_with_other_weights_under_the_same_path(
    cli, model, backbone, root, tiny_state, tmp_path
):
    good, out = root / "nut" / "test" / "good", tmp_path / "out"
    options = [*model, "--output", out, "--save", "map", "--save", "heatmap"]
    assert cli("predict", good / "000.png", *options).code == 0
    before = contents(out)
    torch.save(with_other_weights(tiny_state), backbone)
    done = cli("predict", good, *options, "--resume")
    assert done.code == 2
    assert "other weights" in done.err
    assert "other prompts" not in done.err
    assert contents(out) == before
    # The same settings under another folder do give other scores: the refusal is not for nothing.
    assert cli("predict", good / "000.png", *model, "--output", tmp_path / "other").code == 0
    one, other = (
        json.loads((folder / "predictions.jsonl").read_text())["pred_score"]
        for folder in (out, tmp_path / "other")
    )
    assert one != pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize("changed", ["visual.conv1.weight", "visual.transformer.resblocks.0.mlp.c_fc.bias"])
def test_one_number_of_the_weights_is_another_identity(changed, tiny_state, tiny_clip, paper_case):
    weight = tiny_state[changed].clone()
    weight.view(-1)[0] += 0.125
    other = CLIP.frozen(TINY, tiny_state | {changed: weight})
    one, two = (
        torch_scorer(clip, paper_case.prompts, image_size=56).identity() for clip in (tiny_clip, other)
    )
    assert [line.split(":")[0] for line in differences(one, two)] == ["other weights"]
    again = CLIP.frozen(TINY, tiny_state)
    assert torch_scorer(again, paper_case.prompts, image_size=56).identity() == one


def test_a_hash_is_of_the_whole_and_the_device_is_not_in_it(tiny_clip, paper_case):
    identity = torch_scorer(tiny_clip, paper_case.prompts, image_size=56, device="cpu").identity()
    for name in ("weights_sha256", "prompts_sha256"):
        assert re.fullmatch("[0-9a-f]{64}", identity[name])
    assert "cpu" not in json.dumps(identity)
    other = replace(paper_case.prompts, normal=paper_case.prompts.normal * 1.5)
    found = differences(identity, torch_scorer(tiny_clip, other, image_size=56).identity())
    assert [line.split(":")[0] for line in found] == ["other prompts"]


# --- classes


def test_scorers_of_two_classes_with_equal_settings_have_two_identities(toys):
    one, other = (DetectorSpec(method=name).load() for name in ("dark", "bright"))
    assert one.scorer.image_size == other.scorer.image_size
    assert one.identity() != other.identity()
    controls = [Detector(make(56)).identity() for make in CONTROLS.values()]
    assert controls[0] != controls[1]


@pytest.mark.parametrize("lacking", ["identity", "describe"])
def test_a_scorer_that_cannot_say_what_it_is_is_no_detector(lacking):
    class Silent:
        """A scorer without one of its methods."""

        image_size = 8

        def __call__(self, pixels):
            return np.zeros(len(pixels), np.float32), np.zeros(pixels.shape[:3], np.float32)

    others = {"identity": lambda self: {}, "describe": lambda self: Description("silent")}
    setattr(Silent, *next((name, make) for name, make in others.items() if name != lacking))
    with pytest.raises(AnomalyCLIPError, match=rf"Silent.*{lacking}\(\)"):
        Detector(Silent())
    setattr(Silent, lacking, others[lacking])
    assert Detector(Silent()).predict(np.zeros((8, 8, 3), np.uint8)).pred_score == 0


def test_a_threshold_of_one_method_is_warned_of_with_another_on_the_command_line(cli, toys, root, tmp_path):
    good, file = root / "nut" / "test" / "good", tmp_path / "threshold.json"
    done = cli("calibrate", good, "--method", "dark", "--false-alarm-rate", 0.4, "--output", file)
    assert (done.code, done.complaints) == (0, [])
    same = cli("predict", good, "--method", "dark", "--threshold", file, "--output", tmp_path / "same")
    assert (same.code, same.complaints) == (0, [])
    other = cli("predict", good, "--method", "bright", "--threshold", file, "--output", tmp_path / "other")
    assert other.code == 0
    assert other.err.startswith("warning: ")
    assert len(other.complaints) == 1
    assert "threshold" in other.err
    assert "dark then, bright now" in other.err


def test_a_threshold_of_one_method_is_warned_of_with_another_in_python(toys, root, recwarn):
    good = root / "nut" / "test" / "good"
    threshold = calibrate(DetectorSpec(method="dark"), good, false_alarm_rate=0.4)
    DetectorSpec(method="dark").load(threshold=threshold)
    evaluate(DetectorSpec(method="dark"), root, threshold=threshold)
    assert not recwarn.list
    with pytest.warns(AnomalyCLIPWarning, match="threshold.*dark then, bright now"):
        DetectorSpec(method="bright").load(threshold=threshold)
    loaded = DetectorSpec(method="bright").load()
    with pytest.warns(AnomalyCLIPWarning, match="threshold.*dark then, bright now"):
        evaluate(loaded, root, threshold=threshold)


def test_a_threshold_that_says_nothing_of_a_model_fits_all(toys, recwarn):
    DetectorSpec(method="dark").load(threshold=Threshold(score=0.5))
    assert not recwarn.list


# --- the data


@pytest.fixture
def small_backbone(tiny_state, tmp_path):
    """The tiny backbone with two vision blocks, random prompts and all: what matters here are names."""
    prefix = "visual.transformer.resblocks."
    state = {k: v for k, v in tiny_state.items() if not k.startswith(prefix) or int(k.split(".")[3]) < 2}
    torch.save(state, tmp_path / "small.pt")
    assert CLIP.frozen(CLIPConfig(32, 56, 14, 64, 2, 1, 64, 12, 1, 77, 49408), state)
    return tmp_path / "small.pt"


@pytest.mark.parametrize("trained", ["link", "folder"])
def test_a_data_set_that_was_trained_on_is_recognised_by_name_through_a_link(
    trained, cli, small_backbone, root, tmp_path
):
    places = {"folder": root, "link": tmp_path / "shortcut"}
    places["link"].symlink_to(root, target_is_directory=True)
    tested = places["folder" if trained == "link" else "link"]
    spec = DetectorSpec(small_backbone, image_size=56)
    run = train(places[trained], spec, output=tmp_path / "run", cache=tmp_path / "cache", epochs=1)
    assert load_prompts(run.prompts).info["trained_on"] == "parts"

    image = root / "nut" / "test" / "good" / "000.png"  # another content: it is the name that must be seen
    image.write_bytes((root / "nut" / "test" / "spot" / "000.png").read_bytes())
    model = replace(spec, prompts=run.prompts)
    assert any("trained on parts" in note for note in evaluate(model, tested).notes)
    done = cli(
        *("test", tested, "--backbone", small_backbone, "--prompts", run.prompts, "--image-size", 56),
        *("--format", "json", "--output", tmp_path / "out"),
    )
    assert done.code == 0, done.err
    assert "the prompts were trained on parts, the same data" in done.err
    assert json.loads((tmp_path / "out" / "results.json").read_text())["results"][0]["dataset"] == "parts"


# --- what is used where nothing is said


@pytest.mark.parametrize("command", ["test", "calibrate", "predict"])
def test_the_default_sigma_of_every_command_is_the_specs(command, cli, model, root, tmp_path):
    """Its figures too: they are those of --sigma 4, and of no other."""
    assert DetectorSpec().sigma is None
    found = {}
    for name, options in (("default", []), ("4", ["--sigma", 4]), ("1", ["--sigma", 1])):
        out = tmp_path / name
        data, file = {
            "test": ([root, "--format", "json"], out / "results.json"),
            "calibrate": ([root / "nut" / "test" / "good", "--false-pixel-share", 0.3], out),
            "predict": ([root / "nut" / "test" / "good", "--save", "map"], out / "settings.json"),
        }[command]
        done = cli(command, *data, *model, *options, "--output", out)
        assert done.code == 0, done.err
        content = json.loads(file.read_text())
        identity = {
            "test": lambda content=content: content["identity"],
            "calibrate": lambda content=content: content["info"]["identity"],
            "predict": lambda content=content: content,
        }[command]()
        assert identity["sigma"] == (1.0 if name == "1" else 4.0)
        found[name] = figures(command, content, out)
    assert found["default"] == found["4"]
    assert found["default"] != found["1"]


def figures(command, content, out: Path):
    if command == "test":
        return content["results"][0]["mean"]
    if command == "calibrate":
        return content["score"], content["pixel"]
    return np.load(out / "maps" / "000.npy").tobytes()
