"""Large images in tiles: every pixel counts once, seams do not show, and what is small stays as it was."""

import json
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from anomalyclip.demo import PICTURES
from anomalyclip.detector import Detector
from anomalyclip.errors import AnomalyCLIPError, InputError
from anomalyclip.framing import Framing
from anomalyclip.readers import open_image
from anomalyclip.scorer import Description
from anomalyclip.tiling import Tiling, score_tiles

SIDE = 32


class Darkness:
    """A model that calls a pixel anomalous as far as it is dark; the score is the darkest pixel."""

    image_size = SIDE

    def __init__(self):
        self.batches = []

    def __call__(self, pixels):
        self.batches.append(len(pixels))
        maps = (255 - pixels.mean(axis=-1, dtype=np.float32)) / 255
        return maps.max(axis=(1, 2)), maps

    def identity(self):
        return {"method": "darkness"}

    def describe(self):
        return Description("darkness")


def picture(width, height, *spots):
    """A white image with black squares of 8 pixels at (x, y)."""
    pixels = np.full((height, width, 3), 255, np.uint8)
    for x, y in spots:
        pixels[y : y + 8, x : x + 8] = 0
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("size", "overlap", "length"), [(100, 0.25, 1000), (64, 0.5, 65), (50, 0.0, 175), (40, 0.9, 90)]
)
def test_tiles_cover_a_side_from_end_to_end_with_at_least_the_overlap(size, overlap, length):
    starts = Tiling(size, overlap=overlap).starts(length)
    assert starts[0] == 0
    assert starts[-1] + size == length
    assert all(size - (b - a) >= int(overlap * size) - 1 for a, b in pairwise(starts))


@pytest.mark.parametrize("length", [20, 64, 65, 1000])
def test_weights_add_up_to_one_at_every_pixel(length):
    tiling = Tiling(64, overlap=0.3)
    total = np.zeros(length)
    for start, weights in zip(tiling.starts(length), tiling.weights(length), strict=True):
        total[start : start + len(weights)] += weights
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_two_tiles_that_share_a_half_are_blended_by_a_squared_sine():
    """Its square and the shifted one's, the squared cosine, add up to one: sin²(x) = (1 - cos 2x) / 2."""
    rising = [
        0.009607,
        0.084265,
        0.222215,
        0.402455,
        0.597545,
        0.777785,
        0.915735,
        0.990393,
    ]  # 2x: 11.25°, 33.75°, ...
    weights = Tiling(16, overlap=0.5).weights(24)
    expected = [[1] * 8 + rising[::-1], rising + [1] * 8]
    np.testing.assert_allclose(weights, expected, atol=1e-6)


def test_a_spot_is_found_at_its_place_in_the_map_of_full_size():
    image = picture(300, 200, (190, 120))
    score, anomaly_map = score_tiles(Darkness(), image, Tiling(SIDE * 2), framing=Framing(SIDE), batch_size=4)
    assert anomaly_map.shape == (200, 300)
    assert anomaly_map.dtype == np.float32
    assert anomaly_map[124, 194] > 0.9
    dark = np.argwhere(anomaly_map > 0.5)
    assert dark.min(axis=0).tolist() == [120, 190]
    assert dark.max(axis=0).tolist() == [127, 197]
    assert 0.5 < score < 1


def test_a_plain_image_has_no_seams():
    plain = Image.new("L", (333, 217), 100)
    _, anomaly_map = score_tiles(
        Darkness(), plain, Tiling(50, overlap=0.4), framing=Framing(SIDE), batch_size=3
    )
    np.testing.assert_allclose(anomaly_map, 155 / 255, atol=1e-5)


def test_the_score_is_the_mean_of_the_whole_and_of_the_highest_tile():
    image = picture(256, 256, (40, 40))
    model = Darkness()
    whole = float(model(np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))[None])[0][0])
    score, _ = score_tiles(model, image, Tiling(SIDE), framing=Framing(SIDE), batch_size=8)
    assert whole < 1
    assert score == pytest.approx((whole + 1) / 2, abs=1e-6)


SHARES = {"max": 0.0, "top1": 0.01, "mean": 1.0}
"""What share of the map's highest pixels each rule averages; of 0 it is the highest one."""


@pytest.fixture(scope="module")
def linen():
    """A large image, and what the texts alone say of the whole and of its two tiles, with their maps."""
    image = Image.open(PICTURES / "linen_cut.jpg").convert("RGB").resize((300, 200))
    crops = [image.crop((left, 0, left + 200, 200)) for left in (0, 100)]
    by_texts = Detector.from_pretrained("micro", device="cpu")
    return image, by_texts.predict([image, *crops])


