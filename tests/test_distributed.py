"""Runs on a Ray cluster: the rows are those of `predict`, each once, whatever is lost on the way."""

import io
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from anomalyclip import AnomalyCLIPError, DetectorSpec, distributed
from anomalyclip import predict as predict_here
from anomalyclip.addresses import Address, put, stores
from anomalyclip.distributed import Cluster, Predictor, cluster, map_of, run
from anomalyclip.distributed.cluster import Actors
from anomalyclip.distributed.run import _cause, _LostError, _Work, run_folder
from anomalyclip.distributed.tables import Parts, arrow, rows_of, table_of
from anomalyclip.overview.summary import records
from anomalyclip.predicting import PredictionRun
from anomalyclip.progress import silent
from anomalyclip.summarizing import summarize
from tests import object_store

SPEC = DetectorSpec("micro", image_size=48)
COLUMNS = ["path", "score", "label", "width", "height", "regions", "value_range", "error"]


def make_images(folder, count):
    """Pictures, a file of three pages, one of 16 bits that does not say its range, and one that is broken."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(folder / f"{number:05}.png")
    pages = [Image.fromarray(rng.integers(0, 255, (32, 32), dtype=np.uint8)) for _ in range(3)]
    pages[0].save(folder / "pages.tif", save_all=True, append_images=pages[1:])
    Image.fromarray(np.full((40, 40), 4000, np.uint16)).save(folder / "deep.png")
    (folder / "broken.png").write_bytes(b"torn")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("distributed") / "images", 6)


@pytest.fixture(scope="module")
def predictor():
    return Predictor(SPEC.to_json(), threshold=0.5, maps=True)


def lines_of(folder):
    """What `predict` wrote, as rows."""
    lines, errors = (list(records(folder / name, dict)) for name in ("predictions.jsonl", "errors.jsonl"))
    names = ["image_path", "pred_score", "pred_label", "image_size", "regions", "value_range"]
    rows = [[line.get(name) for name in names] for line in lines]
    scored = [
        (path, score, label, *size, regions, scale, None) for path, score, label, size, regions, scale in rows
    ]
    return sorted(scored + [(line["image_path"], *[None] * 6, line["error"]) for line in errors])


def flat(rows):
    return sorted(tuple(row[name] for name in COLUMNS) for row in rows)


def test_rows_are_those_of_predict_and_a_bad_image_is_a_row(images, predictor, tmp_path):
    (images / "deep.png").rename(
        images.parent / "deep.png"
    )  # predict assumes its range, a part of a run may not
    predict_here(predictor.detector, images, tmp_path / "here", save=["map"])
    (images.parent / "deep.png").rename(images / "deep.png")
    table = predictor({"path": [os.fsencode(path) for path in sorted(images.iterdir())]})
    rows = table.to_pylist()
    deep = [row["error"] for row in rows if row["path"].endswith("deep.png")]
    assert [error[-99:] for error in deep] == [deep[0][-99:]]
    assert "does not say its range: give --range LOW HIGH" in deep[0]
    rest = [row for row in rows if not row["path"].endswith("deep.png")]
    assert flat(rest) == lines_of(tmp_path / "here")
    by_path = {row["path"]: row for row in rows}
    assert [row["images"] for row in rows if "pages" in row["path"]] == [3, 3, 3]
    saved = np.load(tmp_path / "here" / "maps" / "pages#2.npy")
    np.testing.assert_array_equal(map_of(by_path[f"{images}/pages.tif#2"]["map"]), saved)


def test_dicom_files_deep_images_and_pages_have_the_rows_that_predict_gives_them(images, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("deep.png", "pages.tif"):
        shutil.copy(images / name, folder)
    shutil.copy(os.path.join(os.path.dirname(pydicom.__file__), "data", "test_files", "CT_small.dcm"), folder)
    shutil.copy(folder / "CT_small.dcm", folder / "without an ending")
    spec = replace(SPEC, value_range=(0, 4095))
    predict_here(spec.load(threshold=0.5), folder, tmp_path / "here")
    expected = lines_of(tmp_path / "here")
    assert len({row[1] for row in expected}) == 5  # the two DICOM files are one picture
    predictor, paths = Predictor(spec, threshold=0.5), sorted(folder.iterdir())
    assert flat(predictor({"path": [str(path) for path in paths]}).to_pylist()) == expected
    contents = {"path": [str(path) for path in paths], "bytes": [path.read_bytes() for path in paths]}
    assert flat(predictor(contents).to_pylist()) == expected


def test_contents_of_files_give_what_the_files_give(images, predictor):
    paths = sorted(images.iterdir())
    by_path = predictor({"path": [str(path) for path in paths]})
    by_content = predictor(
        {"path": [str(path) for path in paths], "bytes": [path.read_bytes() for path in paths]}
    )
    assert flat(by_content.to_pylist()) == flat(by_path.to_pylist())
    with pytest.raises(AnomalyCLIPError, match="columns image: expected path"):
        predictor({"image": []})


def test_sources_are_written_whole_and_once_and_failed_ones_are_taken_up_again(tmp_path):
    def rows(source, count, error=None):
        return [
            {"path": f"{source}#{n}", "source": source, "images": count, "error": error} for n in range(count)
        ]

    parts = Parts(tmp_path, maps=False)
    table = table_of([*rows("a", 1), *rows("b", 3), *rows("bad", 1, "torn"), *rows("a", 1)], maps=False)
    assert sum(map(len, parts.add(table.slice(0, 2)))) == 1  # b is not complete
    assert (
        sum(map(len, parts.add(table.slice(1, 2)))) == 0
    )  # its beginning came twice, from a node that was lost
    assert sum(map(len, parts.add(table.slice(2)))) == 4
    parts.flush()
    assert sorted(row["path"] for row in rows_of(tmp_path, ["path"])) == ["a#0", "b#0", "b#1", "b#2", "bad#0"]
    again = Parts(tmp_path, maps=False)
    assert again.skipped == 4
    assert [source in again.done for source in ("a", "b", "bad")] == [True, True, False]
    assert [row["error"] for row in rows_of(tmp_path, ["error"])] == [None] * 4
    (tmp_path / "part-000000.parquet").write_bytes(b"torn")
    with pytest.raises(AnomalyCLIPError, match=r"part-000000.parquet is damaged"):
        Parts(tmp_path, maps=False)


def test_a_source_that_comes_again_with_another_outcome_has_one_row_for_each_image(tmp_path):
    def page(number, error=None):
        return {"path": f"a.tif#{number}", "source": "a.tif", "images": 3, "error": error}

    def written(name, *blocks):
        parts = Parts(tmp_path / name, maps=False)
        for block in blocks:
            list(parts.add(table_of(block, maps=False)))
        parts.flush()
        return sorted(
            row["path"] + (row["error"] or "") for row in rows_of(tmp_path / name, ["path", "error"])
        )

    for name in ("better", "whole"):
        (tmp_path / name).mkdir()
    lost = [page(1), page(2, " torn")]
    assert written("better", lost, [page(1, " torn"), page(2)], [page(3)]) == [
        "a.tif#1",
        "a.tif#2",
        "a.tif#3",
    ]
    again = [page(1), {**page(3), "path": "a.tif", "error": " torn"}, page(3)]
    assert written("whole", lost, again) == ["a.tif torn", "a.tif#1", "a.tif#3"]


def test_parquet_files_of_other_programs_are_one_message_and_stay(tmp_path):
    pa = arrow()
    pa.parquet.write_table(pa.table({"id": [1]}), tmp_path / "part-000000.parquet")
    says = r"part-000000.parquet is not from `anomalyclip predict --ray` \(it has no column "
    with pytest.raises(AnomalyCLIPError, match=says + "path, score, label"):
        summarize([tmp_path])
    with pytest.raises(
        AnomalyCLIPError,
        match=r"part-000000.parquet does not say that it is from `anomalyclip predict --ray`",
    ):
        Parts(tmp_path, maps=False)
    (tmp_path / "part-000000.parquet").rename(tmp_path / "part-abc.parquet")
    with pytest.raises(AnomalyCLIPError, match=r"part-abc.parquet is not from .* called part-000000.parquet"):
        Parts(tmp_path, maps=False)
    assert [path.name for path in tmp_path.iterdir()] == ["part-abc.parquet"]


@pytest.fixture(scope="module")
def server():
    with object_store.serve() as url:
        yield url


@pytest.fixture
def store(server):
    """An empty bucket."""
    files, _ = stores.store_of(Address("s3://parts"))
    if files.exists("parts"):
        files.rm("parts", recursive=True)
    files.mkdir("parts")
    return files


@pytest.fixture(params=["folder", "store"])
def there(request, tmp_path):
    """Where a run writes: its place, a function that copies a file to it, and one that says what is there."""
    if request.param == "folder":
        place = tmp_path / "out"
        place.mkdir()
        return (
            place,
            lambda path: shutil.copy(path, place),
            lambda: {path.name: path.read_bytes() for path in place.iterdir() if path.name != ".lock"},
        )
    files, place = request.getfixturevalue("store"), Address("s3://parts/out")
    return (
        place,
        lambda path: put(path, place.below(path.name)),
        lambda: {os.path.basename(name): files.cat_file(name) for name in files.glob("parts/out/*")},
    )


@pytest.mark.parametrize("name", ["part-000007.parquet", "part-00000-c000.snappy.parquet"])
def test_overwriting_deletes_what_an_earlier_run_wrote_and_no_file_of_another_program(there, name, tmp_path):
    """Spark's files are called part-... too, and a pipeline with `Predictor` writes files with the same columns."""
    place, copied, found = there
    rows = table_of([{"path": "a", "source": "a", "images": 1}], maps=False)
    with run_folder(place).begin({"maps": False}):
        parts = Parts(place, maps=False)
        list(parts.add(rows))
        parts.flush()
    arrow().parquet.write_table(rows, tmp_path / name)
    copied(tmp_path / name)
    before = found()
    assert before.keys() == {"part-000000.parquet", "settings.json", name}
    with pytest.raises(
        AnomalyCLIPError, match=rf"{name} (is not|does not say that it is) from `anomalyclip predict --ray`"
    ):
        run_folder(place, overwrite=True).begin({"maps": True}).__enter__()
    with pytest.raises(
        AnomalyCLIPError, match=rf"{name} (is not|does not say that it is) from `anomalyclip predict --ray`"
    ):
        Parts(place, maps=False)
    assert found() == before


