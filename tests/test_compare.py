"""`compare`: what each method would find alone, from one pass over the images, and how the methods differ."""

import csv
import json
import re
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

from anomalyclip import AnomalyCLIPError, DetectorSpec, compare, evaluate, texts, train
from anomalyclip.clip import model as clip_model
from anomalyclip.clip.model import VisionTransformer
from anomalyclip.clip_core import TextCore
from anomalyclip.data.listing import load_samples
from anomalyclip.evaluation import evaluator, joint, tables
from anomalyclip.evaluation.contenders import named, parsed, variants
from anomalyclip.evaluation.disagreements import draw_disagreements
from anomalyclip.evaluation.maps import Scored
from anomalyclip.methods import METHODS, register
from anomalyclip.prompts import load_prompts
from anomalyclip.readers import photograph
from tests.conftest import GOLDEN
from tests.generated_sets import make_set
from tests.toy_methods import Bright, Dark

PROMPTS = GOLDEN / "paper_prompts.safetensors"


@pytest.fixture(scope="module")
def backbone(tiny_state, tmp_path_factory):
    """The golden CLIP with two vision blocks."""
    prefix = "visual.transformer.resblocks."
    path = tmp_path_factory.mktemp("backbone") / "small.pt"
    torch.save(
        {k: v for k, v in tiny_state.items() if not k.startswith(prefix) or int(k.split(".")[3]) < 2}, path
    )
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("data") / "parts", normal=3, anomalous=3, side=56)


@pytest.fixture(scope="module")
def other_prompts(tmp_path_factory):
    """Prompts that say something else."""
    prompts = load_prompts(PROMPTS)
    path = tmp_path_factory.mktemp("prompts") / "other.safetensors"
    replace(prompts, abnormal=prompts.abnormal.flip(0)).save(path)
    return path


@pytest.fixture
def spec(backbone):
    return DetectorSpec(backbone, prompts=PROMPTS, image_size=56, sigma=2.0)


@pytest.fixture
def model(backbone):
    """The same, as options."""
    return ["--backbone", backbone, "--prompts", PROMPTS, "--image-size", 56, "--sigma", 2]


@pytest.fixture
def toys():
    """Two methods of somebody else's."""
    for kind in (Dark, Bright):
        register(kind.name, kind, options=["image_size"])
    yield
    for kind in (Dark, Bright):
        METHODS.remove(kind.name)


@pytest.fixture
def passes(monkeypatch):
    """How many images went into the image tower, batch by batch."""
    found, embed = [], VisionTransformer.embed

    def noted(self, pixels, *rest, **named):
        found.append(len(pixels))
        return embed(self, pixels, *rest, **named)

    monkeypatch.setattr(VisionTransformer, "embed", noted)
    return found


AXES = {"sigma": [2.0, 0.0], "image_score": ["text", "max"]}


def test_each_finds_what_it_would_find_alone(spec, root, other_prompts):
    axes = {"dpam_layers": [2, 1], "image_score": ["text", "max"]}
    what = [spec, replace(spec, prompts=str(other_prompts))]
    found = compare(
        [one for each in what for one in variants(each, vary=axes)][:6], root, batch_size=2, draws=100
    )
    assert len(found.names) == 6
    for contender in found.contenders:
        alone = evaluate(contender.spec, root, batch_size=2)
        result = found.results["parts"][contender.name]
        assert result.mean == pytest.approx(alone.mean, abs=1e-6), contender.name
        for ours, theirs in zip(result.classes, alone.results[0].classes, strict=True):
            assert [image.image for image in ours.images] == [image.image for image in theirs.images]
            scores = [image.score for image in theirs.images]
            assert [image.score for image in ours.images] == pytest.approx(scores, abs=1e-6)


def test_every_image_is_decoded_once_and_goes_through_the_backbone_once(
    spec, root, other_prompts, passes, monkeypatch
):
    opened, open_image = [], photograph.PhotographReader.frames

    def noted(self, path):
        opened.append(path)
        return open_image(self, path)

    monkeypatch.setattr(photograph.PhotographReader, "frames", noted)
    compare(
        [spec],
        root,
        vary={**AXES, "prompts": [str(PROMPTS), str(other_prompts)], "dpam_layers": [0, 1, 2]},
        batch_size=3,
        draws=100,
    )
    assert passes == [3, 3, 3, 3]
    assert len(opened) == len(set(opened)) == 12


