"""`anomalyclip predict`: what it leaves behind, what it says, and its exit codes."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anomalyclip.readers import open_image
from anomalyclip.writers import PredictionWriter
from tests import vit_forms


@pytest.fixture
def model(paper_case, tiny_backbone, tmp_path):
    """The options that make the golden case's detector."""
    paper_case.prompts.save(tmp_path / "prompts.safetensors")
    return ["--backbone", tiny_backbone, "--prompts", tmp_path / "prompts.safetensors", "--image-size", 70]


@pytest.fixture
def photographs(tmp_path, paper_case):
    """A folder with the two golden images and a broken one between them."""
    folder = tmp_path / "parts"
    (folder / "line 2").mkdir(parents=True)
    (folder / "a.png").write_bytes(paper_case.images[0].read_bytes())
    (folder / "line 2" / "c.png").write_bytes(paper_case.images[1].read_bytes())
    return folder


def lines(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_the_golden_scores_and_maps_come_out_of_the_command_line(
    cli, model, photographs, paper_case, tmp_path
):
    done = cli("predict", photographs, *model, "--output", tmp_path / "out", "--save", "map")
    assert done.code == 0, done.err
    records = lines(tmp_path / "out")
    assert [record["image_path"] for record in records] == [
        f"{photographs}/a.png",
        f"{photographs}/line 2/c.png",
    ]
    for i, (record, name) in enumerate(zip(records, ["a", "line 2/c"], strict=True)):
        assert record["pred_score"] == pytest.approx(paper_case.arrays["score"][i], abs=1e-5)
        assert record["pred_label"] is None
        saved = np.load(tmp_path / "out" / "maps" / f"{name}.npy")
        np.testing.assert_allclose(saved, paper_case.published_map("anomaly_map")[i], atol=1e-5)
    assert "0.5997" in done.out
    assert "2 scored" in done.out


def test_a_threshold_brings_verdicts_masks_and_regions(cli, model, photographs, tmp_path):
    done = cli(
        *("predict", photographs, *model, "--threshold", 0.5, "--output", tmp_path / "out"),
        *("--save", "mask", "--save", "heatmap", "--no-caption"),
    )
    first, second = lines(tmp_path / "out")
    assert (first["pred_label"], second["pred_label"]) == (True, False)
    assert first["regions"][0]["peak_score"] > 0.5
    mask = open_image(tmp_path / "out" / "masks" / "a_mask.png")
    assert mask.size == open_image(photographs / "a.png").size
    assert set(np.unique(np.asarray(mask))) <= {0, 255}
    assert open_image(tmp_path / "out" / "heatmaps" / "a_heatmap.png").size == mask.size
    assert "anomalous" in done.out
    assert "normal" in done.out


def test_a_broken_image_is_named_the_rest_is_scored_and_the_exit_code_is_one(
    cli, model, photographs, tmp_path
):
    (photographs / "b.png").write_bytes(b"torn")
    done = cli("predict", photographs, *model, "--output", tmp_path / "out")
    assert done.code == 1
    assert len(lines(tmp_path / "out")) == 2
    assert done.err.count("error: ") == 1
    assert "parts/b.png: not an image of a known format (PNG, JPEG, BMP" in done.err
    assert "1 failed" in done.out
    assert "b.png" in (tmp_path / "out" / "errors.jsonl").read_text()


def test_of_many_broken_images_twenty_are_named_and_the_rest_is_counted(cli, model, photographs, tmp_path):
    for number in range(25):
        (photographs / f"b{number:02}.png").write_bytes(b"torn")
    done = cli(
        "predict", photographs, *model, "--output", tmp_path / "out", "--save", "csv", "--save", "sheet"
    )
    assert done.code == 1
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 21
    assert "b19.png" in errors[19]
    assert errors[20] == "error: ... and 5 more images could not be used; all are in errors.jsonl"
    assert "25 failed (errors.jsonl)" in done.out
    assert f"open {tmp_path / 'out' / 'index.html'}" in done.out
    assert len((tmp_path / "out" / "predictions.csv").read_text().splitlines()) == 3
    assert open_image(tmp_path / "out" / "sheet.jpg").width > 400


def test_a_resumed_run_skips_what_is_done_and_tries_again_what_failed(
    cli, model, photographs, tmp_path, paper_case
):
    (photographs / "b.png").write_bytes(b"torn")
    options = ["predict", photographs, *model, "--output", tmp_path / "out"]
    assert cli(*options).code == 1
    settings = (tmp_path / "out" / "settings.json").read_bytes()
    (photographs / "b.png").write_bytes(paper_case.images[0].read_bytes())
    done = cli(*options, "--resume")
    assert done.code == 0
    assert (tmp_path / "out" / "settings.json").read_bytes() == settings
    assert "1 scored" in done.out
    assert "2 done before" in done.out
    assert sorted(record["image_path"] for record in lines(tmp_path / "out")) == [
        str(photographs / name) for name in ("a.png", "b.png", "line 2/c.png")
    ]


def test_a_run_is_not_resumed_with_other_settings_nor_overwritten_unasked(cli, model, photographs, tmp_path):
    options = ["predict", photographs, *model, "--output", tmp_path / "out"]
    assert cli(*options).code == 0
    before = (tmp_path / "out" / "predictions.jsonl").read_bytes()
    other = cli(*options, "--resume", "--sigma", 2)
    assert other.code == 2
    assert "sigma: 4.0 then, 2.0 now" in other.err
    again = cli(*options)
    assert again.code == 2
    assert "resume" in again.err
    assert (tmp_path / "out" / "predictions.jsonl").read_bytes() == before
    assert cli(*options, "--overwrite").code == 0


def test_images_come_from_patterns_lists_and_standard_input(cli, model, photographs, tmp_path):
    wanted = [str(photographs / "a.png"), str(photographs / "line 2" / "c.png")]
    (tmp_path / "list.txt").write_text("\n".join(wanted))
    runs = {
        "pattern": (["predict", f"{photographs}/**/*.png"], ""),
        "list": (["predict", "--from-file", tmp_path / "list.txt"], ""),
        "stdin": (["predict", "-"], "\n".join(wanted)),
    }
    for name, (arguments, stdin) in runs.items():
        done = cli(*arguments, *model, "--output", tmp_path / name, stdin=stdin)
        assert done.code == 0, done.err
        assert sorted(record["image_path"] for record in lines(tmp_path / name)) == wanted


def test_without_an_output_folder_each_run_gets_its_own(cli, model, photographs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        done = cli("predict", photographs / "a.png", *model)
        assert f"results in runs/predict-{number}" in done.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no images given"),
        (["nowhere.png"], "nowhere.png: no such file or folder"),
        (["-", "a.png"], "cannot be combined"),
        (["--from-file", "nowhere.txt"], "nowhere.txt"),
        (["parts", "--save", "mask"], "--save mask needs a threshold"),
        (["parts", "--resume"], "--resume needs the folder"),
        (["parts", "--threshold", "1.5"], "1.5; it must be a number from 0 to 1"),
        (
            ["parts", "--threshold", "limits.json"],
            "threshold limits.json: expected a number from 0 to 1, such as 0.5, or a threshold file",
        ),
        (["parts", "--backbone", "ViT-X"], "backbone 'ViT-X' is neither a known name"),
        (["parts", "--prompts", "none.pth"], "prompts 'none.pth'"),
        (["parts", "--scale", "1", "0"], "--scale 1.0 0.0: expected two map values"),
    ],
)
def test_what_cannot_start_is_one_clear_message_and_exit_code_two(
    arguments, says, cli, model, photographs, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    defaults = [] if "--backbone" in arguments else model[:2]
    defaults += [] if "--prompts" in arguments else model[2:4]
    done = cli("predict", *arguments, *defaults, *model[4:], "--save", "heatmap")
    assert done.code == 2, done.out
    assert says in done.err
    assert done.err.count("error: ") == 1
    assert "Traceback" not in done.err
    assert not (tmp_path / "runs").exists()


def test_weights_that_are_none_are_refused(cli, photographs, tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"nothing")
    done = cli("predict", photographs, "--backbone", tmp_path / "weights.pt")
    assert done.code == 2
    assert "weights.pt" in done.err
    assert "expected" in done.err


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    option=st.sampled_from(
        ["--threshold", "--sigma", "--layers", "--dpam-layers", "--image-size", "--batch-size"]
    ),
    value=st.one_of(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
        st.integers(-99, 99).map(str),
        st.floats().map(str),
    ),
)
def test_any_option_value_is_either_used_or_refused_never_a_traceback(
    option, value, cli, model, photographs, tmp_path
):
    done = cli(
        "predict", photographs / "a.png", *model, "--output", tmp_path / "out", "--overwrite", option, value
    )
    assert done.code in (0, 2), done.err
    if done.code == 2:
        assert "error" in done.err.lower()


