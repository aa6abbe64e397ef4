"""The report: one file that a real browser opens without a network, with everything in it drawn."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from anomalyclip.data.listing import load_samples
from anomalyclip.detector import Detector
from anomalyclip.evaluation import plots
from anomalyclip.evaluation.controls import CentreScorer, ContrastScorer
from anomalyclip.evaluation.evaluator import Options, evaluate_set
from anomalyclip.evaluation.html import counted
from anomalyclip.evaluation.maps import DetectorSource
from anomalyclip.evaluation.report import write_report
from anomalyclip.evaluation.summary import Evaluation
from anomalyclip.metrics.paired import Difference
from anomalyclip.prediction import Threshold
from tests.generated_sets import make_set

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# Appended to the page: says, in the page itself, how many pictures there are and how many were really drawn,
# whether it fits the window, and how many other files it asked for.
COUNT = """<script>addEventListener("load", () => {
const all = [...document.images];
document.title = JSON.stringify([all.length, all.filter(i => i.complete && i.naturalWidth > 0).length,
  document.documentElement.scrollWidth <= innerWidth,
  performance.getEntriesByType("resource").filter(e => !e.name.startsWith("data:")).length]);
});</script>"""


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """Two data sets, one of which has a name that HTML must not take literally, and their controls."""
    folder = tmp_path_factory.mktemp("report")
    results, controls = [], []
    for name, classes in (("mvtec", ("bottle", "screw")), ("<b>mine</b>", ("nut",))):
        root = make_set(folder / "data" / name.replace("/", "_"), classes=classes)
        data = replace(load_samples(root), dataset=re.sub("[<>/]", "_", name))
        key = re.sub("[<>/]", "_", name)
        for scorer, detector, kept in (
            ("model", ContrastScorer(48), results),
            ("centre", CentreScorer(48), controls),
        ):
            where = folder / key / ("" if scorer == "model" else scorer)
            source = DetectorSource(Detector(detector), data.root, where / "unfinished")
            options = Options(cases=scorer == "model", threshold=Threshold(score=0.3, pixel=0.2))
            kept.append(evaluate_set(source, data, where, scorer=scorer, options=options))
    about = {
        "title": "<i>tiny</i>, prompts mine",
        "model": {"backbone": "<i>tiny</i>", "prompts": "mine"},
        "versions": {"python": "3"},
    }
    return folder, Evaluation(
        results,
        controls,
        about=about,
        compare=True,
        threshold=Threshold(score=0.3, pixel=0.2),
        notes=["a < b & c"],
    )


@pytest.fixture(scope="module")
def page(evaluation):
    pytest.importorskip("matplotlib", reason="the curves need matplotlib (extra report)")
    folder, found = evaluation
    assert write_report(found, folder)
    return folder / "report.html"


def test_it_needs_no_other_file_and_no_network(page):
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)|url\(([^)]*)\)""", page.read_text())
    assert links
    for link in (first or second for first, second in links):
        assert link.startswith(("data:", "#")), link[:80]


def test_names_cannot_break_the_page(page):
    text = page.read_text()
    assert "<i>tiny</i>" not in text
    assert "&lt;i&gt;tiny&lt;/i&gt;" in text
    assert "a &lt; b &amp; c" in text


def test_it_holds_tables_verdicts_curves_cases_and_settings(page):
    text = page.read_text()
    for heading in (
        "2 data sets",
        "Verdicts at the threshold: mvtec",
        "Curves: mvtec",
        "Image scores: mvtec",
        "Best and worst cases: mvtec",
        "Settings, versions, hashes, time and memory",
    ):
        assert f">{heading}</h2>" in text
    assert text.count('class="case"') == 18  # three classes, six images each
    assert text.count("data:image/jpeg") == 72  # image, truth, map, overlay
    assert text.count("data:image/svg+xml") == 4


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH: the report is not opened in a browser")
@pytest.mark.parametrize("width", [1280, 480])
def test_a_browser_draws_every_picture_and_reports_no_error(page, tmp_path, width):
    counted = tmp_path / "report.html"
    counted.write_text(page.read_text() + COUNT)
    switches = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --virtual-time-budget=5000 --dump-dom --enable-logging=stderr"
    )
    done = subprocess.run(
        [
            *(str(CHROMIUM), *switches.split(), f"--window-size={width},900"),
            *(
                f"--user-data-dir={tmp_path / 'profile'}",
                counted.as_uri(),
            ),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    title = re.search(r"<title>\[(.*?)\]</title>", done.stdout)
    assert title is not None, done.stdout[:500]
    pictures, drawn, fits, loaded = json.loads(f"[{title[1]}]")
    assert drawn == pictures == 76
    assert fits, "the page is wider than the window"
    assert "CONSOLE" not in done.stderr, done.stderr
    assert loaded == 0, "the page asks for other files"


def test_the_papers_mean_does_not_stand_beside_one_over_other_classes(evaluation):
    """It is MVTec AD by name, with two of its fifteen classes."""
    folder, found = evaluation
    alone = folder / "alone"
    alone.mkdir()
    (alone / "mvtec").symlink_to(folder / "mvtec")
    assert write_report(replace(found, results=found.results[:1]), alone)
    (cards,) = re.findall(r'<div class="cards">.*?</div></div>', (alone / "report.html").read_text())
    assert "image AUROC" in cards
    assert "paper" not in cards


def test_one_class_is_not_called_classes(evaluation):
    of_two = evaluation[1].results[0]
    one = replace(of_two, classes=of_two.classes[:1])
    normal, anomalous = one.classes[0].normal, one.classes[0].anomalous
    assert counted([one]) == f"1 class, {normal} normal and {anomalous} anomalous images."
    assert counted([of_two]).startswith("2 classes, ")


def test_a_chart_of_no_differences_does_not_make_them_look_large():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    same, apart = (Difference(value, value - 0.001, value + 0.001) for value in (0.0, -0.5))
    for one, lowest in ((same, -1.0), (apart, -50.1)):
        axes = figure.subplots()
        plots._draw_differences(axes, {"words": {"image_auroc": one}}, "image_auroc")
        low, high = axes.get_xlim()
        assert low <= lowest
        assert high >= 1.0
        assert len(axes.get_xticks()) <= 7


def test_without_matplotlib_there_are_tables_and_cases_but_no_curves(evaluation, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(plots, "available", lambda: False)
    folder, found = evaluation
    (folder / "plain").mkdir()
    for name in ("mvtec", "_b_mine__b_"):
        (folder / "plain" / name).symlink_to(folder / name)
    assert not write_report(found, folder / "plain")
    text = (folder / "plain" / "report.html").read_text()
    assert "pip install 'anomalyclip[report]'" in text
    assert text.count("data:image/jpeg") == 72
    assert "image/svg" not in text
