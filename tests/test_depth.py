"""More than 8 bits: one scale for all images of a run, whoever decides it, and every bit is used."""

import io
import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalyclip import Detector, DetectorSpec, Threshold, calibrate, fit, predicting
from anomalyclip.depth import Deep
from anomalyclip.depth.ranges import measure_range
from anomalyclip.errors import AnomalyCLIPError, AnomalyCLIPWarning, InputError
from anomalyclip.images import decode_image, read_image
from anomalyclip.loading import as_detector, measured
from anomalyclip.readers import frames, open_image
from tests.toy_methods import Bright

imagecodecs = pytest.importorskip("imagecodecs")
tifffile = pytest.importorskip("tifffile")


def bright(**options):
    """A detector whose score is the brightest pixel that the model saw, from 0 to 1."""
    return Detector(Bright(DetectorSpec(image_size=8)), **options)


def save(path, value, *, shape=(8, 8), kind=np.uint16):
    Image.fromarray(np.full(shape, value, kind)).save(path)
    return str(path)


@pytest.fixture
def exposures(tmp_path):
    """One camera of 12 bits, two exposures of one gray card: the second is four times as long."""
    return [save(tmp_path / "long.png", 3200), save(tmp_path / "short.png", 800)]


def scores(detector, paths, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AnomalyCLIPWarning)
        return [prediction.pred_score for prediction in detector.stream(paths, **options)]


def test_one_camera_and_two_exposures_have_one_scale_in_a_run(exposures):
    """Each alone would be guessed: 800 of 1023 and 3200 of 4095 would look alike."""
    for batch_size, workers in ((1, 1), (2, 4)):
        found = scores(bright(), exposures, batch_size=batch_size, workers=workers)
        assert found == pytest.approx([3200 / 4095, 800 / 4095], abs=0.002)
    with pytest.warns(AnomalyCLIPWarning):
        assert [p.pred_score for p in bright().predict(exposures)] == found


def test_a_given_range_decides_whatever_comes_first(exposures):
    assert scores(bright(value_range=(0, 4000)), exposures[::-1]) == pytest.approx([0.2, 0.8], abs=0.002)


def test_what_lies_beyond_a_given_range_is_black_or_white(exposures):
    assert scores(bright(value_range=(1000, 2000)), exposures) == [1.0, 0.0]


def test_a_run_says_once_what_it_assumed_and_one_picture_says_nothing(exposures):
    with pytest.warns(AnomalyCLIPWarning) as told:
        list(bright().stream([*exposures, *exposures]))
    assert len(told) == 1
    assert f"scaled from 0 to 4095, which is assumed from {exposures[0]}" in str(told[0].message)
    assert "--range LOW HIGH" in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bright().predict(exposures[0])
        list(bright(value_range=(0, 4095)).stream(exposures))


def test_an_image_that_does_not_fit_what_was_assumed_is_refused_by_name_and_the_rest_is_scored(exposures):
    failed = []
    found = scores(
        bright(), [*exposures[::-1], exposures[1]], on_error=lambda path, error: failed.append((path, error))
    )
    assert found == pytest.approx([800 / 1023] * 2, abs=0.002)
    ((path, error),) = failed
    assert path == exposures[0]
    assert (
        f"{path}: values from 3200 to 3200, but 0 to 1023 was assumed for all images from {exposures[1]}"
        in str(error)
    )


def test_a_prediction_says_the_range_and_the_heat_map_is_drawn_on_it(exposures, tmp_path):
    images = [image for path in exposures for image in [path]]
    run = predicting.predict(
        bright(value_range=(0, 4000)), images, tmp_path / "out", save=["heatmap"], draw=lambda image, _: image
    )
    records = [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]
    assert [record["value_range"] for record in records] == [[0, 4000]] * 2
    drawn = [open_image(run.folder / record["files"]["heatmap"]).getpixel((0, 0)) for record in records]
    assert drawn == [204, 51]
    assert json.loads((run.folder / "settings.json").read_text())["value_range"] == [0, 4000]


