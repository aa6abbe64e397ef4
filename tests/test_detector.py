"""The detector as a whole, against the golden cases, and how it streams."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from queue import Queue

import numpy as np
import pytest
import torch
from PIL import Image

from anomalyclip import AnomalyCLIPError, Detector
from anomalyclip.clip.model import CLIP
from anomalyclip.errors import InputError
from anomalyclip.prediction import Threshold
from anomalyclip.readers import open_image
from anomalyclip.scorer import Description
from tests.conftest import TINY, torch_scorer


def make(golden, tiny_clip, **options):
    settings = {"image_size": golden.image_size, "layers": golden.layers, "dpam_layers": golden.dpam_layers}
    return Detector(torch_scorer(tiny_clip, golden.prompts, **settings | options))


@pytest.fixture
def detector(paper_case, tiny_clip):
    return make(paper_case, tiny_clip)


def test_scores_and_maps_equal_the_published_ones(golden, tiny_clip):
    predictions = make(golden, tiny_clip).predict([str(path) for path in golden.images])
    for i, prediction in enumerate(predictions):
        assert prediction.pred_score == pytest.approx(golden.arrays["score"][i], abs=1e-5)
        np.testing.assert_allclose(prediction.anomaly_map, golden.published_map("anomaly_map")[i], atol=1e-5)
        assert prediction.anomaly_map.dtype == np.float32
        assert prediction.image_path == str(golden.images[i])


def test_from_pretrained_reads_files_and_finds_the_papers_defaults_by_itself(
    paper_case, tiny_backbone, tmp_path
):
    paper_case.prompts.save(tmp_path / "prompts.safetensors")
    detector = Detector.from_pretrained(
        tiny_backbone, prompts=tmp_path / "prompts.safetensors", image_size=70
    )
    settings = detector.identity()
    assert (settings["layers"], settings["dpam_layers"], settings["sigma"]) == ([24], 19, 4.0)
    prediction = detector.predict(paper_case.images[1])
    assert prediction.pred_score == pytest.approx(paper_case.arrays["score"][1], abs=1e-5)
    np.testing.assert_allclose(prediction.anomaly_map, paper_case.published_map("anomaly_map")[1], atol=1e-5)


def test_a_path_an_image_and_an_array_give_the_same_prediction(detector, paper_case):
    path = paper_case.images[0]
    image = open_image(path)
    scores = [
        detector.predict(source).pred_score for source in (path, image, np.asarray(image.convert("RGB")))
    ]
    assert scores[0] == scores[1] == scores[2]


def test_bytes_and_files_are_taken_alone_and_in_a_list(detector, paper_case):
    path = paper_case.images[1]
    expected, content = detector.predict(path), path.read_bytes()
    with open(path, "rb") as file:
        sources = [content, file, io.BytesIO(content)]
        alone = [detector.predict(source) for source in sources]
        together = detector.predict([path, *sources])
    for prediction in (*alone, *together[1:]):
        assert prediction.image_path is None
        assert prediction.pred_score == pytest.approx(expected.pred_score, abs=1e-6)
        np.testing.assert_allclose(prediction.anomaly_map, expected.anomaly_map, atol=1e-6)
    assert together[0].image_path == str(path)
    assert isinstance(detector.predict((content,)), list)


class Recording:
    """A scorer that remembers the sizes of its batches."""

    image_size = 8

    def __init__(self):
        self.batches = []

    def __call__(self, pixels):
        self.batches.append(len(pixels))
        maps = pixels.mean(axis=3, dtype=np.float32) / 255
        return maps.max(axis=(1, 2)), maps

    def identity(self):
        return {"method": "recording"}

    def describe(self):
        return Description("recording")


@pytest.mark.parametrize(
    ("options", "sizes"), [({}, [8, 3]), ({"batch_size": 4}, [4, 4, 3]), ({"batch_size": 1}, [1] * 11)]
)
def test_a_list_goes_through_the_model_in_batches_and_in_its_order(options, sizes):
    scorer = Recording()
    grays = [np.full((5, 6, 3), 20 * number, np.uint8) for number in range(11)]
    predictions = Detector(scorer).predict(grays, **options)
    assert scorer.batches == sizes
    assert [prediction.pred_score for prediction in predictions] == pytest.approx(
        [20 * number / 255 for number in range(11)]
    )


def test_an_empty_list_is_no_prediction_and_needs_no_model():
    scorer = Recording()
    assert Detector(scorer).predict([]) == []
    assert scorer.batches == []


@pytest.mark.parametrize("batch_size", [0, -1])
def test_an_impossible_batch_size_is_refused(batch_size):
    with pytest.raises(AnomalyCLIPError, match=f"batch size {batch_size}"):
        Detector(Recording()).predict([np.zeros((5, 6, 3), np.uint8)], batch_size=batch_size)


def test_predicting_starts_no_thread(detector, paper_case, monkeypatch):
    started = []
    start = threading.Thread.start

    def noted(thread):
        started.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", noted)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
    assert len(started) == 1, "a pool would be seen"
    started.clear()
    detector.predict(paper_case.images[0])
    detector.predict([path.read_bytes() for path in paper_case.images] * 2)
    assert started == []


def test_batches_do_not_change_results(detector, paper_case):
    images = [str(path) for path in paper_case.images] * 3
    alone = [prediction.pred_score for prediction in detector.stream(images)]
    together = [prediction.pred_score for prediction in detector.stream(images, batch_size=4)]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_smoothing_and_layers_are_options(paper_case, tiny_clip):
    rough = make(paper_case, tiny_clip, sigma=0).predict(paper_case.images[0])
    np.testing.assert_allclose(
        rough.anomaly_map, paper_case.published_map("anomaly_map_unsmoothed")[0], atol=1e-5
    )
    early = make(paper_case, tiny_clip, layers=[6, 24]).predict(paper_case.images[0])
    assert np.abs(early.anomaly_map - paper_case.published_map("anomaly_map")[0]).max() > 1e-3


def test_a_stream_reads_only_as_far_ahead_as_it_must(detector, paper_case):
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield str(paper_case.images[taken % 2])

    before = set(threading.enumerate())
    stream = detector.stream(endless(), batch_size=2)
    paths = [next(stream).image_path for _ in range(3)]
    stream.close()
    assert paths == [str(paper_case.images[i % 2]) for i in (1, 2, 3)]
    assert taken <= 4 + 2 * 2 + 2
    assert not any(thread.name.startswith("decode") for thread in set(threading.enumerate()) - before)


def test_a_slow_source_gets_each_prediction_before_its_next_image(detector, paper_case):
    """A camera that names its images as they come must not wait for later ones."""
    given, taken = Queue(), []

    def camera():
        while (path := given.get()) is not None:
            yield path

    stream = detector.stream(camera())
    for path in paper_case.images:
        given.put(str(path))
        taken.append(next(stream).image_path)
    given.put(None)
    assert list(stream) == []
    assert taken == [str(path) for path in paper_case.images]


def test_an_error_of_the_source_is_raised_where_the_stream_is_read(detector, paper_case):
    def source():
        yield str(paper_case.images[0])
        raise LookupError("the list ended badly")

    stream = detector.stream(source())
    assert next(stream).image_path == str(paper_case.images[0])
    with pytest.raises(LookupError, match="ended badly"):
        next(stream)


def test_numbers_that_are_none_are_an_error_and_no_score(paper_case, tiny_state):
    damaged = CLIP.frozen(TINY, tiny_state | {"visual.proj": torch.full((64, 32), torch.nan)})
    with pytest.raises(AnomalyCLIPError, match="NaN or infinite scores at precision fp32"):
        make(paper_case, damaged).predict(paper_case.images[0])


def test_a_broken_image_stops_predict_and_is_passed_over_by_a_stream_that_is_told_so(
    detector, paper_case, tmp_path
):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG broken")
    good = str(paper_case.images[0])
    with pytest.raises(InputError, match="broken.png"):
        detector.predict([good, str(broken)])
    failed = []
    rest = list(
        detector.stream(
            [str(broken), good, str(broken), good], on_error=lambda image, error: failed.append(image)
        )
    )
    assert failed == [str(broken)] * 2
    assert [prediction.image_path for prediction in rest] == [good, good]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_what_came_before_a_broken_image_is_scored_before_the_error(
    detector, paper_case, tmp_path, batch_size
):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG broken")
    good = [str(path) for path in paper_case.images[:2]] * 2
    predictions = detector.stream([*good, str(broken), *good], batch_size=batch_size)
    assert [next(predictions).image_path for _ in good] == good
    with pytest.raises(InputError, match="broken.png"):
        next(predictions)


def test_a_threshold_gives_verdict_mask_and_regions(paper_case, tiny_clip):
    scorer = make(paper_case, tiny_clip).scorer
    plain = Detector(scorer).predict(paper_case.images[0])
    assert plain.pred_label is None
    assert plain.pred_mask is None
    level = float(np.median(plain.anomaly_map))
    judged = Detector(scorer, threshold=Threshold(score=plain.pred_score, pixel=level)).predict(
        paper_case.images[0]
    )
    assert judged.pred_label is True
    assert np.array_equal(judged.pred_mask, plain.anomaly_map >= level)
    assert judged.regions[0].peak_score == pytest.approx(plain.anomaly_map.max())


def test_bfloat16_stays_close_on_a_cpu(paper_case, tiny_clip):
    exact = make(paper_case, tiny_clip).predict(paper_case.images[0])
    half = make(paper_case, tiny_clip, precision="bf16").predict(paper_case.images[0])
    assert half.pred_score == pytest.approx(exact.pred_score, abs=0.05)
    assert half.pred_score != exact.pred_score
    assert half.anomaly_map.dtype == np.float32


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"image_size": 72}, "image size 72: expected a multiple of the backbone's patch size 14: use 70"),
        ({"image_size": 0}, "image size 0: .* use 14"),
        ({"layers": [25]}, "layer 25 does not exist: the backbone's blocks are 1 to 24"),
        ({"dpam_layers": 30}, "30 DPAM layers: expected 0 to 24"),
        ({"sigma": -1.0}, "sigma -1.0: expected 0 to 70 pixels"),
        ({"sigma": 1e10}, "sigma 10000000000.0: expected 0 to 70 pixels"),
        ({"sigma": float("nan")}, "sigma nan: expected 0 to 70 pixels"),
        ({"device": "meta"}, "device 'meta' cannot be used"),
        ({"device": "quantum"}, "device 'quantum' cannot be used"),
        ({"precision": "int3"}, "precision 'int3': expected one of fp32, bf16, fp16, auto"),
    ],
)
def test_an_impossible_option_is_one_clear_error(options, says, paper_case, tiny_clip):
    with pytest.raises(AnomalyCLIPError, match=says):
        make(paper_case, tiny_clip, **options)


def test_a_gpu_that_is_not_there_is_said_to_be_missing(paper_case, tiny_clip):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(AnomalyCLIPError, match=r"device 'cuda' cannot be used .*; try --device cpu"):
        make(paper_case, tiny_clip, device="cuda")


def test_an_image_of_another_shape_keeps_its_size_in_the_prediction(detector):
    prediction = detector.predict(Image.new("L", (300, 20), 128))
    assert prediction.image_size == (300, 20)
    assert prediction.map_at().shape == (20, 300)
