"""Folder layouts to samples: the 17 data sets as the paper laid them out and as they are downloaded, and one's own."""

import os
from pathlib import Path

import pytest

from anomalyclip.data.folder import Folder
from anomalyclip.data.listing import LayoutError, list_samples, load_samples
from anomalyclip.data.meta import read_meta, write_meta
from anomalyclip.errors import AnomalyCLIPError
from tests.data_trees import GOLDEN, golden_rows, paint, plant, plant_golden, rows

JUNK = (
    ".DS_Store",
    "Thumbs.db",
    "desktop.ini",
    "._000.png",
    "readme.txt",
    ".cache/000.png",
    "__MACOSX/000.png",
)
SAME_SHAPE = {"br35h", "cvc_colondb", "cvc_clinicdb", "kvasir", "endo"}
"""Sets whose shape others share, so that only the folder's name or a key can tell which it is."""


def kinds(meta, *, notes=False):
    return {(finding.kind, finding.path) for finding in meta.findings if notes or not finding.note}


@pytest.mark.parametrize("key", GOLDEN)
def test_each_of_the_17_trees_gives_exactly_the_published_samples(key, tmp_path):
    meta = list_samples(plant_golden(tmp_path, key), key)
    assert rows(meta) == golden_rows(key)
    assert list(meta.phases) == list(GOLDEN[key]["expected"])
    assert kinds(meta) == set()


@pytest.mark.parametrize("key", GOLDEN)
def test_written_and_read_again_the_samples_are_the_same(key, tmp_path):
    meta = list_samples(plant_golden(tmp_path, key), key)
    write_meta(meta)
    again = read_meta(tmp_path)
    assert again.phases == meta.phases
    assert (
        load_samples(tmp_path).samples
        == load_samples(tmp_path, key, "TEST").samples
        == meta.phase("test").samples
    )


@pytest.mark.parametrize("key", GOLDEN)
def test_junk_lying_about_changes_nothing(key, tmp_path):
    root = plant_golden(tmp_path, key)
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        plant(folder, JUNK)
    meta = list_samples(root, key)
    assert rows(meta) == golden_rows(key)
    assert kinds(meta) == set()


@pytest.mark.parametrize("key", sorted(set(GOLDEN) - {"visa"}))
def test_upper_case_endings_are_images_too(key, tmp_path):
    root = tmp_path / "data"
    plant(root, [str(Path(name).with_suffix(Path(name).suffix.upper())) for name in GOLDEN[key]["files"]])

    def lower(path):
        return path and str(Path(path).with_suffix(Path(path).suffix.lower()))

    found = {(p, c, lower(i), lower(m), d, a) for p, c, i, m, d, a in rows(list_samples(root, key))}
    assert found == {(p, c, lower(i), lower(m), d, a) for p, c, i, m, d, a in golden_rows(key)}


@pytest.mark.parametrize("key", GOLDEN)
def test_removing_any_one_mask_changes_only_its_sample_and_names_it(key, tmp_path):
    root = plant_golden(tmp_path, key)
    expected = golden_rows(key)
    masked = [row for row in expected if row[3]]
    for row in masked:
        phase, class_name, image, mask, defect, _ = row
        (root / mask).unlink()
        meta = list_samples(root, key)
        # An image without a label file is normal in DAGM 2007: that is how the set says so.
        changed = (phase, class_name, image, "", defect, 0 if key == "dagm" else 1)
        assert rows(meta) == expected - {row} | {changed}
        named = {
            path for kind, path in kinds(meta, notes=True) if kind in ("missing mask", "taken as normal")
        }
        assert image in named
        (root / mask).touch()


@pytest.mark.parametrize("key", GOLDEN)
def test_without_a_key_the_data_set_is_recognised(key, tmp_path):
    root = plant_golden(tmp_path / "some folder", key)
    meta = list_samples(root)
    if key in SAME_SHAPE:
        assert meta.dataset is None
        assert "name the data set with --dataset" in meta.source
        assert {row[2:4] + row[5:] for row in rows(meta)} == {row[2:4] + row[5:] for row in golden_rows(key)}
    else:
        assert meta.dataset == key
        assert rows(meta) == golden_rows(key)