@pytest.mark.parametrize("rule", SHARES)
def test_an_image_score_that_uses_the_map_does_so_in_every_tile_and_in_the_whole(rule, linen):
    image, found = linen
    highest = [np.sort(one.anomaly_map, axis=None)[::-1] for one in found]
    means = [pixels[: max(int(SHARES[rule] * pixels.size), 1)].mean() for pixels in highest]
    whole, *parts = ((one.pred_score + mean) / 2 for one, mean in zip(found, means, strict=True))
    tiled = Detector.from_pretrained("micro", device="cpu", image_score=rule, tile=200)
    assert tiled.predict(image).pred_score == pytest.approx((whole + max(parts)) / 2, abs=1e-5)
    by_texts = (found[0].pred_score + max(one.pred_score for one in found[1:])) / 2
    assert abs((whole + max(parts)) / 2 - by_texts) > 0.01


def test_tiles_go_through_the_model_in_batches_and_the_batch_size_changes_nothing():
    image, tiling = picture(200, 100, (150, 30)), Tiling(60)
    one, many = Darkness(), Darkness()
    score, anomaly_map = score_tiles(one, image, tiling, framing=Framing(SIDE), batch_size=1)
    again, same = score_tiles(many, image, tiling, framing=Framing(SIDE), batch_size=5)
    assert score == again
    np.testing.assert_array_equal(anomaly_map, same)
    assert max(one.batches) == 1
    assert many.batches == [1, 5, 5]  # the whole image, then 5 x 2 tiles


def test_an_image_no_larger_than_a_tile_is_scored_as_without_tiles():
    image = picture(64, 48, (10, 10))
    plain, tiled = (Detector(Darkness(), tiling=t).predict(image) for t in (None, Tiling(64)))
    assert plain.pred_score == tiled.pred_score
    np.testing.assert_array_equal(plain.anomaly_map, tiled.anomaly_map)
    assert tiled.anomaly_map.shape == (SIDE, SIDE)


def test_a_long_narrow_image_is_cut_along_its_long_side_only():
    _, anomaly_map = score_tiles(
        Darkness(), picture(500, 20, (400, 5)), Tiling(100), framing=Framing(SIDE), batch_size=2
    )
    assert anomaly_map.shape == (20, 500)
    assert anomaly_map[9, 404] > 0.9


def test_regions_and_mask_are_in_pixels_of_the_large_image():
    detector = Detector(Darkness(), tiling=Tiling(64))
    prediction = detector.predict(picture(300, 200, (190, 120))).with_threshold(0.5)
    (region,) = prediction.regions
    assert region.box == (190, 120, 198, 128)
    mask = prediction.mask_at()
    assert mask.shape == (200, 300)
    assert mask[121:127, 191:197].all()
    assert mask.sum() <= 64


def test_a_bad_image_between_large_ones_is_named_and_the_rest_goes_on(tmp_path):
    picture(100, 100).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    picture(100, 100).save(tmp_path / "c.png")
    paths = [str(tmp_path / f"{name}.png") for name in "abc"]
    failed = []
    done = list(
        Detector(Darkness(), tiling=Tiling(50)).stream(
            paths, on_error=lambda path, error: failed.append(path)
        )
    )
    assert [p.image_path for p in done] == [paths[0], paths[2]]
    assert failed == [paths[1]]
    with pytest.raises(InputError, match=r"b\.png"):
        list(Detector(Darkness(), tiling=Tiling(50)).stream(paths))


@pytest.mark.parametrize(
    ("size", "overlap", "message"),
    [(8, 0.25, "tile size 8"), (64, 1.0, "overlap 1.0"), (64, -1, "overlap -1")],
)
def test_impossible_tilings_are_refused(size, overlap, message):
    with pytest.raises(AnomalyCLIPError, match=message):
        Tiling(size, overlap=overlap)


def test_the_command_cuts_large_images_and_saves_maps_of_their_size(cli, tiny_backbone, paper_case, tmp_path):
    picture(150, 120, (90, 30)).save(tmp_path / "large.tif")
    options = [
        "--backbone",
        tiny_backbone,
        "--prompts",
        paper_case.images[0].parent / "paper_prompts.safetensors",
    ]
    saved = ["--save", "map", "--save", "mask", "--save", "heatmap", "--threshold", 0.5]
    done = cli(
        "predict",
        tmp_path / "large.tif",
        *options,
        *saved,
        "--image-size",
        56,
        "--tile",
        80,
        "--output",
        tmp_path / "out",
    )
    assert (done.code, done.err) == (0, "")
    assert np.load(tmp_path / "out/maps/large.npy").shape == (120, 150)
    assert open_image(tmp_path / "out/masks/large_mask.png").size == (150, 120)
    settings = json.loads((tmp_path / "out/settings.json").read_text())
    assert (settings["tile"], settings["overlap"]) == (80, 0.25)
