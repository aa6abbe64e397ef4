"""The evaluator: the right figures of the right images, in classes, in the face of missing and broken files."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalyclip.data.listing import load_samples
from anomalyclip.detector import Detector
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.evaluation.controls import CentreScorer, ContrastScorer, not_beaten
from anomalyclip.evaluation.evaluator import Options, evaluate_set, pooled
from anomalyclip.evaluation.maps import DetectorSource, FolderSource
from anomalyclip.images import read_mask
from anomalyclip.metrics import image_metrics, pixel_metrics
from anomalyclip.writers import PredictionWriter
from tests.generated_sets import make_set, write

SIZE = 48
WITHOUT_PICTURES = Options(cases=False)


@pytest.fixture
def root(tmp_path):
    return make_set(tmp_path / "parts")


def run(root, folder, *, scorer=None, resume=False, keep=False, options=WITHOUT_PICTURES):
    data = load_samples(root)
    detector = Detector(scorer or ContrastScorer(SIZE))
    source = DetectorSource(detector, data.root, folder / "maps", batch_size=3, resume=resume, keep=keep)
    return evaluate_set(source, data, folder, resume=resume, options=options)


def by_name(result):
    return {entry.name: entry for entry in result.classes}


def test_the_metrics_of_a_class_are_those_of_its_scores_and_maps(root, tmp_path):
    result = run(root, tmp_path / "out")
    detector = Detector(ContrastScorer(SIZE))
    for name, entry in by_name(result).items():
        samples = [sample for sample in load_samples(root) if sample.class_name == name]
        predictions = [detector.predict(root / sample.image) for sample in samples]
        none = np.zeros((SIZE, SIZE), bool)
        masks = [read_mask(root / sample.mask, SIZE) if sample.mask else none for sample in samples]
        image = image_metrics([s.anomaly for s in samples], [p.pred_score for p in predictions])
        pixel = pixel_metrics(masks, [prediction.anomaly_map for prediction in predictions])
        assert entry.metrics == pytest.approx(
            {
                "image_auroc": image.auroc,
                "image_ap": image.average_precision,
                "image_f1_max": image.f1_max.f1,
                "pixel_auroc": pixel.auroc,
                "pixel_aupro": pixel.aupro_published,
                "pixel_aupro_exact": pixel.aupro_exact,
                "pixel_ap": pixel.average_precision,
                "pixel_f1_max": pixel.f1_max.f1,
            },
            abs=1e-9,
        )
        assert entry.thresholds["pixel_f1"] == pytest.approx(pixel.f1_max.threshold)
    assert result.mean["pixel_auroc"] == pytest.approx(
        np.mean([c.metrics["pixel_auroc"] for c in result.classes])
    )


def test_an_image_without_its_mask_counts_for_image_metrics_only(root, tmp_path):
    before = by_name(run(root, tmp_path / "before"))["nut"]
    (root / "nut" / "ground_truth" / "spot" / "002_mask.png").unlink()
    after = by_name(run(root, tmp_path / "after"))["nut"]
    assert after.without_mask == 1
    assert after.metrics["image_auroc"] == before.metrics["image_auroc"]
    assert after.metrics["pixel_auroc"] != before.metrics["pixel_auroc"]
    assert [image.image for image in after.images if not image.in_pixel_metrics] == ["nut/test/spot/002.png"]


def test_classes_without_normal_images_have_no_image_metrics_and_do_not_count_in_their_mean(root, tmp_path):
    for image in (root / "nut" / "test" / "good").iterdir():
        image.unlink()
    result = run(root, tmp_path / "out")
    nut, tile = by_name(result)["nut"], by_name(result)["tile"]
    assert nut.metrics["image_auroc"] is None
    assert nut.metrics["pixel_auroc"] is not None
    assert result.mean["image_auroc"] == tile.metrics["image_auroc"]


def test_sets_without_masks_have_no_pixel_metrics(tmp_path):
    root = tmp_path / "scans"
    for kind, brightness in (("no", 100), ("yes", 180)):
        for index in range(3):
            write(root / kind / f"{index}.png", np.full((40, 40, 3), brightness + index, np.uint8))
    metrics = run(root, tmp_path / "out").mean
    assert metrics["image_auroc"] is not None
    assert metrics["pixel_auroc"] is None


def test_files_that_cannot_be_used_are_named_and_the_rest_counts(root, tmp_path):
    (root / "nut" / "test" / "spot" / "001.png").write_bytes(b"no image")
    (root / "tile" / "ground_truth" / "spot" / "003_mask.png").write_bytes(b"no mask")
    result = run(root, tmp_path / "out")
    assert set(result.failed) == {"nut/test/spot/001.png", "tile/ground_truth/spot/003_mask.png"}
    assert by_name(result)["nut"].anomalous == 5
    assert by_name(result)["tile"].without_mask == 1


def test_a_set_of_which_nothing_can_be_used_is_an_error(root, tmp_path):
    for image in root.glob("*/test/*/*.png"):
        image.write_bytes(b"no image")
    with pytest.raises(AnomalyCLIPError, match="none of its 20 test images can be used"):
        run(root, tmp_path / "out")


class Stopping(ContrastScorer):
    """Stops as by Ctrl-C after a number of images, and counts those it has scored."""

    def __init__(self, after):
        super().__init__(SIZE)
        self.left, self.scored = after, 0

    def __call__(self, pixels):
        if self.left < len(pixels):
            raise KeyboardInterrupt
        self.left -= len(pixels)
        self.scored += len(pixels)
        return super().__call__(pixels)


@pytest.mark.parametrize("after", [0, 3, 9, 12, 18])
def test_a_stopped_run_goes_on_where_it_was_to_the_same_results(root, tmp_path, after):
    whole = run(root, tmp_path / "whole")
    first = Stopping(after)
    with pytest.raises(KeyboardInterrupt):
        run(root, tmp_path / "out", scorer=first)
    second = Stopping(1000)
    resumed = run(root, tmp_path / "out", scorer=second, resume=True)
    assert first.scored + second.scored == 20
    assert [(c.images, c.metrics) for c in resumed.classes] == [(c.images, c.metrics) for c in whole.classes]


def test_maps_are_gone_when_all_is_done_unless_they_are_kept(root, tmp_path):
    run(root, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.npy"))
    run(root, tmp_path / "kept", keep=True)
    assert len(list((tmp_path / "kept" / "maps" / "maps").rglob("*.npy"))) == 20


def test_kept_maps_give_the_same_results_without_a_model(root, tmp_path):
    result = run(root, tmp_path / "out", keep=True)
    again = evaluate_set(FolderSource(tmp_path / "out" / "maps"), load_samples(root), tmp_path / "again")
    assert [(c.images, c.metrics) for c in again.classes] == [(c.images, c.metrics) for c in result.classes]


def save_foreign_maps(root, folder, *, shape=(20, 20)):
    """Maps of another system: any range, any size, no predictions.jsonl."""
    for sample in load_samples(root):
        gray = Image.open(root / sample.image).convert("L").resize(shape[::-1])
        path = folder / f"{sample.image}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.asarray(gray, np.float64) - 128)


def test_maps_of_another_system_are_scored_by_their_maximum(root, tmp_path):
    save_foreign_maps(root, tmp_path / "maps")
    result = evaluate_set(FolderSource(tmp_path / "maps"), load_samples(root), tmp_path / "out")
    first = by_name(result)["nut"].images[0]
    assert first.score == np.load(tmp_path / "maps" / f"{first.image}.npy").max()
    assert result.mean["pixel_auroc"] > 0.9
    assert by_name(result)["nut"].cases[0].scale[0] < 0  # drawn, though outside [0, 1]


def test_a_map_that_is_missing_or_unusable_is_named(root, tmp_path):
    save_foreign_maps(root, tmp_path / "maps")
    (tmp_path / "maps" / "nut/test/good/000.png.npy").unlink()
    np.save(tmp_path / "maps" / "nut/test/good/001.png.npy", np.full((20, 20), np.nan))
    (tmp_path / "maps" / "nut/test/good/002.png.npy").write_bytes(b"no array")
    failed = evaluate_set(FolderSource(tmp_path / "maps"), load_samples(root), tmp_path / "out").failed
    assert "no such map" in failed["nut/test/good/000.png"]
    assert "NaN" in failed["nut/test/good/001.png"]
    assert "not a readable .npy" in failed["nut/test/good/002.png"]


def test_a_map_that_is_not_square_must_have_its_masks_size(root, tmp_path):
    save_foreign_maps(root, tmp_path / "maps", shape=(20, 30))
    result = evaluate_set(FolderSource(tmp_path / "maps"), load_samples(root), tmp_path / "out")
    assert result.mean["pixel_auroc"] is None
    assert "84 x 84 pixels" in result.failed["nut/ground_truth/spot/000_mask.png"]
    save_foreign_maps(root, tmp_path / "maps", shape=(84, 84))
    result = evaluate_set(FolderSource(tmp_path / "maps"), load_samples(root), tmp_path / "full")
    assert result.mean["pixel_auroc"] > 0.9


def test_the_clearest_and_the_faintest_defects_and_the_highest_normal_images_are_drawn(root, tmp_path):
    result = run(root, tmp_path / "out", options=Options())
    nut = by_name(result)["nut"]
    scores = {image.image: image.score for image in nut.images}
    anomalous = sorted(score for name, score in scores.items() if "spot" in name)
    normal = sorted(score for name, score in scores.items() if "good" in name)
    drawn = [(case.kind, case.score) for case in nut.cases]
    assert drawn == [
        ("clearest defect", anomalous[-1]),
        ("clearest defect", anomalous[-2]),
        ("faintest defect", anomalous[0]),
        ("faintest defect", anomalous[1]),
        ("highest normal", normal[-1]),
        ("highest normal", normal[-2]),
    ]
    truth = Image.open(tmp_path / "out" / nut.cases[0].pictures["truth"])
    mask = read_mask(root / nut.cases[0].image.replace("test", "ground_truth").replace(".png", "_mask.png"))
    np.testing.assert_array_equal(np.asarray(truth) > 127, mask)


def test_pooled_samples_are_one_class(root, tmp_path):
    assert pooled(load_samples(root)).classes == ("all",)


def test_a_damaged_class_result_is_named_when_it_is_resumed(root, tmp_path):
    run(root, tmp_path / "out")
    (tmp_path / "out" / "classes" / "nut.json").write_text('{"name": "nut"')
    with pytest.raises(AnomalyCLIPError, match=r"nut\.json: damaged"):
        run(root, tmp_path / "out", resume=True)


def test_what_lies_in_the_middle_is_found_by_the_control_that_knows_only_that(tmp_path):
    mask = np.zeros((SIZE, SIZE), bool)
    mask[18:30, 18:30] = True
    for index in range(3):
        write(tmp_path / "set/nut/test/good" / f"{index}.png", np.zeros((SIZE, SIZE, 3), np.uint8))
        write(tmp_path / "set/nut/test/bad" / f"{index}.png", np.zeros((SIZE, SIZE, 3), np.uint8))
        write(tmp_path / "set/nut/ground_truth/bad" / f"{index}_mask.png", mask * np.uint8(255))
    metrics = run(tmp_path / "set", tmp_path / "out", scorer=CentreScorer(SIZE)).mean
    assert metrics["image_auroc"] == 0.5
    assert metrics["pixel_auroc"] > 0.95


def test_a_model_that_only_equals_a_control_does_not_beat_it():
    model = {"image_auroc": 0.7, "pixel_auroc": 0.9, "pixel_ap": None}
    controls = {"centre": {"image_auroc": 0.7, "pixel_auroc": 0.8, "pixel_ap": 0.5}}
    assert not_beaten(model, controls) == ["image AUROC: model 70.0, centre 70.0"]


def test_predictions_of_predict_are_a_folder_of_maps(root, tmp_path):
    data = load_samples(root)
    with PredictionWriter(tmp_path / "predicted", save=["map"]) as writer:
        for sample in data:
            prediction = Detector(ContrastScorer(SIZE)).predict(str(Path(root) / sample.image))
            writer.write(prediction, name=sample.image)
    result = evaluate_set(
        FolderSource(tmp_path / "predicted"), data, tmp_path / "out", options=WITHOUT_PICTURES
    )
    lines = (tmp_path / "predicted" / "predictions.jsonl").read_text().splitlines()
    scores = [json.loads(line)["pred_score"] for line in lines]
    assert [image.score for entry in result.classes for image in entry.images] == scores