def test_overwriting_starts_again_where_all_files_are_of_an_earlier_run(there, tmp_path):
    place, copied, found = there
    (tmp_path / "notes.txt").write_text("not of a run")
    copied(tmp_path / "notes.txt")
    for maps in (False, True):
        with run_folder(place, overwrite=True).begin({"maps": maps}):
            assert [name for name in found() if name.startswith("part-")] == []
            parts = Parts(place, maps=maps, rows=1)
            for name in "abc"[maps:]:
                list(parts.add(table_of([{"path": name, "source": name, "images": 1}], maps=maps)))
    assert [row["path"] for row in rows_of(place, ["path"])] == ["b", "c"]
    assert found()["notes.txt"] == b"not of a run"
    (tmp_path / "part-000001.parquet").write_bytes(b"")
    copied(tmp_path / "part-000001.parquet")
    with pytest.raises(
        AnomalyCLIPError, match=r"out/part-000001.parquet is damaged or not from `anomalyclip"
    ):
        run_folder(place, overwrite=True).begin({"maps": True}).__enter__()
    assert found().keys() == {"part-000000.parquet", "part-000001.parquet", "settings.json", "notes.txt"}


@pytest.mark.parametrize(
    ("raised", "kind", "says"),
    [
        ("anomalyclip.errors.AnomalyCLIPError: no column path", AnomalyCLIPError, "no column path"),
        ("KeyError: 'x'", _LostError, "the cluster could not go on: KeyError: 'x'"),
        ("The node died.", _LostError, "the cluster could not go on: The node died."),
    ],
)
def test_what_failed_on_the_cluster_is_named_and_not_what_ray_advises(raised, kind, says):
    text = (
        f"ray::MapWorker.submit() (pid=1)\n  File 'run.py', line 2, in _without\n{raised}\n\nThe above exception was "
        "the direct cause of the following exception:\n\nray.exceptions.UserCodeException: UDF failed.\n"
        "To change retry attempts, configure it."
    )
    found = _cause(RuntimeError(text))
    assert (type(found), str(found)) == (kind, says)