@pytest.mark.parametrize(
    ("key", "name"), [("kvasir", "Kvasir-SEG"), ("br35h", "Br35H"), ("endo", "EndoTect")]
)
def test_the_folders_name_tells_sets_of_the_same_shape_apart(key, name, tmp_path):
    meta = list_samples(plant_golden(tmp_path / name, key))
    assert meta.dataset == key
    assert rows(meta) == golden_rows(key)


def test_folders_that_an_archive_wraps_around_a_set_are_looked_through(tmp_path):
    plant_golden(tmp_path / "download" / "BTech_Dataset_transformed", "btad")
    meta = list_samples(tmp_path)
    assert meta.dataset == "btad"
    assert {row[2] for row in rows(meta)} == {
        f"download/BTech_Dataset_transformed/{row[2]}" for row in golden_rows("btad")
    }


# As downloaded


def test_headct_as_downloaded_is_read_from_its_table_with_odd_spacing(tmp_path):
    plant(
        tmp_path,
        [f"head_ct/head_ct/{number:03}.png" for number in range(4)],
        {"labels.csv": "\ufeffid, hemorrhage\r\n0, 1\r\n1,0\r\n 2 , 1 \r\n5,0\r\n\r\n"},
    )
    meta = list_samples(tmp_path)
    assert meta.dataset == "headct"
    assert rows(meta) == {
        ("test", "brain", "head_ct/head_ct/000.png", "", "hemorrhage", 1),
        ("test", "brain", "head_ct/head_ct/001.png", "", "good", 0),
        ("test", "brain", "head_ct/head_ct/002.png", "", "hemorrhage", 1),
    }
    assert kinds(meta) == {("unlabelled image", "head_ct/head_ct/003.png"), ("missing image", "5")}


def test_a_label_that_is_no_label_is_an_error_that_names_the_row(tmp_path):
    plant(tmp_path, ["head_ct/000.png"], {"labels.csv": "id,hemorrhage\n0,yes\n"})
    with pytest.raises(AnomalyCLIPError, match=r"labels\.csv: row 2 has hemorrhage 'yes', expected 0 or 1"):
        list_samples(tmp_path, "headct")


def test_kolektorsdd_as_downloaded_has_normal_images_where_the_mask_is_black(tmp_path):
    for name, color in (("kos01/Part0", 0), ("kos01/Part1", 255), ("kos10/Part0", 1), ("kos02/Part7", 0)):
        paint(tmp_path / f"{name}.jpg", color=90)
        paint(tmp_path / f"{name}_label.bmp", color=color)
    meta = list_samples(tmp_path)
    assert meta.dataset == "sdd"
    assert [(s.image, s.mask, s.defect, s.anomaly) for s in meta.phase("test")] == [
        ("kos01/Part0.jpg", None, "good", False),
        ("kos01/Part1.jpg", "kos01/Part1_label.bmp", "defect", True),
        ("kos02/Part7.jpg", None, "good", False),
        ("kos10/Part0.jpg", "kos10/Part0_label.bmp", "defect", True),
    ]
    (tmp_path / "kos01/Part1_label.bmp").unlink()
    (tmp_path / "kos10/Part0_label.bmp").write_bytes(b"no image")
    meta = list_samples(tmp_path)
    assert [s.image for s in meta.phase("test")] == ["kos01/Part0.jpg", "kos02/Part7.jpg"]
    assert kinds(meta) == {("unlabelled image", "kos01/Part1.jpg"), ("unreadable", "kos10/Part0_label.bmp")}


def test_covid19_as_downloaded_ignores_lung_masks_and_other_diseases(tmp_path):
    base = "COVID-19_Radiography_Dataset"
    images = [
        f"{base}/{name}/images/{name}-{n}.png"
        for name in ("Normal", "COVID", "Viral Pneumonia")
        for n in (1, 2)
    ]
    plant(
        tmp_path,
        [*images, *(name.replace("/images/", "/masks/") for name in images), f"{base}/README.md.txt"],
    )
    meta = list_samples(tmp_path)
    assert meta.dataset == "covid19"
    assert rows(meta) == {
        *(("test", "chest", f"{base}/Normal/images/Normal-{n}.png", "", "Normal", 0) for n in (1, 2)),
        *(("test", "chest", f"{base}/COVID/images/COVID-{n}.png", "", "COVID", 1) for n in (1, 2)),
    }


