"""Videos: frames upright, with the stream's own times; what is damaged is left out and said once."""

import json
import shutil
import subprocess
import warnings
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalyclip import Detector, DetectorSpec, Threshold, predicting
from anomalyclip.depth import Deep
from anomalyclip.errors import AnomalyCLIPError, InputError
from anomalyclip.inputs import find_images
from anomalyclip.readers import frames, open_image, size_of, video
from tests.toy_methods import Bright
from tests.videos import plain, uneven, write_video

av = pytest.importorskip("av")


def toy(**options):
    return Detector(Bright(DetectorSpec(image_size=8)), **options)


def lines(run):
    return [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]


def errors(run):
    return [json.loads(line) for line in (run.folder / "errors.jsonl").read_text().splitlines()]


def shots(seconds, spot_from):
    """From a camera on its side at a rate that varies; from some time on there is a bright spot."""
    for time in uneven(seconds):
        picture = plain(30, (80, 48))
        if time >= spot_from:
            picture[4:12, 60:72] = 255
        yield time, picture


@pytest.fixture(scope="module")
def camera(tmp_path_factory):
    """30 seconds; after 17.3 s there is the spot."""
    return write_video(tmp_path_factory.mktemp("camera") / "line.mp4", shots(30, spot_from=17.3), rotation=90)


def test_a_defect_is_found_at_its_time_within_one_step(camera, tmp_path):
    run = predicting.predict(
        toy(threshold=Threshold(score=0.5, pixel=0.5)), f"{camera}#every=0.5s", tmp_path / "out"
    )
    found = lines(run)
    assert run.scored == len(found) == 60
    times = [line["time"] for line in found]
    assert np.allclose(times, np.arange(0, 30, 0.5), atol=0.15)  # the frame at or after each half second
    assert all(later >= due - 1e-6 for later, due in zip(times, np.arange(0, 30, 0.5), strict=True))
    first = next(line for line in found if line["pred_label"])
    assert 17.3 <= first["time"] < 17.3 + 0.5 + 0.15
    assert first["image_size"] == [48, 80]  # upright
    (x0, y0, x1, y1) = first["regions"][0]["box"]
    assert x0 < 8 < x1  # right and near the top before the turn: left and near the top after it
    assert y0 < 14 < y1


def test_times_are_those_of_the_stream_not_counted_frames(camera):
    found = [frame.time for frame in frames(f"{camera}#every=10")]
    assert found == list(uneven(30))[::10]


def test_every_way_to_hold_a_camera_is_upright_as_in_ffmpeg(tmp_path):
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs ffmpeg: apt-get install ffmpeg")
    picture = plain(0, (64, 48))
    picture[:16, :16], picture[:16, -16:], picture[-16:, :16] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    for rotation in (0, 90, 180, 270):
        path = write_video(tmp_path / f"{rotation}.mp4", [(0, picture)], rotation=rotation)
        shown = tmp_path / f"{rotation}.png"
        subprocess.run(["ffmpeg", "-loglevel", "error", "-y", "-i", path, shown], check=True)
        difference = np.asarray(open_image(path)).astype(int) - np.asarray(Image.open(shown).convert("RGB"))
        assert abs(difference).max() <= 3, rotation  # two ways from YUV to RGB


def test_a_quarter_turn_moves_the_corners(tmp_path):
    picture = plain(0, (64, 48))
    picture[:16, -16:] = 250  # at the right of the top
    path = write_video(tmp_path / "turned.mp4", [(0, picture)], rotation=90)
    assert open_image(path).size == size_of(path) == (48, 64)
    assert open_image(path).getpixel((5, 5))[0] > 200