def test_files_in_an_object_store_are_taken_up_as_those_of_a_folder(store):
    place = Address("s3://parts/results/a run")
    rows = [
        {
            "path": f"{name}.png",
            "source": f"{name}.png",
            "images": 1,
            "error": "torn" if name == "d" else None,
        }
        for name in "abcd"
    ]
    parts = Parts(place, maps=False, rows=2)
    for row in rows:
        list(parts.add(table_of([row], maps=False)))
    store.pipe_file("parts/results/a run/part-notes.txt", b"not ours")
    first = store.cat_file("parts/results/a run/part-000000.parquet")
    again = Parts(place, maps=False)
    assert again.skipped == 3
    assert [f"{name}.png" in again.done for name in "abcd"] == [True, True, True, False]
    assert [row["path"] for row in rows_of(place, ["path"])] == ["a.png", "b.png", "c.png"]
    assert store.cat_file("parts/results/a run/part-000000.parquet") == first
    list(again.add(table_of(rows, maps=False)))  # those that are done come again
    again.flush()
    assert [row["path"] for row in rows_of(place, ["path"])] == ["a.png", "b.png", "c.png", "d.png"]
    list(parts.add(table_of([{**rows[0], "path": "e", "source": "e"}], maps=False)))
    with pytest.raises(AnomalyCLIPError, match=r"part-000002.parquet is there already: another run is"):
        parts.flush()
    with pytest.raises(AnomalyCLIPError, match=r"s3://parts/results/a run already has results"):
        run_folder(place)
    with run_folder(place, overwrite=True).begin({"maps": True}):
        assert list(rows_of(place, ["path"])) == []
    assert store.exists("parts/results/a run/part-notes.txt")
    Parts(place, maps=False).flush()
    store.pipe_file("parts/results/a run/part-000000.parquet", b"torn")
    with pytest.raises(AnomalyCLIPError, match=r"^s3://parts/results/a run was started with other settings"):
        run_folder(place, resume=True).begin({"maps": False}).__enter__()
    with pytest.raises(AnomalyCLIPError, match=r"s3://.*part-000000.parquet is damaged"):
        Parts(place, maps=False)


