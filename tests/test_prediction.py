"""A prediction: what it refuses, and what it derives from score, map and threshold."""

import json

import numpy as np
import pytest

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.prediction import Prediction, Region, Threshold


def predict(anomaly_map, **changes):
    fields = {"pred_score": 0.7, "anomaly_map": np.asarray(anomaly_map, np.float32), "image_size": (8, 8)}
    return Prediction(**{**fields, **changes})


def spots(side, **values):
    """A zero map with values at "r<row>c<column>"."""
    anomaly_map = np.zeros((side, side), np.float32)
    for place, value in values.items():
        row, column = place[1:].split("c")
        anomaly_map[int(row), int(column)] = value
    return anomaly_map


def test_there_is_no_verdict_no_mask_and_no_region_without_a_threshold():
    prediction = predict(np.ones((4, 4)))
    assert prediction.pred_label is None
    assert prediction.pred_mask is None
    assert prediction.mask_at() is None
    assert prediction.regions == ()


def test_a_value_equal_to_the_threshold_is_anomalous():
    prediction = predict([[0.5, 0.25], [0, 1]], pred_score=0.5).with_threshold(0.5)
    assert prediction.pred_label is True
    assert prediction.pred_mask.tolist() == [[True, False], [False, True]]
    assert prediction.with_threshold(0.51).pred_label is False


def test_image_and_pixel_threshold_are_independent():
    only_score = predict(np.ones((2, 2))).with_threshold(Threshold(score=0.6))
    assert (only_score.pred_label, only_score.pred_mask) == (True, None)
    only_pixel = predict(np.ones((2, 2))).with_threshold(Threshold(pixel=0.6))
    assert only_pixel.pred_label is None
    assert only_pixel.pred_mask.all()
    assert only_pixel.with_threshold(None).pred_mask is None


def test_pixels_that_touch_at_a_corner_are_one_region():
    prediction = predict(spots(4, r0c0=0.8, r1c1=0.9)).with_threshold(0.5)
    assert prediction.regions == (Region((0, 0, 4, 4), 8, pytest.approx(0.9), (3, 3)),)


def test_regions_are_in_pixels_of_the_original_and_the_highest_peak_is_first():
    anomaly_map = spots(4, r0c0=0.6, r3c1=0.75, r3c2=1.0)
    regions = predict(anomaly_map, image_size=(40, 8)).with_threshold(0.5).regions
    assert regions == (
        Region(box=(10, 6, 30, 8), area=40, peak_score=1.0, peak_position=(25, 7)),
        Region(box=(0, 0, 10, 2), area=20, peak_score=pytest.approx(0.6), peak_position=(5, 1)),
    )


@pytest.mark.parametrize("size", [(384, 512), (1, 1), (4000, 3), (517, 519), (500, 1)])
def test_a_region_that_fills_the_map_fills_the_image_exactly(size):
    (region,) = predict(np.ones((518, 518)), image_size=size).with_threshold(0.5).regions
    assert region.box == (0, 0, *size)
    assert region.area == size[0] * size[1]


def test_boxes_are_rounded_outwards():
    (region,) = predict(spots(4, r1c2=1), image_size=(10, 10)).with_threshold(0.5).regions
    assert region.box == (5, 2, 8, 5)  # of 5, 2.5, 7.5, 5
    assert region.area == 6  # of 6.25


def test_a_region_smaller_than_a_pixel_of_the_original_is_still_one():
    (region,) = predict(spots(100, r99c99=1), image_size=(10, 10)).with_threshold(0.5).regions
    assert region == Region(box=(9, 9, 10, 10), area=1, peak_score=1.0, peak_position=(9, 9))


def test_the_map_at_the_original_size_is_bilinear_about_pixel_centres():
    prediction = predict([[0, 1], [0, 1]], image_size=(4, 2))
    assert prediction.map_at().tolist() == [[0, 0.25, 0.75, 1]] * 2
    assert prediction.with_threshold(0.75).mask_at().tolist() == [[False, False, True, True]] * 2
    assert prediction.map_at((3, 5)).shape == (5, 3)


