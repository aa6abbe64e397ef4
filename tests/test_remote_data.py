"""Data sets at addresses: the same samples, figures and prompts as from a folder of this machine."""

import json
import os
from contextlib import nullcontext
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from anomalyclip import DetectorSpec, calibrate_labelled, compare, evaluate, train
from anomalyclip.addresses import Address, stores
from anomalyclip.data.check import check
from anomalyclip.data.listing import list_samples, load_samples
from anomalyclip.data.meta import read_meta, write_meta
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.methods import METHODS, register
from tests import object_store
from tests.data_trees import GOLDEN, golden_rows, plant_golden, rows
from tests.generated_sets import make_set
from tests.toy_methods import Bright, Dark


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("sets") / "parts", normal=3, anomalous=3, side=56)


@pytest.fixture(scope="module", params=["memory", pytest.param("s3", marks=pytest.mark.slow)])
def remote(request, local):
    """The same set in a store."""
    with object_store.serve() if request.param == "s3" else nullcontext():
        files, _ = stores.store_of(Address(f"{request.param}://sets"))
        files.mkdir("sets")
        files.put(str(local), "sets/parts", recursive=True)
        yield f"{request.param}://sets/parts"
        files.rm("sets", recursive=True)


@pytest.fixture(autouse=True, scope="module")
def methods():
    for kind in (Bright, Dark):
        register(kind.name, kind, options=["image_size"])
    yield
    for kind in (Bright, Dark):
        METHODS.remove(kind.name)


@pytest.fixture
def memory():
    store = fsspec.filesystem("memory")
    yield store
    store.rm("/set", recursive=True)


def plant(store, root, **files):
    for name, content in files.items():
        store.pipe_file(f"/{root}/{name}", content)


def encoded(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "encoded.png")
    return (tmp_path / "encoded.png").read_bytes()


MANY = [key for key in GOLDEN if len(GOLDEN[key]["files"]) > 60]


@pytest.mark.parametrize("key", [pytest.param(k, marks=[pytest.mark.slow] * (k in MANY)) for k in GOLDEN])
def test_each_of_the_17_trees_gives_the_published_samples_in_a_store_too(key, memory, tmp_path):
    root = plant_golden(tmp_path, key)
    plant(memory, "set", **{str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()})
    plant(memory, "set", **{".DS_Store": b"", "__MACOSX/000.png": b""})

    meta = list_samples("memory://set", key)

    assert rows(meta) == golden_rows(key)
    assert not any(finding for finding in meta.findings if not finding.note)
    assert write_meta(meta) == Address("memory://set/meta.json")
    assert read_meta("memory://set").phases == read_meta("memory://set/meta.json").phases == meta.phases
    assert load_samples("memory://set", key).samples == meta.phase("test").samples


def test_figures_are_those_of_the_same_folder_here(remote, local, tmp_path):
    spec = DetectorSpec(method="bright", image_size=56)

    here, there = evaluate(spec, local), evaluate(spec, remote, output=tmp_path / "run")

    assert there.mean == here.mean
    assert there.mean["pixel_aupro_exact"] > 0.5
    assert [r.root for r in there.results] == [remote]
    table = (tmp_path / "run" / "images.csv").read_text().splitlines()
    assert len(table) == 13
    threshold = calibrate_labelled(spec, remote)
    assert threshold.score == calibrate_labelled(spec, local).score


@pytest.mark.slow
def test_methods_compare_as_in_the_same_folder_here(remote, local, tmp_path):
    here = evaluate(DetectorSpec(method="bright", image_size=56), local)

    found = compare(
        ["bright", "dark"], remote, spec=DetectorSpec(image_size=56), output=tmp_path / "compared"
    )
    assert found.results["parts"]["bright"].mean == here.mean


@pytest.mark.slow
def test_prompts_are_those_of_the_same_folder_here(remote, local, tiny_backbone, tmp_path):
    spec = DetectorSpec(str(tiny_backbone), image_size=56)
    options = {"epochs": 1, "batch_size": 3, "seed": 5, "prompt_length": 3}

    for data, name in ((local, "here"), (remote, "there")):
        train(data, spec, output=tmp_path / name, cache=tmp_path / f"cache-{name}", **options)

    here, there = ((tmp_path / name / "prompts.safetensors").read_bytes() for name in ("here", "there"))
    assert here == there
    assert f"root: {remote}\n" in (tmp_path / "there" / "config.yaml").read_text()


