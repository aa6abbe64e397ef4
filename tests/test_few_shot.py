"""Few-shot: a memory of flawless images, its file, and a detector that uses it, in PyTorch and exported."""

import json
import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from anomalyclip import AnomalyCLIPError, Detector, DetectorSpec, InputError, fit, remember
from anomalyclip.clip.model import CLIP
from anomalyclip.data.listing import load_samples
from anomalyclip.data.synthetic.writer import write_dataset
from anomalyclip.demo import PICTURES
from anomalyclip.engines.export import export
from anomalyclip.engines.exported import ExportedScorer
from anomalyclip.errors import AnomalyCLIPWarning
from anomalyclip.evaluation.calibration import calibrate, calibrate_labelled
from anomalyclip.evaluation.comparison import compare
from anomalyclip.evaluation.drawing import draw
from anomalyclip.evaluation.leaks import references_here
from anomalyclip.evaluation.run import evaluate
from anomalyclip.evaluation.settings import ShotSettings
from anomalyclip.evaluation.shots import evaluate_shots
from anomalyclip.gathering import Gathering
from anomalyclip.images import squash
from anomalyclip.loading import as_detector
from anomalyclip.memory import scale_of
from anomalyclip.predicting import predict
from anomalyclip.prediction import Threshold
from anomalyclip.readers import Frame, open_image
from anomalyclip.reference_pictures import decoded, side_by_side
from anomalyclip.references import Memory, views
from anomalyclip.remembering import left_out_scores
from anomalyclip.workers import Workers
from tests.conftest import TINY, torch_scorer

