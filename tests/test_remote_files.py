"""Single files at addresses: thresholds, memories and lists are read and written there; others are refused at once."""

import io
from contextlib import suppress

import fsspec
import numpy as np
import pytest
import yaml
from PIL import Image

from anomalyclip import DetectorSpec, Threshold, export, predict
from anomalyclip.addresses import Address, put, stores
from anomalyclip.data.synthetic.writer import write_dataset
from anomalyclip.demo import PICTURES
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.evaluation.maps import FolderSource
from anomalyclip.files import check_writable, replacing
from anomalyclip.inputs import read_list_file
from anomalyclip.references import Memory
from tests import http_files


@pytest.fixture
def store():
    store = fsspec.filesystem("memory")
    yield store
    if store.exists("/box"):
        store.rm("/box", recursive=True)


@pytest.fixture
def web():
    with http_files.serve() as files:
        yield files


def listed(store):
    return [name.removeprefix("/box/") for name in store.find("/box")]


def test_a_file_for_a_store_is_there_whole_or_not_at_all(store):
    with replacing(Address("memory://box/a.txt")) as file:
        file.write_text("whole")
        assert listed(store) == []
    assert store.cat("/box/a.txt") == b"whole"

    with suppress(RuntimeError), replacing(Address("memory://box/a.txt")) as file:
        file.write_text("half")
        raise RuntimeError
    assert store.cat("/box/a.txt") == b"whole"


def test_whether_a_file_can_be_written_is_known_before_the_work(store):
    place = Address("memory://box/a.txt")

    check_writable(place, overwrite=False)

    assert listed(store) == []
    store.pipe("/box/a.txt", b"x")
    with pytest.raises(AnomalyCLIPError, match=r"^memory://box/a.txt exists: give --overwrite"):
        check_writable(place, overwrite=False)
    check_writable(place, overwrite=True)
    with pytest.raises(
        AnomalyCLIPError, match=r"^https://host/a.txt: results cannot be written to this address"
    ):
        check_writable(Address("https://host/a.txt?key=secret"), overwrite=True)


def test_commands_write_thresholds_and_memories_to_addresses_and_read_them_there(store, cli, tmp_path):
    good = [PICTURES / "linen_good.jpg", PICTURES / "slate_good.jpg"]
    micro = ("--backbone", "micro")

    fitted = cli("fit", *good, *micro, "--output", "memory://box/parts.memory")
    assert (fitted.code, fitted.out.startswith("memory://box/parts.memory: 2 references")) == (0, True)
    calibrated = cli("calibrate", *good, *micro, "--false-alarm-rate", 0.5, "--output", "memory://box/t.json")
    assert (calibrated.code, "threshold file memory://box/t.json" in calibrated.out) == (0, True)

    assert sorted(listed(store)) == ["parts.memory", "t.json"]
    again = cli("fit", *good, *micro, "--output", "memory://box/parts.memory")
    assert again.err.startswith("error: memory://box/parts.memory exists: give --overwrite")
    threshold = Threshold.from_file("memory://box/t.json")
    assert 0 < threshold.score < 1
    judged = cli(
        "predict", good[0], *micro, "--output", tmp_path / "run", "--threshold", "memory://box/t.json"
    )
    assert judged.code == 0, judged.err
    assert str(threshold.score) in (tmp_path / "run/settings.json").read_text()
    assert len(Memory.load("memory://box/parts.memory")) == 2
    by_memory = predict(
        DetectorSpec("micro", references=["memory://box/parts.memory"]), good, tmp_path / "by_memory"
    )
    by_pictures = predict(DetectorSpec("micro", references=map(str, good)), good, tmp_path / "by_pictures")
    assert [p["pred_score"] for p in by_memory.top] == [p["pred_score"] for p in by_pictures.top]


def test_a_list_of_images_at_an_address_is_read(store):
    store.pipe("/box/list.txt", b"s3://parts/a.png\nb.png\n")

    assert [image.path for image in read_list_file("memory://box/list.txt")] == ["s3://parts/a.png", "b.png"]


@pytest.mark.parametrize("field", ["backbone", "prompts", "trained", "model", "templates"])
def test_files_of_models_at_addresses_are_refused_before_any_work(field):
    with pytest.raises(
        AnomalyCLIPError, match=rf"^s3://b/x: {field}: the files of a model cannot be at an address"
    ):
        DetectorSpec(**{field: "s3://b/x"})


def test_other_outputs_at_addresses_are_refused_before_any_work(store, cli):
    with pytest.raises(
        AnomalyCLIPError, match=r"^memory://box/x.onnx: an exported file cannot be at an address"
    ):
        export(DetectorSpec("micro"), "memory://box/x.onnx")
    with pytest.raises(
        AnomalyCLIPError, match=r"^memory://box/set: generated images cannot be at an address"
    ):
        write_dataset("memory://box/set", ["cork"], normal=1, anomalous=1, seed=1)
    with pytest.raises(AnomalyCLIPError, match=r"^memory://box/maps: saved maps cannot be at an address"):
        FolderSource(Address("memory://box/maps"))
    for command in ("train", "test", "compare"):
        done = cli(command, "parts", "--output", "memory://box/run")
        assert done.code == 2
        assert "memory://box/run: this run writes to a folder of this machine only" in done.err.replace(
            "\n", " "
        )
    for option, what in (("--cache", "cached features"), ("--init-prompts", "prompts to start from")):
        done = cli("train", "parts", option, "memory://box/x")
        assert f"error: memory://box/x: {what} cannot be at an address" in done.err
    done = cli("demo", "--output", "memory://box/demo")
    assert done.err.startswith("error: memory://box/demo: the demo cannot be at an address")
    assert listed(store) == []


def test_a_bucket_that_does_not_exist_is_one_message(monkeypatch, tmp_path):
    monkeypatch.setattr(stores, "PAUSE", 0.0)
    (tmp_path / "a").write_bytes(b"x")

    def missing(*_):
        raise FileNotFoundError("bucket")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "put_file", missing)
    with pytest.raises(
        AnomalyCLIPError, match=r"^memory://none/a: cannot be written; there is no such bucket"
    ):
        put(tmp_path / "a", Address("memory://none/a"))


def test_what_is_secret_of_references_and_ranges_is_used_and_never_kept(web, tmp_path):
    deep = io.BytesIO()
    Image.fromarray(np.linspace(0, 4000, 48, dtype=np.uint16).reshape(6, 8)).save(deep, "png")
    query = "?X-Amz-Signature=topsecret"
    web.content[f"/a.png{query}"] = deep.getvalue()
    plain = f"{web.url}/a.png"
    address = plain.replace("http://", "http://me:topsecret@") + query

    spec = DetectorSpec("micro", references=[address], range_from=address)

    assert spec.references[0].url == spec.located().references[0].url == address
    assert spec.to_dict()["references"] == [plain]
    assert spec.to_dict()["range_from"] == plain
    assert "topsecret" not in repr(spec) + spec.to_json() + yaml.safe_dump(spec.located().to_dict())
    run = predict(spec, PICTURES / "linen_good.jpg", tmp_path / "run")
    assert run.scored == 1
    kept = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert plain.encode() in kept
    assert b"topsecret" not in kept
