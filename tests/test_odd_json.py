"""JSON that is none, or that could only be read with trouble later: one message that names the file."""

import json

import pytest

from anomalyclip.clip.weights import read_weights
from anomalyclip.data.meta import read_meta
from anomalyclip.engines.card import ModelCard
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.evaluation.results import ClassResult
from anomalyclip.files import parse_json
from anomalyclip.prediction import Threshold
from anomalyclip.runs import RunFolder
from anomalyclip.spec import DetectorSpec
from anomalyclip.writers import PredictionWriter
from tests import clip_forms

DEEP = ('{"a":' * 100_000, "[" * 100_000, "[" * 200 + "]" * 200)


@pytest.mark.parametrize("deep", DEEP, ids=["objects", "lists", "two hundred"])
def test_deep_nesting_is_named_wherever_json_is_read(deep, tmp_path):
    for name in ("threshold.json", "meta.json", "class.json", "settings.json"):
        (tmp_path / name).write_text(deep)
    (tmp_path / "predictions.jsonl").write_text(deep + "\n")
    folder = clip_forms.open_clip_folder(clip_forms.tiny(), tmp_path)
    (folder / "open_clip_config.json").write_text(deep)
    for read, names in (
        (lambda: Threshold.from_file(tmp_path / "threshold.json"), "threshold.json"),
        (lambda: read_meta(tmp_path), "meta.json"),
        (lambda: ClassResult.load(tmp_path / "class.json"), "class.json"),
        (lambda: begin(tmp_path), "settings.json"),
        (lambda: PredictionWriter(tmp_path, resume=True), "predictions.jsonl"),
        (lambda: read_weights(folder), "open_clip_config.json"),
        (lambda: DetectorSpec.from_json(deep), "specification"),
        (lambda: ModelCard.from_json(deep, name="model.onnx"), "model.onnx"),
    ):
        with pytest.raises(AnomalyCLIPError, match=names):
            read()


def begin(folder):
    with RunFolder("predict", folder, resume=True, results="x").begin({}):
        pass


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_no_json_anywhere_in_a_threshold(number, tmp_path):
    (tmp_path / "t.json").write_text(f'{{"score": 0.5, "pixel": null, "info": {{"a": [{{"b": {number}}}]}}}}')
    with pytest.raises(AnomalyCLIPError, match=rf"t\.json is not valid JSON: {number} is not a JSON number"):
        Threshold.from_file(tmp_path / "t.json")


@pytest.mark.parametrize("number", ["1" + "0" * 15, "-1", "1.5"])
def test_a_threshold_of_any_other_number_is_refused(number, tmp_path):
    (tmp_path / "t.json").write_text(f'{{"score": {number}, "pixel": null}}')
    with pytest.raises(AnomalyCLIPError, match=r"t\.json: the score threshold is .* from 0 to 1"):
        Threshold.from_file(tmp_path / "t.json")


def test_what_is_read_is_what_python_reads():
    text = json.dumps({"a": [1, -2.5e-3, True, None, "\udce9\u2603"], "b": {"c": {}}})
    assert parse_json(text) == json.loads(text)
    assert parse_json(text.encode()) == json.loads(text)
