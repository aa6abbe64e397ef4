"""Images are read from object stores and from the web: only where the user says so, and whatever the network does."""

import io
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from anomalyclip import Detector, DetectorSpec, calibrate, predicting
from anomalyclip.addresses import Address, as_address, ending, fetched, listing, local_path, stores
from anomalyclip.depth.ranges import measure_range
from anomalyclip.errors import AnomalyCLIPError, InputError
from anomalyclip.inputs import find_images, read_list
from anomalyclip.readers import frames, open_image, size_of
from tests import http_files, object_store
from tests.toy_methods import Bright


def picture(shade, kind="png", size=(8, 6), **options):
    file = io.BytesIO()
    Image.new("L", size, shade).save(file, kind, **options)
    return file.getvalue()


def pages(*shades):
    first, *rest = (Image.new("L", (8, 6), shade) for shade in shades)
    file = io.BytesIO()
    first.save(file, "tiff", save_all=True, append_images=rest)
    return file.getvalue()


@pytest.fixture(scope="module")
def server():
    with object_store.serve() as url:
        yield url


@pytest.fixture
def store(server, monkeypatch):
    """An empty bucket."""
    monkeypatch.setattr(stores, "PAUSE", 0.0)
    files, _ = stores.store_of(Address("s3://parts"))
    if files.exists("parts"):
        files.rm("parts", recursive=True)
    files.mkdir("parts")
    return files


@pytest.fixture
def web():
    with http_files.serve() as files:
        yield files


def fill(store, **contents):
    for name, content in contents.items():
        store.pipe_file(f"parts/{name}", content)


def score(output, *paths, **options):
    detector = Detector(Bright(DetectorSpec(image_size=8)))
    return predicting.predict(detector, list(paths), output, **options)


def shades(output):
    records = map(json.loads, (Path(output) / "predictions.jsonl").read_text().splitlines())
    return {record["image_path"]: round(record["pred_score"] * 255) for record in records}


def names(*paths, **options):
    return [image.name for image in find_images(paths, **options)]


def test_a_folder_of_a_store_is_scored_like_one_of_this_machine(store, tmp_path):
    fill(
        store,
        **{"b.png": picture(50), "line 1/a.PNG": picture(100), "line 1/scan.tif": pages(10, 20)},
        **{"notes.txt": b"no image", ".hidden.png": picture(1)},
    )

    run = score(tmp_path, "s3://parts/", save=["heatmap"])

    assert run.failed == 0
    assert shades(tmp_path) == {
        "s3://parts/b.png": 50,
        "s3://parts/line 1/a.PNG": 100,
        "s3://parts/line 1/scan.tif#1": 10,
        "s3://parts/line 1/scan.tif#2": 20,
    }
    drawn = {path.relative_to(tmp_path / "heatmaps").as_posix() for path in tmp_path.rglob("*_heatmap.png")}
    assert drawn == {
        "b_heatmap.png", "line 1/a_heatmap.png", "line 1/scan#1_heatmap.png", "line 1/scan#2_heatmap.png"
    }  # fmt: skip


def test_what_is_no_image_to_score_is_skipped_in_a_store_too(store):
    fill(
        store,
        **{"old/predictions.jsonl": b"{}", "old/heatmaps/x.png": picture(1), ".hidden/x.png": picture(1)},
        **{"nut/test/bent/0.png": picture(1), "nut/ground_truth/bent/0_mask.png": picture(1), "b.txt": b""},
    )
    skipped = Counter()

    with pytest.warns(match="1 ground-truth masks .*such as s3://parts/nut/ground_truth/bent/0_mask.png"):
        found = list(predicting.images_in(["s3://parts"], skipped=skipped))

    assert [image.name for image in found] == ["nut/test/bent/0.png"]
    assert skipped == {".txt": 1}


