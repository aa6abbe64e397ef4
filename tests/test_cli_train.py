"""The train command: the published result by default, nothing done twice, and no way of stopping it that costs work."""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from anomalyclip.prompts import load_prompts

from .conftest import GOLDEN

START = GOLDEN / "train_start_prompts.safetensors"


@pytest.fixture
def root(tmp_path):
    """The golden batch as a data set in MVTec AD's layout."""
    folder = tmp_path / "set"
    for index in range(4):
        kind = "bad" if index % 2 else "good"
        put(GOLDEN / f"train_{index}.png", folder / f"thing/test/{kind}/{index}.png")
        if index % 2:
            put(GOLDEN / f"train_{index}_mask.png", folder / f"thing/ground_truth/bad/{index}_mask.png")
    put(GOLDEN / "train_0.png", folder / "thing/train/good/0.png")
    return folder


def put(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


@pytest.fixture
def arguments(root, tiny_backbone, tmp_path, monkeypatch):
    """What every run here has in common."""
    monkeypatch.setenv("ANOMALYCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return ["train", root, "--backbone", tiny_backbone, "--image-size", 70]


def learned(path):
    prompts = load_prompts(path)
    return torch.cat([prompts.normal, prompts.abnormal, *prompts.deep_tokens]).flatten()


def test_three_steps_give_the_published_prompts_with_default_options(cli, arguments, tmp_path):
    done = cli(*arguments, "--init-prompts", START, "--epochs", 3, "--output", "run")
    assert done.code == 0, done.err
    after, start = learned(GOLDEN / "train_after3_prompts.safetensors"), learned(START)
    ours = learned(tmp_path / "run/prompts.safetensors")
    assert (ours - after).norm() / (after - start).norm() < 0.01
    assert torch.equal(learned(tmp_path / "run/prompts.pth"), ours)


def test_the_run_folder_says_what_was_done(cli, arguments, tmp_path):
    done = cli(*arguments, "--epochs", 2, "--val-fraction", 0.5, "--track")
    assert done.code == 0, done.err
    run = tmp_path / "runs/train-1"
    names = {
        str(path.relative_to(run))
        for path in run.rglob("*")
        if path.is_file() and path.parent.name != "tensorboard"
    }
    assert names == {
        ".lock",
        "prompts.safetensors",
        "prompts.pth",
        "config.yaml",
        "settings.json",
        "metrics.jsonl",
        "loss.png",
        "checkpoints/state.pt",
        "checkpoints/epoch_01.safetensors",
        "checkpoints/epoch_02.safetensors",
    }
    assert len(list((run / "tensorboard").iterdir())) == 1
    info = load_prompts(run / "prompts.safetensors").info
    assert (info["trained_on"], info["images"], info["image_size"]) == ("set", "2", "70")
    assert "2 images to learn from, 1 of them anomalous, 1 with a mask; 2 held out" in done.out
    assert "image AUROC" in done.out
    assert "best epoch on the held-out images" in done.out


def test_a_second_run_with_other_settings_encodes_nothing(cli, arguments, tmp_path):
    first = cli(*arguments, "--epochs", 1)
    assert "0 cached, 4 to encode" in first.out
    assert str(tmp_path / "cache/features") in first.out
    second = cli(*arguments, "--epochs", 1, "--learning-rate", 0.01, "--prompt-length", 16, "--seed", 1)
    assert second.code == 0, second.err
    assert "4 cached, 0 to encode" in second.out
    assert load_prompts(tmp_path / "runs/train-2/prompts.safetensors").length == 16


def test_shards_encode_their_parts_and_learn_nothing(cli, arguments, tmp_path):
    assert "shard 1/2 is done" in cli(*arguments, "--shard", "1/2").out
    assert "2 cached, 2 to encode" in cli(*arguments, "--shard", "2/2").out
    assert not (tmp_path / "runs").exists()
    assert "4 cached, 0 to encode" in cli(*arguments, "--epochs", 1).out


@pytest.mark.parametrize("shard", ["3/2", "0/2", "a/b", "2"])
def test_a_shard_that_makes_no_sense_is_refused(cli, arguments, shard):
    done = cli(*arguments, "--shard", shard)
    assert done.code == 2
    assert f"--shard {shard}: expected I/N" in done.err


def test_a_dry_run_estimates_and_writes_nothing(cli, arguments, root, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    done = cli(*arguments, "--dry-run")
    assert done.code == 0, done.err
    assert "4 to encode" in done.out
    assert "to encode (" in done.out.split("time, from a few images: ")[1]
    assert sorted(tmp_path.rglob("*")) == before


def test_an_image_that_cannot_be_read_is_named_and_left_out(cli, arguments, root):
    broken = root / "thing/test/good/broken.png"
    broken.write_bytes(b"no image")
    done = cli(*arguments, "--epochs", 1, "--output", "run")
    assert done.code == 1
    assert str(broken) in done.err
    assert "skipped because they cannot be used: 1 file" in done.err
    assert load_prompts("run/prompts.safetensors").info["images"] == "4"


def test_a_set_without_masks_is_learned_from_by_its_labels_and_that_is_said(cli, arguments, root):
    shutil.rmtree(root / "thing/ground_truth")
    done = cli(*arguments, "--epochs", 1)
    assert done.code == 0, done.err
    assert "no anomalous image has a mask: only the image loss is used" in done.err


def test_validating_on_the_training_set_is_warned_of(cli, arguments, root, tmp_path):
    same = tmp_path / "other name"
    shutil.copytree(root, same)
    done = cli(*arguments, "--epochs", 1, "--val-root", same)
    assert done.code == 0, done.err
    assert "the prompts were trained on set, the same data as in this evaluation" in done.err


def test_a_folder_with_a_run_is_not_overwritten(cli, arguments):
    assert cli(*arguments, "--epochs", 1, "--output", "run").code == 0
    before = Path("run/prompts.safetensors").read_bytes()
    done = cli(*arguments, "--epochs", 2, "--output", "run")
    assert done.code == 2
    assert "run already has results: use --resume or another --output" in done.err
    assert Path("run/prompts.safetensors").read_bytes() == before


def test_resuming_with_other_settings_or_images_is_refused(cli, arguments, root):
    assert cli(*arguments, "--epochs", 1, "--output", "run").code == 0
    done = cli(*arguments, "--epochs", 1, "--output", "run", "--resume", "--learning-rate", 0.01)
    assert done.code == 2
    assert "learning_rate: 0.001 then, 0.01 now" in done.err
    (root / "thing/ground_truth/bad/1_mask.png").write_bytes((GOLDEN / "train_3_mask.png").read_bytes())
    done = cli(*arguments, "--epochs", 1, "--output", "run", "--resume")
    assert done.code == 2
    assert "(images: " in done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume"], "--resume needs the folder of the run"),
        (["--init-prompts", START, "--prompt-length", 3], "fix length and depth"),
        (["--val-fraction", 1.5], "validation fraction 1.5: expected a number between 0 and 1"),
        (["--val-fraction", 0.5, "--val-root", "."], "cannot be combined"),
        (["--learning-rate", 0], "learning rate 0.0: expected a number above 0"),
        (["--phase", "exam"], "exam"),
    ],
)
def test_options_that_make_no_sense_are_one_message(cli, arguments, tmp_path, options, message):
    done = cli(*arguments, *options)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "runs").exists()