@pytest.mark.slow
def test_a_killed_run_is_resumed_to_the_same_predictions(model, photographs, paper_case, tmp_path):
    """A real process, killed for real once its first line is there."""
    for i in range(12):
        (photographs / f"{i:02}.png").write_bytes(paper_case.images[i % 2].read_bytes())
    command = [sys.executable, "-m", "anomalyclip", "predict", photographs, *model, "--save", "map"]
    command = [str(part) for part in command]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, "--output", str(tmp_path / "whole")], check=True, capture_output=True, env=environment
    )
    process = subprocess.Popen(
        [*command, "--output", str(tmp_path / "killed")], stdout=subprocess.DEVNULL, env=environment
    )
    predictions = tmp_path / "killed" / "predictions.jsonl"
    while not (predictions.exists() and predictions.stat().st_size):
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    resumed = subprocess.run(
        [*command, "--output", str(tmp_path / "killed"), "--resume"],
        check=True,
        capture_output=True,
        text=True,
    )
    # Other batches and threads round otherwise: the same to the sixth digit, not to the bit.
    for resumed_line, whole_line in zip(lines(tmp_path / "killed"), lines(tmp_path / "whole"), strict=True):
        assert resumed_line == whole_line | {"pred_score": pytest.approx(whole_line["pred_score"], abs=1e-6)}
    assert resumed.stderr == ""  # no progress bar in a pipe