class Unsteady(_Work):
    """A cluster that cannot go on after the first block, and `lost` times in all."""

    lost = 0

    def _actors(self, *, readers):
        return Actors(1, 1.0, 0.0)

    def _score(self, dataset, actors, advance, *, follow=False):
        for block in dataset():
            paths = [os.fsdecode(path) for path in block["path"].to_pylist()]
            rows = [{"path": path, "source": path, "images": 1, "score": 0.5} for path in paths]
            for new in self.parts.add(table_of(rows, maps=False)):
                self._count(new, advance)
            if self.lost:
                self.lost -= 1
                raise _LostError("the cluster could not go on: no more room")


@pytest.mark.parametrize("lost", [2, 3])
def test_what_has_no_result_is_given_to_the_cluster_three_times(lost, tmp_path):
    blocks_of_lists = SimpleNamespace(data=SimpleNamespace(from_blocks=list))
    parts = Parts(tmp_path, maps=False)
    work = Unsteady(blocks_of_lists, Cluster(), SPEC, {}, parts, PredictionRun(tmp_path), None)
    work.lost = lost
    paths = [f"/parts/{number}.png" for number in range(40)]
    if lost == 2:
        work.score_listed(iter(paths), silent)
        assert work.run.scored == 40
    else:
        with pytest.raises(
            AnomalyCLIPError, match=r"images have no result after 3 attempts.*no more room\); resume"
        ):
            work.score_listed(iter(paths), silent)
    parts.flush()
    written = [row["path"] for row in rows_of(tmp_path, ["path"])]
    assert written == paths[: len(written)]