def test_brainmri_as_downloaded_holds_its_images_twice_and_lists_them_once(tmp_path):
    names = ["no/1 no.jpeg", "yes/Y1.JPG"]
    plant(tmp_path, [*names, *(f"brain_tumor_dataset/{name}" for name in names)])
    meta = list_samples(tmp_path)
    assert meta.dataset == "brainmri"
    assert rows(meta) == {
        ("test", "brain", "no/1 no.jpeg", "", "no", 0),
        ("test", "brain", "yes/Y1.JPG", "", "yes", 1),
    }


def test_visa_with_a_table_from_windows_and_files_that_are_not_there(tmp_path):
    table = (
        "object; split; label; image; mask\r\n"
        "candle;test;anomaly;candle\\Data\\Images\\Anomaly\\0.JPG;candle\\Data\\Masks\\Anomaly\\0.png\r\n"
        "candle;test;anomaly;candle\\Data\\Images\\Anomaly\\1.JPG;candle\\Data\\Masks\\Anomaly\\1.png\r\n"
        "candle;train;normal;candle\\Data\\Images\\Normal\\0.JPG\r\n"
        "candle;train;normal;candle\\Data\\Images\\Normal\\1.JPG;\r\n"
    )
    here = ("Images/Anomaly/0.JPG", "Images/Anomaly/1.JPG", "Masks/Anomaly/0.png", "Images/Normal/1.JPG")
    plant(tmp_path, [f"candle/Data/{name}" for name in here], {"split_csv/1cls.csv": table})
    meta = list_samples(tmp_path)
    assert meta.dataset == "visa"
    data = "candle/Data"
    assert rows(meta) == {
        ("test", "candle", f"{data}/Images/Anomaly/0.JPG", f"{data}/Masks/Anomaly/0.png", "", 1),
        ("test", "candle", f"{data}/Images/Anomaly/1.JPG", "", "", 1),
        ("train", "candle", f"{data}/Images/Normal/1.JPG", "", "", 0),
    }
    assert kinds(meta) == {
        ("missing mask", f"{data}/Images/Anomaly/1.JPG"),
        ("missing image", f"{data}/Images/Normal/0.JPG"),
    }


def test_visa_as_its_own_script_rearranges_it(tmp_path):
    names = ("train/good/0.JPG", "test/good/1.JPG", "test/bad/000.JPG", "ground_truth/bad/000.png")
    plant(tmp_path, [f"{class_name}/{name}" for class_name in ("candle", "pcb1") for name in names])
    assert list_samples(tmp_path).dataset == "visa"


def test_dagm_with_its_own_table_knows_which_label_files_are_lost(tmp_path):
    test = "Class1/Test"
    labels = "1\n0001\t0\t0001.PNG\t0\t0\n0002\t1\t0002.PNG\t1\t0002_label.PNG\n"
    plant(tmp_path, [f"{test}/0001.PNG", f"{test}/0002.PNG"], {f"{test}/Label/Labels.txt": labels})
    meta = list_samples(tmp_path, "dagm")
    assert [(s.image, s.anomaly, s.has_mask) for s in meta.phase("test")] == [
        (f"{test}/0001.PNG", False, True),
        (f"{test}/0002.PNG", True, False),
    ]
    assert kinds(meta, notes=True) == {("missing mask", f"{test}/0002.PNG")}


# Pairing


def test_a_mask_is_paired_by_name_not_by_position(tmp_path):
    plant(
        tmp_path,
        ["images/1.png", "images/2.png", "images/10.png", "masks/10.png", "masks/2_Mask.bmp", "masks/x.png"],
    )
    meta = list_samples(tmp_path, "kvasir")
    assert [(s.image, s.mask) for s in meta.phase("test")] == [
        ("images/1.png", None),
        ("images/2.png", "masks/2_Mask.bmp"),
        ("images/10.png", "masks/10.png"),
    ]
    assert kinds(meta) == {("missing mask", "images/1.png"), ("mask without image", "masks/x.png")}