def test_help_and_import_do_not_load_the_heavy_libraries():
    code = """
import sys, anomalyclip, anomalyclip.cli
heavy = {"torch", "numpy", "scipy", "PIL", "huggingface_hub", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_a_model_is_loaded_without_pytorchs_compiler(tmp_path):
    """Random numbers on the meta device would load it, which takes a second of every start."""
    code = """
import sys
from anomalyclip.backbones.load import load_tower
from anomalyclip.clip.backbone import load_clip
load_clip("micro"), load_tower(sys.argv[1])
heavy = {"torch._dynamo", "sympy"} & set(sys.modules)
assert not heavy, heavy
"""
    file = vit_forms.original_dinov2(tmp_path, registers=True)
    subprocess.run([sys.executable, "-c", code, file], check=True)


def test_every_command_has_help(cli):
    listing = cli("--help").out
    for verb in ("predict", "benchmark"):
        assert verb in listing
        assert cli(verb, "--help").code == 0


def test_the_benchmark_prints_a_table_or_json(cli, monkeypatch):
    monkeypatch.setattr("anomalyclip.engines.floor.SIDE", 128)
    options = ["benchmark", "--architecture", "ViT-B-32", "--image-size", 64, "--repeats", 1]
    table = cli(*options).out
    assert "the encoder takes" in table
    assert "smooth" in table
    timing = json.loads(cli(*options, "--json").out)
    assert timing["stages"]["encode"] > 0
    assert timing["ratio"] == pytest.approx(timing["stages"]["encode"] / timing["floor"])


def test_odd_file_names_come_through(cli, model, photographs, paper_case, tmp_path):
    names = ["x[/red].png", "[bold]p.png", "猫 é.png", "two\nlines.png"]
    for name in names:
        (photographs / name).parent.mkdir(exist_ok=True)
        (photographs / name).write_bytes(paper_case.images[0].read_bytes())
    done = cli("predict", photographs, *model, "--output", tmp_path / "out", "--save", "map")
    assert done.code == 0, done.err
    assert {
        record["image_path"].removeprefix(f"{photographs}/") for record in lines(tmp_path / "out")
    } >= set(names)
    assert "x[/red].png" in done.out
    assert "[bold]p.png" in done.out


def test_other_prompts_under_the_same_name_are_other_settings(cli, model, photographs, paper_case, tmp_path):
    options = ["predict", photographs, *model, "--output", tmp_path / "out"]
    assert cli(*options).code == 0
    replace(paper_case.prompts, normal=-paper_case.prompts.normal).save(tmp_path / "prompts.safetensors")
    done = cli(*options, "--resume")
    assert done.code == 2
    assert "other prompts: " in done.err


def test_colours_are_options(cli, model, photographs, tmp_path):
    pictures = {}
    for colormap in ("inferno", "gray"):
        options = ["--save", "heatmap", "--colormap", colormap, "--output", tmp_path / colormap]
        assert cli("predict", photographs / "a.png", *model, *options).code == 0
        pictures[colormap] = np.asarray(open_image(tmp_path / colormap / "heatmaps" / "a_heatmap.png"))
    assert not np.array_equal(pictures["inferno"], pictures["gray"])


def test_without_a_caption_a_heat_map_has_the_photograph_s_size(cli, model, photographs, tmp_path):
    size = open_image(photographs / "a.png").size
    for option, there in (("--no-caption", False), ("--alpha=0.5", True)):
        output = tmp_path / option
        run = ["predict", photographs / "a.png", *model, "--save", "heatmap", option, "--output", output]
        assert cli(*run).code == 0
        assert (open_image(output / "heatmaps" / "a_heatmap.png").size != size) == there


def test_an_interrupted_run_says_how_to_go_on(cli, model, photographs, tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("anomalyclip.writers.PredictionWriter.write", interrupted)
    done = cli("predict", photographs, *model, "--output", tmp_path / "out")
    assert done.code == 130
    assert "--resume continues" in done.err


def test_an_interrupted_run_leaves_the_page_of_what_was_scored(
    cli, model, photographs, tmp_path, monkeypatch
):
    write, written = PredictionWriter.write, []

    def interrupted(*arguments, **options):
        if written:
            raise KeyboardInterrupt
        written.append(write(*arguments, **options))
        return written[0]

    monkeypatch.setattr(PredictionWriter, "write", interrupted)
    options = [*model, "--save", "csv", "--output", tmp_path / "out"]
    assert cli("predict", photographs, *options).code == 130
    page = (tmp_path / "out" / "index.html").read_text()
    assert "This page shows 1 image." in page
    assert page.count("data:image/jpeg") == 1
    assert len((tmp_path / "out" / "predictions.csv").read_text().splitlines()) == 2
    monkeypatch.undo()
    assert cli("predict", photographs, *options, "--resume").code == 0
    assert "This page shows 1 image." not in (tmp_path / "out" / "index.html").read_text()


def test_a_list_may_begin_with_a_byte_order_mark_and_no_list_is_no_input(cli, model, photographs, tmp_path):
    (tmp_path / "list.txt").write_text(f"{photographs}/a.png\n", encoding="utf-8-sig")
    assert (
        cli("predict", "--from-file", tmp_path / "list.txt", *model, "--output", tmp_path / "out").code == 0
    )
    empty = cli("predict", "-", *model, "--output", tmp_path / "none", stdin="")
    assert empty.code == 2
    assert "there was no image to score" in empty.err


def test_the_version_is_told(cli):
    assert cli("--version").out.startswith("anomalyclip 0.")


def test_what_is_no_list_of_paths_is_one_message(cli, model, photographs, tmp_path):
    (tmp_path / "windows.txt").write_bytes("a.png\r\nb.png\r\n".encode("utf-16"))
    (tmp_path / "empty.txt").write_text("\n")
    for file, says in (
        (photographs / "a.png", "expected UTF-8 text with one path per line"),
        (tmp_path / "windows.txt", "expected UTF-8 text with one path per line"),
        (tmp_path / "empty.txt", "empty.txt: the list is empty"),
    ):
        done = cli("predict", "--from-file", file, *model, "--output", tmp_path / "out")
        assert (done.code, says in done.err, len(done.err.splitlines())) == (2, True, 1), done.err


def test_files_that_are_passed_over_are_counted(cli, model, photographs, tmp_path):
    for name in ("scan.abc", "slice.abc", "notes.txt", ".hidden.abc"):
        (photographs / name).touch()
    done = cli("predict", photographs, *model, "--output", tmp_path / "out")
    assert "3 other files skipped (2 .abc, 1 .txt)" in done.out


def test_a_name_cannot_steer_the_terminal(cli, model, photographs, tmp_path):
    (photographs / "a.png").rename(photographs / "\x1b[2Ja.png")
    done = cli("predict", photographs, *model, "--output", tmp_path / "out")
    assert "\x1b" not in done.out
    assert "\\x1b[2Ja.png" in done.out


def test_going_on_where_nothing_began_is_said(cli, model, photographs, tmp_path):
    done = cli("predict", photographs, *model, "--output", tmp_path / "mistyped", "--resume")
    assert done.code == 0
    assert "mistyped has no run to resume" in done.err


def test_an_image_that_is_given_several_times_is_scored_once(cli, model, photographs, tmp_path, monkeypatch):
    monkeypatch.chdir(photographs)
    (tmp_path / "list.txt").write_text(
        f"a.png\n./a.png\n{photographs}/a.png\nline 2/c.png\nline 2/../a.png\n"
    )
    for number, arguments in enumerate(
        (
            ["--from-file", tmp_path / "list.txt"],
            ["-"],
            ["a.png", "./a.png", "line 2/../a.png", ".", "line 2"],
        )
    ):
        out = tmp_path / f"out{number}"
        done = cli("predict", *arguments, *model, "--output", out, stdin=(tmp_path / "list.txt").read_text())
        assert done.code == 0, done.err
        assert sorted(os.path.abspath(record["image_path"]) for record in lines(out)) == [
            f"{photographs}/a.png",
            f"{photographs}/line 2/c.png",
        ]
        assert "2 scored, 3 given more than once" in done.out
