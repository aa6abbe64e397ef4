"""Tables: the paper's layout, dashes where a metric does not apply, and the paper's figures beside ours."""

import csv
import io

import pytest

from anomalyclip.data.catalog import catalog
from anomalyclip.evaluation.results import METRICS, ClassResult, DatasetResult, ImageResult
from anomalyclip.evaluation.tables import (
    not_the_papers,
    paper_class,
    paper_mean,
    tables,
    to_csv,
    to_latex,
    to_markdown,
)


def class_result(name, **metrics):
    images = tuple(ImageResult(f"{i}.png", "", i > 0, 0.5, True) for i in range(3))
    return ClassResult(name, images, {}, {**dict.fromkeys(METRICS), **metrics}, {})


@pytest.fixture
def mvtec():
    return DatasetResult(
        "mvtec",
        "/data/mvtec",
        (
            class_result("screw", image_auroc=0.8, image_ap=0.9, pixel_auroc=0.97, pixel_aupro=0.885),
            class_result("my_part", image_auroc=0.6, image_ap=0.7, pixel_auroc=None, pixel_aupro=None),
        ),
    )


@pytest.fixture
def whole_mvtec():
    """Every class of it: what the paper's means are over."""
    figures = {"image_auroc": 0.7, "image_ap": 0.8, "pixel_auroc": 0.97, "pixel_aupro": 0.885}
    classes = tuple(class_result(name.replace("_", " "), **figures) for name in catalog()["mvtec"].classes)
    return DatasetResult("mvtec", "/data/mvtec", classes)


@pytest.fixture
def isic():
    return DatasetResult("isic", "/data/isic", (class_result("skin", pixel_auroc=0.9, pixel_aupro=0.8),))


def test_the_table_has_a_row_a_class_then_the_mean_and_the_papers_metrics_first(mvtec):
    lines = to_markdown(tables([mvtec])).splitlines()
    assert lines[2] == (
        "| class | normal | anomalous | image AUROC | image AP | pixel AUROC | pixel AUPRO | image F1-max "
        "| pixel AUPRO exact | pixel AP | pixel F1-max |"
    )
    assert lines[4] == "| screw | 1 | 2 | 80.0 | 90.0 | 97.0 | 88.5 | – | – | – | – |"
    assert lines[5] == "| my_part | 1 | 2 | 60.0 | 70.0 | – | – | – | – | – | – |"
    assert lines[6].startswith("| **mean** | **2** | **4** | **70.0** | **80.0** | **97.0** | **88.5** | –")


def test_several_data_sets_give_one_table_with_a_row_each(mvtec, isic):
    first = tables([mvtec, isic])[0]
    assert [row.label for row in first.rows] == ["mvtec", "isic", "mean"]
    assert first.rows[2].metrics["image_auroc"] == pytest.approx(0.7)
    assert first.rows[2].metrics["pixel_auroc"] == pytest.approx((0.97 + 0.9) / 2)
    assert [table.title for table in tables([mvtec, isic])] == ["2 data sets", "mvtec", "isic"]


def test_the_papers_figures_and_the_differences_stand_beside_ours(mvtec, whole_mvtec):
    lines = to_markdown(tables([mvtec], compare=True)).splitlines()
    assert "| image AUROC | paper | diff. | image AP |" in lines[2]
    assert lines[4].startswith("| screw | 1 | 2 | 80.0 | 82.1 | -2.1 |")  # the authors' log
    assert lines[5].startswith("| my_part | 1 | 2 | 60.0 | – | – |")
    (mean,) = [
        line for line in to_markdown(tables([whole_mvtec], compare=True)).splitlines() if "**mean**" in line
    ]
    assert "**70.0** | **91.5** | **-21.5**" in mean  # the paper's table
    assert "AnomalyCLIP (ICLR 2024), tables 1 and 2" in lines[-1]


def test_figures_are_the_papers():
    assert paper_mean("mvtec") == {
        "image_auroc": 0.915,
        "image_ap": 0.962,
        "pixel_auroc": 0.911,
        "pixel_aupro": 0.814,
    }
    assert paper_mean("isic") == {
        "image_auroc": None,
        "image_ap": None,
        "pixel_auroc": 0.897,
        "pixel_aupro": 0.784,
    }
    assert paper_class("visa", "pcb1") == {
        "pixel_auroc": 0.94,
        "pixel_aupro": 0.807,
        "image_auroc": 0.852,
        "image_ap": 0.867,
    }
    assert paper_mean("mine") == paper_class("mine", "nut") == paper_class("visa", "nut") == {}


def test_a_mean_over_other_classes_is_not_compared_with_the_papers(mvtec, whole_mvtec):
    assert tables([mvtec], compare=True)[0].rows[-1].paper == {}
    assert not_the_papers(whole_mvtec) is None
    said = not_the_papers(mvtec)
    assert said.startswith("missing bottle, cable, ")
    assert said.endswith("; unknown my_part")
    assert "screw" not in said


def test_a_mean_over_data_sets_is_compared_only_where_the_paper_has_all_of_them(mvtec, whole_mvtec, isic):
    mine = DatasetResult("mine", "/data/mine", (class_result("nut", image_auroc=0.5),))
    both = tables([whole_mvtec, isic], compare=True)[0].rows[-1].paper
    assert both["image_auroc"] == pytest.approx(0.915)
    assert both["pixel_auroc"] == pytest.approx((0.911 + 0.897) / 2)
    assert tables([whole_mvtec, mine], compare=True)[0].rows[-1].paper["image_auroc"] is None
    assert tables([mvtec, isic], compare=True)[0].rows[-1].paper["image_auroc"] is None


def test_controls_stand_below_the_mean(mvtec):
    control = DatasetResult("mvtec", "/data/mvtec", (class_result("screw", image_auroc=0.5),), "centre")
    assert [row.label for row in tables([mvtec], [control])[0].rows][-2:] == ["mean", "control: centre"]


def test_csv_holds_unrounded_shares_and_nothing_where_a_metric_does_not_apply(mvtec, whole_mvtec):
    rows = list(csv.DictReader(io.StringIO(to_csv(tables([mvtec], compare=True)))))
    assert rows[0]["pixel_aupro"] == "0.885"
    assert rows[1]["pixel_aupro"] == ""
    assert rows[2]["row"] == "mean"
    whole = list(csv.DictReader(io.StringIO(to_csv(tables([whole_mvtec], compare=True)))))
    assert whole[-1]["paper_pixel_aupro"] == "0.814"


def test_the_exact_protocol_leaves_out_the_published_aupro(mvtec):
    heads = to_markdown(tables([mvtec], protocol="exact")).splitlines()[2]
    assert "AUPRO exact" in heads
    assert "AUPRO |" not in heads


def test_latex_escapes_names_and_rules_off_the_mean(mvtec):
    text = to_latex(tables([mvtec]))
    assert r"my\_part & 60.0 & 70.0 & -- & --" in text
    assert text.index(r"\midrule", text.index("screw")) < text.index("mean & 70.0")
    assert text.count(r"\\") == 4
