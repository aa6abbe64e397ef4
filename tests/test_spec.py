"""`DetectorSpec`: one value that says everything which decides a score, wherever it is kept."""

import json
import os
import pickle
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import numpy as np
import pytest

from anomalyclip import AnomalyCLIPError, Detector, DetectorSpec, Tiling
from anomalyclip.demo import PICTURES
from anomalyclip.prediction import Threshold
from anomalyclip.spec import FIXED_BY_MODEL
from tests.generated_sets import make_set

OTHER_VALUES = {
    "backbone": "micro",
    "method": "another",
    "prompts": "prompts.safetensors",
    "image_size": 70,
    "layers": (3, 6),
    "dpam_layers": 2,
    "sigma": 2.5,
    "image_score": "top1",
    "references": ("good", "better/*.png"),
    "augment": True,
    "max_patches": 900,
    "trained": "layers.safetensors",
    "ln_post": True,
    "local_attention": "qkv",
    "foreground": True,
    "feature_surgery": True,
    "windows": (2, 3),
    "window_stride": 2,
    "window_rule": "normal",
    "activation": "gelu",
    "normal": ("flawless {}", "a good one"),
    "abnormal": ("cracked {}",),
    "templates": "april-gan",
    "class_name": "screw",
    "value_range": (0.0, 4095.0),
    "range_from": "good",
    "device": "cuda:1",
    "precision": "bf16",
    "compiled": True,
    "engine": "torch",
    "model": "model.onnx",
    "provider": ("cuda", "cpu"),
    "threads": 3,
    "tile": 256,
    "overlap": 0.5,
}
"""Of every field a value that is not its default."""

NEEDED_WITH = {"provider": {"model": "m.onnx"}, "threads": {"model": "m.onnx"}, "overlap": {"tile": 256}}
NEEDED_WITH |= {option: {"references": ("good",)} for option in ("augment", "max_patches")}
NEEDED_WITH |= {"normal": {"abnormal": ("bad",)}, "abnormal": {"normal": ("good",)}}


@pytest.fixture(scope="module")
def picture():
    return str(sorted(PICTURES.glob("*.jpg"))[0])


def changed(name):
    return DetectorSpec(**NEEDED_WITH.get(name, {}), **{name: OTHER_VALUES[name]})


def test_every_field_is_tried_here():
    assert set(OTHER_VALUES) == {field.name for field in fields(DetectorSpec)}


# --- a value


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_each_field_comes_back_from_json_and_pickle_as_it_was(name):
    spec = changed(name)
    assert getattr(spec, name) == OTHER_VALUES[name]
    assert json.loads(spec.to_json()) == spec.to_dict()
    for again in (
        DetectorSpec.from_json(spec.to_json()),
        DetectorSpec.from_dict(spec.to_dict()),
        pickle.loads(pickle.dumps(spec)),
    ):
        assert again == spec
        assert hash(again) == hash(spec)
        assert type(getattr(again, name)) is type(OTHER_VALUES[name])
    assert spec != DetectorSpec()
    assert name in spec.changed()


def test_the_dictionary_holds_every_field_even_defaults():
    assert DetectorSpec().to_dict() == {field.name: field.default for field in fields(DetectorSpec)}
    assert DetectorSpec.from_dict({}) == DetectorSpec()


def test_a_spec_does_not_change():
    with pytest.raises(FrozenInstanceError):
        DetectorSpec().sigma = 2.0


@pytest.mark.parametrize("name", ["backbone", "prompts", "trained", "templates", "model"])
def test_a_path_becomes_text(name):
    spec = DetectorSpec(**{name: Path("folder") / "file"})
    assert getattr(spec, name) == os.path.join("folder", "file")
    assert spec == DetectorSpec(**{name: os.path.join("folder", "file")})


@pytest.mark.parametrize(
    ("name", "extra"), [("layers", {}), ("windows", {}), ("provider", {"model": "m.onnx"})]
)
def test_a_list_becomes_a_tuple_and_an_empty_one_is_the_default(name, extra):
    values = {"layers": [3, 6], "windows": [2, 3], "provider": ["cuda", "cpu"]}[name]
    assert getattr(DetectorSpec(**{name: values}, **extra), name) == tuple(values)
    assert getattr(DetectorSpec(**{name: iter(values)}, **extra), name) == tuple(values)
    assert getattr(DetectorSpec(**{name: []}, **extra), name) is None


def test_the_tiling_is_that_of_tile_and_overlap():
    assert DetectorSpec().tiling is None
    assert DetectorSpec(tile=100).tiling == Tiling(100, overlap=0.25)
    assert DetectorSpec(tile=100, overlap=0.5).tiling == Tiling(100, overlap=0.5)