def test_a_resumed_run_goes_on_with_what_it_assumed(exposures, tmp_path):
    predicting.predict(bright(), [exposures[0]], tmp_path / "out")
    predicting.predict(bright(), exposures, tmp_path / "out", resume=True)
    records = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert [record["pred_score"] for record in records] == pytest.approx([3200 / 4095, 800 / 4095], abs=0.002)


def test_another_range_is_another_run_and_another_threshold(exposures, tmp_path):
    predicting.predict(bright(value_range=(0, 4095)), exposures, tmp_path / "out")
    with pytest.raises(AnomalyCLIPError, match=r"other settings \(value_range: 0.0 4095.0 then, none now\)"):
        predicting.predict(bright(), exposures, tmp_path / "out", resume=True)
    threshold = Threshold(score=0.5, info={"identity": bright(value_range=(0, 4095)).identity()})
    assert bright(threshold=threshold).remarks() == []
    (remark,) = bright(threshold=threshold, value_range=(0, 1023)).remarks()
    assert "value_range: 0.0 4095.0 then, 0.0 1023.0 now" in remark


@pytest.mark.filterwarnings("ignore::anomalyclip.errors.AnomalyCLIPWarning")
def test_a_threshold_brings_the_range_that_it_was_calibrated_on(exposures, tmp_path):
    calibrate(bright(), exposures, false_alarm_rate=0.4).to_file(tmp_path / "threshold.json")
    threshold = Threshold.from_file(tmp_path / "threshold.json")
    assert scores(bright(threshold=threshold), exposures[1:]) == pytest.approx([800 / 4095], abs=0.002)
    assert as_detector(bright(), threshold=threshold).value_range == (0, 4095)


def test_a_range_is_measured_on_normal_images(tmp_path):
    (tmp_path / "good").mkdir()
    for number in range(3):
        ramp = np.linspace(200, 3200, 1000).round().astype(np.uint16).reshape(20, 50)
        Image.fromarray(np.roll(ramp, number)).save(tmp_path / f"good/{number}.png")
    Image.new("L", (4, 4), 255).save(tmp_path / "good/thumbnail.png")  # 8 bits: left out
    low, high = measure_range(tmp_path / "good")
    assert (low, high) == pytest.approx((203, 3197), abs=1.1)
    spec = measured(DetectorSpec("micro", range_from=tmp_path / "good"))
    assert (spec.value_range, spec.range_from) == ((low, high), None)
    detector = DetectorSpec("micro", range_from=tmp_path / "good").load()
    assert detector.identity()["value_range"] == [low, high]
    assert detector.spec.value_range == (low, high)


def test_a_folder_without_deep_images_has_no_range(tmp_path):
    save(tmp_path / "a.png", 7, kind=np.uint8)
    with pytest.raises(AnomalyCLIPError, match="no image has more than 8 bits"):
        measure_range(tmp_path)
    save(tmp_path / "b.png", 700)
    with pytest.raises(AnomalyCLIPError, match="nearly all pixels are 700"):
        measure_range(tmp_path)


@pytest.mark.parametrize("value_range", [(5, 5), (9, 3), (0, float("inf")), "ab", 3, (1, 2, 3), (None, 1)])
def test_an_impossible_range_is_refused(value_range):
    with pytest.raises(AnomalyCLIPError, match="expected two finite numbers, the lower one first"):
        DetectorSpec("micro", value_range=value_range)


def test_range_and_range_from_exclude_each_other():
    with pytest.raises(AnomalyCLIPError, match="cannot be combined"):
        DetectorSpec("micro", value_range=(0, 1), range_from="good")


def test_a_spec_keeps_its_range_through_json():
    spec = DetectorSpec("micro", value_range=[0, 4095])
    assert DetectorSpec.from_json(spec.to_json()) == spec
    assert spec.value_range == (0.0, 4095.0)


RAMP = np.arange(6 * 5 * 3).reshape(6, 5, 3)


