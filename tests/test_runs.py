"""Run folders and the settings that a resumed run must share."""

import json
import subprocess
import sys
from functools import partial

import pytest

from anomalyclip.errors import AnomalyCLIPError, AnomalyCLIPWarning
from anomalyclip.files import replacing
from anomalyclip.runs import RunFolder, alone, begin, new_folder


def test_run_folders_never_overwrite_each_other(tmp_path):
    first = new_folder("predict", parent=tmp_path)
    (first / "kept").touch()
    assert new_folder("predict", parent=tmp_path).name == "predict-2"
    assert (first / "kept").exists()


def test_a_run_is_resumed_with_its_own_settings_only(tmp_path):
    first = {"scoring": {"sigma": 4.0, "layers": (24,)}, "data": [{"sha256": "ab" * 32, "images": 3}]}
    assert not begin(tmp_path, "test", first, resume=True), "there is nothing to go on with"
    assert begin(tmp_path, "test", first, resume=True)
    other = {"scoring": {"sigma": 2.0, "layers": [24]}, "data": [{"sha256": "cd" * 32, "images": 3}]}
    with pytest.raises(AnomalyCLIPError) as refused:
        begin(tmp_path, "test", other, resume=True)
    said = "scoring.sigma: 4.0 then, 2.0 now; data 1.sha256: abababab... then, cdcdcdcd... now"
    assert f"was started with other settings ({said})" in str(refused.value)
    begin(tmp_path, "test", other, resume=False)
    assert begin(tmp_path, "test", other, resume=True)


def test_two_commands_never_share_a_folder(tmp_path):
    begin(tmp_path, "predict", {"sigma": 4.0}, resume=False)
    for resume in (False, True):
        with pytest.raises(AnomalyCLIPError, match="holds results of `anomalyclip predict`: choose another"):
            begin(tmp_path, "test", {"sigma": 4.0}, resume=resume)


def test_a_file_of_that_name_that_is_not_ours_is_not_written_over(tmp_path):
    (tmp_path / "settings.json").write_text('{"editor.fontSize": 12}')
    with pytest.raises(AnomalyCLIPError, match="was not written by anomalyclip and would be overwritten"):
        begin(tmp_path, "predict", {}, resume=False)
    assert (tmp_path / "settings.json").read_text() == '{"editor.fontSize": 12}'


def test_damaged_settings_are_named(tmp_path):
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(AnomalyCLIPError, match="settings.json: damaged"):
        begin(tmp_path, "test", {}, resume=True)


