"""A weight file is hashed once and never mistaken for another, whatever happens to it or to the cache."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch

from anomalyclip.clip import fingerprints
from anomalyclip.clip.backbone import load_backbone
from anomalyclip.clip.fingerprints import of_file
from anomalyclip.clip.weights import fingerprint
from anomalyclip.errors import AnomalyCLIPError
from tests import clip_forms as forms
from tests.clip_forms import CONFIG

LONG_AGO = -60.0
"""In place of the seconds that a file must have been left alone: that of this test need not wait."""


@pytest.fixture
def state():
    return forms.tiny()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, in which fingerprints of files of any size and age are remembered."""
    monkeypatch.setenv("ANOMALYCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprints, "REMEMBERED_FROM", 0)
    monkeypatch.setattr(fingerprints, "_SETTLED", LONG_AGO)
    return tmp_path / "cache"


@pytest.fixture
def readings(monkeypatch):
    """A list that grows by each reading of weights for their fingerprint."""
    sources, read = [], fingerprints.read_weights

    def counted(source):
        sources.append(source)
        return read(source)

    monkeypatch.setattr(fingerprints, "read_weights", counted)
    return sources


def folder(tmp_path, name="models"):
    (tmp_path / name).mkdir()
    return tmp_path / name


def notes(cache):
    return sorted(cache.rglob("*.json"))


def other_content(path, *, in_place):
    """Change one weight, and give the file its former size and time of modification again."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-10] ^= 0x01
    if in_place:
        path.write_bytes(content)
    else:
        path.with_name("new").write_bytes(content)
        path.with_name("new").replace(path)
    while path.stat().st_ctime_ns <= before.st_ctime_ns:  # the file system's clock ticks in milliseconds
        time.sleep(0.002)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_a_fingerprint_is_remembered_and_the_weights_are_not_read_again(state, cache, readings, tmp_path):
    path = forms.own_file(state, folder(tmp_path))
    first = of_file(path)
    assert readings == []  # not before it is asked for
    assert first() == fingerprint(CONFIG, state)
    assert len(readings) == 1
    assert first() == of_file(path)() == fingerprint(CONFIG, state)
    assert len(readings) == 1
    assert len(notes(cache)) == 1


def test_each_file_has_its_own_note_whatever_path_leads_to_it(state, cache, readings, tmp_path, monkeypatch):
    one = forms.own_file(state, folder(tmp_path, "one"))
    changed = state | {"logit_scale": state["logit_scale"] + 1}
    two = forms.own_file(changed, folder(tmp_path, "two"))
    assert [of_file(path)() for path in (one, two)] == [
        fingerprint(CONFIG, state),
        fingerprint(CONFIG, changed),
    ]
    monkeypatch.chdir(tmp_path / "one")
    assert of_file(one.relative_to(tmp_path / "one"))() == fingerprint(CONFIG, state)
    assert (len(readings), len(notes(cache))) == (2, 2)


@pytest.mark.parametrize("in_place", [True, False])
def test_other_content_of_the_same_size_and_time_is_hashed_again(state, cache, readings, tmp_path, in_place):
    path = forms.own_file(state, folder(tmp_path))
    before = of_file(path)()
    other_content(path, in_place=in_place)
    assert of_file(path)() != before
    assert len(readings) == 2


def test_a_file_that_was_written_a_moment_ago_is_not_remembered(
    state, cache, readings, tmp_path, monkeypatch
):
    """Within a tick of the clock it could change and look the same."""
    monkeypatch.setattr(fingerprints, "_SETTLED", 3600.0)
    path = forms.own_file(state, folder(tmp_path))
    os.utime(path, (0, 0))  # a time of modification can be set, that of the change cannot
    assert of_file(path)() == of_file(path)() == fingerprint(CONFIG, state)
    assert (len(readings), notes(cache)) == (2, [])


def test_a_file_does_not_settle_while_it_is_read(state, cache, tmp_path, monkeypatch):
    """A gigabyte takes longer than that, and its beginning may have changed behind the reader."""
    read = fingerprints.read_weights

    def slowly(source):
        monkeypatch.setattr(fingerprints, "_SETTLED", LONG_AGO)  # as if it took minutes
        return read(source)

    monkeypatch.setattr(fingerprints, "_SETTLED", 3600.0)
    monkeypatch.setattr(fingerprints, "read_weights", slowly)
    assert of_file(forms.own_file(state, folder(tmp_path)))() == fingerprint(CONFIG, state)
    assert notes(cache) == []


def test_a_small_file_is_hashed_each_time_and_leaves_nothing(state, cache, readings, tmp_path, monkeypatch):
    path = forms.own_file(state, folder(tmp_path))
    monkeypatch.setattr(fingerprints, "REMEMBERED_FROM", path.stat().st_size + 1)
    assert of_file(path)() == of_file(path)()
    assert (len(readings), cache.exists()) == (2, False)
    monkeypatch.setattr(fingerprints, "REMEMBERED_FROM", path.stat().st_size)
    of_file(path)()
    assert len(notes(cache)) == 1


DAMAGES = {
    "empty": lambda note: b"",
    "cut short": lambda note: json.dumps(note).encode()[:-20],
    "no text": lambda note: b"\xff\xfe\x00",
    "a list": lambda note: b"[]",
    "a number": lambda note: b"7",
    "without a hash": lambda note: json.dumps({"files": note["files"]}).encode(),
    "of no hash": lambda note: json.dumps(note | {"sha256": None}).encode(),
    "of half a hash": lambda note: json.dumps(note | {"sha256": note["sha256"][:32]}).encode(),
    "of other files": lambda note: json.dumps({"files": [], "sha256": "0" * 64}).encode(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_note_costs_time_and_is_written_again(damage, state, cache, readings, tmp_path):
    path = forms.own_file(state, folder(tmp_path))
    of_file(path)()
    (note,) = notes(cache)
    good = note.read_bytes()
    note.write_bytes(DAMAGES[damage](json.loads(good)))
    assert of_file(path)() == fingerprint(CONFIG, state)
    assert len(readings) == 2
    assert note.read_bytes() == good
    assert of_file(path)() == fingerprint(CONFIG, state)
    assert len(readings) == 2


@pytest.mark.parametrize("obstacle", ["cache", "cache/fingerprints", "note"])
def test_a_cache_that_cannot_be_written_to_costs_time(obstacle, state, cache, readings, tmp_path):
    path = forms.own_file(state, folder(tmp_path))
    if obstacle == "note":  # a folder where the note belongs
        of_file(path)()
        (note,) = notes(cache)
        note.unlink()
        (note / "inside").mkdir(parents=True)
        readings.clear()
    else:  # a file where the folder belongs
        (tmp_path / obstacle).parent.mkdir(exist_ok=True)
        (tmp_path / obstacle).touch()
    assert of_file(path)() == of_file(path)() == fingerprint(CONFIG, state)
    assert len(readings) == 2
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="everything may be written to")
def test_a_read_only_cache_costs_time(state, cache, readings, tmp_path):
    path = forms.own_file(state, folder(tmp_path))
    cache.mkdir(mode=0o500)
    assert of_file(path)() == of_file(path)() == fingerprint(CONFIG, state)
    assert len(readings) == 2


@pytest.mark.parametrize("change", ["replaced", "overwritten", "removed"])
@pytest.mark.parametrize("remembered", [True, False])
def test_a_file_that_changed_after_it_was_loaded_is_one_clear_error(
    change, remembered, state, cache, tmp_path
):
    path = forms.own_file(state, folder(tmp_path))
    if remembered:
        of_file(path)()
    backbone = load_backbone(path)
    if change == "removed":
        path.unlink()
    else:
        other_content(path, in_place=change == "overwritten")
    with pytest.raises(
        AnomalyCLIPError, match=r"own\.safetensors: was changed while it was in use; start again"
    ):
        backbone.fingerprint()


def test_a_file_that_changes_while_it_is_read_is_the_same_error(state, cache, tmp_path, monkeypatch):
    """Else a model would go by the fingerprint of another one, which took its place in between."""
    path = forms.own_file(state, folder(tmp_path))
    read = fingerprints.read_weights

    def read_late(source):
        other_content(path, in_place=False)
        return read(source)

    monkeypatch.setattr(fingerprints, "read_weights", read_late)  # for the fingerprint
    backbone = load_backbone(path)
    with pytest.raises(AnomalyCLIPError, match="was changed while it was in use"):
        backbone.fingerprint()
    assert notes(cache) == []
    monkeypatch.undo()

    def read_early(source):
        weights = read(source)
        other_content(path, in_place=False)
        return weights

    monkeypatch.setattr("anomalyclip.clip.backbone.read_weights", read_early)  # for the model
    backbone = load_backbone(path)
    with pytest.raises(AnomalyCLIPError, match="was changed while it was in use"):
        backbone.fingerprint()


def test_a_folders_configuration_belongs_to_its_fingerprint(state, cache, readings, tmp_path):
    """It decides heads and activation, and its size may stay the same."""
    path = forms.own_folder(state, folder(tmp_path))
    before = of_file(path)
    assert before() == fingerprint(CONFIG, state)
    config = path / "config.json"
    content = config.read_text()
    config.write_text(content.replace('"vision_heads": 2', '"vision_heads": 4'))
    assert len(config.read_text()) == len(content)
    assert of_file(path)() not in (fingerprint(CONFIG, state), "")
    assert len(readings) == 2
    with pytest.raises(AnomalyCLIPError, match="own: was changed while it was in use"):
        before()


def test_a_configuration_that_appears_beside_a_loaded_file_is_a_change(state, cache, tmp_path):
    path = forms.open_clip_folder(state, folder(tmp_path)) / "open_clip_model.safetensors"
    config = path.with_name("open_clip_config.json")
    text = config.read_text()
    config.unlink()
    loaded = of_file(path)
    config.write_text(text)
    with pytest.raises(AnomalyCLIPError, match="was changed while it was in use"):
        loaded()


def test_every_shard_counts(state, cache, readings, tmp_path):
    path = forms.sharded_transformers_folder(state, folder(tmp_path))
    before = of_file(path)()
    assert of_file(path)() == before == fingerprint(CONFIG, state)
    other_content(sorted(path.glob("*.safetensors"))[-1], in_place=True)
    assert of_file(path)() != before
    assert len(readings) == 2


def test_half_precision_and_float32_of_the_same_numbers_have_one_fingerprint(
    state, cache, readings, tmp_path
):
    half = forms.state_dict(state, folder(tmp_path, "half"))
    single = forms.state_dict({name: t.float() for name, t in state.items()}, folder(tmp_path, "single"))
    assert single.stat().st_size > 1.5 * half.stat().st_size
    assert of_file(half)() == of_file(single)() == fingerprint(CONFIG, state)
    doubled = {name: tensor.double() for name, tensor in state.items()}
    finer = {name: torch.where(t == 0, t, t * (1 + 2**-20)) for name, t in doubled.items()}
    assert fingerprint(CONFIG, {name: t.float() for name, t in finer.items()}) != of_file(half)()


HASHING = """
import sys
from pathlib import Path
from anomalyclip.clip import fingerprints
fingerprints.REMEMBERED_FROM, fingerprints._SETTLED = 0, float(sys.argv[2])
print(fingerprints.of_file(Path(sys.argv[1]))())
"""


def test_two_processes_with_a_cold_cache_agree(state, cache, readings, tmp_path):
    path = forms.own_file(state, folder(tmp_path))
    command = [sys.executable, "-c", HASHING, str(path), str(LONG_AGO)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    results = [process.communicate(timeout=120)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert results == [fingerprint(CONFIG, state)] * 2
    assert of_file(path)() == results[0]
    assert (readings, len(notes(cache))) == ([], 1)
    assert [file for file in cache.rglob("*") if file.is_file()] == notes(
        cache
    )  # no half-written one is left
