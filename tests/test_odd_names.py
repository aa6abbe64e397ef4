"""Names that mean something to somebody else: mathtext, markup, templates, control characters; and not UTF-8."""

import base64
import json
import os
import re

import pytest

from anomalyclip.prompts import load_prompts
from tests.generated_sets import make_set

OTHERS = ("prepare", "calibrate", "calibrate --labelled")
NOT_UTF8 = os.fsdecode(b"caf\xe9")
NAMES = (
    "$x_{1",  # matplotlib's mathtext
    "5$ and 6$ [red] {0} {task} %s :warning:",  # rich's markup, format strings, emoji
    "_hidden|a\nb\x1b[2J",  # matplotlib hides labels with an underscore; tables, a terminal
    "<b>&amp;",
    NOT_UTF8,
)


@pytest.fixture
def model(paper_case, tiny_backbone, tmp_path, monkeypatch):
    monkeypatch.setenv("ANOMALYCLIP_CACHE", str(tmp_path / "cache"))
    paper_case.prompts.save(tmp_path / "prompts.safetensors")
    return ["--backbone", tiny_backbone, "--prompts", tmp_path / "prompts.safetensors", "--image-size", 56]


@pytest.fixture
def root(tmp_path):
    """A set with these classes, in a folder with such a name, with an image of such a name."""
    root = make_set(tmp_path / f"set [/] {{}} $ {NOT_UTF8}", classes=NAMES, normal=2, anomalous=2, side=56)
    (root / NAMES[0] / "test/good/001.png").rename(root / NAMES[0] / f"test/good/{NOT_UTF8}.png")
    return root


def test_an_evaluation_has_every_class_in_every_form(cli, root, model, tmp_path):
    formats = [f"--format={name}" for name in ("json", "csv", "md", "html", "latex")]
    done = cli("test", root, *model, *formats, "--output", tmp_path / "out")
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert {entry["class"] for entry in results["results"][0]["classes"]} == set(NAMES)
    for name in ("results.csv", "results.md", "results.tex", "images.csv", "report.html"):
        assert r"caf\udce9" in (tmp_path / "out" / name).read_text(encoding="utf-8")
    assert r"_hidden|a\nb\x1b[2J" not in done.err
    assert "5$ and 6$ [red] {0} {task} %s :warning:" in done.out
    assert "\x1b[2J" not in done.out
    html = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "<b>&amp;</td>" not in html
    assert "&lt;b&gt;&amp;amp;" in html
    assert len(results["results"][0]["classes"]) == len(NAMES)
    rows = [line for line in (tmp_path / "out/results.md").read_text().splitlines() if line.startswith("| ")]
    assert len(rows) == len(NAMES) + 3  # heads, rule, mean


def test_the_report_draws_them_as_they_are(cli, root, model, tmp_path, monkeypatch):
    monkeypatch.setattr("anomalyclip.evaluation.plots._STYLE", _text_as_text())
    cli("test", root, *model, "--output", tmp_path / "out")
    html = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    drawings = [
        base64.b64decode(content).decode()
        for content in re.findall(r'data:image/svg\+xml;base64,([^"]+)"', html)
    ]
    assert len(drawings) == 2
    for drawing in drawings:
        for shown in (
            "$x_{1<",
            "5$ and 6$ [red]",
            r" _hidden|a\nb\x1b[2J",
            "&lt;b&gt;&amp;amp;",
            r"caf\udce9",
        ):
            assert shown in drawing


def _text_as_text():
    from anomalyclip.evaluation import plots

    return {**plots._STYLE, "svg.fonttype": "none"}


@pytest.mark.slow
def test_a_stopped_evaluation_of_them_is_resumed(cli, root, model, tmp_path):
    cli("test", root, *model, "--output", tmp_path / "out")
    before = json.loads((tmp_path / "out/results.json").read_text())
    next((tmp_path / "out").glob("*/classes/caf*.json")).unlink()
    done = cli("test", root, *model, "--output", tmp_path / "out", "--resume")
    assert done.code == 0, done.err
    after = json.loads((tmp_path / "out/results.json").read_text())
    assert after["results"][0]["mean"] == before["results"][0]["mean"]


@pytest.mark.slow
def test_classes_whose_names_cannot_be_files_have_files_of_their_own(cli, root, model, tmp_path):
    meta = {"test": {}}
    images = [path for name in NAMES for path in sorted((root / name / "test").rglob("*.png"))]
    for index, name in enumerate(("a/b", "a_b", "x" * 300, "x" * 301, "..", "")):
        image = images[index].relative_to(root)
        entry = {
            "img_path": str(image),
            "mask_path": "",
            "cls_name": name,
            "specie_name": "",
            "anomaly": index % 2,
        }
        meta["test"][name] = [entry]
    (root / "meta.json").write_text(json.dumps(meta))
    done = cli("test", root, *model, "--output", tmp_path / "out")
    assert done.code == 0, done.err
    assert len(list((tmp_path / "out").glob("*/classes/*.json"))) == 6


def test_prompts_are_learned_on_them(cli, root, model, tmp_path):
    done = cli(
        *("train", root, *model[:2], "--image-size", 56, "--epochs", 1),
        *("--output", tmp_path / f"run [/] {NOT_UTF8}"),
    )
    assert done.code == 0, done.err
    (tmp_path / f"run [/] {NOT_UTF8}/prompts.safetensors").rename(tmp_path / "prompts")
    learned = load_prompts(tmp_path / "prompts")
    assert learned.info["trained_on"] == root.name


@pytest.mark.slow
def test_tensorboard_says_that_it_does_not_take_them(cli, root, model, tmp_path):
    folder = tmp_path / f"run{NOT_UTF8}"
    done = cli("train", root, *model[:2], "--image-size", 56, "--epochs", 1, "--track", "--output", folder)
    assert done.code == 2
    assert "TensorBoard takes only paths in UTF-8" in done.err


@pytest.mark.parametrize(
    "command", ["predict", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_other_commands_take_them(command, cli, root, model, tmp_path):
    arguments = {
        "prepare": ["prepare", root],
        "predict": [
            "predict",
            root / NAMES[0],
            *model,
            "--save",
            "heatmap",
            "--output",
            tmp_path / f"out{NOT_UTF8}",
        ],
        "calibrate": ["calibrate", root / NAMES[0] / "test/good", *model, "--output", tmp_path / "t.json"],
        "calibrate --labelled": ["calibrate", "--labelled", root, *model, "--output", tmp_path / "t.json"],
    }[command]
    done = cli(*arguments)
    assert done.code == 0, done.err
    if command == "prepare":
        again = cli("test", root, *model, "--output", tmp_path / "again")
        assert again.code == 0, again.err


def test_a_path_with_nul_is_refused_by_entry(cli, root, model):
    entry = {"img_path": "a\0.png", "mask_path": "", "cls_name": "a", "specie_name": "", "anomaly": 0}
    (root / "meta.json").write_text(json.dumps({"test": {"a": [entry]}}))
    done = cli("test", root, *model)
    assert done.code == 2
    assert "field 'img_path' is \"a\\u0000.png\", expected text without NUL" in done.err