def test_a_mask_that_two_images_lay_claim_to_is_given_to_neither(tmp_path):
    plant(tmp_path, ["images/1.png", "images/1.jpg", "images/2.png", "masks/1.png", "masks/2.png"])
    meta = list_samples(tmp_path, "kvasir")
    assert {s.image: s.mask for s in meta.phase("test")} == {
        "images/1.png": None,
        "images/1.jpg": None,
        "images/2.png": "masks/2.png",
    }
    assert kinds(meta) == {("ambiguous mask", "images/1.png"), ("ambiguous mask", "images/1.jpg")}


def test_masks_of_a_defect_whose_images_are_gone_are_reported(tmp_path):
    plant(tmp_path, ["nut/test/good/0.png", "nut/test/bent/0.png", "nut/ground_truth/bent/0.png"])
    plant(tmp_path, ["nut/ground_truth/rust/0.png"])
    assert kinds(list_samples(tmp_path)) == {("mask without image", "nut/ground_truth/rust/0.png")}


def test_names_are_in_natural_order_whatever_order_the_disk_has(tmp_path):
    names = ["2.png", "10.png", "1.png", "01.png", "b1.png", "B1.png"]
    plant(tmp_path / "a", [f"nut/test/good/{name}" for name in names])
    plant(tmp_path / "b", [f"nut/test/good/{name}" for name in reversed(names)])
    listed = [[Path(s.image).name for s in list_samples(tmp_path / side).phase("test")] for side in "ab"]
    assert listed[0] == listed[1] == ["01.png", "1.png", "2.png", "10.png", "B1.png", "b1.png"]


def test_one_class_alone_is_a_data_set_too(tmp_path):
    names = ("train/good/0.png", "test/good/0.png", "test/bent/0.png", "ground_truth/bent/0_mask.png")
    plant(tmp_path / "nut", names)
    assert rows(list_samples(tmp_path / "nut")) == {
        ("train", "nut", "train/good/0.png", "", "good", 0),
        ("test", "nut", "test/good/0.png", "", "good", 0),
        ("test", "nut", "test/bent/0.png", "ground_truth/bent/0_mask.png", "bent", 1),
    }


# Folders of one's own


def own(root, **folders):
    return list_samples(root, folder=Folder(**{name: (value,) for name, value in folders.items()}))


def test_named_folders_are_searched_recursively_and_masks_found_in_mirrored_folders(tmp_path):
    root = plant(
        tmp_path / "screws",
        [
            "ok/0.png",
            "ok/night/0.png",
            "nok/bent/0.png",
            "nok/rust/0.png",
            "gt/bent/0_mask.png",
            "gt/rust/0_mask.png",
        ],
    )
    assert rows(own(root, normal_dir="ok", abnormal_dir="nok", mask_dir="gt")) == {
        ("test", "screws", "ok/0.png", "", "ok", 0),
        ("test", "screws", "ok/night/0.png", "", "night", 0),
        ("test", "screws", "nok/bent/0.png", "gt/bent/0_mask.png", "bent", 1),
        ("test", "screws", "nok/rust/0.png", "gt/rust/0_mask.png", "rust", 1),
    }


def test_several_folders_of_one_kind_find_their_masks_by_their_names(tmp_path):
    plant(tmp_path, ["test/bent/0.png", "test/rust/0.png", "gt/bent/0.png", "gt/rust/0.png"])
    folder = Folder(abnormal_dir=("test/bent", "test/rust"), mask_dir=("gt/rust", "gt/bent"))
    meta = list_samples(tmp_path, folder=folder)
    assert {s.image: s.mask for s in meta.phase("test")} == {
        "test/bent/0.png": "gt/bent/0.png",
        "test/rust/0.png": "gt/rust/0.png",
    }


def test_of_several_masks_that_would_do_none_is_guessed(tmp_path):
    plant(tmp_path, ["nok/0.png", "a/0.png", "b/0.png"])
    meta = list_samples(tmp_path, folder=Folder(abnormal_dir=("nok",), mask_dir=("a", "b")))
    assert meta.phase("test")[0].mask is None
    assert ("ambiguous mask", "nok/0.png") in kinds(meta)


