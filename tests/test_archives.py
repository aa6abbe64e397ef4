"""Archives are read without unpacking them, and nothing in them can lead out, fill the disk or stop the run."""

import io
import json
import os
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalyclip import Detector, DetectorSpec, predicting
from anomalyclip.errors import AnomalyCLIPError, InputError
from anomalyclip.inputs import find_images
from anomalyclip.readers import archive, frames, locate, open_image, size_of
from tests.toy_methods import Bright


def picture(shade, kind="png", **options):
    file = io.BytesIO()
    Image.new("L", (8, 6), shade).save(file, kind, **options)
    return file.getvalue()


PICTURES = {"a.png": picture(50), "line 1/b.png": picture(100), "line 1/c.jpg": picture(150, "jpeg")}


def write_zip(path, contents, **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in contents.items():
            file.writestr(name, content)


def write_tar(path, contents, mode="w"):
    with tarfile.open(path, mode) as file:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


WRITERS = {"photos.zip": write_zip, "photos.tar": write_tar}


@pytest.fixture(params=WRITERS)
def photos(request, tmp_path):
    path = tmp_path / request.param
    WRITERS[request.param](path, {**PICTURES, "notes.txt": b"no image"})
    return str(path)


@pytest.fixture
def run(tmp_path):
    """Score a path, and return shades by name and messages by name."""

    def score(path, **options):
        told = {}
        detector = Detector(Bright(DetectorSpec(image_size=8)))
        done = predicting.predict(
            detector,
            path,
            tmp_path / "out",
            on_error=lambda image, error: told.update({image: str(error)}),
            **options,
        )
        lines = (done.folder / "predictions.jsonl").read_text().splitlines()
        found = {record["image_path"]: record for record in map(json.loads, lines)}
        return found, told

    return score


def test_the_images_in_an_archive_are_named_by_their_path_in_it(photos):
    assert [image.path for image in find_images([photos])] == [f"{photos}/{name}" for name in PICTURES]
    for name, shade in zip(PICTURES, (50, 100, 150), strict=True):
        assert np.asarray(open_image(f"{photos}/{name}")).tolist() == [[shade] * 8] * 6
        assert size_of(f"{photos}/{name}") == (8, 6)
    assert [frame.id for frame in frames(photos)] == [f"{photos}/{name}" for name in PICTURES]


def test_a_run_scores_them_and_goes_on_where_it_stopped(photos, run, tmp_path):
    found, told = run(photos, save=["heatmap"])
    assert told == {}
    assert [round(record["pred_score"] * 255) for record in found.values()] == [50, 100, 150]
    name = os.path.basename(photos)
    assert found[f"{photos}/line 1/b.png"]["files"] == {"heatmap": f"heatmaps/{name}/line 1/b_heatmap.png"}
    assert run(photos, save=["heatmap"], resume=True)[0] == found


def test_one_image_of_an_archive_can_be_named(photos, run):
    found, _ = run(f"{photos}/line 1/b.png")
    assert list(found) == [f"{photos}/line 1/b.png"]
    with pytest.raises(InputError, match=r"no.png: the archive has no such member"):
        open_image(f"{photos}/no.png")


def test_pages_in_an_archive_are_numbered(tmp_path):
    pages = picture(50, "tiff", save_all=True, append_images=[Image.new("L", (8, 6), 70)])
    path = str(tmp_path / "scans.zip")
    write_zip(path, {"scan.tif": pages})
    assert [frame.id for frame in frames(path)] == [f"{path}/scan.tif#1", f"{path}/scan.tif#2"]
    assert locate(f"{path}/scan.tif#2") == (f"{path}/scan.tif", 2)
    assert np.asarray(open_image(f"{path}/scan.tif#2")).max() == 70


def test_an_archive_in_a_folder_is_left_alone(photos, tmp_path):
    (tmp_path / "x.png").write_bytes(picture(9))
    assert [image.name for image in find_images([tmp_path])] == ["x.png"]


@pytest.mark.parametrize("name", ["../evil.png", "line/../../evil.png", "/etc/evil.png"])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_name_that_leads_out_is_refused_and_the_rest_is_scored(kind, name, run, tmp_path):
    (tmp_path / "evil.png").write_bytes(picture(1))  # what it would lead to
    path = str(tmp_path / kind)
    WRITERS[kind](path, {name: picture(200), **PICTURES})
    before = sorted(tmp_path.iterdir())
    found, told = run(path)
    assert len(found) == 3
    assert told == {f"{path}/{name}": f"{path}/{name}: its name leads out of the archive"}
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "out"])


