"""Shards: every image is in exactly one, and put together they are the run that was not cut."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalyclip import AnomalyCLIPError, DetectorSpec, predict
from anomalyclip.errors import AnomalyCLIPNote
from anomalyclip.merging import merge
from anomalyclip.sharding import Shard
from tests.crash.commands import files_of

SPEC = DetectorSpec("micro", image_size=48)


@pytest.fixture(scope="module")
def detector():
    return SPEC.load(threshold=0.5)


@pytest.fixture
def images(tmp_path):
    """Pictures whose results would have the same names, a file of three pages, and one that is broken."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    names = [*(f"line {i % 2}/{i}.png" for i in range(9)), "line 0/0.jpg", "line 0/0.bmp", "top.png"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(folder / name)
    pages = [Image.fromarray(rng.integers(0, 255, (32, 32), dtype=np.uint8)) for _ in range(3)]
    pages[0].save(folder / "line 1" / "pages.tif", save_all=True, append_images=pages[1:])
    (folder / "line 0" / "broken.png").write_bytes(b"torn")
    return folder


def run_shards(detector, images, output, count, **options):
    for index in range(1, count + 1):
        predict(detector, images, output, shard=Shard(index, count), **options)
    return sorted(Path(output).iterdir())


def test_every_name_is_in_one_shard_and_shards_are_alike_in_size():
    names = [f"line {i % 7}/{i:06}.png" for i in range(8000)]
    shards = [Shard(index, 16) for index in range(1, 17)]
    homes = [[shard.index for shard in shards if shard.has(name)] for name in names]
    assert all(len(home) == 1 for home in homes)
    sizes = Counter(home[0] for home in homes)
    assert all(400 < sizes[index] < 600 for index in range(1, 17))


def test_where_a_name_belongs_never_changes():
    """Shards of one run may be scored by different versions and machines."""
    names = ["a.png", "line 1/a.png", "größe/ß.tif", "bad\udcff.png"]
    assert [next(i for i in range(1, 17) if Shard(i, 16).has(name)) for name in names] == [7, 2, 6, 3]


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        ({"SLURM_ARRAY_TASK_ID": "5", "COUNT": "16", "MIN": "1", "MAX": "16"}, "5/16"),
        ({"SLURM_ARRAY_TASK_ID": "0", "COUNT": "4", "MIN": "0", "MAX": "3"}, "1/4"),
        ({"SLURM_ARRAY_TASK_ID": "2", "COUNT": "2", "MIN": "1", "MAX": "2", "SLURM_PROCID": "0"}, "2/2"),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, "4/4"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "2"}, "2/2"),
        ({"RANK": "0", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, "1/2"),
        (
            {
                "SLURM_ARRAY_TASK_ID": "2",
                "COUNT": "3",
                "MIN": "1",
                "MAX": "3",
                "SLURM_PROCID": "1",
                "SLURM_NTASKS": "4",
            },
            "6/12",
        ),
    ],
)
def test_slurm_and_torchrun_say_which_shard_a_process_does(environment, shard):
    spelled = {
        key if key.startswith(("SLURM", "RANK", "WORLD")) else f"SLURM_ARRAY_TASK_{key}": value
        for key, value in environment.items()
    }
    assert str(Shard.parse("auto", environment=spelled)) == shard


@pytest.mark.parametrize(
    ("text", "environment", "says"),
    [
        ("0/4", {}, "shard 0/4: expected I/N with I from 1 to N"),
        ("5/4", {}, "shard 5/4: expected"),
        ("3", {}, "shard '3': expected I/N .* or auto"),
        ("auto", {}, "neither SLURM .* nor torchrun"),
        ("auto", {"RANK": "1"}, "WORLD_SIZE is not set, expected a number"),
        (
            "auto",
            {
                "SLURM_ARRAY_TASK_ID": "3",
                "SLURM_ARRAY_TASK_COUNT": "2",
                "SLURM_ARRAY_TASK_MIN": "3",
                "SLURM_ARRAY_TASK_MAX": "5",
            },
            "2 tasks from 3 to 5.*without gaps",
        ),
    ],
)
def test_a_shard_that_is_none_is_one_error(text, environment, says):
    with pytest.raises(AnomalyCLIPError, match=says):
        Shard.parse(text, environment=environment)