def test_methods_of_other_sizes_share_the_decoding_alone(spec, root, passes):
    found = compare([spec], root, vary={"image_size": [56, 28]}, batch_size=6, draws=100)
    assert passes == [6, 6, 6, 6]
    assert [found.costs[name].others for name in found.names] == [(), ()]


def test_pixels_are_ranked_once_for_all_whose_maps_are_the_same(spec, root, monkeypatch):
    ranked, rank = [], evaluator.pixel_metrics_in_ranges

    def noted(*arguments, **named):
        ranked.append(1)
        return rank(*arguments, **named)

    monkeypatch.setattr(evaluator, "pixel_metrics_in_ranges", noted)
    found = compare([spec], root, vary=AXES, draws=100)
    assert len(ranked) == 2 * 2  # two classes, two sigmas
    text, maximum = (found.mean[f"anomalyclip, sigma 0, image score {rule}"] for rule in ("text", "max"))
    assert text["pixel_auroc"] == maximum["pixel_auroc"]
    scores = [
        [image.score for image in found.results["parts"][name].classes[0].images]
        for name in (f"anomalyclip, sigma 0, image score {rule}" for rule in ("text", "max"))
    ]
    assert scores[0] != scores[1]


def test_texts_and_patches_are_compared_once_for_all_whose_maps_are_the_same(spec, root, monkeypatch):
    compared, compare_once = [], TextCore.compare

    def noted(self, features):
        compared.append(len(features.cls))
        return compare_once(self, features)

    monkeypatch.setattr(TextCore, "compare", noted)
    ticks = count()
    monkeypatch.setattr(joint, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    found = compare([spec], root, vary=AXES, batch_size=3, draws=100)
    assert sum(compared) == 12 * 2  # of 12 images, with two sigmas
    assert len({cost.own for cost in found.costs.values()}) == 1  # what is shared counts for each


def test_patches_are_projected_once_for_all_that_read_the_same(spec, other_prompts, root, monkeypatch):
    projected, project = [], VisionTransformer.project

    def noted(self, tokens, *, norm=True):
        projected.append(tokens.shape)
        return project(self, tokens, norm=norm)

    monkeypatch.setattr(VisionTransformer, "project", noted)
    several = [
        replace(spec, prompts=prompts, dpam_layers=n) for prompts in (PROMPTS, other_prompts) for n in (1, 2)
    ]
    compare(several, root, batch_size=12, draws=100)
    assert projected.count((6, 17, 64)) == 2 * 2  # classes, local paths
    assert projected.count((6, 64)) == 2 * 4  # each image feature is one row


@pytest.mark.parametrize("methods", [["words", "anomalydino"], ["anomalydino", "words"]])
def test_a_backbone_is_read_once_whether_a_method_needs_its_texts_or_not(methods, root, monkeypatch):
    read, frozen = [], clip_model.frozen

    def noted(make, weights):
        read.append(len(weights))
        return frozen(make, weights)

    monkeypatch.setattr(clip_model, "frozen", noted)
    spec = DetectorSpec("micro", image_size=60, references=[str(root / "nut/test/good/000.png")])
    found = compare(methods, root, spec=spec, draws=100)
    assert found.names == methods
    assert len(read) == 1


def test_rules_that_use_references_are_not_taken_for_one(spec, root):
    references = [str(root / "nut/test/good/000.png")]
    specs = [replace(spec, references=references, image_score=rule) for rule in ("top1", "max")]
    found = compare(specs, root, draws=100)
    for contender in found.contenders:
        alone = evaluate(contender.spec, root)
        scores = [image.score for image in alone.results[0].classes[0].images]
        ours = [image.score for image in found.results["parts"][contender.name].classes[0].images]
        assert ours == pytest.approx(scores, abs=1e-6)


@pytest.mark.slow
def test_trained_parts_are_compared_with_the_classes_of_the_data(tmp_path):
    options = {"image_size": 60, "device": "cpu"}
    data = make_set(tmp_path / "learned", classes=("plate", "washer"), normal=1, anomalous=2, side=60)
    root = make_set(tmp_path / "parts", classes=("button", "nut"), normal=2, anomalous=2, side=60, seed=1)
    trained = {
        name: train(
            data,
            DetectorSpec("micro", method=name, **options),
            output=tmp_path / name,
            cache=tmp_path / "features",
            epochs=1,
        ).learned
        for name in ("april-gan", "coop")
    }
    methods = ["anomalyclip", "words", "clip", *(f"{name},trained={file}" for name, file in trained.items())]
    found = compare(methods, root, spec=DetectorSpec("micro", **options), batch_size=3, draws=100)
    assert found.names == ["anomalyclip", "words", "clip", "april-gan", "coop"]
    assert found.costs["coop"].others == ("anomalyclip", "words", "clip")
    assert found.costs["april-gan"].others == ()  # its positional table is another
    for contender in found.contenders[3:]:
        alone = evaluate(contender.spec, root)
        assert found.results["parts"][contender.name].mean == pytest.approx(alone.mean, abs=1e-6)


def test_anybodys_methods_are_compared(toys, root):
    found = compare(["dark", "bright"], root, spec=DetectorSpec(image_size=56))
    dark, bright = (
        evaluate(DetectorSpec(method=name, image_size=56), root).mean for name in ("dark", "bright")
    )
    assert found.mean == {"dark": dark, "bright": bright}
    difference = found.differences["parts"]["bright"]["image_auroc"]
    assert difference.value == bright["image_auroc"] - dark["image_auroc"] > 0.5
    assert difference.low > 0
    assert difference.p < 0.01
    assert found.costs["dark"].gflop is None


def test_differences_are_of_the_means_over_classes_and_of_data_sets(spec, root, tmp_path):
    other = make_set(tmp_path / "other", classes=("cap",), normal=2, anomalous=3, side=56, seed=5)
    found = compare([spec], [root, other], vary={"sigma": [2.0, 0.0]}, draws=200)
    reference, name = found.names
    for metric in ("image_auroc", "image_ap", "pixel_auroc", "pixel_aupro_exact"):
        each = []
        for key in ("parts", "other"):
            one = found.differences[key][name][metric]
            means = [found.results[key][who].mean[metric] for who in (name, reference)]
            assert one.value == means[0] - means[1]
            assert one.low <= one.high
            each.append(one.value)
        assert found.differences["mean"][name][metric].value == pytest.approx(np.mean(each))
    assert found.differences["parts"][name]["pixel_auroc"].p is None
    assert [one.title for one in found.standings] == ["Mean over 2 data sets", "parts", "other"]


def test_the_same_command_gives_the_same_intervals(spec, root):
    one, two = (compare([spec], root, vary={"sigma": [2.0, 0.0]}, draws=100) for _ in range(2))
    assert one.differences == two.differences
    assert compare([spec], root, vary={"sigma": [2.0, 0.0]}, draws=100, seed=1).differences != one.differences


def test_texts_are_encoded_once_whatever_is_varied(root, monkeypatch):
    encoded, encode = [], texts.phrase_features

    def noted(clip, ids):
        encoded.append(len(ids))
        return encode(clip, ids)

    monkeypatch.setattr(texts, "phrase_features", noted)
    common = DetectorSpec("micro", class_name="object")
    compare(["words", "clip"], root, spec=common, vary=AXES, draws=100)
    once = list(encoded)
    encoded.clear()
    for method in ("words", "clip"):
        common_of = DetectorSpec("micro", method=method, class_name="object")
        common_of.load()
    assert once == encoded[: len(once)]
    assert 2 <= len(once) <= 4


class Stop(Exception):
    pass


def stopping_after(count):
    @contextmanager
    def track(what, total):
        done = []

        def advance():
            done.append(1)
            if len(done) == count:
                raise Stop

        yield advance

    return track


@pytest.mark.parametrize("count", [2, 8])
def test_a_stopped_run_goes_on_at_the_image_where_it_was(spec, root, tmp_path, passes, count):
    choices = {"vary": AXES, "draws": 100}
    whole = compare([spec], root, output=tmp_path / "whole", **choices)
    passes.clear()
    with pytest.raises(Stop):
        compare([spec], root, output=tmp_path / "part", track=stopping_after(count), **choices)
    if count > 6:  # a class is done
        with pytest.raises(AnomalyCLIPError, match="--resume"):
            compare([spec], root, output=tmp_path / "part", **choices)
    resumed = compare([spec], root, output=tmp_path / "part", resume=True, **choices)
    assert sum(passes) == 12
    assert resumed.differences == whole.differences
    assert resumed.mean == whole.mean
    for name in ("results.csv", "images.csv"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list(tmp_path.rglob("*.npy"))
    assert not list(tmp_path.rglob("unfinished"))


def test_a_run_does_not_go_on_with_other_methods(spec, root, tmp_path):
    compare([spec], root, vary={"sigma": [2.0, 0.0]}, output=tmp_path / "out", draws=100)
    with pytest.raises(AnomalyCLIPError, match="other settings.*compared: .*sigma 0.*then, .*sigma 1.*now"):
        compare([spec], root, vary={"sigma": [2.0, 1.0]}, output=tmp_path / "out", resume=True)


class Named(Dark):
    """Depends on the class: its name's length is what it looks for."""

    name = "named"
    asked: ClassVar[list[str]] = []

    def of_class(self, name):
        self.asked.append(name)
        if name == "tile" and self.image_size == 28:
            raise AnomalyCLIPError("the word 'tile' is not in the vocabulary")
        return (
            Dark(DetectorSpec(image_size=self.image_size))
            if name == "nut"
            else Bright(DetectorSpec(image_size=self.image_size))
        )


@pytest.fixture
def by_class():
    register("named", Named, options=["image_size"])
    Named.asked.clear()
    yield
    METHODS.remove("named")


def test_a_method_that_needs_the_class_gets_that_of_the_data_set(toys, by_class, root):
    found = compare(["named", "dark", "bright"], root, spec=DetectorSpec(image_size=56))
    assert set(Named.asked) == {"nut", "tile"}
    results = found.results["parts"]
    scores = {
        name: {entry.name: [image.score for image in entry.images] for entry in results[name].classes}
        for name in found.names
    }
    assert scores["named"]["nut"] == scores["dark"]["nut"]
    assert scores["named"]["tile"] == scores["bright"]["tile"]
    assert found.costs["named"].texts is not None
    assert found.costs["dark"].texts is None


def test_all_that_cannot_be_compared_is_named_before_work_begins(toys, by_class, root, tmp_path):
    specs = {
        "dark": DetectorSpec(method="dark", image_size=56),
        "its class": DetectorSpec(method="named", image_size=28),
        "no weights": DetectorSpec("no-such-backbone"),
        "in tiles": DetectorSpec(method="bright", tile=64),
    }
    with pytest.raises(AnomalyCLIPError) as error:
        compare(specs, root, output=tmp_path / "out")
    said = str(error.value).splitlines()
    assert said[0] == "cannot compare; nothing was scored:"
    assert [line.partition(":")[0] for line in said[1:]] == ["its class", "no weights", "in tiles"]
    assert "not in the vocabulary" in said[1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("what", "options", "says"),
    [
        (["anomalyclip"], {}, "nothing to compare with"),
        ([], {}, "nothing to compare with"),
        (["dark", "dark"], {}, "dark is given twice"),
        (["light"], {}, "'light' is not known"),
        (["dark,sigma=2", "bright"], {}, "'sigma=2' is not an option of dark; .*image_size"),
        (["dark,image_size=big", "bright"], {}, "image size 'big': expected a whole number"),
        (["dark", "bright"], {"vary": ["sigma=2,4"]}, "sigma: none of the methods has this option"),
        (["dark", "bright"], {"spec": DetectorSpec(sigma=2.0)}, "sigma: none of the methods has this option"),
        (["dark"], {"vary": ["image_size"]}, "image_size: expected OPTION=VALUE"),
        (["dark"], {"vary": ["image-size=28,28"]}, "vary image_size: expected different values"),
        (["dark"], {"vary": ["device=cpu,cuda"]}, "vary 'device': expected one of"),
        (["dark"], {"vary": ["engine=torch,onnx"]}, "vary 'engine': expected one of"),
        (["dark"], {"vary": ["colour=red"]}, "'colour': .*expected one of backbone"),
        ({"one": DetectorSpec()}, {}, "nothing to compare with"),
        ({"one": DetectorSpec(), "two": DetectorSpec()}, {"vary": ["sigma=1"]}, "leave out spec and vary"),
        ([DetectorSpec()], {"spec": DetectorSpec()}, "either methods by name"),
        (["dark", "bright"], {"resume": True}, "to resume"),
        (["dark", "bright"], {"draws": 5}, "draws 5: expected 100 or more"),
    ],
)
def test_what_makes_no_sense_is_refused(what, options, says, toys, root):
    with pytest.raises(AnomalyCLIPError, match=says):
        compare(what, root, **options)


def test_all_that_references_or_training_lack_is_named_before_a_folder_is_made(root, tmp_path):
    common = DetectorSpec("micro", class_name="object")
    with pytest.raises(AnomalyCLIPError) as error:
        compare(["april-gan", "anomalydino", "coop"], root, spec=common, output=tmp_path / "out")
    said = str(error.value).splitlines()[1:]
    assert [line.partition(":")[0] for line in said] == ["april-gan", "anomalydino", "coop"]
    assert "give references (--references PATH)" in said[1]
    assert not (tmp_path / "out").exists()


def test_words_of_one_side_may_be_varied_against_those_of_the_other(root, tmp_path, cli):
    sides = ["--vary", "normal=flawless {},a {}", "--abnormal", "damaged {}"]
    options = ["--method", "words", "--image-size", 60, "--draws", 100, "--format", "json"]
    options += ["--class-name", "object", "--output", tmp_path / "out"]
    done = cli("compare", root, "--backbone", "micro", *options, *sides)
    assert done.code == 0, done.err
    specs = json.loads((tmp_path / "out" / "settings.json").read_text())
    told = json.dumps(specs)
    assert all(text in told for text in ('["flawless {}"]', '["a {}"]', '["damaged {}"]'))
    done = cli("compare", root, "--backbone", "micro", "--vary", "sigma=2,4", "--method", "words", *sides[2:])
    assert (done.code, "own words need both sides" in done.err) == (2, True)


def test_methods_get_of_the_common_options_what_they_take(toys):
    common = DetectorSpec("micro", sigma=2.0, image_size=56)
    found = variants(common, ["anomalyclip,layers=1+2", "dark"], vary=["sigma=2,4"])
    assert found == [
        DetectorSpec("micro", sigma=2.0, image_size=56, layers=(1, 2)),
        DetectorSpec("micro", sigma=4.0, image_size=56, layers=(1, 2)),
        DetectorSpec(method="dark", image_size=56),
    ]
    assert list(named(found)) == ["anomalyclip, sigma 2", "anomalyclip, sigma 4", "dark"]
    files = [
        DetectorSpec("micro", prompts=prompts)
        for prompts in (None, "runs/a/learned.pth", "runs/b/learned.pth")
    ]
    assert list(named(files)) == [
        *(
            "anomalyclip, prompts default",
            "anomalyclip, prompts a/learned.pth",
            "anomalyclip, prompts b/learned.pth",
        )
    ]
    assert parsed("layers", "6") == (6,)


def test_an_image_that_cannot_be_used_counts_for_none(cli, model, root, tmp_path):
    copy = make_set(tmp_path / "parts", normal=3, anomalous=3, side=56)
    broken = copy / "nut" / "test" / "good" / "001.png"
    broken.write_bytes(broken.read_bytes()[:60])
    done = cli("compare", copy, *model, "--vary", "sigma=2,0", "--output", tmp_path / "out")
    assert done.code == 1
    assert f"{broken}: damaged image" in done.err.replace("\n", " ")
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    for result in content["results"]["parts"].values():
        assert [entry["normal"] for entry in result["classes"]] == [2, 3]


def test_one_command_leaves_tables_scores_and_a_report(cli, model, root, tmp_path):
    out = tmp_path / "out"
    axes = ["--vary", "sigma=2,0", "--vary", "image-score=text,max"]
    done = cli("compare", root, *model, *axes, "--output", out, "--draws", 100)
    assert done.code == 0, done.err
    names = [f"anomalyclip, sigma {s}, image score {rule}" for s in (2, 0) for rule in ("text", "max")]
    assert all(name in done.out for name in names)
    content = json.loads((out / "results.json").read_text())
    assert content["reference"] == names[0]
    assert list(content["compared"]) == names
    assert content["compared"][names[3]]["spec"]["sigma"] == 0.0
    assert len(content["compared"][names[0]]["identity"]["weights_sha256"]) == 64
    assert set(content["differences"]["parts"][names[1]]["image_auroc"]) == {"value", "low", "high", "p"}
    assert content["compared"][names[0]]["cost"]["gflop"] > 0
    with (out / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert list(rows[0])[5:] == names
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * (1 + 2)
    text = (out / "results.md").read_text()
    assert f"Difference from {names[0]}" in text
    assert "| method | image AUROC |" in text
    settings = json.loads((out / "settings.json").read_text())
    assert list(settings["about"]["specs"]) == names


def test_the_report_shows_the_maps_of_all_where_they_disagree(cli, model, root, tmp_path):
    out = tmp_path / "out"
    axes = ["--vary", "sigma=2,0", "--vary", "image-score=text,max"]
    assert cli("compare", root, *model, *axes, "--output", out, "--draws", 100).code == 0
    page = (out / "report.html").read_text()
    cases = page.count('<div class="case wide">')
    assert cases == 4  # two of each class
    assert page.count("<figure><img") == cases * (2 + 2)  # the image score changes no map
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert [caption.count("<span>") for caption in captions] == [1, 1, 2, 2] * cases
    places = [(int(a), int(b)) for a, b in re.findall(r"place (\d+) of (\d+)", page)]
    assert len(places) == cases * 4
    assert all(1 <= place <= count == 6 for place, count in places)
    assert "4 methods on 2 classes, 6 normal and 6 anomalous images." in page
    assert "anomalyclip, sigma 0, image score max: what differs" in page
    assert "Differences and their intervals" in page
    assert "shares its pass with" in page


def test_the_papers_figures_are_those_of_each_method(toys, tmp_path, monkeypatch):
    monkeypatch.setitem(tables.PAPER_METHODS, "dark", "WinCLIP")
    root = make_set(tmp_path / "headct", classes=("head",), normal=2, anomalous=2, side=56)
    monkeypatch.setattr(tables, "not_the_papers", lambda result: None)
    specs = {"ours": DetectorSpec(method="dark", image_size=56), "own": DetectorSpec(method="bright")}
    found = compare(
        specs, replace(load_samples(root), dataset="headct"), paper=True, draws=100, output=tmp_path / "out"
    )
    ours, own = found.standings[0].lines
    assert (ours.paper["image_auroc"], ours.paper["pixel_auroc"]) == (0.818, None)
    assert own.paper == {}
    assert "(paper 81.8)" in (tmp_path / "out" / "results.md").read_text()
    assert '<span class="paper">81.8</span>' in (tmp_path / "out" / "report.html").read_text()


def test_the_papers_means_are_not_set_beside_those_of_other_classes(toys, root):
    specs = {
        "a": DetectorSpec(method="dark", image_size=56),
        "b": DetectorSpec(method="bright", image_size=56),
    }
    found = compare(specs, replace(load_samples(root), dataset="mvtec"), paper=True, draws=100)
    assert all(line.paper == {} for line in found.standings[0].lines)
    assert any("covers other classes" in note for note in found.notes)


class Transductive(Dark):
    """Scores an image by its place among all of its class."""

    name = "transductive"

    def over_class(self, scores, highest):
        return highest.argsort().argsort().astype(np.float32) / len(scores)


def test_a_method_that_scores_a_class_as_a_whole_does_so_here_too(toys, root):
    register("transductive", Transductive, options=["image_size"])
    try:
        found = compare(["transductive", "bright"], root, spec=DetectorSpec(image_size=56), draws=100)
        alone = evaluate(DetectorSpec(method="transductive", image_size=56), root)
    finally:
        METHODS.remove("transductive")
    for ours, theirs in zip(
        found.results["parts"]["transductive"].classes, alone.results[0].classes, strict=True
    ):
        scores = [image.score for image in ours.images]
        assert scores == [image.score for image in theirs.images]
        assert sorted(scores) == pytest.approx(np.arange(6) / 6)


def test_methods_with_the_same_map_of_an_image_share_its_picture(root, tmp_path):
    maps = np.random.default_rng(0).random((2, 9, 9), np.float32)

    def said(scores, own):
        files = [tmp_path / f"{own}-{number}.npy" for number in range(2)]
        for file, values in zip(files, maps if own < "c" else maps[::-1], strict=True):
            np.save(file, values)
        samples = [sample for sample in load_samples(root) if sample.class_name == "nut"]
        return [Scored(*parts) for parts in zip(samples[:2], scores, files, strict=True)]

    scored = {"a": said((0.1, 0.9), "a"), "b": said((0.9, 0.1), "b"), "c": said((0.1, 0.9), "c")}
    cases = draw_disagreements(
        "nut", scored, {name: name for name in scored}, root=root, folder=tmp_path, stem_of_class="nut"
    )
    assert len(cases) == 2
    for case in cases:
        pictures = {name: opinion.picture for name, opinion in case.opinions.items()}
        assert pictures["a"] == pictures["b"] != pictures["c"]
        assert all((tmp_path / picture).is_file() for picture in pictures.values())


def test_choices_of_a_method_are_called_yes_and_no():
    found = variants(DetectorSpec("micro"), ["clip"], vary=["ln-post=yes,no"])
    assert list(named(found)) == ["clip, ln post yes", "clip, ln post no"]
