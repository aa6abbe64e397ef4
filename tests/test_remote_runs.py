"""Results in an object store: whole objects, and after any interruption the bytes of a run that was never stopped."""

import gzip
import io
import json
from contextlib import ExitStack
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from anomalyclip import Detector, DetectorSpec, Threshold, merging, predicting, remote_runs, summarizing
from anomalyclip.addresses import Address, copies, folder_on_disk, put, stores
from anomalyclip.addresses.writing import check_can_be_written
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.merging import merge
from anomalyclip.runs import RunFolder
from anomalyclip.sharding import Shard
from tests import object_store
from tests.toy_methods import Bright

RUN = "s3://results/line 1/run"


@pytest.fixture(scope="module")
def server():
    with object_store.serve() as url:
        yield url


@pytest.fixture
def store(server, monkeypatch):
    """A bucket without results."""
    monkeypatch.setattr(stores, "PAUSE", 0.0)
    monkeypatch.setattr(remote_runs, "PIECE", 2)
    files, _ = stores.store_of(Address("s3://results"))
    if files.exists("results"):
        files.rm("results", recursive=True)
    files.mkdir("results")
    return files


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(5):
        Image.new("L", (8, 6), 40 * number + 20).save(folder / f"{number}.png")
    return folder


class Stops(Bright):
    """Fails where a test wants it to, as a process does that is killed."""

    left = 10**6

    def __call__(self, pixels):
        Stops.left -= 1
        if Stops.left < 0:
            raise KeyboardInterrupt
        return super().__call__(pixels)


def score(pictures, output=RUN, **options):
    options = {"save": ["heatmap", "map", "mask", "csv"]} | options
    limits = Threshold(score=0.4, pixel=0.4)
    scale = options.pop("value_range", None)
    detector = Detector(Stops(DetectorSpec(image_size=8)), threshold=limits, value_range=scale)
    Stops.left = options.pop("stop_after", 10**6)
    return predicting.predict(detector, pictures, output, **options)


def objects(store, below="results/line 1/run"):
    store.invalidate_cache()
    return {name.removeprefix(f"{below}/"): store.cat_file(name) for name in store.find(below)}


def local(pictures, output, **options):
    score(pictures, output, **options)
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in Path(output).rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def without_settings(files):
    """Leave out what differs between a run in shards and one without, and settings that say where."""
    return {name: content for name, content in files.items() if name != "settings.json"}


def test_a_run_in_a_store_has_the_objects_that_a_folder_has(store, pictures, tmp_path):
    run = score(pictures)

    assert (run.scored, str(run.folder)) == (5, RUN)
    assert objects(store) == local(pictures, tmp_path / "run")


def test_a_run_that_was_stopped_is_resumed_to_the_same_bytes(store, pictures, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        score(pictures, stop_after=3)
    halfway = objects(store)
    assert halfway["predictions.jsonl"].count(b"\n") == 3
    assert [name for name in halfway if name.startswith(".lines")]

    run = score(pictures, resume=True)

    assert (run.scored, run.skipped) == (2, 3)
    assert objects(store) == local(pictures, tmp_path / "run")


@pytest.mark.slow
def test_a_volume_in_a_store_is_put_together_there_also_by_a_run_that_is_resumed(store, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    values = np.random.default_rng(0).integers(0, 255, (9, 8, 5), dtype=np.uint8)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([2, 2, 3, 1])), tmp_path / "scan.nii.gz")
    store.put_file(str(tmp_path / "scan.nii.gz"), "results/in/scan.nii.gz")
    options = {"save": ["nifti", "heatmap"], "value_range": (0, 255)}
    expected = local("s3://results/in", tmp_path / "run", **options)

    with pytest.raises(KeyboardInterrupt):
        score("s3://results/in", stop_after=3, **options)
    run = score("s3://results/in", resume=True, **options)

    assert (run.scored, run.skipped) == (2, 3)
    there = objects(store)
    assert there == expected
    assert json.loads(there["volumes.jsonl"])["slices"] == 5
    whole = nibabel.Nifti1Image.from_bytes(gzip.decompress(there["volumes/scan_map.nii.gz"]))
    assert whole.shape == (9, 8, 5)
    assert np.ptp(whole.get_fdata()[..., 0]) > 0.1  # also of a slice that the first part of the run scored

    score("s3://results/in", overwrite=True, value_range=(0, 255), save=[])
    assert [name for name in objects(store) if name.endswith((".npy", ".nii.gz"))] == []


