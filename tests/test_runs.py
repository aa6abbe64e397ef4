"""Run folders and the settings that a resumed run must share."""

import subprocess
import sys

import pytest

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import replacing
from anomalyclip.runs import alone, begin, new_folder


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
    assert f"began with other settings ({said})" in str(refused.value)
    begin(tmp_path, "test", other, resume=False)
    assert begin(tmp_path, "test", other, resume=True)


def test_two_commands_never_share_a_folder(tmp_path):
    begin(tmp_path, "predict", {"sigma": 4.0}, resume=False)
    for resume in (False, True):
        with pytest.raises(AnomalyCLIPError, match="holds results of `anomalyclip predict`: choose another"):
            begin(tmp_path, "test", {"sigma": 4.0}, resume=resume)


def test_a_file_of_that_name_that_is_not_ours_is_not_written_over(tmp_path):
    (tmp_path / "settings.json").write_text('{"editor.fontSize": 12}')
    with pytest.raises(AnomalyCLIPError, match="is not of an anomalyclip run and would be lost"):
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
    with pytest.raises(AnomalyCLIPError, match="run: another process works in this folder"), alone(folder):
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
