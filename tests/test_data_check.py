"""What `check` finds in a data set, and what it leaves alone."""

import dataclasses

import pytest
from PIL import Image

from anomalyclip.data.check import check
from anomalyclip.data.listing import list_samples
from anomalyclip.data.meta import read_meta, write_meta
from tests.data_trees import paint


@pytest.fixture
def nuts(tmp_path):
    """A sound data set: two normal images, two anomalous ones with masks, all different."""
    for color, name in enumerate(("good/0", "good/1", "bent/0", "bent/1")):
        paint(tmp_path / f"nut/test/{name}.png", color=color, mode="RGB")
    for name in ("0_mask", "1_mask"):
        paint(tmp_path / f"nut/ground_truth/bent/{name}.png", color=255)
    return tmp_path


def found(root, *, notes=False):
    return {(f.kind, f.path) for f in check(list_samples(root)) if notes or not f.note}


def test_nothing_is_wrong_with_a_sound_data_set(nuts):
    assert found(nuts, notes=True) == set()


def test_progress_is_told_for_every_sample(nuts):
    told = []
    check(list_samples(nuts), progress=lambda: told.append(1))
    assert len(told) == 4


def test_missing_and_unpaired_masks_are_named(nuts):
    (nuts / "nut/ground_truth/bent/0_mask.png").rename(nuts / "nut/ground_truth/bent/7_mask.png")
    assert found(nuts) == {
        ("missing mask", "nut/test/bent/0.png"),
        ("mask without image", "nut/ground_truth/bent/7_mask.png"),
    }


def test_sizes_that_disagree_are_named(nuts):
    paint(nuts / "nut/ground_truth/bent/0_mask.png", size=(6, 8), color=255)
    assert found(nuts) == {("sizes differ", "nut/test/bent/0.png")}


def test_a_photograph_that_is_stored_sideways_agrees_with_its_upright_mask(nuts):
    exif = Image.Exif()
    exif[0x0112] = 6
    (nuts / "nut/test/bent/0.png").unlink()
    Image.new("RGB", (6, 8), "red").save(nuts / "nut/test/bent/0.jpg", exif=exif)
    assert found(nuts) == set()


def test_an_empty_mask_of_an_anomalous_image_is_named(nuts):
    paint(nuts / "nut/ground_truth/bent/1_mask.png", color=0)
    assert found(nuts) == {("empty mask", "nut/ground_truth/bent/1_mask.png")}


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_files_that_are_no_images_are_named(content, nuts):
    (nuts / "nut/test/good/0.png").write_bytes(content)
    (nuts / "nut/ground_truth/bent/0_mask.png").write_bytes(content)
    assert found(nuts) == {
        ("unreadable", "nut/test/good/0.png"),
        ("unreadable", "nut/ground_truth/bent/0_mask.png"),
    }


def test_images_of_the_same_content_are_named_with_what_they_repeat(nuts):
    (nuts / "nut/train/good").mkdir(parents=True)
    (nuts / "nut/train/good/9.png").write_bytes((nuts / "nut/test/bent/1.png").read_bytes())
    (finding,) = check(list_samples(nuts))
    assert (finding.kind, finding.path) == ("duplicate", "nut/test/bent/1.png")
    assert finding.detail == "has the same content as nut/train/good/9.png"


def test_files_that_only_have_the_same_size_are_no_duplicates(tmp_path):
    for color in range(3):
        paint(tmp_path / f"ok/{color}.bmp", color=color)
        paint(tmp_path / f"nut/test/good/{color}.bmp", color=color)
    sizes = {path.stat().st_size for path in (tmp_path / "nut").rglob("*.bmp")}
    assert len(sizes) == 1
    assert found(tmp_path) == set()


def test_counts_and_classes_are_compared_with_the_catalogue(nuts):
    for name in ("good", "bent"):
        paint(nuts / f"bottle/test/{name}/0.png", color=90 + len(name) + ord(name[0]), mode="RGB")
    paint(nuts / "bottle/ground_truth/bent/0_mask.png", color=255)
    findings = check(list_samples(nuts, "mvtec"))
    assert {(f.kind, f.path) for f in findings} >= {
        ("counts", ""),
        ("missing class", "zipper"),
        ("unknown class", "nut"),
    }
    assert len([f for f in findings if f.kind == "missing class"]) == 14
    (counts,) = [f for f in findings if f.kind == "counts"]
    assert counts.detail == "3 normal and 3 anomalous test images, but MVTec AD has 467 and 1258"


def test_a_class_may_be_written_with_underscores(tmp_path):
    paint(tmp_path / "electrical_commutators/test/good/0.png")
    kinds = {f.kind for f in check(list_samples(tmp_path, "sdd"))}
    assert "missing class" not in kinds
    assert "unknown class" not in kinds


def test_counts_that_nobody_has_verified_or_that_are_of_another_copy_are_notes(tmp_path):
    for n, name in enumerate(("test-image/0.png", "test-mask/0.png")):
        paint(tmp_path / "tn3k" / name, color=n)
    for n, name in enumerate(("Normal/images/0.png", "COVID/images/0.png")):
        paint(tmp_path / "covid19" / name, color=n)
    for n, name in enumerate(("0.jpg", "0_label.bmp", "1.jpg", "1_label.bmp")):
        paint(tmp_path / "sdd/kos01" / name, color=n)
    for key in ("tn3k", "covid19", "sdd"):
        assert [(f.kind, f.note) for f in check(list_samples(tmp_path / key, key))] == [("counts", True)]


def test_a_set_that_should_have_masks_and_has_none_is_found(tmp_path):
    paint(tmp_path / "bottle/test/good/0.png", color=1)
    paint(tmp_path / "bottle/test/broken/0.png", color=2)
    findings = check(list_samples(tmp_path, "mvtec"))
    assert [f.detail for f in findings if f.kind == "missing mask"] == [
        "no masks at all, but MVTec AD has masks: no pixel-level metrics"
    ]


def test_a_meta_file_is_checked_like_a_listing(nuts):
    write_meta(list_samples(nuts))
    (nuts / "nut/ground_truth/bent/0_mask.png").unlink()
    meta = dataclasses.replace(read_meta(nuts), dataset=None)
    assert [(f.kind, f.path) for f in check(meta)] == [("missing mask", "nut/test/bent/0.png")]
