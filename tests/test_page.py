"""The page of `anomalyclip serve` in a real browser: what a person does with it, on a desktop and on a phone."""

import csv
import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalyclip import DetectorSpec, Prediction, Threshold
from anomalyclip.demo import PICTURES
from anomalyclip.serve.answers import runs
from anomalyclip.visualize.colors import Colors
from tests.browsing import DESKTOP, PHONE, chromium, downloaded, drop, names, opened, scored
from tests.serving import CRACK, GOOD, service
from tests.videos import write_video

PAGE = Path("src/anomalyclip/serve/page")
STAIN, CUT = PICTURES / "corduroy_stain.jpg", PICTURES / "linen_cut.jpg"
LIMITS = Threshold(score=0.9, pixel=0.5)


def test_nothing_is_loaded_from_elsewhere_and_no_script_or_style_is_inline():
    files = {path.name: path.read_text(encoding="utf-8") for path in PAGE.iterdir()}
    for name, text in files.items():
        addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"')]*", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, name
        imported = re.findall(r'from "\./([^"]+)"', text) + re.findall(r'(?:src|href)="/page/([^"]+)"', text)
        assert set(imported) <= files.keys(), name
        assert len(text) < 60_000
    index = files["index.html"]
    assert "style=" not in index
    assert re.findall(r"<script[^>]*>(?!</script>)|<style|\son\w+=", index) == []
    assert "innerHTML" not in "".join(files.values())


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def running(tmp_path_factory, browser):
    folder = tmp_path_factory.mktemp("page")
    LIMITS.to_file(folder / "threshold.json")
    with service(folder, "--threshold", "threshold.json") as found:
        yield found


@pytest.fixture(scope="module")
def detector():
    return DetectorSpec("micro").load(threshold=LIMITS)


@pytest.fixture
def page(browser, running):
    with opened(browser, running.url) as found:
        yield found


def file(path):
    return path.name, path.read_bytes()


# ---- the browser computes what Python computes


def smooth(seed, height, width):
    chance = np.random.default_rng(seed)
    coarse = chance.random((5, 7), dtype=np.float32)
    map = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).clip(0, 1)
    return np.ascontiguousarray(map, np.float32)


def as_map(values):
    return {"width": values.shape[1], "height": values.shape[0], "values": values.ravel().tolist()}


