"""Summaries of runs: what they say is what the lines say, whatever they are kept in."""

import json
import os

import numpy as np
import pytest
from scipy.stats import ks_2samp

from anomalyclip import AnomalyCLIPError, DetectorSpec, predict
from anomalyclip.demo import PICTURES
from anomalyclip.distributed.tables import Parts, table_of
from anomalyclip.sharding import Shard
from anomalyclip.summarizing import summarize


def write_lines(folder, scores, *, name="2026-11-{day:02}/{number}.png", days=8):
    """A run with these scores, on so many days, and one image that failed."""
    folder.mkdir(parents=True)
    with open(folder / "predictions.jsonl", "w") as file:
        for number, score in enumerate(scores):
            path = name.format(day=1 + number % days, number=number)
            file.write(
                json.dumps({"image_path": path, "pred_score": score, "pred_label": score >= 0.9}) + "\n"
            )
    (folder / "errors.jsonl").write_text('{"image_path": "bad.png", "error": "torn"}\n')
    return folder


def write_parquet(folder, scores, **options):
    """The same as Parquet files."""
    lines = (write_lines(folder.with_suffix(".lines"), scores, **options) / "predictions.jsonl").read_text()
    folder.mkdir()
    parts = Parts(folder, maps=False, rows=70)
    names = {"path": "image_path", "source": "image_path", "score": "pred_score", "label": "pred_label"}
    rows = [{name: json.loads(line)[key] for name, key in names.items()} for line in lines.splitlines()]
    rows.append({"path": "bad.png", "source": "bad.png", "error": "torn"})
    table = table_of([{**row, "images": 1} for row in rows], maps=False)
    for start in range(0, len(table), 70):
        list(parts.add(table.slice(start, 70)))
    parts.flush()
    return folder


@pytest.fixture
def scores():
    """Those of the last of eight days are higher."""
    rng = np.random.default_rng(1)
    values = rng.beta(2, 5, 800)
    values[7::8] = rng.beta(3, 4, 100)
    return values.tolist()


@pytest.mark.parametrize("write", [write_lines, write_parquet])
def test_counts_histogram_and_the_highest_are_those_of_the_lines(write, scores, tmp_path):
    found = summarize([write(tmp_path / "run", scores)], highest=3)
    assert (found.scores.count, found.failed, found.judged) == (800, 1, True)
    assert found.scores.anomalous == sum(score >= 0.9 for score in scores)
    np.testing.assert_array_equal(found.to_dict()["histogram"], np.histogram(scores, 100, (0, 1))[0])
    assert [score for score, _ in found.highest] == sorted(scores, reverse=True)[:3]
    assert found.scores.quantile(0.5) == pytest.approx(
        np.quantile(scores, 0.5, method="inverted_cdf"), abs=1e-4
    )
    assert found.groups == {}


@pytest.mark.parametrize("write", [write_lines, write_parquet])
def test_drift_is_the_test_of_kolmogorov_and_smirnov_on_each_day_against_the_others(write, scores, tmp_path):
    found = summarize([write(tmp_path / "run", scores)], by="day").drifts()
    assert {drift.group for drift in found} == {f"2026-11-0{day}" for day in range(1, 9)}
    p_values = []
    for drift in found:
        day = int(drift.group[-1]) - 1
        mine = np.array(scores[day::8])
        others = np.array([score for number, score in enumerate(scores) if number % 8 != day])
        exact = ks_2samp(mine, others, method="asymp")
        assert drift.distance == pytest.approx(exact.statistic, abs=5e-3)
        p_values.append(exact.pvalue)
        assert (drift.images, drift.median) == (
            100,
            pytest.approx(np.quantile(mine, 0.5, method="inverted_cdf"), abs=1e-4),
        )
    assert [drift.is_clear for drift in found] == [True] + [False] * 7
    assert found[0].group == "2026-11-08"
    assert found[0].p_value < 1e-6
    assert found[-1].p_value >= p_values[-1]  # corrected for the number of days


def test_shards_are_compared_with_each_other(tmp_path):
    detector = DetectorSpec("micro", image_size=48).load()
    for index in (1, 2):
        predict(detector, PICTURES, tmp_path / "parts", shard=Shard(index, 2))
    found = summarize([tmp_path / "parts"])
    assert found.scores.count == 12
    assert [os.path.basename(name) for name in found.groups] == ["shard-1-of-2", "shard-2-of-2"]
    assert sum(group.count for group in found.groups.values()) == 12


def test_the_command_prints_draws_and_gives_json(cli, tmp_path):
    assert (
        cli("predict", PICTURES, "--backbone", "micro", "--threshold", 0.5, "--output", tmp_path / "run").code
        == 0
    )
    done = cli("summarize", tmp_path / "run", "--highest", 2, "--draw", tmp_path / "drawn")
    assert done.code == 0, done.err
    assert "12 scored, 7 anomalous" in done.out
    assert "1.0000  " in done.out
    heatmaps = sorted(path.name for path in (tmp_path / "drawn" / "heatmaps").iterdir())
    assert heatmaps == ["chipboard_hole_heatmap.png", "corduroy_stain_heatmap.png"]
    found = json.loads(cli("summarize", tmp_path / "run", "--json", "--by", "folder").out)
    assert (found["scored"], found["anomalous"], sum(found["histogram"])) == (12, 7, 12)


def test_what_cannot_be_summarised_is_one_error(tmp_path, scores):
    with pytest.raises(AnomalyCLIPError, match="no results of `anomalyclip predict`"):
        summarize([tmp_path])
    many = write_lines(tmp_path / "run", [0.5] * 1001, name="folder {number}/a.png")
    with pytest.raises(AnomalyCLIPError, match="more than 1,000 groups"):
        summarize([many], by="folder")
    with pytest.raises(AnomalyCLIPError, match="expected one of run, folder, day"):
        summarize([many], by="week")
    (many / "predictions.jsonl").write_text('{"image_path": "a.png"}\n')
    with pytest.raises(AnomalyCLIPError, match=r"predictions\.jsonl, line 1 is damaged \(no 'pred_score'\)"):
        summarize([many])
