"""The catalogue: what is known of the 17 data sets."""

import pytest

from anomalyclip.data.catalog import catalog
from anomalyclip.data.layouts import SHAPES
from tests.data_trees import GOLDEN

SETS = list(catalog().values())


def test_the_catalogue_holds_the_17_sets_with_the_classes_of_the_published_scripts():
    assert set(catalog()) == set(GOLDEN)
    for key, dataset in catalog().items():
        classes = {name for phase in GOLDEN[key]["expected"].values() for name in phase}
        assert set(dataset.classes) == classes
        assert len(dataset.classes) == len(classes)


def test_test_counts_are_those_of_the_paper():
    assert {key: dataset.counts for key, dataset in catalog().items()} == {
        "mvtec": (467, 1258),
        "visa": (962, 1200),
        "mpdd": (176, 282),
        "btad": (451, 290),
        "sdd": (181, 74),
        "dagm": (6996, 1054),
        "dtd": (357, 947),
        "headct": (100, 100),
        "brainmri": (98, 155),
        "br35h": (1500, 1500),
        "covid19": (1341, 219),
        "isic": (0, 379),
        "cvc_colondb": (0, 380),
        "cvc_clinicdb": (0, 612),
        "kvasir": (0, 1000),
        "endo": (0, 200),
        "tn3k": (0, 614),
    }
    assert {dataset.key for dataset in SETS if not dataset.counts_verified} == {"dagm", "covid19", "tn3k"}


@pytest.mark.parametrize("dataset", SETS, ids=lambda dataset: dataset.key)
def test_an_entry_agrees_with_itself(dataset):
    assert tuple(dataset.paper) == dataset.metrics
    assert "image" not in dataset.metrics or min(dataset.counts) > 0
    for methods in dataset.paper.values():
        assert list(methods) == ["CLIP", "CLIP-AC", "WinCLIP", "VAND", "CoOp", "AnomalyCLIP"]
        assert all(0 < figure < 100 for pair in methods.values() if pair for figure in pair)
    for layout in dataset.layouts:
        assert SHAPES[layout.shape](**layout.parameters).title
        assert layout.tree
    assert not dataset.log or set(dataset.log) == {*dataset.classes, "mean"}


def test_the_papers_figures_sum_up_to_what_its_tables_sum_up_to():
    def column(level, method, index):
        return sum(d.paper[level][method][index] for d in SETS if level in d.paper and d.paper[level][method])

    assert column("image", "AnomalyCLIP", 0) == pytest.approx(973.0)
    assert column("image", "CLIP", 1) == pytest.approx(728.2)
    assert column("pixel", "AnomalyCLIP", 0) == pytest.approx(1160.4)
    assert column("pixel", "CoOp", 1) == pytest.approx(63.6)
    log = catalog()["mvtec"].log
    assert log["screw"] == (97.5, 88.0, 82.1, 92.9)
    means = [sum(log[name][i] for name in catalog()["mvtec"].classes) / 15 for i in range(4)]
    assert means == pytest.approx(log["mean"], abs=0.1)  # both sides are rounded to a tenth