@pytest.mark.parametrize(
    ("version", "says"),
    [
        (None, "a Ray cluster needs ray: pip install 'anomalyclip\\[ray\\]'"),
        ("2.9.3", "ray 2.9.3 is too old, 2.50"),
    ],
)
def test_ray_that_is_missing_or_too_old_is_one_message(version, says, monkeypatch):
    def found(_):
        if version is None:
            raise cluster.PackageNotFoundError
        return version

    monkeypatch.setattr(cluster, "version", found)
    with pytest.raises(AnomalyCLIPError, match=says), cluster.connected("local"):
        pass


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:1", "127.0.0.1:1: no Ray cluster answers there"),
        ("ray://127.0.0.1:1", "ray://127.0.0.1:1: .*does not work through a Ray client.*--ray auto"),
        ("nowhere", "nowhere: expected local, auto or HOST:PORT of a Ray cluster"),
    ],
)
def test_a_wrong_address_is_one_message(address, says, monkeypatch):
    pytest.importorskip("ray")
    with pytest.raises(AnomalyCLIPError, match=says), cluster.connected(address):
        pass


def test_folders_of_other_commands_and_options_that_are_for_others_are_refused(cli, images, tmp_path):
    words = ["predict", images, "--backbone", "micro", "--ray", "local"]
    done = cli(*words, "--shard", "1/2", "--output", tmp_path / "out")
    assert (done.code, "--shard cannot be used with --ray" in done.err) == (2, True)
    done = cli(*words, "--save", "heatmap", "--output", tmp_path / "out")
    assert (done.code, "only maps are saved" in done.err) == (2, True)
    done = cli(*words[:-1], "ray://127.0.0.1:1", "--output", "s3://nowhere/out")  # which is not asked
    assert (done.code, "does not work through a Ray client; give HOST:PORT" in done.err) == (2, True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "part-000000.parquet").touch()
    done = cli(*words, "--output", tmp_path / "out")
    assert (done.code, "already has results" in done.err) == (2, True)
    with pytest.raises(AnomalyCLIPError, match="cannot be resumed"):
        run_folder(tmp_path / "out", resume=True)


def test_the_folder_of_a_run_with_other_settings_is_one_message_and_stays_as_it_is(
    images, tmp_path, monkeypatch
):
    dataset = SimpleNamespace(
        data=SimpleNamespace(Dataset=dict)
    )  # what is asked of Ray before anything is scored
    monkeypatch.setattr(run, "connected", lambda address: nullcontext(dataset))
    monkeypatch.setattr(_Work, "score_listed", lambda work, paths, track: None)
    distributed.predict(images, SPEC, tmp_path / "out", threshold=0.5)
    (tmp_path / "out" / "part-000000.parquet").write_bytes(b"rows")
    before = (tmp_path / "out" / "settings.json").read_bytes()
    for other, says in (
        ({"spec": replace(SPEC, sigma=2.0), "threshold": 0.5}, "sigma"),
        ({"spec": SPEC, "threshold": 0.4}, "threshold"),
        ({"spec": SPEC, "threshold": 0.5, "maps": True}, "maps"),
    ):
        with pytest.raises(AnomalyCLIPError, match=rf"out was started with other settings \(.*{says}"):
            distributed.predict(images, output=tmp_path / "out", resume=True, **other)
    assert (tmp_path / "out" / "settings.json").read_bytes() == before
    assert (tmp_path / "out" / "part-000000.parquet").read_bytes() == b"rows"