def test_links_are_refused(run, tmp_path):
    path = str(tmp_path / "links.tar")
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture(222))
    with tarfile.open(path, "w") as file:
        for name, kind in (("soft.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(secret)
            file.addfile(info)
        info = tarfile.TarInfo("good.png")
        info.size = len(PICTURES["a.png"])
        file.addfile(info, io.BytesIO(PICTURES["a.png"]))
    found, told = run(path)
    assert list(found) == [f"{path}/good.png"]
    assert all(message.endswith(": a link, or no regular file") for message in told.values())
    assert len(told) == 2

    path = tmp_path / "links.zip"
    info = zipfile.ZipInfo("soft.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    write_zip(path, {info: str(secret).encode(), "good.png": PICTURES["a.png"]})
    with pytest.raises(InputError, match="soft.png: a link, or no regular file"):
        open_image(path / "soft.png")
    assert open_image(path / "good.png").size == (8, 6)


def test_a_bomb_is_refused_by_what_it_says_and_cut_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "LARGEST", 100_000)
    path = tmp_path / "bomb.zip"
    write_zip(path, {"honest.png": bytes(10_000_000), "good.png": PICTURES["a.png"]})
    assert path.stat().st_size < 20_000
    with pytest.raises(
        InputError, match=r"honest.png: 10000000 bytes when unpacked; expected at most 100000"
    ):
        open_image(path / "honest.png")
    assert open_image(path / "good.png").size == (8, 6)

    liar = tmp_path / "liar.zip"
    content = path.read_bytes().replace((10_000_000).to_bytes(4, "little"), (50_000).to_bytes(4, "little"))
    liar.write_bytes(content)
    with pytest.raises(InputError, match=r"liar.zip/honest.png: "):
        open_image(liar / "honest.png")


def test_what_cannot_be_read_in_an_archive_is_named_and_the_rest_is_scored(run, tmp_path):
    nested = io.BytesIO()
    write_zip(nested, PICTURES)
    path = str(tmp_path / "mixed.zip")
    write_zip(path, {"more.zip": nested.getvalue(), "broken.png": PICTURES["a.png"][:50], **PICTURES})
    found, told = run(path)
    assert len(found) == 3
    assert (
        told[f"{path}/more.zip"]
        == f"{path}/more.zip: an archive in an archive is not read; take it out first"
    )
    assert told[f"{path}/broken.png"].startswith(f"{path}/broken.png: damaged image: ")
    assert len(told) == 2


def test_a_cut_tar_is_refused_before_anything_is_scored(run, tmp_path):
    path = str(tmp_path / "cut.tar")
    write_tar(path, PICTURES)
    with tarfile.open(path) as file:
        last = file.getmembers()[-1].offset_data
    os.truncate(path, last + 100)
    with pytest.raises(
        AnomalyCLIPError, match=r"cut.tar: cannot read which files it lists \(unexpected end of data"
    ):
        run(path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", bytes(3000)])
def test_what_is_no_archive_is_one_message(content, run, tmp_path):
    (tmp_path / "no.zip").write_bytes(content)
    with pytest.raises(AnomalyCLIPError, match=r"no.zip: cannot read which files it lists"):
        run(str(tmp_path / "no.zip"))


def test_an_encrypted_member_is_refused(tmp_path):
    path = tmp_path / "secret.zip"
    write_zip(path, PICTURES)
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 8] |= 1  # the flag in the list of members
    path.write_bytes(content)
    with pytest.raises(InputError, match="a.png: encrypted"):
        open_image(path / "a.png")


def test_a_compressed_tar_is_refused_with_advice(tmp_path):
    path = tmp_path / "photos.tar.gz"
    write_tar(path, PICTURES, "w:gz")
    with pytest.raises(AnomalyCLIPError, match=r"photos.tar.gz: a compressed tar .* make it a zip"):
        list(find_images([path]))


def test_an_archive_without_images_is_refused(tmp_path):
    write_zip(tmp_path / "texts.zip", {"a.txt": b"text"})
    with pytest.raises(AnomalyCLIPError, match=r"texts.zip: no images in this archive"):
        list(find_images([tmp_path / "texts.zip"]))


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MOST", 2)
    write_zip(tmp_path / "many.zip", PICTURES)
    with pytest.raises(AnomalyCLIPError, match=r"many.zip: more than 2 members; split it"):
        list(find_images([tmp_path / "many.zip"]))


def test_an_archive_that_changes_is_listed_again(tmp_path):
    path = tmp_path / "photos.zip"
    write_zip(path, PICTURES)
    assert open_image(path / "a.png").getpixel((0, 0)) == 50
    write_zip(path, {"a.png": picture(60), "b.png": picture(70)})
    assert open_image(path / "a.png").getpixel((0, 0)) == 60
    assert open_image(path / "b.png").getpixel((0, 0)) == 70


def test_a_folder_that_is_called_like_an_archive_is_a_folder(tmp_path):
    folder = tmp_path / "photos.zip"
    folder.mkdir()
    (folder / "a.png").write_bytes(PICTURES["a.png"])
    assert [image.name for image in find_images([folder])] == ["a.png"]
    assert open_image(folder / "a.png").size == (8, 6)


@pytest.mark.parametrize("writer", [write_zip, write_tar])
def test_dicom_without_an_extension_is_found_in_an_archive(tmp_path, writer):
    pydicom = pytest.importorskip("pydicom")
    source = Path(pydicom.__file__).parent / "data/test_files/MR_small.dcm"
    study = tmp_path / {write_zip: "study.zip", write_tar: "study.tar"}[writer]
    contents = {
        "IM0001": source.read_bytes(),
        "1.2.840.2": source.read_bytes(),
        "README": b"no image",
        "empty": b"",
    }
    writer(study, {**contents, "DICOMDIR": source.read_bytes(), ".hidden": source.read_bytes()})

    assert [image.name for image in find_images([study])] == [
        f"{study.name}/IM0001",
        f"{study.name}/1.2.840.2",
    ]
    assert open_image(study / "IM0001").size == (64, 64)


def test_dicom_is_read_in_an_archive(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    source = Path(pydicom.__file__).parent / "data/test_files/MR_small.dcm"
    write_zip(tmp_path / "study.zip", {"series/1.dcm": source.read_bytes()})
    shutil.copy(source, tmp_path / "1.dcm")
    found = np.asarray(open_image(tmp_path / "study.zip/series/1.dcm"))
    np.testing.assert_array_equal(found, np.asarray(open_image(tmp_path / "1.dcm")))
