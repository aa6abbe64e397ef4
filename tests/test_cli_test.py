"""`anomalyclip test` and the scripts around it: what they leave behind, what they say, and what they need."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from anomalyclip.clip.model import CLIP, CLIPConfig
from anomalyclip.data.meta import Sample
from anomalyclip.evaluation.maps import FolderSource
from anomalyclip.prediction import Threshold
from anomalyclip.prompts import Prompts
from tests.generated_sets import make_set

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def model(paper_case, tiny_backbone, tmp_path):
    paper_case.prompts.save(tmp_path / "prompts.safetensors")
    return ["--backbone", tiny_backbone, "--prompts", tmp_path / "prompts.safetensors", "--image-size", 56]


@pytest.fixture
def root(tmp_path):
    return make_set(tmp_path / "parts", normal=2, anomalous=3, side=56)


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_one_command_leaves_the_table_in_every_form_and_a_report(cli, model, root, tmp_path):
    out = tmp_path / "out"
    formats = [part for kind in ("json", "csv", "md", "latex", "html") for part in ("--format", kind)]
    done = cli("test", root, *model, "--output", out, "--batch-size", 2, *formats)
    assert done.code == 0, done.err
    found = results(out)
    assert [entry["class"] for entry in found["results"][0]["classes"]] == ["nut", "tile"]
    assert len(found["identity"]["weights_sha256"]) == 64
    assert found["identity"]["image_size"] == 56
    assert found["peak_memory_mb"] > 0
    for line in done.out.splitlines():
        if line.startswith("mean"):
            assert f"{100 * found['results'][0]['mean']['pixel_auroc']:.1f}" in line
    assert "| nut | 2 | 3 |" in (out / "results.md").read_text()
    assert r"\toprule" in (out / "results.tex").read_text()
    assert "<table>" in (out / "report.html").read_text()
    with open(out / "images.csv") as file:
        assert len(list(csv.DictReader(file))) == 10
    assert not list(out.rglob("*.npy"))


def test_a_narrow_pipe_does_not_cut_the_table(cli, model, root, tmp_path):
    done = cli("test", root, *model, "--output", tmp_path / "out", "--compare", "--format", "json")
    assert "…" not in done.out
    assert "is not in the catalogue" in done.err


def test_several_roots_give_one_table_and_the_papers_figures_beside_it(cli, model, tmp_path):
    roots = [
        make_set(tmp_path / name, classes=(kind,), normal=2, anomalous=2)
        for name, kind in (("a", "01"), ("b", "x"))
    ]
    done = cli(
        *("test", *roots, "--dataset", "btad", "--dataset", "mpdd", "--compare", "--format", "md"),
        *(*model, "--output", tmp_path / "out"),
    )
    assert done.code == 2
    assert "does not have the layout of BTAD" in done.err
    done = cli("test", *roots, "--compare", "--format", "md", *model, "--output", tmp_path / "out")
    assert done.code == 0, done.err
    text = (tmp_path / "out" / "results.md").read_text()
    assert text.startswith("## 2 data sets")
    assert text.index("| a |") < text.index("| b |") < text.index("| **mean** |") < text.index("## a")


def test_an_image_that_cannot_be_used_is_named_on_the_screen(cli, model, root, tmp_path):
    broken = next((root / "nut" / "test" / "good").iterdir())
    broken.write_bytes(broken.read_bytes()[:60])
    done = cli("test", root, *model, "--format", "json", "--output", tmp_path / "out")
    assert done.code == 1
    assert f"{broken}: damaged image" in done.err.replace("\n", " ")


def test_options_of_a_model_are_refused_where_the_maps_are_there_already(cli, root, tmp_path):
    done = cli("test", root, "--from-maps", tmp_path, "--backbone", "micro", "--sigma", 2)
    assert done.code == 2
    assert "--backbone, --sigma cannot be combined with --from-maps" in done.err


def test_a_folder_of_predictions_is_not_taken_for_an_evaluation(cli, model, root, tmp_path):
    image = next((root / "nut" / "test" / "good").iterdir())
    assert cli("predict", image, *model, "--output", tmp_path / "out").code == 0
    done = cli("test", root, *model, "--output", tmp_path / "out")
    assert (done.code, "holds results of `anomalyclip predict`" in done.err) == (2, True)
    assert cli("predict", image, *model, "--output", tmp_path / "out", "--resume").code == 0


def test_a_recognised_set_is_compared_with_the_paper(cli, model, tmp_path):
    root = make_set(tmp_path / "mvtec", classes=("bottle", "screw"), normal=2, anomalous=2)
    done = cli(
        "test", root, *model, "--compare", "--format", "json", "--format", "md", "--output", tmp_path / "out"
    )
    assert done.code == 0, done.err
    assert results(tmp_path / "out")["paper"]["figures"]["mvtec"]["screw"]["image_auroc"] == 0.821
    assert "mean" not in results(tmp_path / "out")["paper"]["figures"]["mvtec"]
    assert (
        "mvtec: its mean is not compared with the paper's, which covers other classes (missing cable,"
        in done.err
    )
    assert "| screw | 2 | 2 |" in (tmp_path / "out" / "results.md").read_text()
    assert "| 82.1 |" in (tmp_path / "out" / "results.md").read_text()


def test_prompts_that_were_trained_on_the_set_are_warned_of(cli, model, paper_case, root, tmp_path):
    replace(paper_case.prompts, info={"trained_on": "parts"}).save(tmp_path / "prompts.safetensors")
    done = cli("test", root, *model, "--format", "json", "--output", tmp_path / "out")
    assert done.code == 0, done.err
    assert "trained on parts" in done.out
    assert "the prompts were trained on parts" in done.err
    assert any("not zero-shot" in note for note in results(tmp_path / "out")["notes"])


def test_the_same_images_under_another_name_are_warned_of_too(cli, model, paper_case, root, tmp_path):
    digests = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in root.glob("*/test/*/*.png"))
    content = hashlib.sha256("\n".join(digests).encode()).hexdigest()
    info = {"trained_on": "another name", "trained_on_content": content}
    replace(paper_case.prompts, info=info).save(tmp_path / "prompts.safetensors")
    done = cli("test", root, *model, "--format", "json", "--output", tmp_path / "out")
    assert (
        "the prompts were trained on another name, the same data as in this evaluation (here parts)"
        in done.err
    )


def test_missing_masks_are_said(cli, model, root, tmp_path):
    (root / "nut" / "ground_truth" / "spot" / "000_mask.png").unlink()
    done = cli("test", root, *model, "--format", "json", "--output", tmp_path / "out")
    assert done.code == 0, done.err
    assert "1 anomalous images have no mask: they are used for image-level metrics only" in done.err


def test_a_broken_image_is_exit_code_1_and_named_in_the_results(cli, model, root, tmp_path):
    (root / "nut" / "test" / "spot" / "000.png").write_bytes(b"no image")
    done = cli("test", root, *model, "--format", "json", "--output", tmp_path / "out")
    assert done.code == 1
    assert "1 files could not be used" in done.err
    assert "nut/test/spot/000.png" in results(tmp_path / "out")["results"][0]["classes"][0]["failed"]


def test_a_model_that_does_not_beat_the_controls_is_said_not_to(cli, model, root, tmp_path):
    done = cli("test", root, *model, "--controls", "--format", "json", "--output", tmp_path / "out")
    assert done.code == 0, done.err
    assert "control: contrast" in done.out
    assert "does not beat a control that knows nothing" in done.err  # random weights; bright squares on noise
    assert {entry["scorer"] for entry in results(tmp_path / "out")["controls"]} == {"centre", "contrast"}


def test_kept_maps_are_evaluated_again_without_a_model(cli, model, root, tmp_path):
    done = cli("test", root, *model, "--save", "map", "--format", "json", "--output", tmp_path / "out")
    assert done.code == 0, done.err
    assert len(list((tmp_path / "out" / "parts" / "maps").rglob("*.npy"))) == 10
    done = cli(
        "test", root, "--from-maps", tmp_path / "out", "--format", "json", "--output", tmp_path / "again"
    )
    assert done.code == 0, done.err
    assert (
        results(tmp_path / "again")["results"][0]["mean"] == results(tmp_path / "out")["results"][0]["mean"]
    )


def test_maps_of_predict_are_evaluated(cli, model, root, tmp_path):
    assert cli("predict", root, *model, "--save", "map", "--output", tmp_path / "predicted").code == 0
    done = cli(
        "test", root, "--from-maps", tmp_path / "predicted", "--format", "json", "--output", tmp_path / "out"
    )
    assert done.code == 0, done.err
    assert results(tmp_path / "out")["results"][0]["mean"]["pixel_auroc"] is not None


def test_a_map_is_the_image_s_whose_line_names_it_and_never_a_namesake_s(tmp_path):
    def sample(image):
        return Sample(image, None, "nut", "good", False)

    lines = [("a.jpg", "a", 0.25), ("a.png", "a.png", 0.5), ("b.jpg", "b", 0.75)]
    (tmp_path / "maps").mkdir()
    for _, name, score in lines:
        np.save(tmp_path / "maps" / f"{name}.npy", np.full((2, 2), score, np.float32))
    (tmp_path / "predictions.jsonl").write_text(
        "".join(
            json.dumps({"image_path": f"x/{path}", "pred_score": score, "files": {"map": f"maps/{name}.npy"}})
            + "\n"
            for path, name, score in lines
        )
    )
    failed = {}
    samples = [sample(name) for name in ("a.jpg", "a.png", "b.jpg", "b.png")]
    scored = FolderSource(tmp_path).of(samples, failed, lambda: None)
    assert {item.sample.image: item.score for item in scored} == {"a.jpg": 0.25, "a.png": 0.5, "b.jpg": 0.75}
    assert "b.npy belongs to another image" in failed["b.png"]
    (tmp_path / "predictions.jsonl").unlink()  # nothing says whose a.npy and b.npy are
    failed.clear()
    assert [item.sample.image for item in FolderSource(tmp_path).of(samples, failed, lambda: None)] == [
        "a.png"
    ]
    assert failed.keys() == {"a.jpg", "b.jpg", "b.png"}


def test_a_threshold_file_brings_verdicts_into_the_report(cli, model, root, tmp_path):
    Threshold(score=0.5, pixel=0.5, info={"images": 20}).to_file(tmp_path / "threshold.json")
    done = cli("test", root, *model, "--threshold", tmp_path / "threshold.json", "--output", tmp_path / "out")
    assert done.code == 0, done.err
    assert "false alarms among normal images" in (tmp_path / "out" / "report.html").read_text()


def test_an_evaluation_is_not_overwritten_and_not_resumed_with_other_settings(cli, model, root, tmp_path):
    run = ["test", root, *model, "--format", "json", "--output", tmp_path / "out"]
    assert cli(*run).code == 0
    again = cli(*run)
    assert again.code == 2
    assert "already has results: use --resume or another --output" in again.err
    other = cli(*run, "--resume", "--sigma", 2)
    assert other.code == 2
    assert "was started with other settings" in other.err
    assert cli(*run, "--resume").code == 0


def test_a_run_that_is_killed_while_it_computes_leaves_no_folder_once_it_is_resumed(
    cli, model, root, tmp_path
):
    code = (
        "import os, signal, sys\n"
        "import anomalyclip.evaluation.evaluator as evaluator\n"
        "evaluator.region_areas = lambda mask: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from anomalyclip.cli import main\n"
        "main()"
    )
    command = ["test", root, *model, "--output", tmp_path / "out"]
    killed = subprocess.run([sys.executable, "-c", code, *map(str, command)], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert list((tmp_path / "out").glob("*/.*"))  # what it computed with
    done = cli(*command, "--resume")
    assert done.code == 0, done.err
    assert [path.name for path in (tmp_path / "out").rglob(".*")] == [".lock"]


def test_a_killed_run_goes_on_to_the_same_results(cli, model, root, tmp_path):
    run = ["test", root, *map(str, model), "--format", "json", "--output", tmp_path / "out"]
    assert cli("test", root, *model, "--format", "json", "--output", tmp_path / "whole").code == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "anomalyclip", *map(str, run)], stderr=subprocess.DEVNULL
    )
    predictions = tmp_path / "out" / "parts" / "unfinished" / "predictions.jsonl"
    while process.poll() is None and not (predictions.is_file() and predictions.stat().st_size):
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = cli(*run, "--resume")
    assert done.code == 0, done.err
    # Other batches and threads round otherwise: the same to the sixth digit, not to the bit.
    whole = results(tmp_path / "whole")["results"][0]["mean"]
    assert results(tmp_path / "out")["results"][0]["mean"] == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume"], "--resume needs the folder"),
        (["--dataset", "mvtec", "--dataset", "visa"], "1 data sets, but 2 --dataset"),
        (["--from-maps", "nowhere"], "nowhere: no such folder"),
        (["--from-maps", ".", "--save", "map"], "--save map cannot be combined with --from-maps"),
    ],
)
def test_what_cannot_start_is_exit_code_2(cli, root, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = cli("test", root, *arguments)
    assert done.code == 2
    assert message in done.err


def peak_memory(arguments):
    """Run a command in a process of its own and return its peak memory in MB."""
    code = (
        "import resource, sys; from anomalyclip.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    return float(done.stdout.split()[-1])


@pytest.fixture
def two_blocks(tmp_path):
    """A model of two blocks, random: memory does not depend on the values, and the test need not take long."""
    torch.manual_seed(0)
    torch.save(CLIP(CLIPConfig(32, 56, 14, 64, 2, 1, 64, 2, 1, 77, 49408)).state_dict(), tmp_path / "clip.pt")
    ids = torch.zeros(2, 77, dtype=torch.int64)
    ids[:, :4] = torch.tensor([49406, 343, 14115, 49407])
    Prompts.initial(ids, width=64, length=1, depth=1).save(tmp_path / "prompts.safetensors")
    return [
        "--backbone",
        tmp_path / "clip.pt",
        "--prompts",
        tmp_path / "prompts.safetensors",
        "--device",
        "cpu",
    ]


@pytest.mark.slow
def test_four_times_the_images_take_no_more_memory(two_blocks, tmp_path):
    """120 more maps of 224 x 224 are 24 MB, and sorting their pixels at once would take as much again."""
    peaks = []
    for images in (40, 160):
        root = make_set(tmp_path / f"{images}", classes=("nut",), normal=images // 2, anomalous=images // 2)
        options = ["--image-size", 224, "--batch-size", 4, "--format", "json"]
        peaks.append(
            peak_memory(["test", root, *two_blocks, *options, "--output", tmp_path / f"out-{images}"])
        )
    assert peaks[1] - peaks[0] < 20, peaks


@pytest.fixture
def run_script(tmp_path, tiny_backbone):
    def run(name, *arguments, **environment):
        command = tmp_path / "anomalyclip"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m anomalyclip "$@"\n')
        command.chmod(0o755)
        settings = {
            **os.environ,
            "ANOMALYCLIP": str(command),
            "BACKBONE": str(tiny_backbone),
            "OUTPUT": str(tmp_path / "runs"),
            **{key: str(value) for key, value in environment.items()},
        }
        script = ["bash", SCRIPTS / name, *map(str, arguments)]
        return subprocess.run(script, env=settings, cwd=tmp_path, capture_output=True, text=True)

    return run


@pytest.mark.slow
def test_the_papers_tests_run_on_the_sets_that_are_there_and_name_the_others(
    run_script, paper_case, tmp_path
):
    make_set(tmp_path / "data" / "mvtec", classes=("bottle", "screw"), normal=2, anomalous=2, side=56)
    make_set(tmp_path / "elsewhere", classes=("bracket_black", "tubes"), normal=2, anomalous=2, side=56)
    paper_case.prompts.save(tmp_path / "prompts.safetensors")
    prompts = tmp_path / "prompts.safetensors"
    done = run_script(
        "test.sh",
        *("--image-size", 56, "--format", "json"),
        DATA_ROOT=tmp_path / "data",
        MPDD_ROOT=tmp_path / "elsewhere",
        PROMPTS_VISA=prompts,
        PROMPTS_MVTEC=prompts,
    )
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "runs" / "test-mvtec")["results"][0]["dataset"] == "mvtec"
    assert results(tmp_path / "runs" / "test-others")["results"][0]["dataset"] == "mpdd"
    assert done.stderr.count("skipped:") == 15
    assert "set KVASIR_ROOT or DATA_ROOT" in done.stderr


@pytest.mark.slow
def test_the_rivals_are_compared_on_the_sets_that_are_there(run_script, paper_case, tmp_path):
    make_set(tmp_path / "elsewhere", classes=("bracket_black", "tubes"), normal=2, anomalous=2, side=56)
    paper_case.prompts.save(tmp_path / "prompts.safetensors")
    done = run_script(
        "rivals.sh",
        *("--image-size", 56, "--format", "json", "--draws", 100),
        MPDD_ROOT=tmp_path / "elsewhere",
        PROMPTS_MVTEC=tmp_path / "prompts.safetensors",
    )
    assert done.returncode == 0, done.stderr
    found = results(tmp_path / "runs" / "rivals-others")
    assert list(found["compared"]) == ["anomalyclip", "clip", "clip-ac", "winclip"]
    assert found["compared"]["anomalyclip"]["spec"]["prompts"] == str(tmp_path / "prompts.safetensors")
    assert found["paper"]["source"].startswith("AnomalyCLIP (ICLR 2024)")
    assert set(found["results"]) == {"mpdd"}
    assert "left out: april-gan (set APRIL_GAN_MVTEC to what it learned on mvtec)" in done.stderr
    assert done.stderr.count("skipped:") == 16


@pytest.mark.parametrize("name", ["test.sh", "train.sh", "rivals.sh"])
def test_without_any_set_a_script_says_what_to_set(run_script, name):
    done = run_script(name)
    assert done.returncode == 2
    assert "set DATA_ROOT to the folder with" in done.stderr


def test_one_example_is_scored_and_drawn(run_script, paper_case, tmp_path):
    paper_case.prompts.save(tmp_path / "prompts.safetensors")
    image = paper_case.images[0]
    done = run_script(
        "test_one_example.sh", image, "--prompts", tmp_path / "prompts.safetensors", "--image-size", 70
    )
    assert done.returncode == 0, done.stderr
    assert f"{paper_case.arrays['score'][0]:.4f}" in done.stdout
    assert np.load(tmp_path / "runs" / "maps" / f"{image.stem}.npy").shape == (70, 70)
    assert run_script("test_one_example.sh").returncode == 2
