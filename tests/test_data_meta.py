"""meta.json: the published format, files of the published scripts, and what is wrong with a malformed one."""

import json
import stat

import pytest

from anomalyclip.data.meta import Meta, Sample, read_meta, write_meta
from anomalyclip.errors import AnomalyCLIPError, AnomalyCLIPWarning
from tests.data_trees import plant

ENTRY = {"img_path": "a.png", "mask_path": "", "cls_name": "nut", "specie_name": "good", "anomaly": 0}


def meta_with(root, *entries, phase="test", name="nut"):
    plant(root, ["a.png", "b.png", "b_mask.png"])
    (root / "meta.json").write_text(json.dumps({phase: {name: list(entries)}}))
    return root


def test_the_file_has_the_published_form(tmp_path):
    samples = (
        Sample("a.png", None, "nut", "good", False),
        Sample("b.png", "b_mask.png", "nut", "bent", True),
    )
    file = write_meta(Meta(tmp_path, {"train": (), "test": samples}))
    assert file == tmp_path / "meta.json"
    bent = {
        "img_path": "b.png",
        "mask_path": "b_mask.png",
        "cls_name": "nut",
        "specie_name": "bent",
        "anomaly": 1,
    }
    assert json.loads(file.read_text()) == {"train": {}, "test": {"nut": [ENTRY, bent]}}
    assert [path.name for path in tmp_path.iterdir()] == ["meta.json"]


def test_a_file_that_cannot_be_written_leaves_the_former_one_and_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("former")
    with pytest.raises(AnomalyCLIPError, match="--output"):
        write_meta(Meta(tmp_path, {"test": ()}), tmp_path / "file" / "meta.json")
    assert (tmp_path / "file").read_text() == "former"


def test_metas_of_the_published_scripts_load(tmp_path):
    plant(tmp_path, ["yes/Y 1.jpg", "no/1 no.jpeg", "no/2 no.jpeg", "m/Y 1.png"])
    entries = [
        {
            **ENTRY,
            "img_path": str(tmp_path / "yes/Y 1.jpg"),
            "mask_path": str(tmp_path / "m/Y 1.png"),
            "anomaly": 1,
        },
        {**ENTRY, "img_path": "no\\1 no.jpeg"},
        {**ENTRY, "img_path": "./no/../no/2 no.jpeg"},
    ]
    (tmp_path / "meta.json").write_text(
        json.dumps({"Train": {}, "Test": {"electrical commutators": entries}}), encoding="utf-8-sig"
    )
    samples = read_meta(tmp_path).phase("test")
    assert [(s.image, s.mask, s.anomaly) for s in samples] == [
        ("yes/Y 1.jpg", "m/Y 1.png", True),
        ("no/1 no.jpeg", None, False),
        ("no/2 no.jpeg", None, False),
    ]


def test_class_names_with_spaces_stay_as_they_are(tmp_path):
    entry = {**ENTRY, "cls_name": "electrical commutators"}
    assert read_meta(meta_with(tmp_path, entry)).phase("test").classes == ("electrical commutators",)


def test_a_meta_elsewhere_is_read_with_the_root_that_it_is_about(tmp_path):
    meta_with(tmp_path / "data", ENTRY)
    (tmp_path / "data" / "meta.json").rename(tmp_path / "elsewhere.json")
    meta = read_meta(tmp_path / "elsewhere.json", root=tmp_path / "data")
    assert (meta.root / meta.phase("test")[0].image).is_file()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"anomaly": "yes"}, "field 'anomaly' is \"yes\", expected 0 or 1"),
        ({"anomaly": 2}, "field 'anomaly' is 2"),
        ({"anomaly": ...}, "field 'anomaly' is missing"),
        ({"img_path": ...}, "field 'img_path' is missing, expected text"),
        ({"img_path": ""}, "field 'img_path' is empty"),
        ({"mask_path": None}, "field 'mask_path' is null, expected text"),
        ({"cls_name": 3}, "field 'cls_name' is 3"),
        ({"specie_name": ["x"]}, "field 'specie_name' is"),
        ({"img_path": "../a.png"}, "field 'img_path': '../a.png' leaves the data set's folder"),
        ({"img_path": "x/../../a.png"}, "leaves the data set's folder"),
        ({"mask_path": "/elsewhere/m.png"}, "field 'mask_path': '/elsewhere/m.png' leaves"),
        ({"img_path": "C:\\data\\a.png"}, "leaves the data set's folder"),
    ],
)
def test_a_malformed_entry_is_an_error_that_names_entry_and_field(change, said, tmp_path):
    entry = {name: value for name, value in {**ENTRY, **change}.items() if value is not ...}
    with pytest.raises(AnomalyCLIPError) as error:
        read_meta(meta_with(tmp_path, ENTRY, entry))
    assert f"{tmp_path / 'meta.json'}: test / nut / entry 1: " in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", r"meta\.json: is \[\], expected an object"),
        ('{"test": []}', "test: is .*, expected an object"),
        ('{"test": {"nut": {}}}', "test / nut: is .*, expected a list"),
        ('{"test": {"nut": [1]}}', "test / nut / entry 0: is 1, expected an object"),
    ],
)
def test_a_malformed_file_is_an_error_that_names_the_place(text, said, tmp_path):
    (tmp_path / "meta.json").write_text(text)
    with pytest.raises(AnomalyCLIPError, match=said):
        read_meta(tmp_path)