pytestmark = pytest.mark.filterwarnings(
    "error::anomalyclip.AnomalyCLIPWarning", "ignore::anomalyclip.errors.AnomalyCLIPNote"
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Two generated products, with flawless images to draw from."""
    folder = tmp_path_factory.mktemp("data") / "parts"
    write_dataset(folder, ["tablet", "paper"], normal=6, anomalous=6, seed=3)
    return folder


@pytest.fixture(scope="module")
def good(parts):
    return sorted((parts / "tablet" / "train" / "good").iterdir())


@pytest.fixture(scope="module")
def detector():
    return Detector.from_pretrained("micro", device="cpu")


@pytest.fixture(scope="module")
def memory(detector, good):
    return fit(detector, good[:4])


@pytest.fixture(scope="module")
def few_shot(detector, memory):
    return remember(detector, memory)


def mean_of(detector, parts, name):
    """Image and pixel AUROC of one class."""
    from anomalyclip.data.listing import load_samples

    data = load_samples(parts)
    only = tuple(sample for sample in data if sample.class_name == name)
    result = evaluate(detector, type(data)(**{**vars(data), "samples": only}))
    return result.mean["image_auroc"], result.mean["pixel_auroc"]


def test_a_memory_holds_every_patch_of_its_references(memory, good):
    assert len(memory) == 4
    assert memory.patches == 4 * 15 * 15
    assert sorted(memory.names) == [path.name for path in good[:4]]
    assert list(memory.hashes) == sorted(memory.hashes)
    assert set(memory.banks) == {"block 4", "block 5"}
    assert memory.left_out.shape == (4, 15, 15)


def test_four_references_beat_none(detector, few_shot, parts):
    """Fixed seeds: generated tablets, of whose scores the micro backbone alone knows little."""
    without, beside = mean_of(detector, parts, "tablet"), mean_of(few_shot, parts, "tablet")
    assert beside[0] > without[0] + 0.02
    assert 1 - beside[1] < 0.7 * (1 - without[1])


def test_scores_do_not_depend_on_the_batch_or_the_images_in_it(few_shot, parts):
    pictures = sorted((parts / "tablet" / "test").rglob("*.png"))[:5]
    together = few_shot.predict(pictures, batch_size=5)
    for picture, beside in zip(pictures, together, strict=True):
        alone = few_shot.predict(picture)
        assert alone.pred_score == pytest.approx(beside.pred_score, abs=1e-5)
        np.testing.assert_allclose(alone.anomaly_map, beside.anomaly_map, atol=1e-5)


def test_a_reference_itself_is_as_normal_as_can_be(few_shot, detector, good):
    core = few_shot.scorer.core
    pixels = torch.from_numpy(
        np.asarray(Image.open(good[0]).resize((180, 180), Image.Resampling.BICUBIC))[None].copy()
    )
    with torch.inference_mode():
        text, maps = detector.scorer.core.compare(core.encode(core.normalise(pixels)))
        score, fused = core.compare(core.encode(core.normalise(pixels)))
    assert (fused - maps / 2).abs().max() < 0.01  # the memory says nothing
    assert float(score) == pytest.approx(float(text) / 2, abs=0.01)


def test_the_file_gives_the_memory_back_and_the_same_bytes(memory, tmp_path):
    memory.save(tmp_path / "nut.memory")
    again = Memory.load(tmp_path / "nut.memory")
    assert again.digest() == memory.digest()
    assert (again.names, again.hashes, again.settings) == (memory.names, memory.hashes, memory.settings)
    again.save(tmp_path / "again.memory")
    assert (tmp_path / "again.memory").read_bytes() == (tmp_path / "nut.memory").read_bytes()


def test_the_file_names_no_folder_of_this_machine(detector, parts, tmp_path):
    spec = DetectorSpec("micro", device="cpu")
    fit(spec, parts / "tablet" / "train" / "good").save(tmp_path / "nut.memory")
    assert str(parts).encode() not in (tmp_path / "nut.memory").read_bytes()


@pytest.mark.parametrize("augment", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_adding_later_gives_the_same_file_as_fitting_at_once(detector, good, tmp_path, augment):
    at_once = fit(detector, good[:3], augment=augment)
    at_once.save(tmp_path / "at_once.memory")
    first = fit(detector, good[2], augment=augment)
    fit(detector, [good[0], good[1]], add_to=first).save(tmp_path / "later.memory")
    assert (tmp_path / "later.memory").read_bytes() == (tmp_path / "at_once.memory").read_bytes()


def test_the_scale_is_of_the_references_alone(memory, detector, good, few_shot):
    assert float(few_shot.scorer.core.scale) == pytest.approx(scale_of(memory.left_out))
    fifth = remember(detector, fit(detector, good[4])).scorer.core
    held = {name: bank.float() for name, bank in memory.banks.items()}
    assert fifth.memory.left_out.shape == (7, 15, 15)  # a single reference: its turned views
    assert 0.3 < float(fifth.scale) / float(few_shot.scorer.core.scale) < 6
    assert held


def test_the_scale_of_one_reference_does_not_change_with_augmentation(detector, good):
    plain, augmented = fit(detector, good[0]), fit(detector, good[0], augment=True)
    assert augmented.patches == 8 * plain.patches
    torch.testing.assert_close(augmented.left_out, plain.left_out)


def test_augmentation_knows_a_turned_product(detector, good):
    turned = views(np.asarray(Image.open(good[0]).convert("RGB").resize((180, 180))))[1]
    plain, augmented = (
        remember(detector, fit(detector, Image.fromarray(views(turned)[3]), augment=augment))
        for augment in (False, True)
    )
    assert augmented.predict(turned).pred_score < plain.predict(turned).pred_score - 0.02


def test_references_of_another_product_are_not_called_normal(few_shot, detector, parts):
    right = [
        few_shot.predict(path).pred_score for path in sorted((parts / "tablet" / "test" / "good").iterdir())
    ]
    pictures = sorted((parts / "paper" / "test").rglob("*.png"))
    few_shot.observations()  # of the images so far
    wrong = [item.pred_score for item in few_shot.predict(pictures)]
    (said,) = few_shot.observations()
    assert said.startswith(f"{len(pictures)} of {len(pictures)} images do not look like the references")
    assert few_shot.observations() == []
    assert min(wrong) > 0.75
    assert min(wrong) > max(right)


def test_references_of_another_product_do_not_spoil_the_texts(few_shot, detector, parts):
    without, beside = mean_of(detector, parts, "paper"), mean_of(few_shot, parts, "paper")
    assert beside[0] >= without[0] - 0.03
    assert beside[1] >= without[1] - 0.03


def test_a_detector_by_folder_and_by_file_is_the_same(memory, good, tmp_path):
    memory.save(tmp_path / "nut.memory")
    for number, path in enumerate(good[:4]):
        (tmp_path / "refs").mkdir(exist_ok=True)
        (tmp_path / "refs" / f"{number}{path.suffix}").write_bytes(path.read_bytes())
    by_file = Detector.from_pretrained("micro", references=tmp_path / "nut.memory")
    by_folder = Detector.from_pretrained("micro", references=[tmp_path / "refs"])
    assert by_file.identity() == by_folder.identity()
    assert by_file.identity()["references_sha256"] == memory.digest()
    assert by_file.identity()["image_score"] == "top1"
    assert by_file.predict(good[5]).pred_score == by_folder.predict(good[5]).pred_score
    text = Detector.from_pretrained("micro", references=tmp_path / "nut.memory", image_score="text")
    assert text.predict(good[5]).pred_score == pytest.approx(
        Detector.from_pretrained("micro").predict(good[5]).pred_score
    )


def test_references_with_other_pixels_are_another_detector(detector, good, memory):
    assert fit(detector, good[1:5]).digest() != memory.digest()


def test_a_memory_of_another_model_is_refused(memory, tmp_path):
    memory.save(tmp_path / "nut.memory")
    with pytest.raises(AnomalyCLIPError, match="image_size: 180 then, 120 now"):
        Detector.from_pretrained("micro", references=tmp_path / "nut.memory", image_size=120)
    with pytest.raises(AnomalyCLIPError, match="without tiles.*tiles of 64"):
        Detector.from_pretrained("micro", references=tmp_path / "nut.memory", tile=64)
    Detector.from_pretrained("micro", references=tmp_path / "nut.memory", sigma=1.0)  # this one may differ


def test_tiles_are_compared_with_tiles(detector, good):
    detector = Detector.from_pretrained("micro", tile=128)
    memory = fit(detector, good[:2])
    assert memory.patches == 2 * (1 + 4) * 225  # 192 x 192 pixels: the whole and four tiles
    tiled = remember(detector, memory)
    assert tiled.predict(good[0]).anomaly_map.shape == (192, 192)
    assert tiled.predict(good[0]).pred_score < detector.predict(good[0]).pred_score


def test_more_patches_than_wanted_become_a_coreset(detector, good):
    said = "of 1350 patches in 6 references 300 are kept .*: the fewer are kept, the more is lost"
    with pytest.warns(AnomalyCLIPWarning, match=said):
        reduced = fit(detector, good, max_patches=300)
    assert reduced.patches == 300
    assert reduced.left_out.shape == (6, 15, 15)
    assert set(reduced.piece_reference[reduced.row_piece.long()].tolist()) == set(range(6))
    with pytest.raises(AnomalyCLIPError, match="reduced to 300 patches, and nothing can be added"):
        fit(detector, good[0], add_to=reduced)


def test_many_references_stay_in_bounded_memory_and_64_of_them_give_the_scale():
    small = DetectorSpec("micro", image_size=48).load()  # 16 patches
    pictures = [texture(seed) for seed in range(210, 280)]  # none unlike all others
    whole = fit(small, pictures)
    work = Gathering(small, augment=False, max_patches=100, pictures=False)
    with torch.inference_mode():
        for picture in pictures:
            work.add(work.prepare(picture, Frame(None, Image.fromarray(picture))))
            assert work.kept <= 200
        memory = work.memory()
    assert (memory.patches, memory.settings["patches"], memory.is_reduced) == (100, 1120, True)
    assert (len(memory), len(whole.left_out), len(memory.left_out)) == (70, 70, 64)
    assert 1 < scale_of(memory.left_out) / scale_of(whole.left_out) < 1.7  # to fewer patches it is farther
    assert memory.hashes == whole.hashes
    rows = memory.row_piece * 16 + memory.row_patch  # what is kept is what was there
    for name, bank in memory.banks.items():
        assert torch.equal(bank, whole.banks[name][rows])


def texture(seed):
    """A picture of stripes whose width, slope and colour differ."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:48, :48]
    wave = np.sin((rows * rng.uniform(-1, 1) + columns) * rng.uniform(0.2, 1))[..., None]
    return (127 + 60 * wave + rng.uniform(-60, 60, 3)).astype(np.uint8)


def test_a_repeated_reference_counts_once(detector, good, memory):
    with pytest.warns(
        AnomalyCLIPWarning,
        match="2 references have the same pixels.* once: 000.png, 001.png",
    ):
        assert (
            fit(detector, [*good[:4], Image.open(good[0]), Image.open(good[1])]).digest() == memory.digest()
        )


def test_one_repeated_reference_is_named_in_the_singular(detector, good):
    with pytest.warns(
        AnomalyCLIPWarning, match="^1 reference has the same pixels as .* and counts once: 000.png"
    ):
        fit(detector, [good[0], Image.open(good[0])])


def test_a_reference_with_a_defect_is_named(detector, good, parts, tmp_path):
    spoilt = np.asarray(Image.open(good[3]).convert("RGB")).copy()
    spoilt[90:110, 80:130] = (250, 20, 20)
    Image.fromarray(spoilt).save(tmp_path / "spoilt.png")
    with pytest.warns(
        AnomalyCLIPWarning, match=r"^spoilt\.png: parts of it look unlike all other references"
    ):
        fit(detector, [*good[:3], *good[4:], tmp_path / "spoilt.png"])


@pytest.fixture(scope="module")
def tested(tmp_path_factory, good):
    """A data set whose normal test images are three others and one reference, saved as another kind of file."""
    folder = tmp_path_factory.mktemp("tested") / "set"
    for kind in ("good", "spot"):
        (folder / "tablet" / "test" / kind).mkdir(parents=True)
    for path in good[4:6]:
        shutil.copy(path, folder / "tablet" / "test" / "good" / path.name)
    Image.open(good[1]).save(folder / "tablet" / "test" / "good" / "again.bmp")
    spoilt = np.asarray(Image.open(good[2]).convert("RGB")).copy()
    spoilt[90:110, 80:130] = (250, 20, 20)
    Image.fromarray(spoilt).save(folder / "tablet" / "test" / "spot" / "000.png")
    return folder


SEEN = r"1 of 4 test images is also a reference \(same pixels; tablet/test/good/again\.bmp\): an image is at distance 0"


def test_references_that_are_test_images_are_warned_of(few_shot, memory, tested, tmp_path):
    def said(found):
        return [note for note in found.notes if "distance 0" in note]

    (note,) = said(evaluate(few_shot, tested))
    assert re.match(SEEN, note)
    memory.save(tmp_path / "tablet.memory")
    specs = {
        "none": DetectorSpec("micro"),
        "few": DetectorSpec("micro", references=(str(tmp_path / "tablet.memory"),)),
    }
    (note,) = said(compare(specs, tested, draws=100))
    assert re.match(f"few: {SEEN}", note)


def test_references_cut_into_tiles_are_recognised_among_test_images_too(good, tested):
    tiled = Detector.from_pretrained("micro", tile=128, image_size=48)
    few_shot = remember(tiled, fit(tiled, good[1]))
    assert re.match(SEEN, references_here(few_shot.scorer, load_samples(tested), tiling=few_shot.tiling))
    assert references_here(few_shot.scorer, load_samples(tested)) is None  # other pixels: images are not cut


def test_references_of_a_method_that_names_the_class_are_recognised_too(good, tested):
    spec = DetectorSpec("micro", method="clip", references=[str(good[1])], image_size=48)
    detector = as_detector(spec, by_class=True)
    detector.of_class("tablet")
    assert re.match(SEEN, references_here(detector.scorer, load_samples(tested)))


def test_images_for_a_threshold_that_are_references_are_left_out(few_shot, good, tested):
    with pytest.warns(
        AnomalyCLIPWarning, match=r"^references among the images .*: 4 left out, 2 others used$"
    ):
        threshold = calibrate(few_shot, good, false_alarm_rate=0.4)
    assert threshold.info["images"] == 2
    assert threshold.score == calibrate(few_shot, good[4:], false_alarm_rate=0.4).score
    with pytest.raises(
        AnomalyCLIPError,
        match=r"^there are only references .*\(same pixels: 4\).*: give other normal images, or none",
    ):
        calibrate(few_shot, [np.asarray(Image.open(path)) for path in good[:4]], false_alarm_rate=0.4)
    with pytest.warns(AnomalyCLIPWarning, match=SEEN):
        calibrate_labelled(few_shot, tested)


def test_the_nearest_normal_place_of_a_finding_is_known(few_shot, good, tmp_path):
    spoilt = np.asarray(Image.open(good[1]).convert("RGB")).copy()
    spoilt[115:128, 64:77] = (250, 20, 20)  # of 192 x 192
    found = few_shot.predict(spoilt).nearest
    left, top, right, bottom = found.box
    assert left - 1 / 15 <= 70 / 192 <= right + 1 / 15
    assert top - 1 / 15 <= 121 / 192 <= bottom + 1 / 15
    assert found.reference in {path.name for path in good[:4]}
    assert found.distance > float(few_shot.scorer.core.scale)
    own = few_shot.predict(good[2]).nearest
    assert (own.reference, own.box) == (good[2].name, own.reference_box)
    assert own.distance < 0.001


@pytest.mark.parametrize("augment", [False, True])
def test_a_prediction_says_where_in_a_reference_its_strangest_place_is(detector, good, augment):
    memory = fit(detector, good[:2], augment=augment)
    few_shot = remember(detector, memory)
    pixels = squash(open_image(good[0]), 180)
    for turns, view in enumerate(views(pixels)[: 8 if augment else 1]):
        found = few_shot.predict(view).nearest
        assert found.reference == memory.names[found.number] == good[0].name
        assert found.distance < 0.001
        grid = np.arange(225).reshape(15, 15)
        left, top, *_ = (round(15 * share) for share in found.box)
        expected = views(grid)[turns][top, left]
        left, top, *_ = (round(15 * share) for share in found.reference_box)
        assert grid[top, left] == expected
    assert detector.predict(good[0]).nearest is None
    assert few_shot.predict(good[1]).to_dict()["nearest"]["reference"] == good[1].name


def test_page_and_report_show_a_finding_beside_the_reference_it_was_compared_with(
    memory, detector, good, parts, tmp_path
):
    few_shot = remember(detector, memory)
    run = predict(few_shot, parts / "tablet" / "test" / "good", tmp_path / "run")
    lines = [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]
    page = (run.folder / "index.html").read_text()
    assert page.count('<span class="near">') == len(lines) == 6
    for line in lines:
        assert f"nearest normal<bdi>{line['nearest']['reference']}</bdi>" in page
    beside = next((run.folder / ".thumbnails").glob("*.beside.jpg"))
    with Image.open(beside) as picture:
        assert picture.size == (260, 128)
    assert len(list((run.folder / ".thumbnails").iterdir())) == 12
    data = load_samples(parts)
    tablets = replace(data, samples=tuple(sample for sample in data if sample.class_name == "tablet"))
    found = evaluate(few_shot, tablets, output=tmp_path / "report")
    names = {path.name for path in good[:4]}
    assert all(case.reference in names for case in found.results[0].classes[0].cases)
    report = (tmp_path / "report" / "report.html").read_text()
    assert report.count('<div class="beside"><img') == len(found.results[0].classes[0].cases) == 6
    private = remember(detector, fit(detector, good[:2], pictures=False))
    run = predict(private, good[0], tmp_path / "private")
    assert '<span class="near">' not in (run.folder / "index.html").read_text()


def test_two_places_are_cut_out_and_framed_where_they_are():
    image = Image.new("RGB", (300, 200), (0, 0, 90))
    image.paste((200, 0, 0), (150, 50, 180, 80))
    reference = Image.new("RGB", (256, 256), (0, 90, 0))
    both = side_by_side(image, (0.5, 0.25, 0.6, 0.4), reference, (0.0, 0.9, 0.1, 1.0))
    assert both.size == (260, 128)
    assert both.getpixel((64, 64)) == (200, 0, 0)
    assert both.getpixel((10, 64)) == (0, 0, 90)
    assert both.getpixel((140, 40)) == (0, 90, 0)
    framed = [x for x in range(132, 260) if both.getpixel((x, 126)) == (255, 214, 0)]
    assert framed
    assert max(framed) < 132 + 64, "a place at the edge is framed at the edge"


def test_a_memory_has_small_pictures_of_its_references_unless_they_are_private(
    detector, good, memory, tmp_path
):
    assert len(memory.pictures) == 4
    for number, name in enumerate(memory.names):
        picture = decoded(memory.picture(number))
        assert picture.size == (192, 192)
        original = Image.open(good[0].parent / name).convert("RGB")
        assert np.abs(np.asarray(picture, int) - np.asarray(original, int)).mean() < 6
        assert len(memory.picture(number)) < 20_000
    private = fit(detector, good[:4], pictures=False)
    assert private.pictures == ()
    assert private.digest() == memory.digest()
    assert remember(detector, private).identity() == remember(detector, memory).identity()
    private.save(tmp_path / "private.memory")
    memory.save(tmp_path / "public.memory")
    loaded = Memory.load(tmp_path / "public.memory")
    assert loaded.pictures == memory.pictures
    assert loaded.picture(4) == b""
    grown = (tmp_path / "public.memory").stat().st_size - (tmp_path / "private.memory").stat().st_size
    assert sum(map(len, memory.pictures)) <= grown < sum(map(len, memory.pictures)) + 500
    assert fit(detector, good[4], add_to=private).pictures == ()


def test_of_a_picture_several_times_with_a_little_noise_the_scale_is_that_of_one(detector, good):
    image = np.asarray(Image.open(good[0]).convert("RGB"))
    chance = np.random.default_rng(0)
    copies = [np.clip(image + chance.normal(0, 2, image.shape), 0, 255).astype(np.uint8) for _ in range(4)]
    with pytest.warns(AnomalyCLIPWarning, match="4 references are nearly the same picture"):
        memory = fit(detector, copies)
    few_shot = remember(detector, memory)
    one, four = (scale_of(fit(detector, images).left_out) for images in (good[:1], good[:4]))
    assert 0.5 * min(one, four) < scale_of(memory.left_out) < 2 * max(one, four)
    assert memory.left_out.shape == (4, 15, 15)
    scores = [prediction.pred_score for prediction in few_shot.predict(good[1:])]
    assert max(scores) < 0.75, "new normal images are not taken for another product"
    assert few_shot.observations() == []


@pytest.mark.parametrize("patches", [1, 2])
def test_a_coreset_of_patches_of_one_reference_alone_still_gives_a_scale(detector, patches):
    with pytest.warns(AnomalyCLIPWarning, match=f"of 450 patches in 2 references {patches} are kept"):
        memory = fit(
            detector, [PICTURES / "linen_good.jpg", PICTURES / "slate_good.jpg"], max_patches=patches
        )
    whole = fit(detector, [PICTURES / "linen_good.jpg", PICTURES / "slate_good.jpg"])
    assert (len(memory), memory.patches) == (2, patches)
    assert len(memory.left_out) == len(memory.text_scores) == 2
    # A reference from which all kept patches come is compared with the other one whole.
    alone = [one for one in range(2) if (memory.piece_reference[memory.row_piece.long()] == one).all()]
    assert patches > 1 or len(alone) == 1
    for one in alone:
        torch.testing.assert_close(memory.left_out[one], whole.left_out[one])
    assert scale_of(memory.left_out) > 0


def test_an_unreadable_reference_is_named_and_the_rest_counts(detector, good, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"bad\.png"):
        fit(detector, [good[0], bad])
    told = []
    found = fit(detector, [good[0], bad], on_error=lambda image, error: told.append(str(error)))
    assert len(found) == 1
    assert "bad.png" in told[0]


def test_an_unreadable_picture_given_as_a_reference_directly_is_refused_before_anything_is_scored(
    cli, good, tmp_path
):
    (tmp_path / "refs").mkdir()
    shutil.copy(good[0], tmp_path / "refs")
    (tmp_path / "refs" / "bad.png").write_bytes(b"not an image")
    options = ("--backbone", "micro", "--references", tmp_path / "refs", "--output", tmp_path / "results")
    finished = cli("predict", good[1], *options)
    assert finished.code == 2
    assert "bad.png" in finished.err
    assert not (tmp_path / "results").exists()


def test_no_reference_is_refused(detector, tmp_path):
    with pytest.raises(AnomalyCLIPError, match="no reference could be used"):
        fit(detector, iter(()))
    with pytest.raises(AnomalyCLIPError, match="no images in this folder"):
        fit(detector, tmp_path)


def test_references_of_other_sizes_and_modes_are_images_like_any(detector):
    noise = np.random.default_rng(0).integers(0, 255, (40, 90), dtype=np.uint8)
    assert (
        len(fit(detector, [Image.fromarray(noise), Image.fromarray(noise).convert("RGB").resize((300, 10))]))
        == 2
    )


def test_a_detector_with_references_cannot_have_others(few_shot, good, memory):
    with pytest.raises(AnomalyCLIPError, match="has references already"):
        fit(few_shot, good)
    with pytest.raises(AnomalyCLIPError, match="has references already"):
        remember(few_shot, memory)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "cannot be read as a memory"),
        (lambda path: path.write_bytes(b""), "cannot be read as a memory"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_a_damaged_memory_is_named(memory, tmp_path, damage, message):
    memory.save(path := tmp_path / "nut.memory")
    damage(path)
    with pytest.raises(AnomalyCLIPError, match=rf"nut\.memory: .*{message}"):
        Memory.load(path)


def test_a_memory_may_be_in_a_folder_whose_name_is_not_utf8(memory, tmp_path):
    memory.save(path := tmp_path / os.fsdecode(b"caf\xe9") / "nut.memory")
    assert Memory.load(path).digest() == memory.digest()


def test_another_safetensors_file_is_no_memory(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "a.memory")
    with pytest.raises(AnomalyCLIPError, match=r"a\.memory: .*not a memory"):
        Memory.load(tmp_path / "a.memory")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": True}, "augment: only for references"),
        ({"references": ["a.memory", "b"]}, "a memory cannot be combined with other references"),
        (
            {"references": "a.memory", "max_patches": 9},
            "max_patches cannot be changed: fixed by a.memory",
        ),
        ({"references": "a", "max_patches": 0}, "max patches 0: expected 1 or more"),
        ({"references": [""]}, "references.*expected paths"),
    ],
)
def test_options_that_cannot_go_together_are_refused(options, message):
    with pytest.raises(AnomalyCLIPError, match=message):
        DetectorSpec("micro", **options)


