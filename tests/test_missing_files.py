"""Files that a meta.json lists and that are not there: named, counted, and no success."""

import json

import pytest

from anomalyclip.data.catalog import catalog
from anomalyclip.data.listing import list_samples, load_samples
from anomalyclip.data.meta import write_meta
from anomalyclip.errors import AnomalyCLIPError
from tests.generated_sets import make_set


@pytest.fixture
def model(paper_case, tiny_backbone, tmp_path, monkeypatch):
    monkeypatch.setenv("ANOMALYCLIP_CACHE", str(tmp_path / "cache"))
    paper_case.prompts.save(tmp_path / "prompts.safetensors")
    return ["--backbone", tiny_backbone, "--prompts", tmp_path / "prompts.safetensors", "--image-size", 56]


@pytest.fixture
def root(tmp_path):
    """Two classes of five images; of nut an image and a mask are gone, of tile all five images."""
    root = make_set(tmp_path / "set", normal=2, anomalous=3, side=56)
    write_meta(list_samples(root))
    (root / "nut/test/good/001.png").unlink()
    (root / "nut/ground_truth/spot/002_mask.png").unlink()
    for path in (root / "tile/test").rglob("*.png"):
        path.unlink()
    return root


def test_a_listing_says_what_is_missing_and_which_class_has_no_image(root):
    samples = load_samples(root)
    assert len(samples) == 4
    assert samples.classes == ("nut",)
    assert samples.empty_classes == {"tile": 5}
    assert {gone.path for gone in samples.missing if gone.sample.class_name == "nut"} == {
        "nut/test/good/001.png",
        "nut/ground_truth/spot/002_mask.png",
    }
    assert len(samples.missing) == 7
    for path in (root / "nut/test").rglob("*.png"):
        path.unlink()
    with pytest.raises(AnomalyCLIPError, match="none of its images are in"):
        load_samples(root)


def test_test_names_and_counts_them_everywhere_and_ends_with_exit_code_1(cli, root, model, tmp_path):
    done = cli("test", root, *model, "--output", tmp_path / "out")
    assert done.code == 1
    meta = root / "meta.json"
    for path in ("nut/test/good/001.png", "nut/ground_truth/spot/002_mask.png", "tile/test/spot/000.png"):
        assert f"error: {root / path}: {meta} lists it, but it does not exist" in done.err
    notes = (
        "set: 7 files listed in meta.json do not exist and were skipped (see results.json)",
        "set: the class tile is missing: none of its 5 images exist, and the mean is over the other classes",
    )
    report = (tmp_path / "out/report.html").read_text()
    for note in notes:
        assert f"warning: {note}" in done.err
        assert note in report
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert set(notes) <= set(results["notes"])
    nut, tile = results["results"][0]["classes"]
    assert (nut["class"], nut["missing"], nut["normal"], nut["anomalous"], nut["without_mask"]) == (
        "nut",
        2,
        1,
        3,
        1,
    )
    assert (tile["class"], tile["missing"], tile["normal"], tile["anomalous"]) == ("tile", 5, 0, 0)
    assert set(tile["metrics"].values()) == {None}
    assert results["results"][0]["mean"] == nut["metrics"]
    assert "tile/test/good/000.png" in tile["failed"]


@pytest.mark.slow
def test_a_resumed_evaluation_says_the_same(cli, root, model, tmp_path):
    cli("test", root, *model, "--output", tmp_path / "out")
    before = json.loads((tmp_path / "out/results.json").read_text())
    done = cli("test", root, *model, "--output", tmp_path / "out", "--resume")
    assert done.code == 1
    after = json.loads((tmp_path / "out/results.json").read_text())
    assert after["notes"] == before["notes"]
    assert after["results"] == before["results"]


@pytest.mark.slow
def test_the_papers_mean_does_not_stand_beside_one_without_an_empty_class(cli, root, model, tmp_path):
    classes = catalog()["mvtec"].classes
    root = make_set(tmp_path / "mvtec", classes=classes, normal=1, anomalous=1, side=28)
    write_meta(list_samples(root))
    for path in (root / classes[0] / "test").rglob("*.png"):
        path.unlink()
    done = cli("test", root, "--dataset", "mvtec", *model, "--compare", "--output", tmp_path / "out")
    assert done.code == 1
    assert f"(missing {classes[0]})" in done.err


def test_train_names_them_says_that_a_class_has_no_image_and_ends_with_exit_code_1(
    cli, root, model, tmp_path
):
    done = cli(
        *("train", root, *model[:2], "--image-size", 56, "--epochs", 1),
        *("--output", tmp_path / "run"),
    )
    assert done.code == 1
    assert (
        f"error: {root}/nut/test/good/001.png: {root}/meta.json lists it, but it does not exist" in done.err
    )
    assert "warning: class tile: none of its 5 images exists" in done.err
    assert "error: skipped because they cannot be used: 7 files" in done.err
    assert (tmp_path / "run/prompts.safetensors").is_file()


@pytest.mark.slow
def test_calibration_on_labelled_images_names_them(cli, root, model, tmp_path):
    done = cli("calibrate", "--labelled", root, *model, "--output", tmp_path / "threshold.json")
    assert done.code == 1
    assert done.err.count("lists it, but it does not exist") == 7
    assert json.loads((tmp_path / "threshold.json").read_text())["info"]["images"] == 4
