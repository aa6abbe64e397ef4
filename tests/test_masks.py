"""Ground-truth masks are told from images by what data sets look like, and `predict` does not score them."""

import json

import pytest
from PIL import Image

from anomalyclip.data.masks import GroundTruth
from anomalyclip.errors import AnomalyCLIPNote
from anomalyclip.predicting import images_in


def tree(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(root / name)
    return root


def left_out(root):
    is_mask = GroundTruth()
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    return [name for name in names if is_mask(root, str(root / name))]


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["nut/train/good/0.png", "nut/test/bent/0.png"], ["nut/ground_truth/bent/0_mask.png"]),
        (["test/bent/0.png", "test/good/1.png"], ["ground_truth/bent/0_mask.png"]),
        (["images/0.png", "images/deep/1.png"], ["masks/0.png", "masks/deep/1.png"]),
        (["colon/test-image/0.png"], ["colon/test-mask/0.png"]),
        (["Class1/Train/1.png", "Class1/Test/2.png"], ["Class1/Train/Label/1_label.png"]),
        (["candle/Data/Images/Normal/0.png"], ["candle/Data/Masks/Anomaly/0.png"]),
        (["kos01/Part0.png", "kos01/Part1_label.png"], ["kos01/Part0_label.png"]),
    ],
    ids=["mvtec", "one class", "image and mask folders", "colon", "dagm", "visa", "beside"],
)
def test_the_masks_of_the_known_layouts_are_found_and_nothing_else(tmp_path, images, masks):
    assert left_out(tree(tmp_path, *images, *masks)) == masks


def test_a_name_alone_makes_no_mask(tmp_path):
    names = ["ground_truth/0.png", "masks/1.png", "a/Label/2.png", "line/Part0.png", "line/Part0_label.png"]
    assert left_out(tree(tmp_path, *names)) == []


def test_what_a_meta_json_lists_as_a_mask_is_one_wherever_it_lies(tmp_path):
    tree(tmp_path, "all/a.png", "all/b.png", "all/c.png")
    entry = {
        "img_path": "all/a.png",
        "mask_path": "all/b.png",
        "cls_name": "x",
        "specie_name": "",
        "anomaly": 1,
    }
    (tmp_path / "meta.json").write_text(json.dumps({"test": {"x": [entry]}}))
    assert left_out(tmp_path) == ["all/b.png"]
    (tmp_path / "meta.json").write_text("[]")  # not of this kind: it says nothing
    assert left_out(tmp_path) == []


def test_who_names_a_folder_of_masks_gets_it(tmp_path):
    root = tree(tmp_path, "nut/test/bent/0.png", "nut/ground_truth/bent/0_mask.png")
    with pytest.warns(
        AnomalyCLIPNote, match=r"1 ground-truth masks of a data set are not scored \(such as .*0_mask"
    ):
        assert [image.name for image in images_in([str(root)])] == ["nut/test/bent/0.png"]
    named = [str(root / "nut" / "ground_truth"), str(root / "nut" / "ground_truth" / "bent" / "0_mask.png")]
    for path in named:
        assert len(images_in([path])) == 1


def test_predict_says_in_one_line_that_masks_are_not_scored(tmp_path, cli):
    root = tree(
        tmp_path / "parts", "nut/test/bent/0.png", "nut/test/good/1.png", "nut/ground_truth/bent/0_mask.png"
    )
    done = cli("predict", root, "--backbone", "micro", "--output", tmp_path / "out")
    assert done.code == 0, done.err
    assert "2 scored" in done.out
    notes = [line for line in done.err.splitlines() if "masks" in line]
    assert len(notes) == 1
    assert notes[0].startswith("note: 1 ground-truth masks of a data set are not scored")