def test_shards_put_together_are_the_run_that_was_not_cut(detector, images, tmp_path):
    saved = {"save": ["map", "heatmap", "mask", "csv", "sheet"]}
    whole = predict(detector, images, tmp_path / "whole", **saved)
    shards = run_shards(detector, images, tmp_path / "shards", 3, **saved)
    assert [shard.name for shard in shards] == [f"shard-{i}-of-3" for i in (1, 2, 3)]
    merged = merge([tmp_path / "shards"], tmp_path / "merged", save=["csv", "sheet"])
    assert merged.missing == []
    assert (merged.run.scored, merged.run.failed, merged.run.anomalous) == (15, 1, whole.anomalous)
    one, other = files_of(tmp_path / "whole"), files_of(tmp_path / "merged")
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
    assert {"heatmaps/line 0/0.jpg_heatmap.png", "heatmaps/line 0/0.png_heatmap.png"} <= one.keys()


def test_a_merged_run_can_be_resumed(detector, images, tmp_path):
    run_shards(detector, images, tmp_path / "shards", 2)
    merge([tmp_path / "shards"], tmp_path / "merged")
    shutil.copy(images / "top.png", images / "new.png")
    run = predict(detector, images, tmp_path / "merged", resume=True)
    assert (run.scored, run.failed) == (1, 1)


def test_images_that_a_resumed_shard_scored_later_are_where_they_belong(detector, images, tmp_path):
    (shard,) = run_shards(detector, images, tmp_path / "shards", 1)
    file = shard / "predictions.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[5:9] + lines[:2] + lines[9:] + lines[2:5]))
    merge([shard], tmp_path / "merged")
    assert (tmp_path / "merged" / "predictions.jsonl").read_bytes() == b"".join(lines)


def test_a_shard_is_the_same_wherever_the_folder_is(detector, images, tmp_path):
    shutil.copytree(images, tmp_path / "elsewhere" / "mounted")
    for index, folder in ((1, images), (2, tmp_path / "elsewhere" / "mounted")):
        predict(detector, folder, tmp_path / "shards", shard=Shard(index, 2))
    assert merge([tmp_path / "shards"], tmp_path / "merged").run.scored == 15


