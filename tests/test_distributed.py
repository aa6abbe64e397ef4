"""Runs on a Ray cluster: the rows are those of `predict`, each once, whatever is lost on the way."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from anomalyclip import AnomalyCLIPError, DetectorSpec, distributed
from anomalyclip import predict as predict_here
from anomalyclip.addresses import Address, stores
from anomalyclip.distributed import Cluster, Predictor, cluster, map_of
from anomalyclip.distributed.cluster import Actors
from anomalyclip.distributed.run import _LostError, _Work, run_folder
from anomalyclip.distributed.tables import Parts, rows_of, table_of
from anomalyclip.predicting import PredictionRun
from anomalyclip.progress import silent
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
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    errors = [json.loads(line) for line in (folder / "errors.jsonl").read_text().splitlines()]
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
        ("ray://127.0.0.1:1", "no Ray cluster answers there"),
        ("nowhere", "nowhere: expected local, auto, HOST:PORT or ray://HOST:PORT"),
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
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "part-000000.parquet").touch()
    done = cli(*words, "--output", tmp_path / "out")
    assert (done.code, "already has results" in done.err) == (2, True)
    with pytest.raises(AnomalyCLIPError, match="cannot be resumed"):
        run_folder(tmp_path / "out", resume=True)


@contextmanager
def two_nodes():
    """A cluster of two nodes with one core each, on this machine: two actors take them all."""
    patience = {"RAY_raylet_start_wait_time_s": "300", "RAY_gcs_server_request_timeout_seconds": "600"}
    os.environ.update(patience)
    cluster.ray()
    from ray.cluster_utils import Cluster as Nodes

    running = Nodes()
    try:
        for _ in range(2):
            running.add_node(num_cpus=1, object_store_memory=100 << 20, include_dashboard=False)
        yield running
    finally:
        running.shutdown()
        for name in patience:
            del os.environ[name]


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
    assert done.stdout.split() == ["9", "2", "0", "9"]  # the two that failed are tried again


FROM_A_DATASET = """
import sys
import ray
from anomalyclip import DetectorSpec
from anomalyclip.distributed import Cluster, predict
from anomalyclip.distributed.cluster import connected
address, images, output = sys.argv[1:]
spec = DetectorSpec("micro", image_size=48)
with connected(address):
    data = ray.data.read_binary_files(images, include_paths=True)
    first = predict(data, spec, output, threshold=0.5)
    again = predict(data, spec, output, threshold=0.5, resume=True)
print(first.scored, first.failed, again.scored, again.skipped)
"""


@pytest.mark.slow
def test_images_in_an_object_store_are_read_by_the_actors(images, predictor, tmp_path):
    pytest.importorskip("ray")
    with object_store.serve():
        files, _ = stores.store_of(Address("s3://parts"))
        files.mkdir("parts")
        for path in images.iterdir():
            files.pipe_file(f"parts/line 1/{path.name}", path.read_bytes())
        run = distributed.predict(
            "s3://parts/line 1/", SPEC, tmp_path / "out", threshold=0.5, cluster=Cluster("local", 1)
        )
    assert (run.scored, run.failed) == (9, 2)
    found = {row["path"]: row["score"] for row in rows_of(tmp_path / "out", ["path", "score"])}
    here = predictor({"path": [str(path) for path in images.iterdir()]}).to_pylist()
    assert found == {f"s3://parts/line 1/{os.path.basename(row['path'])}": row["score"] for row in here}
