"""The model's options on the command line: declared once, in `DetectorSpec`, and the same wherever they are taken."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest
import typer

from anomalyclip import AnomalyCLIPError, DetectorSpec
from anomalyclip.cli import app
from anomalyclip.cli.flattening import Fields
from anomalyclip.cli.options import spelled
from anomalyclip.evaluation.settings import (
    DEFAULT_FORMATS,
    FORMATS,
    PROTOCOLS,
    ComparisonSettings,
    EvaluationSettings,
    ShotSettings,
)
from anomalyclip.settings import options_of
from anomalyclip.spec import OPTIONS
from anomalyclip.training.settings import SPEC_OPTIONS, TrainingSettings

COMMANDS = {info.callback.__name__: info.callback for info in app.registered_commands}
ALL_OPTIONS = ("predict", "calibrate", "test")
SOME_OPTIONS = {
    "train": set(SPEC_OPTIONS) - {"method"},
    "export": set(OPTIONS) - {"device", "precision", "compiled", "model", "provider", "threads"},
    "benchmark": {"image_size", "device", "precision", "compiled"},
    "compare": set(OPTIONS) - {"method", "engine", "tile", "overlap", "model", "provider", "threads"},
    "fit": set(OPTIONS) - {"references", "image_score", "sigma", "model", "provider", "threads"},
}
TAKEN = {name: set(OPTIONS) for name in ALL_OPTIONS} | SOME_OPTIONS

SETTINGS = {
    "train": {"settings": TrainingSettings},
    "test": {"settings": EvaluationSettings, "shots": ShotSettings},
    "compare": {"settings": ComparisonSettings},
}


def parameters(command):
    return {parameter.name: parameter for parameter in typer.main.get_command(app).commands[command].params}


@pytest.mark.parametrize("command", TAKEN)
def test_every_field_that_a_command_takes_is_an_option_with_its_flag_help_and_default(command):
    there = parameters(command)
    for name in TAKEN[command]:
        option, field = there[name], OPTIONS[name]
        assert option.opts == [spelled(name)]
        assert option.help.startswith(field.metadata["help"])
        assert option.rich_help_panel == field.metadata["group"]
        assert option.default == field.default


@pytest.mark.parametrize("command", TAKEN)
def test_the_help_on_the_screen_shows_all_of_them(command, cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 400)
    done = cli(command, "--help")
    assert done.code == 0
    shown = re.sub(r"\s+", " ", done.out)
    for name in TAKEN[command]:
        assert f"{spelled(name)} " in shown
        assert OPTIONS[name].metadata["help"] in shown
    own = set(
        inspect.signature(inspect.unwrap(COMMANDS[command])).parameters
    )  # export's --precision is the file's
    for name in set(OPTIONS) - TAKEN[command] - own:
        assert f"{spelled(name)} " not in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_repeats_one_in_its_own_signature(command):
    own = inspect.signature(COMMANDS[command], follow_wrapped=False).parameters
    written = inspect.signature(inspect.unwrap(COMMANDS[command])).parameters
    if command in TAKEN:
        assert hasattr(COMMANDS[command], "__wrapped__")
        taken = written["spec"].annotation
        fields = next(iter(getattr(taken, "__metadata__", ())), Fields())
        assert (fields.source or getattr(taken, "__origin__", taken)) is DetectorSpec
        kinds = SETTINGS.get(command, {})
        assert {name: written[name].annotation for name in ("settings", "shots") if name in written} == kinds
        settings = {name for kind in kinds.values() for name in options_of(kind)}
        alone = set(written) - {"spec", "kept", *kinds}  # fit keeps two fields of the spec apart
        assert not alone & (TAKEN[command] | settings)
        assert set(own) == alone | TAKEN[command] | settings
    elif command != "demo":
        assert not set(written) & {"backbone", "prompts", "layers", "dpam_layers", "sigma", "tile", "overlap"}


@pytest.mark.parametrize("command", SETTINGS)
def test_every_field_of_its_settings_is_an_option_with_its_help_and_default(command):
    there = parameters(command)
    declared = {name: one for kind in SETTINGS[command].values() for name, one in options_of(kind).items()}
    for name, field in declared.items():
        option, default = there[name], field.default
        assert option.opts == [field.metadata["flag"] or spelled(name)]
        assert option.secondary_opts == []
        assert option.help.startswith(field.metadata["help"])
        assert option.rich_help_panel == field.metadata["group"]
        assert option.default == (list(default) if isinstance(default, tuple) else default)


def test_what_is_typed_arrives_in_the_settings_of_an_evaluation(cli, monkeypatch):
    given = []

    def note(spec, roots, settings, **named):
        given.append(settings)
        raise AnomalyCLIPError("that is all")

    monkeypatch.setattr("anomalyclip.evaluation.run.evaluate", note)
    words = ["--dataset", "mvtec", "--allow-outside", "--protocol", "exact", "--compare", "--controls"]
    words += ["--format", "json", "--format", "latex", "--save", "map", "--max-memory", 8, "--batch-size", 2]
    cli("test", ".", *words)
    cli("test", ".", "--from-maps", "there")
    cli("test", ".")
    assert given == [
        EvaluationSettings(
            dataset=("mvtec",),
            allow_outside=True,
            protocol="exact",
            compare=True,
            controls=True,
            formats=("json", "latex"),
            save=("map",),
            memory=8,
            batch_size=2,
        ),
        EvaluationSettings(maps=Path("there")),
        EvaluationSettings(),
    ]
    assert all(type(name) is str for settings in given for name in settings.formats)


def test_what_is_typed_arrives_in_the_settings_of_a_training(cli, monkeypatch, tmp_path):
    given = []

    def note(root, spec, settings, **named):
        given.append((spec, settings))
        raise AnomalyCLIPError("that is all")

    import_module("anomalyclip.training.run")  # first, or it would keep the patched function
    monkeypatch.setattr("anomalyclip.training.session.open_session", note)
    values = {"epochs": 2, "batch_size": 3, "learning_rate": 0.01, "local_weight": 1.0, "seed": 5}
    values |= {"dataset": "visa", "phase": "train", "init_prompts": "p.pt", "prompt_length": 4}
    values |= {"prompt_depth": 3, "deep_length": 2, "cache": "c", "feature_dtype": "float32"}
    values |= {"val_fraction": 0.5, "val_root": "v", "val_dataset": "mvtec"}
    assert set(values) == set(options_of(TrainingSettings))
    names = {"feature_dtype": "--feature-type"}
    words = [word for name, value in values.items() for word in (names.get(name, spelled(name)), value)]
    cli("train", ".", "--backbone", "micro", "--output", tmp_path / "run", *words)
    assert given == [(DetectorSpec("micro"), TrainingSettings(**values))]


def test_the_names_of_formats_and_protocols_are_those_that_there_are():
    from anomalyclip.evaluation import summary, tables

    assert set(FORMATS) == {*summary.WRITERS, "html"} > set(DEFAULT_FORMATS)
    assert set(PROTOCOLS) == set(tables.PROTOCOLS)


def test_what_is_typed_arrives_in_the_spec(cli, monkeypatch):
    """Every option, through the command line's own parser."""
    given = []

    def note(spec, *rest, **named):
        given.append(spec)
        raise AnomalyCLIPError("that is all")

    monkeypatch.setattr("anomalyclip.evaluation.run.evaluate", note)
    values = {"backbone": "b.pt", "method": "m", "prompts": "p.pt", "image_size": 70, "layers": [3, 6]}
    values |= {"dpam_layers": 2, "sigma": 2.5, "image_score": "top1", "device": "cpu", "precision": "bf16"}
    values |= {"tile": 128, "overlap": 0.5}
    words = [
        word
        for name, value in values.items()
        for one in (value if isinstance(value, list) else [value])
        for word in (spelled(name), one)
    ]
    cli("test", ".", *words, "--compile")
    cli(
        "test",
        ".",
        "--model",
        "m.onnx",
        "--provider",
        "cuda",
        "--provider",
        "cpu",
        "--threads",
        3,
        "--tile",
        64,
    )
    cli("test", ".")
    assert given == [
        DetectorSpec(**values, compiled=True),
        DetectorSpec(model="m.onnx", provider=["cuda", "cpu"], threads=3, tile=64),
        DetectorSpec(),
    ]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--sigma", 4, "--model", "m.onnx"], ["--sigma", "m.onnx"]),
        (["--device", "auto", "--model", "m.onnx"], ["--device", "--provider"]),
        (["--threads", 2], ["--threads", "--model"]),
        (["--overlap", 0.25], ["--overlap", "--tile"]),
        (["--max-patches", 50000], ["--max-patches", "--references"]),
        (["--image-score", "median"], ["median", "text, max, top1"]),
        (["--tile", 3], ["tile", "16"]),
    ],
)
@pytest.mark.parametrize("command", ALL_OPTIONS)
def test_what_would_be_ignored_is_refused_even_where_it_is_the_default(
    command, options, named, cli, tmp_path
):
    done = cli(command, tmp_path, *options)
    assert done.code == 2
    assert done.err.count("error: ") == 1
    assert all(word in done.err for word in named), done.err


@pytest.mark.parametrize("name", OPTIONS)
def test_no_option_of_a_model_goes_with_maps_that_are_there_already(name, cli, tmp_path):
    needed = {"provider": ["--model", "m"], "threads": ["--model", "m"], "overlap": ["--tile", 64]}
    needed |= {option: ["--references", "good"] for option in ("augment", "max_patches")}
    value = {
        "compiled": [],
        "augment": [],
        "threads": [1],
        "sigma": [2],
        "overlap": [0.5],
        "image_score": ["max"],
    }
    value |= {"ln_post": [], "feature_surgery": [], "window_rule": ["normal"], "activation": ["gelu"]}
    value |= {"engine": ["torch"]}
    value |= {"value_range": [0, 64]}
    value |= {"normal": ["good", "--abnormal", "bad"], "abnormal": ["bad", "--normal", "good"]}
    value = value.get(name, [64])
    done = cli("test", tmp_path, "--from-maps", tmp_path, spelled(name), *value, *needed.get(name, []))
    assert (done.code, done.err.count("error: ")) == (2, 1)
    assert spelled(name) in done.err
    assert "--from-maps" in done.err