def test_a_spec_with_references_is_a_value(good):
    spec = DetectorSpec("micro", references=good[0].parent, augment=True)
    assert DetectorSpec.from_json(spec.to_json()) == spec
    assert spec.references == (str(good[0].parent),)


def test_an_export_carries_its_memory(tiny_state, paper_case, good, tmp_path):
    """The golden CLIP with two blocks: exporting micro takes longer."""
    prefix = "visual.transformer.resblocks."
    state = {k: v for k, v in tiny_state.items() if not k.startswith(prefix) or int(k.split(".")[3]) < 2}
    clip = CLIP.frozen(replace(TINY, vision_layers=2), state)
    plain = Detector(torch_scorer(clip, paper_case.prompts, image_size=70, dpam_layers=1))
    memory = fit(plain, good[:3])
    few_shot = remember(plain, memory)
    report = export(few_shot, tmp_path / "few.onnx", dynamic_batch=True)
    assert max(report.score_difference, report.map_difference) < 1e-4
    card = ExportedScorer(tmp_path / "few.onnx").card
    assert card.identity["references_sha256"] == memory.digest()
    assert sorted(card.facts["references"]) == sorted(memory.names)
    assert card.facts["references_mb"] == pytest.approx(memory.exported_size / 1e6, abs=0.01)
    exported = Detector.from_exported(tmp_path / "few.onnx")
    for picture in (good[0], good[5]):
        one, other = exported.predict(picture), few_shot.predict(picture)
        assert one.pred_score == pytest.approx(other.pred_score, abs=1e-4)
        np.testing.assert_allclose(one.anomaly_map, other.anomaly_map, atol=1e-4)