def test_masks_may_lie_beside_or_below_their_images(tmp_path):
    plant(tmp_path / "beside", ["nok/0.png", "nok/0_mask.png"])
    plant(tmp_path / "below", ["nok/0.png", "nok/masks/0.png"])
    plant(tmp_path / "ending", ["nok/0.jpg", "nok/0.png"])
    beside = own(tmp_path / "beside", abnormal_dir="nok", mask_dir="nok")
    below = own(tmp_path / "below", abnormal_dir="nok", mask_dir="nok/masks")
    ending = own(tmp_path / "ending", abnormal_dir="nok", mask_dir="nok", image_suffix="JPG")
    for meta, image, mask in (
        (beside, "nok/0.png", "nok/0_mask.png"),
        (below, "nok/0.png", "nok/masks/0.png"),
        (ending, "nok/0.jpg", "nok/0.png"),
    ):
        assert [(s.image, s.mask) for s in meta.phase("test")] == [(image, mask)]
        assert kinds(meta) == set()


def test_a_folder_within_another_belongs_to_the_one_that_names_it(tmp_path):
    plant(tmp_path, ["0.png", "nok/1.png"])
    meta = own(tmp_path, normal_dir=".", abnormal_dir="nok")
    assert {(s.image, s.anomaly) for s in meta.phase("test")} == {("0.png", False), ("nok/1.png", True)}


def test_normal_images_are_for_training_once_there_are_normal_test_images(tmp_path):
    plant(tmp_path, ["a/0.png", "b/0.png"])
    meta = own(tmp_path, normal_dir="a", normal_test_dir="b")
    assert [s.image for s in meta.phase("train")] == ["a/0.png"]
    assert [s.image for s in meta.phase("test")] == ["b/0.png"]


def test_a_folder_cannot_hold_normal_and_anomalous_images_at_once(tmp_path):
    plant(tmp_path, ["a/0.png"])
    with pytest.raises(AnomalyCLIPError, match="named twice"):
        own(tmp_path, normal_dir="a", abnormal_dir="a/")
    with pytest.raises(AnomalyCLIPError, match="missing: no such folder"):
        own(tmp_path, normal_dir="missing")


# What is refused


def test_an_unknown_layout_is_an_error_that_lists_the_known_ones_and_the_options(tmp_path):
    plant(tmp_path, ["stuff/0.png", "more/1.png"])
    with pytest.raises(LayoutError) as error:
        list_samples(tmp_path)
    for word in ("found more/, stuff/", "MVTec-like", "split_csv/1cls.csv", "--abnormal-dir"):
        assert word in str(error.value)


def test_an_ambiguous_layout_is_an_error_that_lists_what_it_could_be(tmp_path):
    plant(tmp_path, ["images/0.png", "masks/0.png", "nut/train/good/0.png", "nut/test/good/0.png"])
    with pytest.raises(
        LayoutError, match=r"ambiguous(.|\n)*MVTec-like(.|\n)*image folder \+ mask folder(.|\n)*--dataset"
    ):
        list_samples(tmp_path)


def test_with_a_key_what_was_expected_is_shown(tmp_path):
    plant(tmp_path, ["no/0.png"])
    with pytest.raises(
        AnomalyCLIPError,
        match=r"does not have the layout of VisA(.|\n)*split_csv/1cls\.csv(.|\n)*but found no/",
    ):
        list_samples(tmp_path, "visa")
    with pytest.raises(AnomalyCLIPError, match="unknown data set 'mvtek'; did you mean mvtec"):
        list_samples(tmp_path, "mvtek")
    with pytest.raises(AnomalyCLIPError, match="no such folder"):
        list_samples(tmp_path / "nowhere")


def test_a_phase_without_samples_is_an_error_that_says_which_there_are(tmp_path):
    with pytest.raises(AnomalyCLIPError, match=r"no train samples; .*train \(0\), test \(6\)"):
        load_samples(plant_golden(tmp_path, "headct"), "headct", "train")