def test_all_nodes_score_with_the_same_engine_whatever_exported_files_they_have(
    images, tmp_path, monkeypatch
):
    sent = []
    ray = SimpleNamespace(data=SimpleNamespace(Dataset=dict))
    monkeypatch.setattr(run, "connected", lambda address: nullcontext(ray))
    monkeypatch.setattr(_Work, "score_listed", lambda work, paths, track: sent.append(work.kept["spec"]))
    for engine in ("auto", "torch"):
        distributed.predict(images, replace(SPEC, engine=engine), tmp_path / engine)
        assert DetectorSpec.from_json(sent.pop()).engine == "torch"
        assert json.loads((tmp_path / engine / "settings.json").read_text())["about"]["engine"] == "torch"


@pytest.mark.parametrize(
    ("found", "says"), [(None, "needs ray: pip install"), ("2.9.3", "2.9.3 is too old, 2.50")]
)
def test_the_command_line_says_in_one_line_what_to_install(found, says, images, tmp_path, cli, monkeypatch):
    def version(_):
        if found is None:
            raise cluster.PackageNotFoundError
        return found

    monkeypatch.setattr(cluster, "version", version)
    done = cli("predict", images, "--backbone", "micro", "--ray", "auto", "--output", tmp_path / "out")
    assert done.code == 2
    (complaint,) = done.complaints
    assert says in complaint
    assert "pip install 'anomalyclip[ray]'" in complaint
    assert not (tmp_path / "out").exists()


def test_the_files_for_clusters_in_the_docs_are_what_their_readers_expect():
    yaml, util = pytest.importorskip("yaml"), pytest.importorskip("ray.autoscaler._private.util")
    page = (Path(__file__).parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")
    job, nodes = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))
    util.validate_config(util.prepare_config(nodes))
    with pytest.raises(Exception, match="max_worker"):
        util.validate_config(util.prepare_config({**nodes, "max_worker": 1}))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert f"/{job['spec']['completions']} " in container["args"][0]
    assert job["kind"] == "Job"
    assert job["spec"]["completionMode"] == "Indexed"  # which sets JOB_COMPLETION_INDEX


@contextmanager
def two_nodes():
    """A cluster of two nodes with one core each, on this machine: two actors take them all."""
    patience = {"RAY_raylet_start_wait_time_s": "300", "RAY_gcs_server_request_timeout_seconds": "600"}
    os.environ.update(patience)
    cluster.ray()
    running = start_nodes(2)
    try:
        yield running
    finally:
        running.shutdown()
        for name in patience:
            del os.environ[name]


def start_nodes(count, attempts=5):
    """Start nodes of one core each. Ray gives each half a minute, which a machine with other work may not have."""
    from ray.cluster_utils import Cluster as Nodes

    running = Nodes()
    try:
        for _ in range(count):
            running.add_node(num_cpus=1, object_store_memory=100 << 20, include_dashboard=False)
    except Exception as error:
        running.shutdown()
        if attempts == 1 or "timed out" not in str(error):
            raise
        return start_nodes(count, attempts - 1)
    return running


@pytest.fixture(scope="module")
def nodes():
    pytest.importorskip("ray")
    with two_nodes() as running:
        yield running


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("many") / "images", 300)


@pytest.fixture(scope="module")
def expected(many, tmp_path_factory):
    (many / "deep.png").unlink()
    folder = tmp_path_factory.mktemp("expected") / "out"
    predict_here(SPEC.load(threshold=0.5), many, folder)
    return lines_of(folder)


@pytest.mark.slow
def test_a_node_is_killed_and_the_driver_is_killed_twice_and_every_image_has_one_row(
    nodes, many, expected, tmp_path
):
    command = [sys.executable, "-c", DRIVER, nodes.address, str(many), str(tmp_path / "out")]
    for kill in range(3):
        before = set((tmp_path / "out").glob("part-*"))
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        wait_until(lambda before=before: set((tmp_path / "out").glob("part-*")) - before, process)
        assert process.poll() is None, process.communicate()[1]
        if kill < 2:
            process.kill()
            process.communicate()
    kill_node(next(iter(nodes.worker_nodes)))
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 0, said
    assert flat(rows_of(tmp_path / "out", COLUMNS)) == expected
    assert len(set((tmp_path / "out").glob("part-*"))) > 3