@pytest.mark.slow
def test_the_file_grows_by_the_memory(few_shot, detector, memory, tmp_path):
    plain = export(detector, tmp_path / "plain.onnx")
    report = export(few_shot, tmp_path / "few.onnx", dynamic_batch=True)
    assert report.size - plain.size == pytest.approx(memory.exported_size, abs=150_000)


OTHERS = [("few.xml", {"format": "openvino"}), ("half.onnx", {"precision": "fp16"})]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), OTHERS)
def test_other_exports_carry_it_too_and_warn_of_another_product(few_shot, parts, tmp_path, name, options):
    report = export(few_shot, tmp_path / name, **options)
    assert max(report.score_difference, report.map_difference) < report.tolerance
    exported = Detector.from_exported(tmp_path / name)
    exported.predict(sorted((parts / "tablet" / "test" / "good").iterdir()))
    assert exported.observations() == []
    exported.predict(sorted((parts / "paper" / "test" / "good").iterdir()))
    assert exported.observations()[0].startswith("6 of 6 images do not look like the references")


def test_from_a_folder_to_verdicts_on_the_command_line(cli, parts, tmp_path):
    memory = tmp_path / "nut.memory"
    refs = sorted((parts / "tablet" / "train" / "good").iterdir())
    base = ["fit", "--backbone", "micro", "--output", memory]
    assert "2 references, 450 patches" in cli(*base, refs[0], refs[1]).out
    again = cli(*base, refs[0])
    assert again.code == 2
    assert "exists" in again.err
    assert "3 references" in cli(*base, "--add", refs[2]).out
    pictures, results = parts / "tablet" / "test" / "good", tmp_path / "out"
    shown = cli("predict", pictures, "--backbone", "micro", "--references", memory, "--output", results)
    assert shown.code == 0
    assert len((results / "predictions.jsonl").read_text().splitlines()) == 6
    assert (
        json.loads((results / "settings.json").read_text())["references_sha256"]
        == Memory.load(memory).digest()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "nut.txt"], "the file name of a memory must end in .memory, for example"),
        (["--output", "none.memory", "--add"], "no memory to add to"),
        (["--output", "none.memory", "--add", "--augment"], "--augment cannot be changed with --add"),
    ],
)
def test_fit_refuses_what_cannot_be(cli, good, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    finished = cli("fit", good[0], "--backbone", "micro", *options)
    assert finished.code == 2
    assert message in " ".join(finished.err.split())
    assert not list(tmp_path.iterdir())


def test_a_run_on_another_product_is_warned_of_whatever_the_detector_scored_before(few_shot, parts, tmp_path):
    right = sorted((parts / "tablet" / "test").rglob("*.png"))
    wrong = sorted((parts / "paper" / "test" / "good").iterdir())
    assert len(right) == 2 * len(wrong) == 12
    predict(few_shot, right, tmp_path / "right")  # warns of nothing
    with pytest.warns(AnomalyCLIPWarning, match="6 of 6 images do not look like the references"):
        predict(few_shot, wrong, tmp_path / "wrong")
    few_shot.predict(wrong)  # outside of every run
    predict(few_shot, right[:3], tmp_path / "right again")


def test_an_evaluation_is_warned_of_its_own_images_alone(few_shot, parts, tmp_path):
    few_shot.predict(sorted((parts / "paper" / "test" / "good").iterdir()))  # outside of every run
    shutil.copytree(parts / "tablet" / "test" / "good", tmp_path / "right" / "tablet" / "test" / "good")
    shutil.copytree(parts / "paper" / "test" / "good", tmp_path / "wrong" / "tablet" / "test" / "good")
    unlike = "images do not look like the references at all"
    assert not any(unlike in note for note in evaluate(few_shot, tmp_path / "right").notes)
    (note,) = (note for note in evaluate(few_shot, tmp_path / "wrong").notes if unlike in note)
    assert note.startswith("6 of 6 ")


def test_a_method_that_names_the_class_is_warned_of_classes_that_the_references_do_not_show(good, parts):
    spec = DetectorSpec("micro", method="clip", references=[str(path) for path in good[:2]])
    notes = evaluate(spec, parts).notes
    (note,) = (note for note in notes if "do not look like the references" in note)
    assert note.startswith("class paper: ")


@pytest.mark.slow
def test_processes_are_warned_of_another_product_too(good, parts, tmp_path):
    spec = DetectorSpec("micro", references=[str(path) for path in good[:2]])
    wrong = sorted((parts / "paper" / "test" / "good").iterdir())
    unlike = "images do not look like the references at all"
    with Workers(spec, 2) as workers, pytest.warns(AnomalyCLIPWarning, match=unlike):
        predict(workers, wrong, tmp_path / "wrong")


# --- thresholds


def test_references_alone_give_a_threshold_with_an_honest_interval(detector, few_shot, good):
    threshold = calibrate(few_shot, false_alarm_rate=0.01)
    assert threshold.info["images"] == 4
    assert threshold.info["method"] == "references, each compared with the others"
    assert threshold.info["false_alarm_rate"]["high"] == pytest.approx(1 - 0.05 ** (1 / 4))
    assert "at least 299 normal images" in threshold.info["says"][0]
    assert threshold.info["identity"] == few_shot.identity()
    # Every reference scores as with a memory of the other three, but for the scale.
    scores = [score for score, _ in left_out_scores(few_shot)]
    names = few_shot.scorer.core.memory.names
    for name, score in zip(names, scores, strict=True):
        others = remember(detector, fit(detector, [path for path in good[:4] if path.name != name]))
        others.scorer.core.scale.copy_(few_shot.scorer.core.scale)
        (own,) = (path for path in good[:4] if path.name == name)
        assert others.predict(own).pred_score == pytest.approx(score, abs=1e-3)


def test_what_cannot_calibrate_itself_says_why(detector, good):
    with pytest.raises(AnomalyCLIPError, match="no references to calibrate with"):
        calibrate(detector)
    with pytest.raises(AnomalyCLIPError, match="a single reference gives no threshold"):
        calibrate(remember(detector, fit(detector, good[0])))


def test_calibrating_with_references_on_the_command_line(cli, memory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    memory.save("tablet.memory")
    done = cli("calibrate", "--backbone", "micro", "--references", "tablet.memory", "--false-alarm-rate", 0.3)
    assert done.code == 0
    assert "4 images are too few" in done.out
    assert Threshold.from_file("threshold.json").info["images"] == 4


# --- drawn references


def test_draws_are_without_replacement_and_the_same_for_every_method():
    names = [f"{number:03}.png" for number in range(10)]
    assert len(set(draw(names, 10, seed=0, name="nut"))) == 10
    assert draw(names, 4, seed=1, name="nut") == draw(reversed(names), 4, seed=1, name="nut")
    assert draw(names, 4, seed=1, name="nut") != draw(names, 4, seed=2, name="nut")
    assert draw(names, 4, seed=1, name="nut")[:1] == draw(names, 1, seed=1, name="nut")


def test_shots_are_evaluated_class_by_class_with_mean_and_spread(parts, tmp_path, cli):
    output = tmp_path / "shots"
    command = ["test", parts, "--backbone", "micro", "--shots", 2, "--seeds", 2, "--output", output]
    done = cli(*command, "--format", "json")
    assert done.code == 0, done.err
    found = json.loads((output / "shots.json").read_text())
    assert [(run["shots"], run["seed"]) for run in found["runs"]] == [(0, 0), (2, 0), (2, 1)]
    references = found["runs"][1]["references"]["parts/tablet"]
    assert len(references) == 2
    assert all(path.startswith("tablet/train/good/") for path in references)
    values = [run["mean"]["pixel_auroc"] for run in found["runs"][1:]]
    assert found["table"]["2"]["mean"]["pixel_auroc"] == pytest.approx(np.mean(values))
    assert found["table"]["2"]["spread"]["pixel_auroc"] == pytest.approx(np.std(values, ddof=1))
    assert "±" in (output / "shots.md").read_text()
    # One draw is what the same references give by hand.
    by_hand = remember(
        Detector.from_pretrained("micro"),
        fit(Detector.from_pretrained("micro"), [parts / path for path in references]),
    )
    results = json.loads((output / "shots-2-seed-0" / "results.json").read_text())["results"][0]
    (tablet,) = (entry for entry in results["classes"] if entry["class"] == "tablet")
    assert tablet["metrics"]["pixel_auroc"] == pytest.approx(mean_of(by_hand, parts, "tablet")[1], abs=1e-6)
    # Resuming changes nothing.
    assert cli(*command, "--format", "json", "--resume").code == 0
    assert json.loads((output / "shots.json").read_text()) == found


def test_a_drawn_reference_that_cannot_be_read_is_replaced_by_the_next_one_of_the_draw(parts, tmp_path):
    for folder in ("train/good", "test/good"):
        shutil.copytree(parts / "tablet" / folder, tmp_path / "set" / "tablet" / folder)
    training = sorted((tmp_path / "set" / "tablet" / "train" / "good").iterdir())
    names = [f"tablet/train/good/{path.name}" for path in training]
    first, second, third, *_ = draw(names, 6, seed=0, name="tablet")
    (tmp_path / "set" / second).write_bytes(b"not an image")
    with pytest.warns(AnomalyCLIPWarning, match=f"{second}: .*; another reference is drawn in its place"):
        found = evaluate_shots(DetectorSpec("micro"), tmp_path / "set", ShotSettings(shots=(2,), seeds=1))
    assert found.runs[1].references == {"set/tablet": [first, third]}
    for path in training[1:]:
        path.write_bytes(b"not an image")  # which leaves one
    with (
        pytest.warns(AnomalyCLIPWarning, match="not an image of a known format"),
        pytest.raises(
            AnomalyCLIPError, match="'tablet' has 1 normal training images that can be read, and 2"
        ),
    ):
        evaluate_shots(DetectorSpec("micro"), tmp_path / "set", [2], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_drawn_references_of_another_product_are_warned_of(parts, tmp_path):
    shutil.copytree(parts / "paper" / "train" / "good", tmp_path / "set" / "tablet" / "train" / "good")
    shutil.copytree(parts / "tablet" / "test" / "good", tmp_path / "set" / "tablet" / "test" / "good")
    found = evaluate_shots(DetectorSpec("micro"), tmp_path / "set", ShotSettings(shots=(2,), seeds=1))
    unlike = "class tablet: 6 of 6 images do not look like the references"
    assert [any(unlike in note for note in run.evaluation.notes) for run in found.runs] == [False, True]


@pytest.mark.slow
def test_the_report_of_a_draw_shows_findings_beside_the_references_drawn(parts, tmp_path):
    for folder in ("train/good", "test", "ground_truth"):
        shutil.copytree(parts / "tablet" / folder, tmp_path / "set" / "tablet" / folder)
    evaluate_shots(
        DetectorSpec("micro"),
        tmp_path / "set",
        ShotSettings(shots=(2,), seeds=1),
        output=tmp_path / "out",
        formats=("html",),
    )
    said = "the place of the references that is most like it"
    assert said in " ".join((tmp_path / "out" / "shots-2-seed-0" / "report.html").read_text().split())
    assert said not in " ".join((tmp_path / "out" / "shots-0" / "report.html").read_text().split())


def test_a_set_without_normal_training_images_is_refused_by_name(tmp_path, cli, parts):
    for folder in ("test", "ground_truth"):
        shutil.copytree(parts / "tablet" / folder, tmp_path / "bare" / "tablet" / folder)
    done = cli("test", tmp_path / "bare", "--backbone", "micro", "--shots", 1, "--output", tmp_path / "out")
    assert done.code == 2
    assert "bare" in done.err
    assert "train" in done.err
    done = cli("test", parts, "--backbone", "micro", "--shots", 7, "--output", tmp_path / "out")
    assert done.code == 2
    assert "has 6 normal training images, and 7 references" in " ".join(done.err.split())