def test_what_is_missing_is_named_and_the_rest_is_merged_if_asked_for(detector, images, tmp_path):
    first, second, third = run_shards(detector, images, tmp_path / "shards", 3)
    shutil.rmtree(second)
    lines = (first / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (first / "predictions.jsonl").write_bytes(b"".join(lines[1:]) + b'{"image_path": "torn')
    says = r"not complete: shard not given \(2/3\); .*shard-1-of-3 lacks 1 of \d images \(.*\)\. Run"
    with pytest.raises(AnomalyCLIPError, match=says):
        merge([first, third], tmp_path / "merged")
    assert not (tmp_path / "merged" / "predictions.jsonl").exists()
    merged = merge([first, third], tmp_path / "merged", partial=True)
    count = len((third / "predictions.jsonl").read_bytes().splitlines())
    assert merged.run.scored == len(lines) - 1 + count
    assert len(merged.missing) == 2


def test_a_shard_that_was_stopped_in_a_file_of_several_images_is_not_complete(detector, images, tmp_path):
    (shard,) = run_shards(detector, images, tmp_path / "shards", 1)
    listing = shard / "shard.jsonl"
    listing.write_text("".join(listing.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(AnomalyCLIPError, match="was stopped before its end"):
        merge([shard], tmp_path / "merged")
    predict(detector, images, tmp_path / "shards", shard=Shard(1, 1), resume=True)
    assert merge([shard], tmp_path / "merged").missing == []


def test_a_damaged_listing_of_a_shard_is_named(detector, images, tmp_path):
    (shard,) = run_shards(detector, images, tmp_path / "shards", 1)
    listing = shard / "shard.jsonl"
    *entries, facts, finished = listing.read_text().splitlines()
    rows = ["{torn", "[0]", "3", finished, '[0, 1, "a.png"]']
    counts = [{**json.loads(facts), "count": count} for count in (10**12, -1, "14")]
    for damaged in (
        *([*entries[:4], row, *entries[5:], facts] for row in rows),
        *([*entries, json.dumps(count)] for count in counts),
    ):
        listing.write_text("\n".join([*damaged, finished]) + "\n")
        with pytest.raises(AnomalyCLIPError, match=r"shard\.jsonl is damaged .*run this shard again"):
            merge([shard], tmp_path / "merged")


def test_what_is_there_twice_is_refused(detector, images, tmp_path):
    first, second = run_shards(detector, images, tmp_path / "shards", 2)
    with pytest.raises(
        AnomalyCLIPError, match=r"shard 1/2 is there twice: .*shard-1-of-2 and .*shard-1-of-2"
    ):
        merge([first, second, first], tmp_path / "merged")
    file = second / "predictions.jsonl"
    line = file.read_bytes().splitlines(keepends=True)[0]
    file.write_bytes(file.read_bytes() + line)
    with pytest.raises(AnomalyCLIPError, match=f"{json.loads(line)['image_path']} is there twice"):
        merge([first, second], tmp_path / "merged")


def test_shards_of_other_runs_are_refused(detector, images, tmp_path):
    first, _ = run_shards(detector, images, tmp_path / "shards", 2)
    other = SPEC.load(threshold=0.25)
    predict(other, images, tmp_path / "other", shard=Shard(2, 2))
    says = r"different settings \(threshold\.score: 0\.5 then, 0\.25 now; threshold.pixel: "
    with pytest.raises(AnomalyCLIPError, match=says):
        merge([first, tmp_path / "other"], tmp_path / "merged")
    predict(detector, images, tmp_path / "thirds", shard=Shard(2, 3))
    with pytest.raises(AnomalyCLIPError, match=r"is shard 1/2 and .* is shard 2/3: they are of two runs"):
        merge([first, tmp_path / "thirds"], tmp_path / "merged")
    predict(detector, images / "line 0", tmp_path / "less", shard=Shard(2, 2))
    with pytest.raises(AnomalyCLIPError, match=r"not of the same images: .* listed 14 images, .* 8"):
        merge([first, tmp_path / "less"], tmp_path / "merged")
    predict(detector, images, tmp_path / "whole")
    with pytest.raises(AnomalyCLIPError, match="whole: is not a shard"):
        merge([first, tmp_path / "whole"], tmp_path / "merged")
    with pytest.raises(AnomalyCLIPError, match="images: neither a shard .* nor a folder of shards"):
        merge([images], tmp_path / "merged")
    with pytest.raises(AnomalyCLIPError, match="is one of the shards"):
        merge([tmp_path / "shards"], first, overwrite=True)


def test_shards_that_were_scored_with_different_engines_are_told_of(detector, images, tmp_path):
    run_shards(detector, images, tmp_path / "shards", 3)
    for index, engine in ((1, "torch"), (2, "openvino"), (3, "torch")):
        settings = tmp_path / "shards" / f"shard-{index}-of-3" / "settings.json"
        settings.write_text(json.dumps({**json.loads(settings.read_text()), "about": {"engine": engine}}))
    with pytest.warns(AnomalyCLIPNote, match="scored with openvino and others with torch: .* same --engine"):
        merge([tmp_path / "shards"], tmp_path / "whole")


def test_images_whose_range_would_be_assumed_are_errors_in_a_shard(detector, tmp_path):
    """Each shard would assume another one from its first image."""
    folder = tmp_path / "deep"
    folder.mkdir()
    Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40)).save(folder / "a.png")
    run = predict(detector, folder, tmp_path / "shards", shard=Shard(1, 1))
    assert (run.scored, run.failed) == (0, 1)
    assert "give --range LOW HIGH" in (run.folder / "errors.jsonl").read_text()
    known = DetectorSpec("micro", image_size=48, value_range=(0, 1599))
    assert predict(known, folder, tmp_path / "known", shard=Shard(1, 1)).scored == 1


def test_the_commands_cut_and_merge(cli, images, tmp_path, monkeypatch):
    options = ["--backbone", "micro", "--image-size", 48, "--output", tmp_path / "shards"]
    assert cli("predict", images, *options, "--shard", "1/2").code in (0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = cli("predict", images, *options, "--shard", "auto")
    assert "note: this process does shard 2/2" in done.err
    done = cli("predict", images, *options, "--shard", "auto")
    assert (done.code, "shard-2-of-2 already has results" in done.err) == (2, True)
    done = cli("merge", tmp_path / "shards", "--output", tmp_path / "merged")
    assert done.code == 1  # one image is broken
    assert "15 scored, 1 failed (errors.jsonl)" in done.out
    (tmp_path / "shards" / "shard-1-of-2").rename(tmp_path / "away")
    done = cli("merge", tmp_path / "shards", "--output", tmp_path / "merged", "--overwrite", "--partial")
    assert done.code == 1
    assert "warning: shard not given (1/2)" in done.err


def test_a_shard_may_have_no_image_but_needs_a_folder_that_all_share(detector, images, tmp_path):
    for index in range(1, 5):
        predict(detector, images / "top.png", tmp_path / "shards", shard=Shard(index, 4))
    assert merge([tmp_path / "shards"], tmp_path / "merged").run.scored == 1
    with pytest.raises(AnomalyCLIPError, match="a shard needs a folder that all shards share: give --output"):
        predict(detector, images, shard=Shard(1, 2))
    with pytest.raises(AnomalyCLIPError, match="missing: no such file or folder"):
        predict(detector, images / "missing", tmp_path / "new", shard=Shard(1, 2))
    assert not (tmp_path / "new").exists()