def test_no_file_is_an_error_that_says_how_to_make_one(tmp_path):
    with pytest.raises(AnomalyCLIPError, match="anomalyclip prepare"):
        read_meta(tmp_path)


def test_what_is_listed_but_not_there_is_named(tmp_path):
    masked = {**ENTRY, "img_path": "b.png", "mask_path": "b_mask.png", "anomaly": 1}
    meta = read_meta(
        meta_with(
            tmp_path,
            masked,
            {**masked, "img_path": "gone.png"},
            {**masked, "img_path": "a.png", "mask_path": "gone.png"},
        )
    )
    assert [(s.image, s.mask, s.has_mask) for s in meta.phase("test")] == [
        ("b.png", "b_mask.png", True),
        ("a.png", None, False),
    ]
    assert {(f.kind, f.path) for f in meta.findings} == {
        ("missing image", "gone.png"),
        ("missing mask", "a.png"),
    }
    with pytest.raises(AnomalyCLIPError, match=r"none of its images are in .*gone\.png"):
        read_meta(meta_with(tmp_path, {**ENTRY, "img_path": "gone.png"}))


def test_an_image_that_is_listed_twice_counts_once_and_is_named(tmp_path):
    anomalous = {**ENTRY, "mask_path": "b_mask.png", "anomaly": 1}
    with pytest.warns(
        AnomalyCLIPWarning, match=r"test: 2 entries are for images .* \(such as a\.png\)"
    ) as told:
        meta = read_meta(meta_with(tmp_path, ENTRY, {**ENTRY, "img_path": "b.png"}, ENTRY, anomalous))
    assert len(told) == 1
    assert [(s.image, s.anomaly) for s in meta.phase("test")] == [("a.png", False), ("b.png", False)]


def test_an_anomalous_entry_without_a_mask_among_others_with_one_is_named(tmp_path):
    masked = {**ENTRY, "img_path": "b.png", "mask_path": "b_mask.png", "anomaly": 1}
    meta = read_meta(meta_with(tmp_path, masked, {**ENTRY, "anomaly": 1}))
    assert [(f.kind, f.path) for f in meta.findings] == [("missing mask", "a.png")]


def test_what_leaves_the_root_is_read_only_when_allowed(tmp_path):
    outside = plant(tmp_path / "outside", ["a.png"]) / "a.png"
    root = meta_with(
        tmp_path / "root", {**ENTRY, "img_path": str(outside)}, {**ENTRY, "img_path": "../outside/a.png"}
    )
    with pytest.raises(AnomalyCLIPError, match="--allow-outside"):
        read_meta(root)
    samples = read_meta(root, allow_outside=True).phase("test")
    assert [(root / s.image).resolve() for s in samples] == [outside, outside]


def test_a_link_that_leaves_the_root_is_refused(tmp_path):
    root = meta_with(tmp_path / "root", ENTRY)
    (root / "a.png").unlink()
    (root / "a.png").symlink_to(plant(tmp_path / "outside", ["a.png"]) / "a.png")
    with pytest.raises(AnomalyCLIPError, match=r"a\.png: is a link to .* outside .*--allow-outside"):
        read_meta(root)


def test_a_written_file_can_be_read_by_whom_the_umask_allows(tmp_path):
    (tmp_path / "plain").touch()
    file = write_meta(Meta(tmp_path, {"test": ()}))
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