# --- being stopped

RESULTS = (
    "prompts.safetensors",
    "prompts.pth",
    "metrics.jsonl",
    "checkpoints/epoch_02.safetensors",
    "checkpoints/state.pt",
)


@pytest.mark.slow
def test_ctrl_c_saves_and_the_command_that_it_prints_goes_on_to_the_same_bits(cli, arguments, tmp_path):
    command = [str(word) for word in (*arguments, "--epochs", 30, "--batch-size", 1)]
    process = subprocess.Popen(
        [sys.executable, "-m", "anomalyclip", *command, "--output", "stopped"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    with process:
        printed = next(line for line in process.stdout if line.startswith("epoch 1:"))
        process.send_signal(signal.SIGINT)
        printed += process.stdout.read()
    assert process.returncode == 130
    words = shlex.split(printed.split("to continue: ")[1])
    assert words[0] == "anomalyclip"
    assert words[-1] == "--resume"
    assert cli(*words[1:]).code == 0
    assert cli(*command, "--output", "whole").code == 0
    for name in RESULTS:
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_sigkill_at_ten_random_moments_never_changes_the_result(cli, arguments, tmp_path, monkeypatch):
    """Every moment can be hit: the process counts its own function calls and kills itself at a random one."""
    command = [str(word) for word in (*arguments, "--epochs", 3, "--batch-size", 2)]
    assert cli(*command, "--output", "whole").code == 0
    calls = calls_of([*command, "--output", "counted", "--cache", "counted-cache"], tmp_path / "calls")
    chance = random.Random(5)
    kills, runs = 0, 0
    while kills < 10:
        runs += 1
        resumed = [*command, "--output", f"run-{runs}", "--cache", f"cache-{runs}", "--resume"]
        while kills < 10 and killed(resumed, at=chance.randrange(calls // 4, calls)):
            kills += 1
        assert cli(*resumed).code == 0
        for name in RESULTS:
            assert (tmp_path / f"run-{runs}" / name).read_bytes() == (
                tmp_path / "whole" / name
            ).read_bytes(), name
        assert not list((tmp_path / f"run-{runs}").rglob(".*.tmp"))


def calls_of(command, note):
    """Return how many function calls a run makes."""
    assert not killed(command, at=None, note=note)
    return json.loads(note.read_text())


def killed(command, *, at, note=None):
    """Run the command line in a process that kills itself at a function call; return whether it came to that."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = run_counted(command, at, note)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def run_counted(command, at, note):
    from anomalyclip.cli import main

    torch.set_num_threads(1)
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.argv = ["anomalyclip", *command]
    code = 0
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    sys.setprofile(None)
    if note is not None:
        note.write_text(json.dumps(count))
    return code