def test_the_images_of_an_archive_in_a_store_are_scored(store, tmp_path):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("line 1/a.png", picture(70))
        archive.writestr("scan.tif", pages(10, 20))
    fill(store, **{"photos.zip": content.getvalue()})

    score(tmp_path, "s3://parts/photos.zip")

    whole = "s3://parts/photos.zip"
    assert shades(tmp_path) == {
        f"{whole}/line 1/a.png": 70,
        f"{whole}/scan.tif#1": 10,
        f"{whole}/scan.tif#2": 20,
    }
    assert open_image(Address(f"{whole}/scan.tif#2")).getpixel((0, 0)) == 20


def listed_as_needed(store, monkeypatch, count, page):
    """Put empty objects, and count the pages that are asked for."""
    from moto.s3.models import s3_backends

    (backend,) = (region["aws"] for region in s3_backends.values() if "parts" in region["aws"].buckets)
    for number in range(count):
        backend.put_object("parts", f"line/{number:06}.png", b"")
    pages = []

    def paged(asked, files, path):
        pages.append(asked)
        return dict(files.call_s3("list_objects_v2", MaxKeys=page, **asked))

    monkeypatch.setattr(listing, "_page", paged)
    return pages


def test_a_store_is_listed_page_by_page_and_no_further_than_needed(store, monkeypatch):
    pages = listed_as_needed(store, monkeypatch, count=50, page=20)
    images = find_images(["s3://parts/line"])

    assert (next(images).name, len(pages)) == ("000000.png", 1)
    assert [image.name for image in images] == [f"{number:06}.png" for number in range(1, 50)]
    assert len(pages) == 3


@pytest.mark.slow
def test_the_memory_of_a_listing_does_not_grow_with_it():
    """As the benchmark measures it, with a store in another process."""
    script = Path(__file__).parents[1] / "benchmarks/listing.py"
    done = subprocess.run(
        [sys.executable, script, "--objects", "20000"], capture_output=True, text=True, check=True
    )

    assert done.stdout.startswith("20,000 objects in ")
    first, last = map(int, re.findall(r"([0-9]+) MB", done.stdout))
    assert last - first < 8  # a list of all names is more, and s3fs's own listing three times that


def test_patterns_and_lists_name_objects(store):
    fill(
        store,
        **{
            "a.png": b"",
            "line 1/b.png": b"",
            "line 1/c.jpg": b"",
            "line 2/sub/d.png": b"",
            "odd[1].png": b"",
        },
    )

    assert names("s3://parts/*.png") == ["a.png", "odd[1].png"]
    assert names("s3://parts/line*/*.png") == ["line 1/b.png"]
    assert names("s3://parts/line*") == ["line 1/b.png", "line 1/c.jpg", "line 2/sub/d.png"]
    assert names("s3://parts/**/d.png") == ["line 2/sub/d.png"]
    assert names("s3://parts/odd[1].png") == ["odd[1].png"]
    assert names("s3://parts/line 1", "s3://parts/line 2/sub/d.png") == [
        "line 1/b.png",
        "line 1/c.jpg",
        "line 2/sub/d.png",
    ]
    assert [(image.path, image.name) for image in read_list(["s3://parts/a.png\n"])] == [
        ("s3://parts/a.png", "parts/a.png")
    ]


def without(library):
    """Skip a test of what is said where a library is missing, if it is there."""
    return pytest.mark.skipif(find_spec(library) is not None, reason=f"{library} is installed")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://parts/none", "s3://parts/none: no such object or folder"),
        ("s3://parts/*.bmp", r"s3://parts/\*.bmp: nothing matches this pattern"),
        ("s3://parts/texts", "s3://parts/texts: no images in this folder or its subfolders"),
        ("s3://nobody/a.png", "s3://nobody/a.png: no such object or folder"),
        pytest.param(
            "gs://parts", r"gs://parts: .*pip install 'anomalyclip\[remote\]' gcsfs", marks=without("gcsfs")
        ),
        pytest.param(
            "az://parts", r"az://parts: .*pip install 'anomalyclip\[remote\]' adlfs", marks=without("adlfs")
        ),
        ("s3://id:the-secret@parts/a", "s3://parts/a: credentials in the address are not used"),
    ],
)
def test_an_address_that_leads_nowhere_is_one_message(store, address, message):
    fill(store, **{"texts/a.txt": b""})

    with pytest.raises(AnomalyCLIPError, match=f"^{message}") as raised:
        list(find_images([address]))
    assert "secret" not in str(raised.value)