def wait_until(done, process, seconds=600):
    """Wait until something is true or a process has ended; one that takes too long is killed."""
    end = time.monotonic() + seconds
    while process.poll() is None and not done():
        if time.monotonic() > end:
            process.kill()
            pytest.fail(f"nothing after {seconds} s: {process.communicate()[1]}")
        select.select([], [], [], 0.05)


def kill_node(node):
    for processes in node.all_processes.values():
        for one in processes:
            os.kill(one.process.pid, signal.SIGKILL)


DRIVER = """
import sys
from anomalyclip import DetectorSpec
from anomalyclip.distributed import Cluster, predict
address, images, output = sys.argv[1:]
spec = DetectorSpec("micro", image_size=48)
predict(images, spec, output, threshold=0.5, resume=True, rows_per_file=30, cluster=Cluster(address))
"""


@pytest.mark.slow
def test_a_data_set_is_read_and_scored_with_however_few_cores_and_resumed(nodes, images, predictor, tmp_path):
    """Actors that took both cores would leave none for the tasks that read."""
    done = subprocess.run(
        [sys.executable, "-c", FROM_A_DATASET, nodes.address, str(images), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    expected = predictor({"path": [str(path) for path in sorted(images.iterdir())]}).to_pylist()
    assert flat(rows_of(tmp_path / "out", COLUMNS)) == flat(expected)
    # Ray prints what its nodes say there too. The two that failed are tried again.
    assert "figures: 9 2 0 9 True True" in done.stdout.splitlines()


FROM_A_DATASET = """
import sys
import ray
from anomalyclip import AnomalyCLIPError, DetectorSpec
from anomalyclip.distributed import Cluster, predict
from anomalyclip.distributed.cluster import connected
address, images, output = sys.argv[1:]
spec = DetectorSpec("micro", image_size=48)
with connected(address):
    data = ray.data.read_binary_files(images, include_paths=True)
    first = predict(data, spec, output, threshold=0.5)
    again = predict(data, spec, output, threshold=0.5, resume=True)
    try:
        predict(data, spec, output, threshold=0.6, resume=True)
    except AnomalyCLIPError as error:
        refused = "started with other settings" in str(error)
    try:
        predict(ray.data.range(3), spec, output + " of numbers")
    except AnomalyCLIPError as error:
        named = str(error).endswith("the columns id: expected path, and optionally bytes")
print("figures:", first.scored, first.failed, again.scored, again.skipped, refused, named)
"""


@pytest.mark.slow
def test_a_run_from_an_object_store_to_one_is_resumed_by_what_is_in_it(store, many, predictor):
    pytest.importorskip("ray")
    from pyarrow import parquet

    some = sorted(many.iterdir())[:100]
    for path in some:
        store.pipe_file(f"parts/line 1/{path.name}", path.read_bytes())
    place = Address("s3://parts/results/run")
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, "local", "s3://parts/line 1/", place],
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: store.glob("parts/results/run/part-*"), process)
    assert process.poll() is None, process.communicate()[1]
    process.kill()
    process.communicate()
    written = {name: store.cat_file(name) for name in store.glob("parts/results/run/part-*")}
    run = distributed.predict(
        "s3://parts/line 1/", SPEC, place, threshold=0.5, resume=True, cluster=Cluster("local", 1)
    )
    assert run.skipped == sum(parquet.read_metadata(io.BytesIO(part)).num_rows for part in written.values())
    assert run.skipped + run.scored == 100
    assert {name: store.cat_file(name) for name in written} == written
    here = predictor({"path": [str(path) for path in some]}).to_pylist()
    for row in here:
        row["path"] = f"s3://parts/line 1/{os.path.basename(row['path'])}"
    assert flat(rows_of(place, COLUMNS)) == flat(here)