def test_a_second_process_stays_out_of_a_run_until_the_first_is_gone_even_if_it_was_killed(tmp_path):
    code = (
        "import pathlib, sys; from anomalyclip.runs import alone\n"
        "with alone(pathlib.Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    folder = tmp_path / "run"
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "in\n"
    with (
        pytest.raises(AnomalyCLIPError, match="run: another process is working in this folder"),
        alone(folder),
    ):
        pass
    first.kill()
    first.communicate()
    with alone(folder):
        entered = True
    assert entered


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("before")

    def stopped_half_way():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        stopped_half_way()
    assert [file.name for file in tmp_path.iterdir()] == ["result.txt"]
    assert path.read_text() == "before"


# --- RunFolder

LINES = "lines.jsonl"


def work(folder, settings, **about):
    """One run: settings and a line of results."""
    with folder.begin(settings, **about) as place, open(place / LINES, "a") as file:
        file.write("{}\n")
    return place


@pytest.fixture
def done(tmp_path):
    """A folder with results."""
    return work(RunFolder("predict", tmp_path / "done", results=LINES), {"sigma": 4.0})


def test_results_are_neither_overwritten_nor_gone_on_with_unasked(done):
    before = {path.name: path.read_bytes() for path in done.iterdir()}
    with pytest.raises(AnomalyCLIPError, match="done already has results.*--resume.*--overwrite.*--output"):
        RunFolder("predict", done, overwrite=False, results=LINES)
    assert {path.name: path.read_bytes() for path in done.iterdir()} == before


def test_overwriting_is_not_offered_where_there_is_none(done):
    with pytest.raises(AnomalyCLIPError, match="done already has results.*--resume.*--output") as refused:
        RunFolder("predict", done, results=LINES)
    assert "--overwrite" not in str(refused.value)


@pytest.mark.parametrize("command", ["test", "train"])
def test_the_commands_that_cannot_overwrite_do_not_offer_it(command, cli, tmp_path):
    (tmp_path / "run" / "parts" / "classes").mkdir(parents=True)
    (tmp_path / "run" / "settings.json").write_text("{}")
    refused = cli(command, tmp_path, "--output", tmp_path / "run")
    assert (refused.code, "--resume" in refused.err, "--overwrite" in refused.err) == (2, True, False)


def test_the_results_that_count_may_be_below_the_folder(tmp_path):
    (tmp_path / "set" / "classes").mkdir(parents=True)
    with pytest.raises(AnomalyCLIPError, match="already has results"):
        RunFolder("test", tmp_path, results="*/classes")
    RunFolder("test", tmp_path, results="classes")


def test_one_is_asked_for_or_the_other(tmp_path):
    with pytest.raises(AnomalyCLIPError, match="--resume and --overwrite"):
        RunFolder("predict", tmp_path, resume=True, overwrite=True, results=LINES)


def test_without_a_folder_there_is_nothing_to_resume_and_a_new_one_is_made_when_the_run_begins(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AnomalyCLIPError, match="--resume.*--output"):
        RunFolder("predict", None, resume=True, results=LINES)
    folders = [RunFolder("predict", None, results=LINES) for _ in range(2)]
    assert list(tmp_path.iterdir()) == []
    assert [str(work(folder, {})) for folder in folders] == ["runs/predict-1", "runs/predict-2"]
    assert [str(folder.output) for folder in folders] == ["runs/predict-1", "runs/predict-2"]


def test_results_that_do_not_say_how_they_began_are_not_gone_on_with(done):
    (done / "settings.json").unlink()
    with pytest.raises(AnomalyCLIPError, match=r"settings\.json is missing"):
        RunFolder("predict", done, resume=True, results=LINES)
    assert work(RunFolder("predict", done, overwrite=True, results=LINES), {}) == done


def test_going_on_where_nothing_began_is_warned_of_and_begins(tmp_path):
    folder = RunFolder("predict", tmp_path / "mistyped", resume=True, results=LINES)
    with pytest.warns(AnomalyCLIPWarning, match="mistyped.*no run to resume"):
        work(folder, {"sigma": 4.0})
    assert json.loads((tmp_path / "mistyped" / "settings.json").read_text())["sigma"] == 4.0


def test_a_run_goes_on_with_its_settings_and_not_with_others(done, recwarn):
    work(RunFolder("predict", done, resume=True, results=LINES), {"sigma": 4.0})
    assert (done / LINES).read_text() == "{}\n{}\n"
    assert not recwarn.list
    before = {path.name: path.read_bytes() for path in done.iterdir()}
    with pytest.raises(AnomalyCLIPError, match="other settings.*sigma: 4.0 then, 2.0 now"):
        work(RunFolder("predict", done, resume=True, results=LINES), {"sigma": 2.0})
    assert {path.name: path.read_bytes() for path in done.iterdir()} == before
    work(RunFolder("predict", done, overwrite=True, results=LINES), {"sigma": 2.0})
    assert json.loads((done / "settings.json").read_text()) == {"command": "predict", "sigma": 2.0}


def test_a_run_that_is_killed_while_it_overwrites_leaves_no_settings_that_old_results_could_be_resumed_with(
    done, monkeypatch
):
    class Killed(BaseException):
        pass

    def killed_at_the_results(path, **options):
        if path.name == LINES:
            raise Killed
        unlink(path, **options)

    unlink = type(done).unlink
    overwriting = partial(
        RunFolder, "predict", done, overwrite=True, results=LINES, earlier=lambda folder: [folder / LINES]
    )
    with monkeypatch.context() as patch:
        patch.setattr(type(done), "unlink", killed_at_the_results)
        with pytest.raises(Killed):
            work(overwriting(), {"sigma": 2.0})
    for sigma in (2.0, 4.0):
        with pytest.raises(
            AnomalyCLIPError, match=r"settings\.json is missing.*start again with --overwrite"
        ):
            work(RunFolder("predict", done, resume=True, overwrite=False, results=LINES), {"sigma": sigma})

    work(overwriting(), {"sigma": 2.0})
    assert json.loads((done / "settings.json").read_text())["sigma"] == 2.0
    assert (done / LINES).read_text() == "{}\n"


def test_where_a_file_may_not_be_overwritten_the_run_and_its_settings_stay(done):
    def refused(folder):
        yield folder / LINES
        raise AnomalyCLIPError("a file of another program")

    before = {path.name: path.read_bytes() for path in done.iterdir()}
    with pytest.raises(AnomalyCLIPError, match="a file of another program"):
        work(RunFolder("predict", done, overwrite=True, results=LINES, earlier=refused), {"sigma": 2.0})
    assert {path.name: path.read_bytes() for path in done.iterdir()} == before


def test_what_a_run_is_made_of_is_written_and_not_compared(tmp_path):
    for place in ("/here/clip.pt", "/there/clip.pt"):
        about = {"spec": {"backbone": place}}
        folder = RunFolder("predict", tmp_path, resume=place.startswith("/there"), results=LINES)
        work(folder, {"sigma": 4.0}, about=about)
        assert json.loads((tmp_path / "settings.json").read_text())["about"] == about


def test_another_commands_folder_stays_its_own(done):
    with pytest.raises(AnomalyCLIPError, match="predict"):
        work(RunFolder("test", done, results="*/classes"), {"sigma": 4.0})
    assert json.loads((done / "settings.json").read_text())["command"] == "predict"


# --- temporary files and folders of killed processes

KEEPS = """
import pathlib, sys
from anomalyclip.files import replacing, staging
with replacing(sys.argv[1] + "/a.txt") as file, staging(sys.argv[1]) as folder:
    file.write_text("half")
    (folder / "b.txt").write_text("half")
    print(file.name, folder.name, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_deleted_by_the_next_one_and_what_a_living_one_uses_is_not(tmp_path):
    run = [sys.executable, "-c", KEEPS, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(run, **pipes) as killed, subprocess.Popen(run, **pipes) as living:
        left, used = (process.stdout.readline().split() for process in (killed, living))
        killed.kill()
        killed.wait()
        (tmp_path / ".mine.tmp").touch()
        with subprocess.Popen(run, **pipes) as next_one:
            own = next_one.stdout.readline().split()
            there = {path.name for path in tmp_path.iterdir()}
            assert there == {*used, *own, ".mine.tmp"}
            assert not there.intersection(left)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.tmp", "a.txt"]


def test_a_new_file_has_the_permissions_that_any_new_file_has(tmp_path):
    (tmp_path / "usual").touch()
    with replacing(tmp_path / "ours") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode
