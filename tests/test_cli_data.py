"""`anomalyclip datasets` and `anomalyclip prepare`: what they print and leave behind, and their exit codes."""

import json
import subprocess
import sys

import pytest

from tests.data_trees import GOLDEN, golden_rows, paint, plant, plant_golden


def written(file):
    return {
        (phase, e["cls_name"], e["img_path"], e["mask_path"], e["specie_name"], e["anomaly"])
        for phase, classes in json.loads(file.read_text()).items()
        for entries in classes.values()
        for e in entries
    }


@pytest.fixture
def nuts(tmp_path):
    """A sound data set of one's own."""
    for color, name in enumerate(("test/good/0", "test/bent/0", "test/bent/1")):
        paint(tmp_path / f"nut/{name}.png", color=color, mode="RGB")
    for name in "01":
        paint(tmp_path / f"nut/ground_truth/bent/{name}_mask.png", color=255)
    return tmp_path


def test_the_catalogue_is_a_table_that_a_pipe_does_not_break(cli):
    done = cli("datasets")
    assert done.code == 0
    lines = done.out.splitlines()
    assert [line.split()[0] for line in lines[1:18]] == list(catalog_keys(cli))
    assert lines[1].split() == ["mvtec", "MVTec", "AD", "15", "467", "1258", "image+pixel", "mvtec.com"]
    assert next(line for line in lines if line.startswith("dagm")).split()[4:6] == ["6996?", "1054?"]
    assert max(map(len, lines)) <= 100


def catalog_keys(cli):
    return [entry["key"] for entry in json.loads(cli("datasets", "--json").out)]


def test_one_entry_tells_classes_counts_home_license_layouts_and_the_papers_figures(cli):
    done = cli("datasets", "visa")
    for text in (
        "https://github.com/amazon-science/spot-diff",
        "CC BY 4.0",
        "962 normal and 1200 anomalous test images\n",
        "12: candle, capsules",
        "split_csv/1cls.csv",
        "<class>/ground_truth/bad/*.png",
        "The paper's figures, percent",
    ):
        assert text in done.out
    rows = [line.split() for line in done.out.splitlines()]
    assert ["method", "image", "AUROC", "image", "AP", "pixel", "AUROC", "pixel", "AUPRO"] in rows
    assert ["AnomalyCLIP", "82.1", "85.4", "95.5", "87.0"] in rows
    unknown = cli("datasets", "covid19")
    assert "(unverified: not counted from the files)" in unknown.out
    assert "see home page" in unknown.out
    assert ["CoOp", "-", "-", "-", "-"] in [line.split() for line in cli("datasets", "dtd").out.splitlines()]


def test_entries_are_printed_as_json(cli):
    entries = json.loads(cli("datasets", "--json").out)
    assert {entry["key"] for entry in entries} == set(GOLDEN)
    assert json.loads(cli("datasets", "mvtec", "--json").out) in entries
    assert json.loads(cli("datasets", "mvtec", "--json").out)["paper"]["pixel"]["AnomalyCLIP"] == [91.1, 81.4]


def test_a_wrong_key_is_one_message_and_exit_code_2(cli):
    done = cli("datasets", "mvtek")
    assert done.code == 2
    assert "did you mean mvtec" in done.err
    assert done.out == ""


def test_listing_the_catalogue_imports_no_torch_and_no_pillow():
    code = (
        "import sys; sys.argv = ['anomalyclip', 'datasets']\n"
        "from anomalyclip.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert not {'torch', 'PIL', 'numpy'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("key", ["mvtec", "dagm", "visa", "endo"])
def test_prepare_writes_the_published_meta_file(cli, key, tmp_path):
    done = cli("prepare", plant_golden(tmp_path, key), "--dataset", key)
    assert done.code == 0, done.err
    assert written(tmp_path / "meta.json") == golden_rows(key)
    assert f"wrote {tmp_path / 'meta.json'}" in done.out
    assert done.err == ""


def test_without_a_key_prepare_says_what_it_recognised(cli, tmp_path):
    done = cli("prepare", plant_golden(tmp_path, "btad"))
    assert done.code == 0
    assert f'{tmp_path}: BTAD, layout "MVTec-like"' in done.out
    assert ["test", "01", "2", "2", "2"] in [line.split() for line in done.out.splitlines()]


def test_prepare_warns_of_a_missing_mask_by_name_and_goes_on(cli, nuts):
    (nuts / "nut/ground_truth/bent/0_mask.png").unlink()
    done = cli("prepare", nuts)
    assert done.code == 0
    assert "missing mask (1): nut/test/bent/0.png" in done.err
    assert "used for image-level metrics, not for pixel-level metrics" in done.err
    assert ("test", "nut", "nut/test/bent/0.png", "", "bent", 1) in written(nuts / "meta.json")


def test_check_finds_nothing_wrong_with_a_sound_set(cli, nuts):
    done = cli("prepare", nuts, "--check")
    assert done.code == 0
    assert "no faults found" in done.out


def test_check_prints_every_fault_unbroken_and_exits_with_1(cli, nuts):
    (nuts / "nut/ground_truth/bent/0_mask.png").unlink()
    long = "nut/test/good/" + "a_very_long_name_" * 8 + "[red].png"
    (nuts / long).write_bytes(b"no image")
    done = cli("prepare", nuts, "--check")
    assert done.code == 1
    lines = done.out.splitlines()
    assert any("missing mask" in line and "nut/test/bent/0.png" in line for line in lines)
    assert any("unreadable" in line and long in line for line in lines)
    assert "2 faults found" in done.out


def test_notes_are_told_together_and_are_no_faults(cli, tmp_path):
    for number in range(3):
        paint(tmp_path / f"Class1/Test/{number}.png", color=number)
        paint(tmp_path / f"Class1/Test/{number}9.png", color=100 + number)
        paint(tmp_path / f"Class1/Test/Label/{number}_label.png", color=255)
    done = cli("prepare", tmp_path, "--check")
    assert "note: taken as normal" in done.out
    assert "Class1/Test/09.png and 2 more" in done.out


def test_folders_of_ones_own_are_named_as_in_anomalib(cli, tmp_path):
    root = plant(tmp_path / "screws", ["ok/0.png", "new ok/1.png", "nok/2.JPG", "nok/3.png", "gt/2_mask.png"])
    done = cli(
        *("prepare", root, "--normal-dir", "ok", "--normal-test-dir", "new ok", "--abnormal-dir", "nok"),
        *(
            "--mask-dir",
            "gt",
            "--image-suffix",
            ".jpg",
            "--image-suffix",
            "png",
            "--output",
            tmp_path / "own.json",
        ),
    )
    assert done.code == 0
    assert written(tmp_path / "own.json") == {
        ("train", "screws", "ok/0.png", "", "ok", 0),
        ("test", "screws", "new ok/1.png", "", "new ok", 0),
        ("test", "screws", "nok/2.JPG", "gt/2_mask.png", "nok", 1),
        ("test", "screws", "nok/3.png", "", "nok", 1),
    }
    assert not (root / "meta.json").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--dataset", "mvtec", "--normal-dir", "x"], "cannot be combined"),
        (["--mask-dir", "x"], "need --normal-dir or --abnormal-dir"),
        (["--normal-dir", "x"], "no such folder"),
        (["--dataset", "nope"], "unknown data set"),
        ([], "unknown layout"),
    ],
)
def test_what_cannot_be_prepared_is_one_message_and_exit_code_2(cli, options, said, tmp_path):
    done = cli("prepare", tmp_path, *options)
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_meta_file_of_an_unknown_layout_is_checked_and_left_alone(cli, tmp_path):
    paint(tmp_path / "a" / "0.png")
    entry = {"img_path": "a/0.png", "mask_path": "", "cls_name": "x", "specie_name": "", "anomaly": 0}
    text = json.dumps({"test": {"x": [entry, {**entry, "img_path": "a/1.png"}]}})
    (tmp_path / "meta.json").write_text(text)
    done = cli("prepare", tmp_path, "--check")
    assert done.code == 1
    assert "unknown layout" in done.err
    assert "missing image" in done.out
    assert (tmp_path / "meta.json").read_text() == text


def test_links_out_of_the_folder_need_allow_outside(cli, nuts, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "7.png"
    paint(outside, color=77)
    (nuts / "nut/test/good/7.png").symlink_to(outside)
    refused = cli("prepare", nuts)
    assert refused.code == 2
    assert "--allow-outside" in refused.err
    assert cli("prepare", nuts, "--allow-outside", "--check").code == 0