# --- what cannot be


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"backbone": 5}, "backbone 5"),
        ({"backbone": None}, "backbone None"),
        ({"backbone": b"micro"}, "backbone b'micro'"),
        ({"method": None}, "method None"),
        ({"prompts": 5}, "prompts 5"),
        ({"image_size": "70"}, "image size '70'"),
        ({"image_size": 70.0}, "image size 70.0"),
        ({"image_size": True}, "image size True"),
        ({"layers": 24}, "layers 24"),
        ({"layers": "24"}, "layers '24'"),
        ({"layers": ["24"]}, "layers"),
        ({"layers": [True]}, "layers"),
        ({"dpam_layers": 1.5}, "dpam layers 1.5"),
        ({"sigma": "4"}, "sigma '4'"),
        ({"sigma": True}, "sigma True"),
        ({"image_score": "median"}, "'median'.*text, max, top1"),
        ({"window_rule": "mean"}, "window rule 'mean'.*abnormal, normal"),
        ({"activation": "relu"}, "activation 'relu'.*quick-gelu, gelu"),
        ({"ln_post": 1}, "ln post 1"),
        ({"feature_surgery": "no"}, "feature surgery 'no'"),
        ({"windows": [0]}, "windows"),
        ({"window_stride": 0}, "window stride 0"),
        ({"normal": "flawless", "abnormal": ["bad"]}, "normal 'flawless'.*list of texts"),
        ({"normal": ["flawless"]}, "both sides.*--abnormal"),
        ({"abnormal": ["cracked"]}, "both sides.*--normal"),
        ({"normal": [], "abnormal": []}, "normal and abnormal: no text; give at least one, or None"),
        ({"normal": ["good", " "], "abnormal": ["bad"]}, "normal: a text is empty"),
        ({"class_name": ""}, "class name: a text is empty"),
        ({"image_score": 1}, "image score 1"),
        ({"device": 0}, "device 0"),
        ({"precision": None}, "precision None"),
        ({"compiled": 1}, "compiled 1"),
        ({"compiled": "no"}, "compiled 'no'"),
        ({"tile": "100"}, "tile '100'"),
        ({"tile": 8}, "tile size 8"),
        ({"tile": 100, "overlap": 0.95}, "overlap 0.95"),
        ({"tile": 100, "overlap": "half"}, "overlap 'half'"),
        ({"overlap": 0.5}, "overlap 0.5.*tile"),
        ({"provider": ["cpu"]}, "provider.*model"),
        ({"threads": 2}, "threads.*model"),
        ({"provider": ["cpu"], "threads": 2}, "provider and threads.*model"),
        ({"model": "m.onnx", "provider": "cpu"}, "provider 'cpu'"),
        ({"model": "m.onnx", "provider": 5}, "provider 5"),
        ({"model": "m.onnx", "threads": 0}, "threads 0"),
        ({"model": "m.onnx", "threads": "2"}, "threads '2'"),
        ({"model": "m.onnx", "device": "cuda"}, "device 'cuda'.*provider"),
        ({"model": "m.onnx", "sigma": 2.0, "image_size": 70}, "image_size, sigma .*m.onnx"),
    ],
)
def test_what_makes_no_sense_is_one_clear_error(options, says):
    with pytest.raises(AnomalyCLIPError, match=says) as refused:
        DetectorSpec(**options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", FIXED_BY_MODEL)
def test_what_an_exported_file_has_decided_cannot_be_given_with_one(name):
    with pytest.raises(AnomalyCLIPError, match=f"{name} .*m.onnx"):
        DetectorSpec(model="m.onnx", **NEEDED_WITH.get(name, {}), **{name: OTHER_VALUES[name]})


def test_what_runs_a_file_and_how_images_are_cut_can_be_given_with_one():
    spec = DetectorSpec(model="m.onnx", provider=["cpu"], threads=2, tile=100, overlap=0.5)
    assert spec.changed() == ["model", "provider", "threads", "tile", "overlap"]


def test_an_unknown_field_is_named_with_those_that_there_are():
    for make in (
        lambda: DetectorSpec.from_dict({"backbone": "micro", "smoothing": 2}),
        lambda: DetectorSpec.from_json('{"backbone": "micro", "smoothing": 2}'),
        lambda: Detector.from_pretrained("micro", smoothing=2),
    ):
        with pytest.raises(AnomalyCLIPError, match="smoothing.*backbone.*sigma"):
            make()


@pytest.mark.parametrize("text", ["", "{", "[]", '"micro"', "null", "[" * 100_000])
def test_what_is_no_json_object_is_one_error(text):
    with pytest.raises(AnomalyCLIPError, match="specification"):
        DetectorSpec.from_json(text)


def test_an_unknown_method_is_named_with_those_that_there_are():
    with pytest.raises(AnomalyCLIPError, match="method 'winclop'.*anomalyclip"):
        DetectorSpec("micro", method="winclop").load()


# --- another working folder


def test_located_makes_paths_that_exist_absolute_and_leaves_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("clip.pt", "mine.safetensors", "model.onnx"):
        (tmp_path / name).touch()
    spec = DetectorSpec("clip.pt", prompts="mine.safetensors", sigma=2.0)
    assert spec.located() == DetectorSpec(
        str(tmp_path / "clip.pt"), prompts=str(tmp_path / "mine.safetensors"), sigma=2.0
    )
    assert DetectorSpec(model="model.onnx").located().model == str(tmp_path / "model.onnx")
    names = DetectorSpec("ViT-L-14-336", prompts="visa")
    assert names.located() == names
    assert DetectorSpec("nowhere.pt").located().backbone == "nowhere.pt"


def test_a_name_stays_a_name_where_a_folder_is_called_like_it(tmp_path, monkeypatch):
    """Data sets are: a folder "visa" beside the user must not become the prompts."""
    monkeypatch.chdir(tmp_path)
    for name in ("visa", "micro"):
        (tmp_path / name).mkdir()
    assert DetectorSpec("ViT-L-14-336", prompts="visa").located().prompts == "visa"
    here = DetectorSpec("micro")
    assert here.located().backbone == "micro"
    assert here.located().load().identity() == here.load().identity()


@pytest.fixture
def relative(tmp_path, monkeypatch, tiny_backbone, paper_case):
    """Weights and prompts named relative to the working folder, as options of the command line; two pictures."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "clip.pt").write_bytes(tiny_backbone.read_bytes())
    paper_case.prompts.save(home / "own.safetensors")
    make_set(home / "parts", classes=("nut",), normal=2, anomalous=2, side=56)
    monkeypatch.chdir(home)
    return ["--backbone", "clip.pt", "--prompts", "own.safetensors", "--image-size", 56, "--sigma", 2]


@pytest.mark.parametrize("command", ["predict", "test", "calibrate"])
def test_what_a_command_leaves_loads_the_same_detector_from_another_folder(
    command, cli, relative, tmp_path, monkeypatch
):
    data = ["parts"] if command == "test" else ["parts/nut/test/good"]
    kept = Path("left.json" if command == "calibrate" else "left")
    done = cli(command, *data, *relative, "--output", kept, *(["--format", "json"] * (command == "test")))
    assert done.code == 0, done.err
    if command == "calibrate":
        spec = Threshold.from_file(kept).info["spec"]
    else:
        spec = json.loads((kept / "settings.json").read_text())["about"]["spec"]
    before = DetectorSpec("clip.pt", prompts="own.safetensors", image_size=56, sigma=2.0).load().identity()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = DetectorSpec.from_dict(spec).load()
    assert loaded.identity() == before
    assert before["sigma"] == 2.0


# --- the same by another way


def test_from_pretrained_is_the_spec_loaded(picture):
    options = {"sigma": 2.0, "layers": [3, 6], "image_score": "max", "tile": 200, "overlap": 0.5}
    short, long = (
        Detector.from_pretrained("micro", threshold=0.5, **options),
        DetectorSpec("micro", **options).load(threshold=0.5),
    )
    assert short.spec == long.spec == DetectorSpec("micro", **options)
    assert short.identity() == long.identity()
    assert (short.threshold, short.tiling) == (long.threshold, long.tiling)
    ours, theirs = short.predict(picture), long.predict(picture)
    assert ours.pred_score == theirs.pred_score
    np.testing.assert_array_equal(ours.anomaly_map, theirs.anomaly_map)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"image_size": 120}, {"image_size": 120}),
        ({"layers": [3, 6]}, {"layers": [3, 6]}),
        ({"dpam_layers": 1}, {"dpam_layers": 1}),
        ({"sigma": 2}, {"sigma": 2.0}),
        ({"image_score": "top1"}, {"image_score": "top1"}),
        ({"precision": "bf16"}, {"precision": "bf16"}),
        ({"tile": 100, "overlap": 0.5}, {"tile": 100, "overlap": 0.5}),
    ],
)
def test_each_option_reaches_what_it_decides(options, expected):
    plain, other = (DetectorSpec("micro", **given).load().identity() for given in ({}, options))
    assert {name: value for name, value in other.items() if plain.get(name) != value} == expected


# --- what it says of itself


@pytest.mark.parametrize("field", fields(DetectorSpec), ids=lambda field: field.name)
def test_every_field_is_documented_and_has_help(field):
    parameters = DetectorSpec.__doc__.split("Raises")[0]
    assert f"\n    {field.name} : " in parameters
    assert len(field.metadata["help"]) > 15
    assert field.metadata["help"].endswith(".")
    assert field.metadata["group"]