def test_other_commands_read_addresses_because_the_readers_are_one(store, tmp_path):
    fill(store, **{f"good/{shade}.png": picture(shade) for shade in (10, 20, 30, 40)})
    detector = Detector(Bright(DetectorSpec(image_size=8)))

    threshold = calibrate(detector, "s3://parts/good", false_alarm_rate=0.5)

    assert 10 / 255 < threshold.score < 40 / 255
    deep = io.BytesIO()
    Image.fromarray(np.linspace(0, 4000, 48, dtype=np.uint16).reshape(6, 8)).save(deep, "png")
    fill(store, **{"deep/a.png": deep.getvalue()})
    assert measure_range("s3://parts/deep") == pytest.approx((4, 3996), abs=1)


def test_an_object_is_read_anew_for_every_prediction_but_only_once_for_its_drawing(store):
    fill(store, **{"camera.png": picture(10)})
    camera = Address("s3://parts/camera.png")
    assert [frame.image.getpixel((0, 0)) for frame in frames(camera)] == [10]

    fill(store, **{"camera.png": picture(200, size=(9, 9))})

    assert open_image(camera).getpixel((0, 0)) == 10  # what was scored
    assert [frame.image.getpixel((0, 0)) for frame in frames(camera)] == [200]
    assert size_of(camera) == (9, 9)


def test_a_cut_connection_changes_nothing(store, server):
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "png")
    fill(store, **{"a.png": file.getvalue(), "b.png": picture(50)})
    with object_store.proxy_of(server) as proxy:
        proxy.cuts = [100_000, 50_000, 200]

        with object_store.reached(proxy.url), fetched(Address("s3://parts/a.png")) as (copy, _):
            got = Path(copy).read_bytes()

    assert got == file.getvalue()
    assert proxy.cut == 3


def test_a_store_that_fails_for_one_image_costs_that_image_alone(store, server, web, tmp_path):
    fill(store, **{"b.png": picture(50)})
    web.refused = {"/a.png": 503, "/c.png": 403}
    images = read_list([f"{web.url}/a.png", f"{web.url}/c.png", "s3://parts/b.png", "s3://parts/gone.png"])
    told = {}

    run = predicting.predict(
        Detector(Bright(DetectorSpec(image_size=8))),
        images,
        tmp_path,
        on_error=lambda path, error: told.update({path: str(error)}),
    )

    assert run.scored == 1
    assert web.gets == [None] * (stores.TRIES + 1)
    assert told == {
        f"{web.url}/a.png": f"{web.url}/a.png: cannot be read in 4 tries (HTTP status 503)",
        f"{web.url}/c.png": f"{web.url}/c.png: no permission; check the credentials for this address",
        "s3://parts/gone.png": "s3://parts/gone.png: no such object",
    }


def test_an_answer_that_fails_at_first_is_asked_for_again(web, monkeypatch, tmp_path):
    monkeypatch.setattr(stores, "PAUSE", 0.0)
    web.content["/a.png"] = picture(100)
    web.fail = [503, 429]

    score(tmp_path, f"{web.url}/a.png")

    assert shades(tmp_path) == {f"{web.url}/a.png": 100}
    assert len(web.gets) == 3