def test_links_that_leave_the_root_are_refused_unless_allowed(tmp_path):
    outside = plant(tmp_path / "outside", ["0.png"])
    root = plant(tmp_path / "root", ["nut/test/good/1.png"])
    link = root / "nut/test/good/0.png"
    link.symlink_to(outside / "0.png")
    with pytest.raises(
        AnomalyCLIPError, match=r"nut/test/good/0\.png: is a link to .* outside .* --allow-outside"
    ):
        list_samples(root)
    assert len(list_samples(root, allow_outside=True).phase("test")) == 2
    link.unlink()
    (root / "nut/test/bent").symlink_to(outside, target_is_directory=True)
    with pytest.raises(AnomalyCLIPError, match=r"nut/test/bent: is a link to .* outside"):
        list_samples(root)
    assert len(list_samples(root, allow_outside=True).phase("test")) == 2


def test_links_within_the_root_and_links_in_circles_are_fine(tmp_path):
    plant(tmp_path, ["ok/0.png"])
    (tmp_path / "ok/1.png").symlink_to(tmp_path / "ok/0.png")
    (tmp_path / "ok/again").symlink_to(tmp_path / "ok", target_is_directory=True)
    assert [s.image for s in own(tmp_path, normal_dir="ok").phase("test")] == ["ok/0.png", "ok/1.png"]


def test_a_root_that_is_a_link_is_the_users_own_choice(tmp_path):
    plant_golden(tmp_path / "real", "btad")
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    assert rows(list_samples(tmp_path / "link", "btad")) == golden_rows("btad")


def test_paths_that_leave_the_root_are_refused_in_tables_and_options(tmp_path):
    plant(tmp_path, ["secret.png"])
    table = "object,split,label,image,mask\ncandle,test,normal,../secret.png,\n"
    root = plant(tmp_path / "root", [], {"split_csv/1cls.csv": table})
    with pytest.raises(AnomalyCLIPError, match=r"'\.\./secret\.png' leaves the data set's folder"):
        list_samples(root, "visa")
    with pytest.raises(AnomalyCLIPError, match="leaves the data set's folder"):
        own(root, normal_dir="..")
    plant(root, ["0.png"])
    assert [s.image for s in own(root, normal_dir=str(root)).phase("test")] == ["0.png"]


def test_names_that_are_no_valid_text_survive(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    plant(tmp_path, [f"ok/{name}"])
    meta = own(tmp_path, normal_dir="ok")
    write_meta(meta)
    assert read_meta(tmp_path).phases == meta.phases


def test_a_real_tree_of_thousands_of_files_is_listed_whole(tmp_path):
    for folder in ("nut/train/good", "nut/test/good", "nut/test/bent", "nut/ground_truth/bent"):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(2000):
            os.close(os.open(tmp_path / folder / f"{number}{'_mask' * ('ground' in folder)}.png", os.O_CREAT))
    meta = list_samples(tmp_path)
    assert [len(samples) for samples in meta.phases.values()] == [2000, 4000]
    assert all(Path(s.mask).stem == f"{Path(s.image).stem}_mask" for s in meta.phase("test") if s.anomaly)
    assert kinds(meta) == set()


def test_dicom_images_without_an_extension_are_found_in_a_layout(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    content = Path(pydicom.data.get_testdata_file("MR_small.dcm")).read_bytes()
    for name in ("train/good/IM0001", "test/good/IM0002", "test/bent/IM0003"):
        path = tmp_path / "knee" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "knee/test/bent/README").write_text("no image")
    (tmp_path / "knee/ground_truth/bent").mkdir(parents=True)
    paint(tmp_path / "knee/ground_truth/bent/IM0003_mask.png")
    os.mkfifo(tmp_path / "knee/test/bent/queue")  # opening it would wait for ever

    meta = list_samples(tmp_path)

    assert [sample.image for sample in meta.phases["test"]] == [
        "knee/test/bent/IM0003",
        "knee/test/good/IM0002",
    ]
    assert [sample.image for sample in meta.phases["train"]] == ["knee/train/good/IM0001"]
    assert meta.phases["test"][0].mask == "knee/ground_truth/bent/IM0003_mask.png"