def test_what_is_wrong_in_a_store_is_found_and_costs_that_image_alone(memory, tmp_path):
    image, mask = np.full((8, 6), 90, np.uint8), np.eye(8, dtype=np.uint8)
    good = encoded(tmp_path, image)
    names = {"nut/test/good/0.png": good, "nut/test/good/1.png": good, "nut/test/bent/0.png": b"cut"}
    masks = {f"nut/ground_truth/bent/{k}_mask.png": encoded(tmp_path, mask) for k in range(2)}
    plant(memory, "set", **names, **masks, **{"nut/test/bent/1.png": encoded(tmp_path, image + np.uint8(1))})

    found = check(list_samples("memory://set"))

    assert {(finding.kind, finding.path) for finding in found if not finding.note} == {
        ("unreadable", "nut/test/bent/0.png"),
        ("sizes differ", "nut/test/bent/1.png"),
        ("duplicate", "nut/test/good/1.png"),
    }
    result = evaluate(DetectorSpec(method="bright", image_size=8), "memory://set").results[0].classes[0]
    assert [image.image for image in result.images] == [
        "nut/test/bent/1.png", "nut/test/good/0.png", "nut/test/good/1.png"
    ]  # fmt: skip
    assert list(result.failed) == ["nut/test/bent/0.png"]
    assert result.failed["nut/test/bent/0.png"].startswith("memory://set/nut/test/bent/0.png: ")


@pytest.mark.parametrize("leads_to", ["s3://other/a.png", "../a.png", "/etc/passwd"])
def test_what_a_listing_in_a_store_names_does_not_lead_out_of_its_folder(memory, leads_to):
    entry = {"img_path": leads_to, "mask_path": "", "cls_name": "n", "specie_name": "", "anomaly": 0}
    plant(memory, "set", **{"meta.json": json.dumps({"test": {"n": [entry]}}).encode(), "a.png": b""})

    with pytest.raises(
        AnomalyCLIPError, match=r"entry 0: field 'img_path': .*leaves the data set's folder memory://set"
    ):
        load_samples("memory://set", allow_outside=True)


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("memory://nothing", "memory://nothing: no such folder; expected the folder that holds a data set"),
        ("https://example.com/set", "https://example.com/set: web pages cannot be listed"),
        (Path("memory://set/nothing"), "memory://set/nothing: no such folder"),
    ],
)
def test_an_address_without_a_data_set_is_one_message(memory, root, message):
    plant(memory, "set", **{"a.png": b""})
    with pytest.raises(AnomalyCLIPError, match=message):
        load_samples(root)


def test_prepare_writes_the_listing_where_the_data_is(remote, cli):
    done = cli("prepare", remote, "--check")

    assert done.code == 0, done.err
    assert f"wrote {remote}/meta.json" in done.out.replace("\n", "")
    assert len(load_samples(remote)) == 12
    assert load_samples(remote).source == f"{remote}/meta.json"


def test_dicom_files_that_are_called_by_numbers_with_dots_have_masks(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    name = "1.2.840.113619.2.5"
    for folder in ("test/good", "test/spot", "ground_truth/spot"):
        os.makedirs(tmp_path / "scan" / folder)
    source = pydicom.data.get_testdata_file("CT_small.dcm")
    for number, folder in enumerate(("good", "spot", "spot")):
        (tmp_path / "scan/test" / folder / f"{name}.{number}").write_bytes(Path(source).read_bytes())
    for number in (1, 2):
        mask = Image.new("L", (128, 128), 255)
        mask.save(tmp_path / f"scan/ground_truth/spot/{name}.{number}_mask.png")

    samples = load_samples(tmp_path)

    assert [(os.path.basename(s.image), os.path.basename(s.mask or "")) for s in samples] == [
        (f"{name}.0", ""), (f"{name}.1", f"{name}.1_mask.png"), (f"{name}.2", f"{name}.2_mask.png")
    ]  # fmt: skip