def encoded(values, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


COLOR = (RAMP * 700).astype(np.uint16)
WIDE = {
    "rgb.png": (imagecodecs.png_encode(COLOR), COLOR),
    "alpha.png": (imagecodecs.png_encode(np.dstack([COLOR, COLOR[..., 0]])), COLOR),
    "gray_alpha.png": (imagecodecs.png_encode(np.ascontiguousarray(COLOR[..., :2])), COLOR[..., 0]),
    "gray.png": (imagecodecs.png_encode(np.ascontiguousarray(COLOR[..., 0])), COLOR[..., 0]),
    "rgb.tif": (encoded(COLOR, photometric="rgb"), COLOR),
    "lzw.tif": (encoded(COLOR, photometric="rgb", compression="lzw", predictor=True), COLOR),
    "planar.tif": (encoded(np.moveaxis(COLOR, 2, 0), photometric="rgb", planarconfig="separate"), COLOR),
    "alpha.tif": (encoded(np.dstack([COLOR, COLOR[..., 0]]), photometric="rgb", extrasamples=[2]), COLOR),
    "float_rgb.tif": (encoded((RAMP / 100).astype(np.float32), photometric="rgb"), (RAMP / 100).astype("f4")),
    "float.tif": (encoded((RAMP[..., 0] / 100).astype(np.float32)), (RAMP[..., 0] / 100).astype("f4")),
    "double.tif": (encoded(RAMP[..., 0] / 100), RAMP[..., 0] / 100),
    "half.tif": (encoded((RAMP[..., 0] / 100).astype(np.float16)), (RAMP[..., 0] / 100).astype("f2")),
    "signed.tif": (encoded((RAMP[..., 0] - 40).astype(np.int16)), RAMP[..., 0] - 40),
    "big.tif": (encoded(COLOR, photometric="rgb", bigtiff=True), COLOR),
    "color.ppm": (b"P6\n# a comment\n5 6\n65535\n" + COLOR.astype(">u2").tobytes(), COLOR),
    "gray.pgm": (b"P5 5 6 4095\n" + RAMP[..., 0].astype(">u2").tobytes(), RAMP[..., 0]),
}


@pytest.mark.parametrize("name", WIDE)
def test_every_bit_is_read_from_a_file_and_from_its_bytes(name, tmp_path):
    content, values = WIDE[name]
    (tmp_path / name).write_bytes(content)
    for source in (str(tmp_path / name), content):
        (frame,) = frames(source)
        assert isinstance(frame.image, Deep)
        np.testing.assert_array_equal(frame.image.values, values)
        assert frame.image.size == (5, 6)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_colour_is_turned_upright(suffix, tmp_path):
    if suffix == "tif":
        content = encoded(COLOR, photometric="rgb", extratags=[(274, "H", 1, 6, True)])
    else:
        content = imagecodecs.png_encode(COLOR)
        exif = Image.Exif()
        exif[0x0112] = 6
        chunk = exif.tobytes().removeprefix(b"Exif\0\0")
        import zlib

        body = b"eXIf" + chunk
        packed = len(chunk).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
        end = content.index(b"IDAT") - 4
        content = content[:end] + packed + content[end:]
    np.testing.assert_array_equal(decode_image(content).values, COLOR.swapaxes(0, 1)[:, ::-1])


def test_ink_is_turned_into_light(tmp_path):
    """TIFF may store how dark a pixel is; Pillow turns 8 bits around, but no deeper ones."""
    ink = np.array([[0, 1023]], np.uint16)
    assert np.asarray(read_image(encoded(ink, photometric="miniswhite"))).tolist() == [[255, 0]]


def test_what_a_netpbm_file_calls_white_is_white(tmp_path):
    (tmp_path / "dark.pgm").write_bytes(WIDE["gray.pgm"][0])
    image = open_image(tmp_path / "dark.pgm")
    assert np.asarray(image).max() == round(RAMP[..., 0].max() / 4095 * 255)
    assert np.asarray(open_image(tmp_path / "dark.pgm", value_range=(0, 87))).max() == 255


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_no_number_is_refused_even_with_a_range(value, tmp_path):
    path = save(tmp_path / "odd.tif", 0.5, kind=np.float32)
    odd = np.full((4, 4), 0.5, np.float32)
    odd[2, 2] = value
    Image.fromarray(odd).save(path)
    with pytest.raises(InputError, match=r"odd.tif: values that are NaN or infinite"):
        bright(value_range=(0, 1)).predict(path)


def test_negative_values_need_a_range(tmp_path):
    (tmp_path / "ct.tif").write_bytes(WIDE["signed.tif"][0])
    with pytest.raises(InputError, match=r"ct.tif: gray values from -40 to 47.*--range LOW HIGH"):
        bright().predict(tmp_path / "ct.tif")
    assert bright(value_range=(-40, 47)).predict(tmp_path / "ct.tif").pred_score == 1


def test_without_the_extra_16_bit_colour_is_refused_with_the_line_that_installs_it(tmp_path, monkeypatch):
    (tmp_path / "rgb.png").write_bytes(WIDE["rgb.png"][0])
    (tmp_path / "rgb.tif").write_bytes(WIDE["rgb.tif"][0])
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    for name in ("rgb.png", "rgb.tif"):
        with pytest.raises(InputError, match=rf"{name}: .* pip install 'anomalyclip\[deep\]'"):
            open_image(tmp_path / name)


def test_a_tiff_of_many_channels_is_refused(tmp_path):
    (tmp_path / "bands.tif").write_bytes(
        encoded(np.zeros((4, 4, 7), np.uint16), photometric="minisblack", planarconfig="contig")
    )
    with pytest.raises(
        InputError, match=r"bands.tif: TIFF of 7 channels \(MINISBLACK\); expected gray or RGB"
    ):
        open_image(tmp_path / "bands.tif")


def test_a_raw_file_is_refused_with_advice_and_skipped_in_a_folder(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.nef", "tiff")  # raw files have such a thumbnail
    with pytest.raises(InputError, match="photo.nef: a camera's raw file.*develop it to a 16-bit TIFF"):
        open_image(tmp_path / "photo.nef")
    save(tmp_path / "a.png", 7, kind=np.uint8)
    run = predicting.predict(bright(), tmp_path, tmp_path / "out")
    assert (run.scored, run.failed) == (1, 0)


def test_training_refuses_to_assume_a_range(tmp_path):
    from anomalyclip.depth import Scale

    deep = Deep(np.array([[3000]], np.uint16))
    with pytest.raises(InputError, match="a.png: has more than 8 bits .* --range LOW HIGH"):
        Scale(strict=True)(deep, name="a.png")
    image, value_range = Scale((0, 3000), strict=True)(deep, name="a.png")
    assert (image.getpixel((0, 0)), value_range) == (255, (0, 3000))
    own = replace(deep, own=(0.0, 6000.0))
    assert Scale(strict=True)(own, name="a.png")[0].getpixel((0, 0)) == 128


def test_a_memory_brings_the_range_that_its_references_were_seen_with(exposures, tmp_path):
    plain = DetectorSpec("micro")
    with pytest.raises(
        InputError, match=r"more than 8 bits per channel and does not say its range: give --range"
    ):
        fit(plain, exposures[:1])
    memory = fit(replace(plain, value_range=(0, 4000)), exposures[:1])
    memory.save(tmp_path / "good.memory")
    remembered = replace(plain, references=(str(tmp_path / "good.memory"),))
    assert remembered.load().predict(exposures[0]).value_range == (0, 4000)
    with pytest.raises(AnomalyCLIPError, match="made with --range 0 4000, and images are scored with 0 4095"):
        replace(remembered, value_range=(0, 4095)).load()


def test_the_command_line_takes_a_range(exposures, tmp_path):
    from typer.testing import CliRunner

    from anomalyclip.cli import app

    options = ["--backbone", "micro", "--output", str(tmp_path / "out"), "--range", "0", "4000"]
    result = CliRunner().invoke(app, ["predict", *exposures, *options])
    assert result.exit_code == 0, result.output
    assert json.loads(Path(tmp_path / "out/settings.json").read_text())["value_range"] == [0, 4000]


def test_what_is_compared_is_compared_in_one_scale(tmp_path):
    from anomalyclip.evaluation.contenders import line_up

    specs = {"a": DetectorSpec("micro", value_range=(0, 9)), "b": DetectorSpec("micro", sigma=2.0)}
    with pytest.raises(AnomalyCLIPError, match="one scale: give all the same --range"):
        line_up(specs, {})
    specs["b"] = replace(specs["b"], value_range=(0, 9))
    assert all(identity["value_range"] == [0, 9] for identity in line_up(specs, {}).identities().values())