@pytest.mark.parametrize(
    ("name", "codec", "layout"),
    [
        ("a.mp4", "mpeg4", "yuv420p"),
        ("a.mov", "mjpeg", "yuvj420p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.mkv", "ffv1", "yuv444p"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.m2ts", "mpeg4", "yuv420p"),
    ],
)
def test_kinds_of_files(name, codec, layout, tmp_path):
    shots = [(0.0, plain(20)), (0.5, plain(120)), (2.25, plain(220))]
    path = write_video(tmp_path / name, shots, codec=codec, layout=layout)
    found = list(frames(path))
    assert [frame.id for frame in found] == [f"{path}#{number}" for number in (1, 2, 3)]
    assert [frame.time for frame in found] == [0.0, 0.5, 2.25]
    shown = [frame.image.getpixel((9, 9))[0] for frame in found]
    assert shown == pytest.approx([20, 120, 220], abs=3)
    anonymous = tmp_path / "video"
    shutil.copy(path, anonymous)
    assert len(list(frames(anonymous))) == 3  # recognised by its content


def test_a_stream_that_does_not_say_how_long_it_is_is_never_called_cut(tmp_path):
    path = write_video(tmp_path / "a.m2ts", [(n / 5, plain(20 * n)) for n in range(4)])
    assert len(list(frames(path))) == 4


def test_frames_without_time_stamps_are_refused_not_counted(tmp_path):
    path = write_video(
        tmp_path / "a.mpg", [(n / 5, plain(20 * n)) for n in range(4)]
    )  # MPEG-4, which has none there
    with pytest.raises(
        InputError, match="a.mpg: its frames have no time stamps; put it into a file that has them"
    ):
        list(frames(path))


def test_frames_can_be_opened_again_in_any_order(tmp_path):
    path = write_video(tmp_path / "a.mkv", [(n / 10, plain(20 * n)) for n in range(8)], codec="ffv1")
    for number in (5, 1, 8, 2, 2):
        assert abs(open_image(f"{path}#{number}").getpixel((3, 3))[0] - 20 * (number - 1)) <= 2
    with pytest.raises(InputError, match="a.mkv#9: the file holds fewer images"):
        open_image(f"{path}#9")


def test_pixels_that_are_not_square_are_resampled(tmp_path):
    path = write_video(tmp_path / "dv.mp4", [(0, plain(90))], stretch=Fraction(3, 2))
    assert open_image(path).size == (96, 48)


def test_a_camera_of_12_bits_keeps_them_and_two_exposures_have_one_scale(tmp_path):
    """One camera, two exposures: half the light is half the brightness in one run."""
    for name, level in (("a.mkv", 4000), ("b.mkv", 2000)):
        gray = np.full((48, 64), level, np.uint16)
        write_video(tmp_path / name, [(0, gray), (0.1, gray)], codec="ffv1", layout="gray16le")
    with pytest.warns(UserWarning, match="scaled from 0 to 4095"):
        found = list(toy().stream([image.path for image in find_images([tmp_path])]))
    assert {prediction.value_range for prediction in found} == {(0.0, 4095.0)}
    scores = [prediction.pred_score for prediction in found]
    assert scores == pytest.approx([4000 / 4095] * 2 + [2000 / 4095] * 2, abs=0.003)
    known = list(toy(value_range=(0, 8000)).stream([tmp_path / "a.mkv"]))
    assert known[0].pred_score == pytest.approx(0.5, abs=0.003)


def test_a_format_that_says_its_bits_is_shown_in_them(tmp_path):
    gray = np.full((48, 64), 512, np.uint16)
    path = write_video(tmp_path / "ten.mkv", [(0, gray)], codec="ffv1", layout="gray10le")
    (frame,) = frames(path)
    assert isinstance(frame.image, Deep)
    assert frame.image.own == (0, 1023)
    assert open_image(path).getpixel((0, 0)) == 128


def noisy(count, seed=0):
    rng = np.random.default_rng(seed)
    return [(n / 10, rng.integers(0, 255, (48, 64, 3), np.uint8)) for n in range(count)]


def broken(folder):
    """Videos that are cut, empty, no videos, or lists of other files; and a good one."""
    folder.mkdir()
    whole = write_video(folder / "good.mkv", noisy(30)).read_bytes()
    (folder / "cut.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    late = write_video(folder / "late.mp4", noisy(30)).read_bytes()  # its index is at the end
    (folder / "late.mp4").write_bytes(late[: len(late) * 2 // 3])
    early = write_video(folder / "early.mp4", noisy(30), options={"movflags": "faststart"}).read_bytes()
    (folder / "early.mp4").write_bytes(early[: len(early) * 2 // 3])
    (folder / "text.avi").write_text("no video\n" * 50)
    (folder / "list.mp4").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{folder / 'good.mkv'}\n#EXT-X-ENDLIST\n"
    )
    return folder


def test_what_is_cut_is_one_message_and_the_frames_before_are_scored(tmp_path):
    run = predicting.predict(toy(), broken(tmp_path / "in"), tmp_path / "out")
    counts = {}
    for line in lines(run):
        name = Path(line["image_path"]).name.partition("#")[0]
        counts[name] = counts.get(name, 0) + 1
    assert counts["good.mkv"] == 30
    assert 15 <= counts["cut.mkv"] <= 22
    assert 15 <= counts["early.mp4"] <= 22
    assert set(counts) == {"good.mkv", "cut.mkv", "early.mp4"}
    said = {Path(record["image_path"]).name: record["error"] for record in errors(run)}
    assert set(said) == {"cut.mkv", "early.mp4", "late.mp4", "list.mp4", "text.avi"}
    assert run.failed == 5
    for name in ("cut.mkv", "early.mp4"):
        assert "it is cut off or damaged after" in said[name]
        assert "its header says 2.93 s" in said[name] or "its header says 3.00 s" in said[name]
        assert said[name].endswith("the frames before were read")
    for name in ("late.mp4", "list.mp4", "text.avi"):
        assert "cut off before its index" in said[name]


def test_a_damaged_frame_is_left_out_and_said_at_the_end(tmp_path):
    content = bytearray(
        write_video(tmp_path / "a.avi", noisy(20), codec="mjpeg", layout="yuvj420p").read_bytes()
    )
    at = [i for i in range(len(content) - 3) if content[i : i + 3] == b"\xff\xd8\xff"][7]
    content[at : at + 700] = bytes(700)
    (tmp_path / "a.avi").write_bytes(content)
    found = frames(tmp_path / "a.avi")
    assert [next(found).time for _ in range(19)] == [n / 10 for n in range(20) if n != 7]
    with pytest.raises(InputError, match=r"a.avi: 1 damaged frame was left out, the first near 0\.60 s"):
        next(found)


def test_a_frame_larger_than_any_image_may_be_is_refused(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mkv", [(0, plain(9))], codec="ffv1")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match="a.mkv: image too large"):
        list(frames(path))


@pytest.mark.parametrize(
    ("selected", "said"),
    [
        ("#axis=axial", "a video has no axis"),
        ("#every=half", "expected a number of images such as 10, or seconds such as 0.5s"),
    ],
)
def test_a_selection_that_cannot_be_is_one_message(selected, said, tmp_path):
    path = write_video(tmp_path / "a.mkv", [(0, plain(9))], codec="ffv1")
    with pytest.raises(InputError, match=said):
        list(frames(f"{path}{selected}"))


def decoded(path):
    with av.open(str(path)) as file:
        return [
            (float(frame.pts * frame.time_base), frame.to_ndarray(format="rgb24"))
            for frame in file.decode(video=0)
        ]


def test_the_saved_video_plays_with_the_overlay_at_the_same_times(tmp_path):
    path = write_video(tmp_path / "line.mp4", shots(1.5, spot_from=0.8), rotation=90)
    run = predicting.predict(
        toy(threshold=Threshold(score=0.5, pixel=0.5)), path, tmp_path / "out", save=["video"], batch_size=8
    )
    (line,) = map(json.loads, (run.folder / "videos.jsonl").read_text().splitlines())
    assert line["files"] == {"video": "videos/line.webm"}
    shown = decoded(run.folder / "videos" / "line.webm")
    assert [time for time, _ in shown] == pytest.approx(list(uneven(1.5)), abs=1e-3)  # the rate still varies
    assert {picture.shape for _, picture in shown} == {(80, 48, 3)}  # upright
    colored = [np.ptp(picture[4:24, 2:14].astype(int), axis=2).max() > 60 for _, picture in shown]
    assert colored == [
        time >= 0.8 for time, _ in shown
    ]  # gray before the spot, and the map's colours after it
    with av.open(str(run.folder / "videos" / "line.webm")) as file:
        assert file.streams.video[0].codec_context.name == "vp9"


def test_a_video_is_as_anomalous_as_its_most_anomalous_frame(camera, tmp_path):
    run = predicting.predict(toy(threshold=Threshold(score=0.5)), f"{camera}#every=1s", tmp_path / "out")
    (line,) = map(json.loads, (run.folder / "videos.jsonl").read_text().splitlines())
    assert (line["image_path"], line["frames"], line["pred_label"]) == (str(camera), 30, True)
    assert line["time"] >= 17.3
    top = max(lines(run), key=lambda one: one["pred_score"])
    assert (line["most_anomalous"], line["pred_score"]) == (top["image_path"], top["pred_score"])
    assert line["files"] == {}


def test_saved_videos_of_several_files_and_of_an_earlier_run(tmp_path):
    folder = tmp_path / "in"
    (folder / "2").mkdir(parents=True)
    for name in ("a.mp4", "a.mov", "2/a.mp4"):
        write_video(folder / name, [(0, plain(40, (65, 49))), (0.5, plain(60, (65, 49)))], codec="mpeg4")
    Image.new("RGB", (8, 8)).save(folder / "b.png")  # has no time, and is in no video
    run = predicting.predict(toy(), folder, tmp_path / "out", save=["video"])
    files = sorted(file.relative_to(run.folder).as_posix() for file in run.folder.rglob("*.webm"))
    assert files == ["videos/2/a.webm", "videos/a.mp4.webm", "videos/a.webm"]
    assert {picture.shape for _, picture in decoded(run.folder / "videos/a.webm")} == {(49, 65, 3)}
    again = predicting.predict(toy(), folder / "a.mov", tmp_path / "out", save=["video"], overwrite=True)
    assert [file.name for file in again.folder.rglob("*.webm")] == ["a.webm"]
    for options in ({"resume": True},):
        with pytest.raises(AnomalyCLIPError, match="--save video cannot be combined with --resume"):
            predicting.predict(toy(), folder, tmp_path / "out", save=["video"], **options)


def test_times_are_in_the_table_and_on_the_page(camera, tmp_path):
    run = predicting.predict(toy(), f"{camera}#every=5s", tmp_path / "out", save=["csv", "heatmap"])
    header, *rows = (run.folder / "predictions.csv").read_text().splitlines()
    assert header.endswith(",time")
    assert [float(row.rpartition(",")[2]) for row in rows] == [line["time"] for line in lines(run)]
    page = (run.folder / "index.html").read_text()
    late = lines(run)[-1]
    assert f"{late['time']:.2f} s" in page
    assert (run.folder / late["files"]["heatmap"]).name.startswith("line#")


def test_a_resumed_run_has_each_frame_once(camera, tmp_path):
    predicting.predict(toy(), f"{camera}#every=4s", tmp_path / "out")
    run = predicting.predict(toy(), f"{camera}#every=2s", tmp_path / "out", resume=True)
    assert (run.scored, run.skipped) == (7, 8)
    assert len({line["image_path"] for line in lines(run)}) == 15


def test_videos_without_pyav_say_what_to_install(camera, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"line.mp4: videos need PyAV: pip install 'anomalyclip\[video\]'"):
        list(frames(camera))


def test_an_address_in_the_place_of_a_file_is_not_followed():
    for name in ("http://127.0.0.1:1/a.mp4", "concat:a.mp4|b.mp4", "tcp://127.0.0.1:1#every=2"):
        with pytest.raises(InputError, match="no such file|no video that can be opened"):
            list(frames(name))


def test_only_formats_that_name_no_other_files_are_opened():
    assert not {"hls", "dash", "concat", "sdp", "rtsp", "image2"} & set(video.FORMATS.split(","))


@pytest.mark.slow
def test_frames_of_a_video_are_normal_images_for_fit_and_calibrate(tmp_path, cli):
    from anomalyclip.demo import PICTURES

    good, bad = (
        np.asarray(Image.open(PICTURES / f"{name}.jpg").convert("RGB").resize((224, 224)))
        for name in ("slate_good", "slate_crack")
    )
    rng = np.random.default_rng(0)

    def shot(picture):
        return np.clip(picture + rng.normal(0, 3, picture.shape), 0, 255).astype(np.uint8)

    normal = write_video(tmp_path / "normal.mp4", [(t, shot(good)) for t in uneven(6)])
    line = write_video(tmp_path / "line.mp4", [(t, shot(bad if t >= 4 else good)) for t in uneven(6)])
    model = ("--backbone", "micro")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = cli("fit", normal, *model, "--every", "2s", "--output", tmp_path / "slate.memory")
        assert "3 references" in fitted.out, fitted.err
        model += ("--references", tmp_path / "slate.memory")
        cli(
            "calibrate",
            normal,
            *model,
            "--every",
            3,
            "--false-alarm-rate",
            0.05,
            "--output",
            tmp_path / "t.json",
        )
        done = cli(
            "predict",
            line,
            *model,
            "--every",
            "0.5s",
            "--threshold",
            tmp_path / "t.json",
            "--output",
            tmp_path / "out",
        )
    records = [json.loads(text) for text in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    before = [record for record in records if record["time"] < 4]
    after = records[len(before) :]
    assert 4 <= after[0]["time"] < 4.65, done.out
    assert all(record["pred_label"] for record in after)
    assert max(r["pred_score"] for r in before) + 0.3 < min(r["pred_score"] for r in after)


def test_frames_in_an_archive_have_their_times_too(tmp_path):
    path = write_video(tmp_path / "a.mp4", [(0, plain(9)), (1.5, plain(90))])
    with zipfile.ZipFile(tmp_path / "videos.zip", "w") as archive:
        archive.write(path, "line/a.mp4")
    (image,) = find_images([tmp_path / "videos.zip"])
    found = list(frames(image.path))
    assert [(frame.id, frame.time) for frame in found] == [(f"{image.path}#1", 0.0), (f"{image.path}#2", 1.5)]
    assert open_image(found[1].id).getpixel((5, 5))[0] == pytest.approx(90, abs=3)