def test_a_run_that_was_killed_loses_its_last_piece_and_nothing_else(store, pictures, tmp_path, monkeypatch):
    """Nothing is sent after the second piece was begun: what a power cut leaves."""
    with monkeypatch.context() as cut:
        cut.setattr(remote_runs._Sender, "send_all", lambda sender: None)
        with pytest.raises(KeyboardInterrupt):
            score(pictures, stop_after=3)
    left = objects(store)
    assert "predictions.jsonl" not in left
    lines = b"".join(content for name, content in sorted(left.items()) if name.startswith(".lines/"))
    records = [json.loads(line) for line in lines.splitlines()]
    assert [Path(record["image_path"]).name for record in records] == ["0.png", "1.png"]
    for record in records:
        assert set(record["files"].values()) <= left.keys()  # what a line names is there before it

    run = score(pictures, resume=True)

    assert (run.scored, run.skipped) == (3, 2)
    assert objects(store) == local(pictures, tmp_path / "run")


@pytest.mark.slow
def test_a_connection_that_breaks_stops_the_run_which_is_resumed_to_the_same_bytes(
    store, server, pictures, tmp_path
):
    with object_store.proxy_of(server) as proxy, object_store.reached(proxy.url):
        proxy.limit = 60_000  # bytes of requests, and then the line is dead

        with pytest.raises(
            AnomalyCLIPError, match="s3://results/line 1/run/.*: cannot be written in . tries"
        ):
            score(pictures)
        assert proxy.cut > 0

    assert "index.html" not in objects(store)
    score(pictures, resume=True)
    assert objects(store) == local(pictures, tmp_path / "run")


def test_results_are_not_overwritten_by_accident_and_are_deleted_on_purpose(store, pictures, tmp_path):
    score(pictures)
    foreign = {"heatmaps/mine.png": b"mine", "notes.txt": b"mine"}
    for name, content in foreign.items():
        store.pipe_file(f"results/line 1/run/{name}", content)
    (pictures / "4.png").unlink()

    with pytest.raises(
        AnomalyCLIPError, match=f"^{RUN} already has results: use --resume, --overwrite or another"
    ):
        score(pictures)
    score(pictures, save=["heatmap"], overwrite=True)

    assert objects(store) == local(pictures, tmp_path / "run", save=["heatmap"]) | foreign | {
        "predictions.csv": objects(store)["predictions.csv"]  # as in a folder, it stays
    }


def test_a_run_is_resumed_with_the_same_settings_only(store, pictures):
    score(pictures)
    detector = Detector(Bright(DetectorSpec(image_size=8)))

    with pytest.raises(AnomalyCLIPError, match=f"^{RUN} was started with other settings .threshold"):
        predicting.predict(detector, pictures, RUN, resume=True)


def test_a_page_that_is_not_of_a_run_is_kept(store, pictures):
    store.pipe_file("results/line 1/run/index.html", b"<title>My own</title>")

    with pytest.raises(
        AnomalyCLIPError, match="index.html is not from `anomalyclip predict` and would be lost"
    ):
        score(pictures)


def test_two_runs_at_one_address_are_noticed(store, pictures, monkeypatch):
    """There is no lock; but a piece that is there already was written by somebody else."""
    add = remote_runs._Sender.add

    def add_to_foreign(sender, record):
        store.pipe_file("results/line 1/run/.lines/" + "0" * 20, b"{}\n")
        add(sender, record)

    monkeypatch.setattr(remote_runs._Sender, "add", add_to_foreign)
    with pytest.raises(AnomalyCLIPError, match="another run is writing to this address"):
        score(pictures)


def test_a_shard_has_its_own_folder_in_the_store(store, pictures):
    detector = Detector(Bright(DetectorSpec(image_size=8)))

    predicting.predict(detector, pictures, RUN, shard=Shard(1, 1))

    assert "results/line 1/run/shard-1-of-1/predictions.jsonl" in store.find("results")


def test_shards_of_images_in_a_store_are_scored_into_a_store_and_resumed(store, pictures, tmp_path):
    for path in pictures.iterdir():
        store.pipe_file(f"results/parts/{path.name}", path.read_bytes())
    score("s3://results/parts", save=["map"])
    for index in (1, 2):
        part = {"output": "s3://results/shards", "save": ["map"], "shard": Shard(index, 2)}
        with pytest.raises(KeyboardInterrupt):
            score("s3://results/parts", **part, stop_after=1)
        assert score("s3://results/parts", **part, resume=True).skipped == 1
    for name, content in objects(store, "results/shards").items():
        (tmp_path / "shards" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "shards" / name).write_bytes(content)
    merge([tmp_path / "shards"], tmp_path / "whole")
    for name, content in objects(store).items():
        assert (tmp_path / "whole" / name).read_bytes() == content, name