CALL = """async ([name, map, ...rest]) => {
    const maps = await import("/page/maps.js");
    return maps[name]({ ...map, values: Float32Array.from(map.values) }, ...rest);
}"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_regions_in_the_browser_are_those_of_the_library(page, seed):
    values, size = smooth(seed, 45, 60), (403, 217)
    values[20, 30] = values[21, 31] = 1.0  # they touch at a corner
    exact = float(values[3, 4])
    for threshold in (0.35, 0.6, 0.85, exact, 1.0):
        expected = Prediction(
            pred_score=0.5, anomaly_map=values, image_size=size, pixel_threshold=threshold
        ).regions
        found = page.evaluate(CALL, ["regionsOf", as_map(values), threshold, size])
        assert found == [region.to_dict() for region in expected]
        assert found or threshold > values.max()


@pytest.mark.slow
@pytest.mark.parametrize("size", [(60, 45), (403, 217), (31, 90), (17, 9)])
def test_maps_are_enlarged_and_shrunk_as_pillow_does(page, size):
    values = smooth(1, 45, 60)
    expected = Prediction(pred_score=0.5, anomaly_map=values, image_size=size).map_at()
    found = page.evaluate(CALL, ["resized", as_map(values), *size])
    np.testing.assert_allclose(np.array(found["values"]), expected.ravel(), atol=2e-7)


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [None, 0.4])
def test_a_colour_means_the_same_value_as_in_saved_heat_maps(page, threshold):
    values = np.linspace(0, 1, 1001, dtype=np.float32)[None]
    colors = Colors((threshold or 0.0, 1.0), "inferno", 0.7, marked=threshold is not None)
    levels = colors.levels(values)
    found = page.evaluate(
        """async ([values, threshold]) => {
            const { colorsOf, levelOf, opacitiesOf } = await import("/page/colors.js");
            const colors = colorsOf(threshold !== null), opacities = opacitiesOf(threshold !== null, 0.7);
            return values.map((value) => levelOf(Math.fround(value), threshold && Math.fround(threshold)))
                .map((level) => [level, ...colors[level], opacities[level]]);
        }""",
        [values[0].tolist(), threshold],
    )
    expected = np.dstack([np.asarray(levels), np.asarray(colors.layer(levels))])[0]
    differ = np.abs(np.array(found) - expected)
    assert differ[:, 1:].max() <= 8  # of 255, where a value lies between two levels
    assert (differ[:, 0] <= 1).all()
    assert (differ.max(axis=1) > 0).mean() < 0.01


@pytest.mark.slow
def test_runs_are_cocos(page):
    mask = smooth(2, 9, 11) > 0.5
    found = page.evaluate(
        """async ([mask, width, height]) => {
            const { runsOf } = await import("/page/maps.js");
            return runsOf((place) => mask[place], width, height);
        }""",
        [mask.ravel().astype(int).tolist(), 11, 9],
    )
    assert found == runs(mask)


@pytest.mark.slow
def test_brushes_are_label_studios(page):
    brush = pytest.importorskip("anomalyclip.serve.brush").brush
    for mask in (smooth(3, 40, 50) > 0.5, np.zeros((300, 300), bool), np.ones((1, 2), bool)):
        found = page.evaluate(
            """async (mask) => {
                const { brushOf } = await import("/page/brush.js");
                return brushOf((place) => mask[place], mask.length);
            }""",
            mask.ravel().astype(int).tolist(),
        )
        assert found == brush(mask)


# ---- a person's path


@pytest.mark.slow
@pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_person_drops_moves_thresholds_marks_and_downloads(browser, running, detector, device):
    paths = [GOOD, CRACK, STAIN, CUT]
    predictions = {path.name: detector.predict(path) for path in paths}
    with opened(browser, running.url, **device) as page:
        drop(page, *map(file, paths))
        scored(page, 4)
        ranked = sorted(predictions, key=lambda name: -predictions[name].pred_score)
        assert names(page) == ranked
        assert page.evaluate("document.documentElement.scrollWidth") <= device["viewport"]["width"]

        # the threshold is moved in the histogram: verdicts follow, without a request
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        middle = (predictions[ranked[1]].pred_score + predictions[ranked[2]].pred_score) / 2
        box = page.locator(".histogram").bounding_box()
        low, high = map(float, page.locator(".histogram .end").all_text_contents())
        at = box["x"] + box["width"] * (6 + 448 * (middle - low) / (high - low)) / 460
        handle = page.locator(".histogram .handle circle").bounding_box()
        page.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
        page.mouse.down()
        page.mouse.move(at, box["y"] + 40, steps=4)
        page.mouse.up()
        limit = float(page.get_attribute(".histogram .handle", "aria-valuenow"))
        above = sum(prediction.pred_score >= limit for prediction in predictions.values())
        assert limit == pytest.approx(middle, abs=0.01)
        assert page.inner_text("#counts .bad") == str(above)

        # one picture: the pixel threshold is moved, and the regions are the library's
        page.click(f"#cards button[aria-label^='{STAIN.name}']")
        page.wait_for_selector("#regions li")
        page.focus("#pixel")
        page.fill("#pixel", "0.65")
        page.wait_for_selector("#pixel-says:text('0.6500')")
        expected = predictions[STAIN.name].with_threshold(Threshold(score=limit, pixel=0.65)).regions
        assert page.locator("#regions b").all_inner_texts() == [
            f"{region.peak_score:.4f}" for region in expected
        ]
        page.click("#mark-wrong")
        page.wait_for_selector("#mark-wrong[aria-pressed=true]")
        page.click("#close")
        assert asked == []

        page.click(f"#cards button[aria-label^='{CUT.name}']")
        page.wait_for_selector("#regions li")
        page.locator("#regions li .right").first.click()
        page.click("#close")
        check_downloads(page, {name: predictions[name] for name in predictions}, limit)


def check_downloads(page, predictions, limit):
    limits = Threshold(score=limit, pixel=0.65)
    expected = {name: prediction.with_threshold(limits) for name, prediction in predictions.items()}

    rows = list(csv.DictReader(io.StringIO(downloaded(page, "csv").decode())))
    assert {row["image_path"]: row["pred_label"] for row in rows} == {
        name: str(prediction.pred_label) for name, prediction in expected.items()
    }
    assert {row["image_path"]: row["mark"] for row in rows}[STAIN.name] == "wrong"

    lines = [json.loads(line) for line in downloaded(page, "jsonl").decode().splitlines()]
    for line in lines:
        marks = [region.pop("mark") for region in line["regions"]]
        check_line(line, expected[line["image_path"]])
        assert marks == (["right"] if line["image_path"] == CUT.name else []) + [None] * (
            len(marks) - (line["image_path"] == CUT.name)
        )

    coco = json.loads(downloaded(page, "coco"))
    ids = {image["file_name"]: image["id"] for image in coco["images"]}
    labels = [one for one in coco["annotations"] if one["image_id"] == ids[CUT.name]]
    assert [one["bbox"][:2] for one in labels] == [
        list(region.box[:2]) for region in expected[CUT.name].regions
    ]
    assert not any(one["image_id"] == ids[STAIN.name] for one in coco["annotations"])  # marked wrong

    tasks = {
        task["data"]["image"]: task["predictions"][0] for task in json.loads(downloaded(page, "labelstudio"))
    }
    first = tasks[CUT.name]["result"][0]["value"]
    x0, _, x1, _ = expected[CUT.name].regions[0].box
    assert (first["x"], first["width"]) == pytest.approx((100 * x0 / 320, 100 * (x1 - x0) / 320))

    with zipfile.ZipFile(io.BytesIO(downloaded(page, "zip"))) as archive:
        assert archive.testzip() is None
        assert {name.partition("/")[0] for name in archive.namelist()} == {
            "heatmaps", "masks", "predictions.jsonl", "predictions.csv", "coco.json", "label_studio.json",
        }  # fmt: skip
        for name, prediction in expected.items():
            mask = Image.open(io.BytesIO(archive.read(f"masks/{Path(name).stem}_mask.png"))).convert("L")
            assert (np.asarray(mask) > 127).tolist() == prediction.mask_at().tolist()
            heat = Image.open(io.BytesIO(archive.read(f"heatmaps/{Path(name).stem}_heatmap.png")))
            assert heat.size == prediction.image_size
    page.keyboard.press("Escape")


def check_line(line, expected):
    """Scores are those of another batch: they may differ in the last digits."""
    assert (line["threshold"], line["pixel_threshold"]) == (expected.threshold, expected.pixel_threshold)
    assert (line["pred_label"], line["image_size"]) == (expected.pred_label, list(expected.image_size))
    assert line["pred_score"] == pytest.approx(expected.pred_score, abs=1e-5)
    for region, said in zip(line["regions"], expected.regions, strict=True):
        assert region.pop("peak_score") == pytest.approx(said.peak_score, abs=1e-5)
        assert region == {name: value for name, value in said.to_dict().items() if name != "peak_score"}


@pytest.mark.slow
def test_many_pictures_are_gone_through_by_keys(page):
    drop(page, *map(file, [GOOD, CRACK, STAIN, CUT]))
    scored(page, 4)
    order = names(page)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.inner_text("#viewer-title") == order[1]
    page.keyboard.press("r")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(f"#viewer-title:text('{order[2]}')")
    page.keyboard.press("w")
    page.keyboard.press("Escape")
    labels = page.locator("#cards button").all()
    assert [label.get_attribute("aria-label").split(", marked ")[1:] for label in labels] == [
        [], ["right"], ["wrong"], [],
    ]  # fmt: skip
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith(order[2])
    page.keyboard.press("?")
    assert page.is_visible("#keys")
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("linen")
    page.wait_for_selector("#shown:text('1 of 4 pictures')")
    page.keyboard.press("Escape")
    rows = {}
    for only in (False, True):
        page.click("#downloads")
        page.set_checked("#only-shown", only)
        table = downloaded(page, "csv").decode()
        rows[only] = [row["image_path"] for row in csv.DictReader(io.StringIO(table))]
        page.keyboard.press("Escape")
    assert len(rows[False]) == 4
    assert rows[True] == [CUT.name]


# ---- what is not as usual


@pytest.mark.slow
def test_a_name_with_a_script_is_only_a_name(page):
    name = "<img src=x onerror=alert(1)><script>alert(2)<﹨script>.jpg"
    drop(page, (name, STAIN.read_bytes()), ("=cmd().jpg", STAIN.read_bytes()))
    scored(page, 2)
    assert set(names(page)) == {name, "=cmd().jpg"}
    page.click("#cards li:first-child button")
    assert page.inner_text("#viewer-title") == name
    page.click("#close")
    rows = list(csv.DictReader(io.StringIO(downloaded(page, "csv").decode())))
    assert {row["image_path"] for row in rows} == {name, "./=cmd().jpg"}
    assert page.locator("main img").count() == 0


@pytest.mark.slow
def test_what_is_no_picture_fails_alone_and_says_why(page):
    drop(page, file(STAIN), ("torn.jpg", STAIN.read_bytes()[:500]), ("notes.png", b"a note"))
    scored(page, 1)
    page.select_option("#verdict", "failed")
    page.wait_for_selector("#shown:text('2 of 3 pictures')")
    assert sorted(names(page)) == ["notes.png", "torn.jpg"]
    whys = {
        name: page.inner_text(f"#cards button[aria-label^='{name}'] .why")
        for name in ("torn.jpg", "notes.png")
    }
    assert whys["torn.jpg"].startswith("torn.jpg: damaged image: ")
    assert whys["notes.png"].startswith("notes.png: not an image of a known format")
    page.click("#cards button[aria-label^='torn']")
    page.wait_for_selector("#viewer-message.failed")
    assert page.inner_text("#viewer-message") == f"This picture has no score: {whys['torn.jpg']}"
    assert page.is_hidden("#judgement")


@pytest.mark.slow
def test_what_a_browser_cannot_show_comes_with_a_preview_and_pages_are_told_apart(page, detector):
    tall = Image.open(STAIN)
    pages, deep = io.BytesIO(), io.BytesIO()
    tall.save(pages, "TIFF", save_all=True, append_images=[Image.open(GOOD)])
    Image.fromarray(np.asarray(tall.convert("L"), np.uint16) * 100).save(deep, "PNG")
    drop(page, ("pages.tif", pages.getvalue()), ("deep.png", deep.getvalue()))
    scored(page, 3)
    assert sorted(names(page)) == ["deep.png", "pages.tif#1", "pages.tif#2"]
    page.wait_for_selector("#cards li:nth-child(3) canvas.drawn")
    page.click("#cards button[aria-label^='pages.tif#1']")
    page.wait_for_selector("#regions li")
    assert page.evaluate("document.getElementById('photograph').width") > 300
    score = detector.predict(STAIN).pred_score
    assert float(page.inner_text("#viewer-score")) == pytest.approx(score, abs=5e-5)


@pytest.mark.slow
def test_a_video_is_shown_frame_by_frame_and_dicom_too(page, tmp_path):
    pytest.importorskip("av", reason="needs the extra [video]")
    data = pytest.importorskip("pydicom.data", reason="needs the extra [dicom]")
    frames = [np.asarray(Image.open(path).resize((160, 160))) for path in (GOOD, STAIN, GOOD)]
    write_video(tmp_path / "line.mp4", zip((0.0, 0.25, 0.75), frames, strict=True))
    drop(page, file(tmp_path / "line.mp4"), file(Path(data.get_testdata_file("MR_small.dcm"))))
    scored(page, 4)
    page.select_option("#order", "name")
    page.wait_for_selector("#cards li:nth-child(4) button[aria-label^='MR_small.dcm']")
    page.wait_for_selector("#cards li:nth-child(4) canvas.drawn")
    assert names(page) == [
        "line.mp4#1 · 0.00 s", "line.mp4#2 · 0.25 s", "line.mp4#3 · 0.75 s", "MR_small.dcm",
    ]  # fmt: skip
    page.click("#cards li:nth-child(2) button")
    page.wait_for_selector("#viewer-message", state="hidden")
    assert page.evaluate("document.getElementById('photograph').width") > 300


@pytest.mark.slow
def test_flawless_pictures_make_a_model_and_then_a_threshold(browser, tmp_path):
    with service(tmp_path) as free, opened(browser, free.url) as page:
        drop(page, file(GOOD), file(CRACK))
        scored(page, 2)
        assert page.inner_text("#remark span").startswith("Without a threshold there are no verdicts")
        before = page.locator("#cards b").first.inner_text()
        page.click("#find-threshold")
        flawless = [turned(GOOD, degrees) for degrees in (90, 180, 270)]
        add_flawless(page, *((f"{n}.png", one) for n, one in enumerate(flawless)))
        page.click("#remember")
        page.wait_for_selector("#model-message:text('3 flawless pictures')")
        page.wait_for_selector(f"#cards li:first-child b:not(:text-is('{before}')):not(:text-is('…'))")
        page.wait_for_selector("#progress", state="hidden")
        asked = []
        page.on("request", lambda request: asked.append(request.url.rpartition("/")[2]))
        page.click("#calibrate")
        page.wait_for_selector("#model-message:text('Threshold ')")
        assert "predict" not in asked
        page.keyboard.press("Escape")
        threshold = float(page.inner_text("#model-message").split()[1].rstrip(","))
        assert float(page.input_value("#score-limit")) == threshold
        verdicts = page.locator("#cards .first span").all_inner_texts()
        scores = [float(score) for score in page.locator("#cards b").all_inner_texts()]
        assert verdicts == ["anomalous" if score >= threshold else "normal" for score in scores]
        page.click("#cards li:first-child button")
        page.wait_for_selector("#nearest-reference")
        assert re.search(r"most like one in [012]\.png \(distance 0\.\d+\)", page.inner_text("#nearest-says"))
        page.click("#close")

        # more are added, one is taken away, and then all are
        page.click("#model")
        add_flawless(page, ("3.png", turned(GOOD, 45)), ("notes.png", b"a note"))
        assert page.inner_text("#remember") == "Compare with these 5"
        page.click("#remember")
        page.wait_for_selector("#model-message:text('4 flawless pictures now. 1 file could not be used')")
        assert page.inner_text("#remember") == "Compared with these 4"
        page.click("[aria-label='Take 0.png away']")
        page.click("#remember")
        page.wait_for_selector("#model-message:text('3 flawless pictures now')")
        assert "compared with 1.png, 2.png, 3.png" in page.inner_text("#model-about")
        labels = page.locator("#model-choice option").all_inner_texts()
        kind = "AnomalyCLIP · micro"
        assert labels == [
            f"{kind} · as the service was started", f"{kind} · 3 flawless pictures (1.png, …)",
            f"{kind} · 4 flawless pictures (0.png, …)",
            f"{kind} · 3 flawless pictures (0.png, …) · threshold {threshold:.4f}",
            f"{kind} · 3 flawless pictures (0.png, …)",
        ]  # fmt: skip
        page.click("#stop-comparing")
        page.wait_for_selector("#model-message:text('not compared with flawless ones any more')")
        page.wait_for_selector("#progress", state="hidden")
        assert page.locator("#cards b").first.inner_text() == before
        assert page.input_value("#score-limit") == ""
        assert page.inner_text("#remember") == "Compare with these 3"


def add_flawless(page, *files):
    sent = [{"name": name, "mimeType": "image/png", "buffer": content} for name, content in files]
    page.set_input_files("#reference-files", sent)


def turned(path, degrees):
    content = io.BytesIO()
    Image.open(path).rotate(degrees).save(content, "PNG")
    return content.getvalue()


@pytest.mark.slow
def test_a_model_that_the_service_forgot_is_made_again_or_the_page_says_that_it_cannot(browser, tmp_path):
    flawless = [("0.png", turned(GOOD, 90)), ("1.png", turned(GOOD, 180))]
    with service(tmp_path, "--models", 1) as small, opened(browser, small.url) as page:
        drop(page, file(CRACK))
        scored(page, 1)
        page.click("#model")
        add_flawless(page, *flawless)
        page.click("#remember")
        page.wait_for_selector("#model-message:text('2 flawless pictures now')")
        page.keyboard.press("Escape")
        scored(page, 1)
        words = {"method": "words", "normal": ["flawless object"], "abnormal": ["damaged object"]}
        small.post("/v1/models", words)  # makes room for itself
        waiting = []
        page.route("**/v1/memories", lambda route: waiting.append(route))
        drop(page, ("again.jpg", CRACK.read_bytes()))
        page.wait_for_selector("#trouble:not([hidden])")
        assert page.inner_text("#trouble") == (
            "The service had forgotten this model to make room for others. "
            "It is being made again from 2 flawless pictures …"
        )
        waiting.pop().continue_()
        page.wait_for_selector("#trouble", state="hidden")
        scored(page, 2)
        assert len(set(page.locator("#cards b").all_inner_texts())) == 1
        page.unroute("**/v1/memories")

        # what another program has made of words is known, but not the flawless pictures of others
        own_words = "Own words · micro · “flawless object” or “damaged object”"
        small.post("/v1/models", words)
        choose(page, own_words)
        small.send("/v1/memories", [file(GOOD)])
        drop(page, ("words.jpg", CRACK.read_bytes()))
        scored(page, 3)
        assert len(set(page.locator("#cards b").all_inner_texts())) == 1
        others = small.send("/v1/memories", [file(GOOD)]).json
        choose(page, "AnomalyCLIP · micro · 1 flawless picture (slate_good.jpg)")
        assert small.ask("DELETE", f"/v1/models/{others['id']}").status == 204
        drop(page, ("late.jpg", CRACK.read_bytes()))
        page.wait_for_selector("#trouble-choose:visible")
        page.click("#cards button[aria-label^='late.jpg']")
        page.wait_for_selector("#viewer-message.failed")
        assert (
            "The service has forgotten the model “AnomalyCLIP · micro · 1 flawless picture"
            in page.inner_text("#viewer-message")
        )
        assert (
            page.evaluate("document.getElementById('photograph').width") > 300
        )  # the picture itself is shown
        page.click("#close")
        page.click("#trouble-choose")
        page.select_option("#model-choice", "AnomalyCLIP · micro · 2 flawless pictures (0.png, …)")
        page.keyboard.press("Escape")
        page.wait_for_selector("#trouble", state="hidden")
        scored(page, 4)


def choose(page, label):
    """Use a model that another program has made."""
    page.click("#model")
    page.wait_for_selector(f"#model-choice option:text-is('{label}')", state="attached")
    page.select_option("#model-choice", label)
    page.keyboard.press("Escape")
    page.wait_for_selector("#progress", state="hidden")


@pytest.mark.slow
def test_on_a_phone_only_what_works_is_offered_and_what_is_said_of_it_can_be_seen(browser, running):
    with opened(browser, running.url, **PHONE) as page:

        def said(kind, text):
            page.wait_for_selector(f"#model-message.{kind}:text('{text}')")
            box = page.locator("#model-message").bounding_box()
            assert box["y"] + box["height"] <= PHONE["viewport"]["height"]

        page.click("#model")
        page.click("#make summary")
        assert page.locator("#method option").all_inner_texts() == [
            "AnomalyCLIP", "CLIP", "CLIP-AC", "Own words", "WinCLIP", "AnomalyDINO",
        ]  # fmt: skip
        page.select_option("#method", "winclip")
        page.click("#make-model")
        said("bad", "WinCLIP puts what the pictures show into its sentences: write it into the field")
        assert page.evaluate("document.activeElement.id") == "class-name"
        page.fill("#class-name", "stone")
        page.click("#make-model")
        said("good", "This model scores the pictures now.")
        assert page.locator("#model-choice option:checked").inner_text() == "WinCLIP · micro · of “stone”"
        page.fill("#normal", "flawless stone")
        page.click("#make-model")
        said("bad", "Give words for abnormal pictures too")
        page.fill("#abnormal", "stone with crack")
        page.fill("#class-name", "")
        page.click("#make-model")  # such words need no class
        page.wait_for_selector("#model-choice option:checked:text('“stone with crack”')", state="attached")
        page.select_option("#method", "anomalydino")
        assert page.is_hidden("#class-field")
        assert page.is_hidden("#words")
        page.click("#make-model")
        said("bad", "AnomalyDINO only compares with flawless pictures: choose some of them")
        add_flawless(page, ("0.png", turned(GOOD, 90)))
        page.click("#make-model")
        said("good", "Pictures are compared with 1 flawless picture now.")
        drop(page, file(CRACK))
        page.keyboard.press("Escape")


@pytest.mark.slow
def test_the_histogram_shows_the_scores_and_a_threshold_outside_of_them_and_says_what_is_none(page):
    page.evaluate(
        """async () => {
            const { state } = await import("/page/state.js");
            const one = { file: new File([], "none.jpg"), kind: { shown: true, single: true }, size: [9, 9] };
            state.add(Array.from({ length: 41 }, (_, i) => ({
                ...one, source: Symbol(), name: `${i}.jpg`, status: "done", score: 0.91 + i / 1000,
            })));
        }"""
    )
    page.wait_for_selector("#histogram .a")
    ends = page.locator(".histogram .end")
    handle = page.locator(".histogram .handle")
    assert ends.all_text_contents() == ["0.9", "0.95"]  # the threshold, 0.9, is near
    assert page.locator("#histogram .a").count() > 20

    page.fill("#score-limit", "0.5")
    page.keyboard.press("Enter")
    page.wait_for_selector(".histogram .handle.beyond")
    assert ends.all_text_contents() == ["0.91", "0.95"]
    assert handle.locator("text").text_content() == "← threshold 0.5000"
    assert handle.get_attribute("aria-valuetext") == "0.5000, below all scores, 41 of 41 anomalous"
    handle.press("ArrowRight")
    page.wait_for_selector(".handle[aria-valuenow='0.5004']")  # a hundredth of what is shown

    for id, typed in (("#score-limit", "2"), ("#score-limit", "-1"), ("#pixel-limit", "1.01")):
        before = page.input_value(id)
        page.fill(id, typed)
        page.keyboard.press("Enter")
        assert page.inner_text("#limit-message").startswith(
            f"“{typed}” is no threshold: expected a number from 0 to 1"
        )
        assert page.input_value(id) == before
    page.fill("#score-limit", "0.93")
    page.keyboard.press("Enter")
    page.wait_for_selector("#limit-message", state="hidden")
    page.wait_for_selector(".histogram .handle:not(.beyond)")
    assert page.inner_text("#counts .bad") == "21"


@pytest.mark.slow
def test_words_make_a_model(page):
    page.click("#model")
    page.click("#make summary")
    page.select_option("#method", "words")
    page.fill("#normal", "flawless {}\n")
    page.fill("#abnormal", "{} with stain\ndamaged {}")
    page.click("#make-model")
    page.wait_for_selector("#model-message.good, #model-message.bad")
    about = page.inner_text("#model-about")
    assert "normal: flawless {}; abnormal: {} with stain, damaged {}" in about, page.inner_text(
        "#model-message"
    )


@pytest.mark.slow
def test_a_folder_is_taken_with_its_subfolders_and_other_files_are_skipped(page, tmp_path):
    folder = tmp_path / "parts"
    for name in ("a.jpg", "line 2/b.jpg", "notes.txt", ".hidden.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(GOOD.read_bytes())
    page.set_input_files("#folder", folder)
    scored(page, 2)
    assert sorted(names(page)) == ["parts/a.jpg", "parts/line 2/b.jpg"]


@pytest.mark.slow
def test_a_busy_service_and_one_that_is_gone_are_asked_again(page):
    turns = iter(
        [
            lambda route: route.fulfill(status=429, headers={"Retry-After": "0"}, json={"error": {}}),
            lambda route: route.abort(),
        ]
    )
    page.route("**/v1/predict", lambda route: next(turns, lambda last: last.continue_())(route))
    drop(page, file(STAIN))
    page.wait_for_selector("#connection:not([hidden])")
    assert page.inner_text("#connection") == "The service does not answer. Trying again …"
    scored(page, 1)
    assert page.is_hidden("#connection")


@pytest.mark.slow
def test_the_key_is_asked_for_and_kept_for_the_tab_alone_and_a_full_queue_is_waited_for(browser, tmp_path):
    (tmp_path / "key").write_text("0123456789abcdef-right\n")
    with (
        service(tmp_path, "--key-file", tmp_path / "key", "--queue", 1) as locked,
        opened(browser, locked.url, wait="#key[open]") as page,
    ):
        page.fill("#key-text", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-message:text('does not accept')")
        page.fill("#key-text", "0123456789abcdef-right")
        page.keyboard.press("Enter")
        page.wait_for_selector("html.ready")
        busy = []
        page.on("response", lambda answer: busy.append(answer.url) if answer.status == 429 else None)
        drop(page, *((f"{number}.jpg", STAIN.read_bytes()) for number in range(24)))
        scored(page, 24)  # the queue holds one request, and the page has two on their way
        assert busy
        assert page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]") == [
            ["0123456789abcdef-right"], 0, "",
        ]  # fmt: skip
        page.reload()
        page.wait_for_selector("html.ready")


@pytest.mark.slow
def test_of_thousands_of_pictures_only_the_visible_ones_are_drawn(page):
    page.evaluate(
        """async () => {
            const { state } = await import("/page/state.js");
            const file = new File([], "none.jpg");
            state.add(Array.from({ length: 5000 }, (_, i) => ({
                file, source: Symbol(), name: `${i}.jpg`, kind: { shown: true, single: true },
                status: "done", score: i / 5000, size: [10, 10],
            })));
        }"""
    )
    page.wait_for_selector("#cards li")
    assert names(page)[0] == "4999.jpg"
    assert page.locator("#cards li").count() < 60
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    page.wait_for_selector("#cards bdi:text-is('0.jpg')")
    assert page.locator("#cards li").count() < 60
    assert page.inner_text("#counts .bad") == "500"


# ---- everybody


@pytest.mark.slow
@pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_labels_contrast_and_roles_are_those_that_axe_asks_for(browser, running, device, scheme):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="needs axe, of the extra [dev]"
    ).Axe()
    with opened(browser, running.url, **device, color_scheme=scheme, reduced_motion="reduce") as page:

        def check(where):
            found = axe.run(page).response["violations"]
            assert [(one["id"], [node["target"] for node in one["nodes"]]) for one in found] == [], where

        check("start")
        drop(page, *map(file, [GOOD, STAIN]), ("torn.jpg", b"torn"))
        scored(page, 2)
        check("list")
        page.click("#cards li:first-child button")
        page.wait_for_selector("#regions li")
        page.click("#mark-right")
        page.locator("#regions .region").first.click()
        check("viewer")
        page.click("#close")
        for button, dialog in (("#model", "models"), ("#downloads", "download"), ("#help", "keys")):
            page.click(button)
            if dialog == "models":
                page.click("#make summary")
            check(dialog)
            page.keyboard.press("Escape")