def test_the_dictionary_is_json_in_a_fixed_order():
    prediction = predict(spots(4, r0c0=1), image_path="a/b.png", image_size=(8, 4)).with_threshold(0.5)
    assert json.dumps(prediction.to_dict()) == (
        '{"image_path": "a/b.png", "pred_score": 0.7, "pred_label": true, "threshold": 0.5,'
        ' "pixel_threshold": 0.5, "image_size": [8, 4], "regions":'
        ' [{"box": [0, 0, 2, 1], "area": 2, "peak_score": 1.0, "peak_position": [1, 0]}]}'
    )


def test_a_prediction_does_not_change_and_leaves_the_array_it_was_made_of_alone():
    source = np.zeros((2, 2), np.float32)
    with pytest.raises(ValueError, match="read-only"):
        predict(source).anomaly_map[0, 0] = 1
    source[0, 0] = 1


def test_a_map_of_the_images_own_size_is_used_as_it_is():
    anomaly_map = np.zeros((2, 6), np.float32)
    anomaly_map[1, 2:4] = 0.75
    prediction = predict(anomaly_map, image_size=(6, 2)).with_threshold(0.5)
    assert prediction.regions == (Region((2, 1, 4, 2), 2, 0.75, (2, 1)),)
    assert np.shares_memory(prediction.map_at(), anomaly_map)
    assert predict(anomaly_map, image_size=(12, 8)).with_threshold(0.5).regions[0].box == (4, 4, 8, 8)


def test_rounding_beyond_one_is_cut_and_more_is_refused():
    assert predict([[1 + 1e-6, 0], [0, 0]]).anomaly_map.max() == 1
    with pytest.raises(AnomalyCLIPError, match="within"):
        predict([[1.01, 0], [0, 0]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"anomaly_map": np.zeros((2, 2))}, "float64"),
        ({"anomaly_map": np.zeros((2, 2, 3), np.float32)}, r"\(2, 2, 3\)"),
        ({"anomaly_map": np.full((2, 2), np.nan, np.float32)}, "nan"),
        ({"pred_score": float("nan")}, "pred_score"),
        ({"pred_score": 1.5}, "pred_score"),
        ({"image_size": (0, 5)}, "image_size"),
    ],
)
def test_impossible_fields_are_refused(changes, message):
    with pytest.raises(AnomalyCLIPError, match=message):
        Prediction(
            **{
                "pred_score": 0.5,
                "anomaly_map": np.zeros((2, 2), np.float32),
                "image_size": (8, 8),
                **changes,
            }
        )


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.5", True])
def test_a_threshold_is_a_number_from_0_to_1(value):
    with pytest.raises(AnomalyCLIPError, match="pixel threshold"):
        Threshold(pixel=value)


def test_a_threshold_file_gives_back_what_was_written(tmp_path):
    threshold = Threshold(score=0.1 + 0.2, pixel=None, info={"images": 12, "false_alarm_rate": 0.05})
    path = tmp_path / "new folder" / "threshold.json"
    threshold.to_file(path)
    assert Threshold.from_file(path) == threshold
    assert [entry.name for entry in path.parent.iterdir()] == ["threshold.json"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\x00",
        "[1]",
        "0.5",
        '{"score": 0.5}',
        '{"score": 2, "pixel": 0}',
        '{"score": "high", "pixel": null}',
        '{"score": NaN, "pixel": null}',
        '{"score": 0, "pixel": 0, "info": 3}',
        '{"score": 0, "pixel": 0, "x": 1}',
    ],
)
def test_anything_else_is_no_threshold_file_and_the_message_names_it(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(AnomalyCLIPError, match=r"other\.json"):
        Threshold.from_file(path)


def test_a_missing_threshold_file_is_named(tmp_path):
    with pytest.raises(
        AnomalyCLIPError, match=r"absent\.json: expected a number .*, or a threshold file \(No such file"
    ):
        Threshold.from_file(tmp_path / "absent.json")