def test_a_query_and_credentials_are_used_and_never_shown(web, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(stores, "PAUSE", 0.0)
    query = "?X-Amz-Signature=topsecret&at=/x.bmp"
    web.content[f"/a.png{query}"] = picture(100)
    address = web.url.replace("http://", "http://me:topsecret@") + f"/a.png{query}"
    missing = f"{web.url}/missing.png?sig=topsecret"
    listed = tmp_path / "list.txt"
    listed.write_text(f"{address}\n{missing}\n{web.url}/a.png?other=topsecret\n")
    told = []

    run = predicting.predict(
        Detector(Bright(DetectorSpec(image_size=8))),
        read_list(listed.read_text().splitlines()),
        tmp_path / "out",
        save=["heatmap", "csv"],
        on_error=lambda path, error: told.append(f"{path} {error}"),
    )

    assert run.scored == 1
    assert shades(tmp_path / "out") == {f"{web.url}/a.png": 100}
    assert f"{web.url}/missing.png: no such object" in told[0] + told[1]
    assert any("differs from it only in its query" in message for message in told)
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert b"topsecret" not in written + caplog.text.encode() + "".join(told).encode()
    assert "topsecret" not in repr(Address(address)) + str(Address(address))


@pytest.mark.slow
def test_https_is_read_if_the_certificate_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "PAUSE", 0.0)
    with http_files.serve(certificate=tmp_path / "server.pem") as files:
        files.content["/a.png?key=1"] = picture(100)
        address = f"{files.url}/a.png?key=1"

        with pytest.raises(InputError, match=r"^https://.*a.png: cannot be read .*CERTIFICATE_VERIFY_FAILED"):
            open_image(Address(address))

        code = "import sys; from anomalyclip.readers import *; from anomalyclip.addresses import Address"
        code += "; print(open_image(Address(sys.argv[1])).getpixel((0, 0)))"
        trusting = os.environ | {"SSL_CERT_FILE": str(tmp_path / "server.pem")}
        done = subprocess.run(
            [sys.executable, "-c", code, address], env=trusting, capture_output=True, text=True
        )
        assert (done.stdout, done.stderr) == ("100\n", "")


def test_a_text_is_never_followed_by_what_reads_images(web):
    web.content["/a.png"] = picture(100)
    detector = Detector(Bright(DetectorSpec(image_size=8)))

    for read in (detector.predict, open_image, size_of, lambda path: list(frames(path))):
        with pytest.raises(InputError, match="no such file, and a text is not followed as an address"):
            read(f"{web.url}/a.png?secret=1")
    assert web.requests == []
    assert detector.predict(Address(f"{web.url}/a.png")).image_path == f"{web.url}/a.png"


def test_a_file_is_a_file_whatever_its_name_looks_like(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("line:1/a.png", "s3:/parts/b.png", "C:\\parts\\c.png", "memory:d.png"):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(50))

    for name in ("line:1/a.png", "s3://parts/b.png", "C:\\parts\\c.png", "memory:d.png"):
        assert as_address(name) is None
        (found,) = find_images([name])
        assert open_image(found.path).size == (8, 6)
    assert [image.name for image in find_images([f"file://{tmp_path}/line:1"])] == ["a.png"]
    assert local_path(f"file://{tmp_path}/line%3A1") == f"{tmp_path}/line:1"


def test_any_file_system_of_fsspec_is_read():
    store = fsspec.filesystem("memory")
    store.pipe({"/parts/b.png": picture(10), "/parts/a/c.png": picture(20), "/parts/a/DICOMDIR": b"x"})

    found = list(find_images(["memory://parts"]))

    assert [(image.path, image.name) for image in found] == [
        ("memory://parts/b.png", "b.png"),
        ("memory://parts/a/c.png", "a/c.png"),
    ]
    assert [open_image(image.path).getpixel((0, 0)) for image in found] == [10, 20]
    store.rm("/parts", recursive=True)


def test_an_address_goes_to_other_processes_with_its_query():
    address = pickle.loads(pickle.dumps(Address("https://example.com/a.tif?key=1#2")))

    assert (address, address.url, address.inner) == (
        "https://example.com/a.tif#2",
        "https://example.com/a.tif?key=1",
        "#2",
    )


def test_the_end_of_an_object_is_all_of_a_shorter_one(store):
    for content, end in ((b"0123456789", b"6789"), (b"ab", b"ab"), (b"", b"")):
        store.pipe_file("parts/rows", content)
        assert ending(Address("s3://parts/rows"), 4) == end


def test_files_without_an_extension_are_recognised_by_their_beginning(store):
    pydicom = pytest.importorskip("pydicom")
    fill(store, **{"study/IM0001": Path(pydicom.data.get_testdata_file("CT_small.dcm")).read_bytes()})
    fill(store, **{"study/README": b"no image", "study/DICOMDIR": b"no image"})

    assert names("s3://parts/study") == ["IM0001"]