@pytest.mark.slow
def test_shards_in_a_store_are_merged_and_summarised_as_in_a_folder(store, pictures, tmp_path):
    whole = local(pictures, tmp_path / "whole")
    for index in (1, 2):
        score(pictures, "s3://results/parts", shard=Shard(index, 2))

    there = merging.merge(["s3://results/parts"], "s3://results/line 1/run", save=["csv"])
    here = merging.merge([Path("s3://results/parts")], tmp_path / "here", save=["csv"])

    assert there.run.scored == here.run.scored == 5
    assert without_settings(objects(store)) == without_settings(whole)
    found = summarizing.summarize([Path("s3://results/parts")], highest=2)
    assert (found.scores.count, Path(found.highest[0][1]).name) == (5, "4.png")
    assert sorted(found.groups) == ["s3://results/parts/shard-1-of-2", "s3://results/parts/shard-2-of-2"]


def test_errors_about_runs_in_a_store_name_the_address(store, pictures):
    score(pictures, "s3://results/parts", shard=Shard(1, 2))

    with pytest.raises(AnomalyCLIPError, match=r"shard not given \(2/2\)"):
        merging.merge(["s3://results/parts"], "s3://results/merged")
    merged = merging.merge(["s3://results/parts"], "s3://results/merged", partial=True)
    assert str(merged.run.folder) == "s3://results/merged"
    store.pipe_file("results/parts/shard-1-of-2/predictions.jsonl", b"damaged\n")
    with pytest.raises(
        AnomalyCLIPError, match=r"^s3://results/parts/shard-1-of-2/predictions.jsonl.* damaged"
    ):
        summarizing.summarize(["s3://results/parts"])
    with pytest.raises(AnomalyCLIPError, match=r"^s3://results/nothing: no such folder$"):
        merging.merge(["s3://results/nothing"], "s3://results/merged")
    for own in ("s3://results/parts", "s3://results/parts/shard-1-of-2"):
        with pytest.raises(AnomalyCLIPError, match=f"^{own}: is one of the shards, or in their folder"):
            merging.merge(["s3://results/parts"], own, overwrite=True)


def test_an_object_whose_name_leads_out_of_a_folder_is_not_copied(tmp_path, monkeypatch):
    fsspec.filesystem("memory").pipe("/run/a.txt", b"x")
    listed = [Address("memory://run/a.txt"), Address("memory://run/../../out.txt")]
    monkeypatch.setattr(copies, "objects", lambda _: iter(listed))

    with (
        ExitStack() as stack,
        pytest.raises(AnomalyCLIPError, match=r"out.txt: the name of this object leads out"),
    ):
        stack.enter_context(folder_on_disk(Address("memory://run")))
    fsspec.filesystem("memory").rm("/run", recursive=True)


def test_where_there_is_renaming_a_file_is_renamed_when_it_is_whole(tmp_path, monkeypatch):
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    class Shared(LocalFileSystem):
        protocol = "shared"

        def put_file(self, local, path, **options):
            super().put_file(local, path, **options)
            if Path(local).read_bytes() == b"fails":
                raise TimeoutError("gone")

    monkeypatch.setattr(stores, "PAUSE", 0.0)
    fsspec.register_implementation("shared", Shared, clobber=True)
    source = tmp_path / "source"
    source.write_bytes(b"whole")
    target = Address(f"shared://{tmp_path}/folder/a.txt")
    put(source, target)

    source.write_bytes(b"fails")
    with pytest.raises(AnomalyCLIPError, match="cannot be written in 4 tries .gone"):
        put(source, target)

    assert (tmp_path / "folder" / "a.txt").read_bytes() == b"whole"


def test_nothing_is_written_where_nothing_can_be_or_where_only_folders_are_known():
    with pytest.raises(
        AnomalyCLIPError, match="^https://example.com/run: results cannot be written to this address"
    ):
        check_can_be_written(Address("https://example.com/run?key=1"))
    with pytest.raises(
        AnomalyCLIPError, match="^s3://bucket/run: this run writes to a folder of this machine only"
    ):
        RunFolder("train", Path("s3://bucket/run"), results="*")


@pytest.mark.slow
def test_the_command_line_writes_to_an_address(store, pictures, cli):
    done = cli("predict", pictures, "--backbone", "micro", "--output", RUN, "--save", "heatmap")

    assert done.code == 0, done.err
    assert f"results in {RUN}" in done.out
    assert f"To look at them, open {RUN}/index.html" in done.out
    page = Image.open(io.BytesIO(objects(store)["heatmaps/0_heatmap.png"]))
    assert page.width == 8 or page.height > 6
