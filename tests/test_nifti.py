"""NIfTI volumes as slices: orientation, spacing, range, and one message for a volume that cannot be used."""

import gzip
import json
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalyclip import Detector, DetectorSpec, Threshold, evaluate, predicting
from anomalyclip.data.check import check
from anomalyclip.data.listing import list_samples
from anomalyclip.depth import Scale
from anomalyclip.errors import AnomalyCLIPError, InputError
from anomalyclip.inputs import find_images
from anomalyclip.readers import Selection, frames, nifti, open_image, size_of
from tests.toy_methods import Bright

nibabel = pytest.importorskip("nibabel")

FILES = Path(nibabel.__file__).parent / "tests" / "data"


def toy(**options):
    return Detector(Bright(DetectorSpec(image_size=8)), **options)


def by_hand(path):
    """The values of a NIfTI-1 file and its affine, from the bytes as the standard describes them."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    order = "<" if struct.unpack("<i", content[:4])[0] == 348 else ">"

    def at(offset, kind, count=1):
        return struct.unpack(
            f"{order}{count}{kind}", content[offset : offset + struct.calcsize(kind) * count]
        )

    rank, *extents = at(40, "h", 8)
    shape = extents[:rank]
    kind = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8"}[at(70, "h")[0]]
    start, slope, intercept = (int(at(108, "f")[0]), *at(112, "f", 2))
    values = np.frombuffer(content, np.dtype(order + kind), int(np.prod(shape)), start)
    values = values.reshape(shape, order="F").astype(np.float64)
    values = values * (slope or 1) + intercept if np.isfinite(slope) and slope else values
    if at(254, "h")[0] > 0:  # the rows of the affine
        return values, np.array(at(280, "f", 12)).reshape(3, 4), at(76, "f", 8)
    b, c, d = at(256, "f", 3)
    a = np.sqrt(max(0, 1 - b * b - c * c - d * d))
    sides = at(76, "f", 8)
    turn = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    return values, turn * np.array([sides[1], sides[2], sides[3] * (sides[0] or 1)]), sides


def upright(values, affine):
    """The volume with axes to the right, to the front and up, and which file axis each was."""
    order = [int(np.argmax(abs(affine[world, :3]))) for world in range(3)]
    turned = values.transpose(*order, *range(3, values.ndim))
    for world, axis in enumerate(order):
        if affine[world, axis] < 0:
            turned = np.flip(turned, world)
    return turned, order


@pytest.mark.parametrize("name", ["anatomical.nii", "functional.nii", "example4d.nii.gz", "standard.nii.gz"])
@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_slices_are_what_the_standard_says_within_one_gray_level(name, axis):
    path = FILES / name
    values, affine, sides = by_hand(path)
    turned, order = upright(values, affine)
    across = {"sagittal": 0, "coronal": 1, "axial": 2}[axis]
    columns, rows = (number for number in range(3) if number != across)
    low, high = float(values.min()), float(values.max())
    first = turned if turned.ndim == 3 else turned[..., 0]
    middle = first.shape[across] // 2
    plane = np.flip(np.take(first, middle, axis=across), (0, 1)).T
    expected = np.round((plane - low) / (high - low) * 255)
    aspect = sides[1 + order[rows]] / sides[1 + order[columns]]

    found = open_image(f"{path}#axis={axis}#{middle + 1}", value_range=(low, high))

    height, width = expected.shape
    wanted = (width, round(height * aspect)) if aspect > 1 else (round(width / aspect), height)
    assert found.size == (wanted if abs(aspect - 1) > 1e-3 else (width, height))
    stretched = _stretched(plane, found.size)
    assert abs(np.asarray(found, float) - np.round((stretched - low) / (high - low) * 255)).max() <= 1


def _stretched(plane, size):
    """Linear interpolation between the centres of voxels."""
    for axis, length in ((0, size[1]), (1, size[0])):
        count = plane.shape[axis]
        at = (np.arange(length) + 0.5) * count / length - 0.5
        plane = np.apply_along_axis(
            lambda line, at=at, n=count: np.interp(at, np.arange(n), line), axis, plane
        )
    return plane


def corner(order):
    """A volume whose one bright voxel is at the patient's right, front and top, stored in an order such as LPS."""
    ways = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    affine, values, bright = np.eye(4), np.zeros((4, 4, 4), np.uint8), []
    affine[:3, :3] = 0
    for axis, letter in enumerate(order):
        world, sign = ways[letter]
        affine[world, axis] = sign
        bright.append(-1 if sign > 0 else 0)
    values[tuple(bright)] = 200
    return nibabel.Nifti1Image(values, affine)


@pytest.mark.parametrize("order", ["RAS", "LPS", "ASR", "PIL", "SLA"])
def test_right_is_left_front_and_top_are_up_in_any_order_of_storage(order, tmp_path):
    path = tmp_path / "corner.nii"
    nibabel.save(corner(order), path)
    pictures = {
        axis: [f.image.eight_bit(name="") for f in frames(f"{path}#axis={axis}")] for axis in nifti.AXES
    }
    assert [p.getpixel((0, 0)) for p in pictures["axial"]] == [0, 0, 0, 200]
    assert [p.getpixel((0, 0)) for p in pictures["coronal"]] == [0, 0, 0, 200]
    assert [p.getpixel((0, 0)) for p in pictures["sagittal"]] == [0, 0, 0, 200]


def volume(path, values, **fields):
    image = nibabel.Nifti1Image(values, np.diag([*fields.pop("spacing", (1, 1, 1)), 1]))
    for name, value in fields.items():
        image.header[name] = value
    path.parent.mkdir(exist_ok=True)
    nibabel.save(image, path)
    return path


def test_voxels_that_are_not_square_are_resampled_to_square(tmp_path):
    path = volume(tmp_path / "flat.nii", np.zeros((10, 8, 4), np.uint8), spacing=(1, 1, 3))
    assert size_of(f"{path}#1") == (10, 8)
    assert size_of(f"{path}#axis=coronal#1") == (10, 12)
    assert [frame.image.size for frame in frames(f"{path}#axis=sagittal&every=5")] == [(8, 12), (8, 12)]


def test_ids_name_the_slice_whatever_was_selected_and_open_it_again(tmp_path):
    path = volume(tmp_path / "a.nii.gz", np.arange(4 * 4 * 6, dtype=np.uint8).reshape(4, 4, 6))
    for selected, ids in (
        ("#every=2", ["#1", "#3", "#5"]),
        ("#axis=axial&every=3", ["#1", "#4"]),
        ("#axis=coronal&every=3", ["#axis=coronal#1", "#axis=coronal#4"]),
    ):
        found = list(frames(f"{path}{selected}"))
        assert [frame.id for frame in found] == [f"{path}{id}" for id in ids]
        for frame in found:
            again = open_image(frame.id)
            assert np.array_equal(np.asarray(again), np.asarray(frame.image.eight_bit(name="")))


@pytest.mark.parametrize(
    ("selected", "said"),
    [
        ("#axis=oblique", "axis oblique: expected axial, coronal, sagittal"),
        ("#every=0.5s", "its images have no times; give a number, for example every=10"),
        ("#every=-1", "expected a number of images such as 10"),
        ("#every=2&every=3", "after # expected a number, every=STEP or axis=AXIS"),
        ("#axis=axial#99", "fewer images"),
    ],
)
def test_a_selection_that_cannot_be_is_one_message(selected, said, tmp_path):
    path = volume(tmp_path / "a.nii", np.zeros((4, 4, 6), np.uint8))
    with pytest.raises(InputError, match=said):
        list(frames(f"{path}{selected}"))


def test_one_range_for_all_slices_and_all_volumes_of_a_run(tmp_path):
    """Today's rule for 16 bits: without a range, the whole first volume decides, not its first (black) slice."""
    values = np.zeros((4, 4, 3), np.int16)
    values[..., 1], values[..., 2] = 300, 4000
    volume(tmp_path / "a.nii", values)
    volume(tmp_path / "b.nii", values // 2)  # another exposure
    paths = [image.path for image in find_images([tmp_path])]
    with pytest.warns(UserWarning, match="scaled from 0 to 4095"):
        found = list(toy().stream(paths))
    assert {prediction.value_range for prediction in found} == {(0.0, 4095.0)}
    highest = [float(prediction.anomaly_map.max()) for prediction in found]
    assert highest == pytest.approx([v / 255 for v in (0, 19, 249, 0, 9, 125)], abs=2e-3)


def test_the_window_of_a_ct_is_a_range_in_hounsfield_units(tmp_path):
    stored = np.array([-160, 45, 240, 1000]).reshape(4, 1, 1) * np.ones((4, 4, 2))
    image = nibabel.Nifti1Image(stored, np.diag([-1, 1, 1, 1]))
    image.header.set_data_dtype(np.int16)
    image.header.set_slope_inter(2, 10)
    nibabel.save(image, tmp_path / "ct.nii")
    scale = Scale((-310, 490))
    (first, *_) = frames(tmp_path / "ct.nii")
    picture, _ = scale(first.image, name="ct")
    assert np.asarray(picture)[0].tolist() == [0, 131, 255, 255]
    with pytest.raises(InputError, match="gray values from -310 to 2010.*--range LOW HIGH"):
        first.image.eight_bit(name="ct")


def test_a_file_that_says_its_own_range_is_shown_in_it(tmp_path):
    values = np.full((2, 2, 2), 150, np.int16)
    path = volume(tmp_path / "own.nii", values, cal_min=100, cal_max=200)
    assert open_image(path).getpixel((0, 0)) == 128
    assert open_image(path, value_range=(0, 150)).getpixel((0, 0)) == 255


def test_colour_is_read_and_complex_numbers_are_refused(tmp_path):
    colors = np.zeros((2, 2, 2), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    colors["G"] = 200
    assert open_image(volume(tmp_path / "rgb.nii", colors)).getpixel((0, 0)) == (0, 200, 0)
    with pytest.raises(InputError, match="voxels of type complex64; expected real numbers or RGB"):
        open_image(volume(tmp_path / "complex.nii", np.zeros((2, 2, 2), np.complex64)))


def test_a_volume_of_many_megabytes_in_a_small_file_is_refused(tmp_path, monkeypatch):
    path = volume(tmp_path / "bomb.nii.gz", np.zeros((256, 256, 64), np.uint8))
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(nifti, "LARGEST", 1 << 20)
    with pytest.raises(
        InputError, match="bomb.nii.gz: 4194304 bytes when unpacked; expected at most 1048576"
    ):
        open_image(path)


def broken(folder):
    """A volume with NaN, one that is cut, one whose header promises more dimensions, and a good one."""
    values = np.arange(4 * 4 * 4, dtype=np.float32).reshape(4, 4, 4)
    volume(folder / "good.nii.gz", values)
    cut = (folder / "good.nii.gz").read_bytes()
    (folder / "cut.nii.gz").write_bytes(cut[: len(cut) // 2])
    (folder / "text.nii").write_text("no volume\n" * 50)
    values[1, 2, 3] = np.nan
    volume(folder / "holes.nii", values)
    volume(folder / "many.nii", np.zeros((2, 2, 2, 2, 3), np.uint8))
    return folder


def test_each_volume_that_cannot_be_used_is_one_message_and_the_rest_is_scored(tmp_path):
    folder = broken(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = predicting.predict(toy(), folder, tmp_path / "out", save=["heatmap"])
    assert (run.scored, run.failed) == (4, 4)
    said = {
        Path(record["image_path"]).name: record["error"]
        for record in map(json.loads, (run.folder / "errors.jsonl").read_text().splitlines())
    }
    assert "holes.nii: 1 of 64 voxels are NaN or infinite; expected numbers" in said["holes.nii"]
    assert "damaged image" in said["cut.nii.gz"]
    assert "not a NIfTI file" in said["text.nii"]
    assert "a volume of 2 x 2 x 2 x 2 x 3; expected 2 to 4 dimensions" in said["many.nii"]
    lines = [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]
    assert [Path(line["image_path"]).name for line in lines] == [f"good.nii.gz#{n}" for n in (1, 2, 3, 4)]
    assert sorted(file.name for file in (run.folder / "heatmaps").iterdir())[0] == "good#1_heatmap.png"


def test_a_volume_of_nibabels_own_with_nan_is_one_message():
    with pytest.raises(InputError, match="153 of 1071 voxels are NaN or infinite"):
        list(frames(FILES / "resampled_anat_moved.nii"))


@pytest.mark.slow
def test_the_commands_for_normal_images_take_volumes_and_steps(tmp_path, cli):
    path = volume(tmp_path / "normal.nii.gz", np.full((32, 32, 8), 1000, np.uint16))
    options = ("--backbone", "micro", "--range", 0, 4095, "--every", 2)
    done = cli(
        "calibrate", path, *options, "--false-alarm-rate", 0.5, "--output", tmp_path / "threshold.json"
    )
    assert json.loads((tmp_path / "threshold.json").read_text())["info"]["images"] == 4, done.err
    done = cli("fit", path, *options, "--output", tmp_path / "a.memory")
    assert "1 reference" in done.out  # four slices with the same pixels
    done = cli("predict", path, *options[:-1], 4, "--axis", "coronal", "--output", tmp_path / "out")
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["image_path"].rpartition("/")[2] for line in lines] == [
        f"normal.nii.gz#axis=coronal#{number}" for number in range(1, 33, 4)
    ]
    assert cli("predict", path, "--axis", "up").complaints == [
        "error: axis up: expected axial, coronal, sagittal"
    ]


def dataset(root):
    """Single slices as a data set in MVTec's layout, the lesions with masks."""
    rng = np.random.default_rng(0)
    for part in ("train/good", "test/good", "test/lesion"):
        for number in range(2):
            values = rng.integers(400, 600, (32, 32, 1)).astype(np.int16)
            if part == "test/lesion":
                values[4:12, 8:16] = 1500
                mask = np.zeros((32, 32), np.uint8)
                mask[16:24, 20:28] = 255  # as it is seen: the patient's right is on the left, front is up
                (root / "scan/ground_truth/lesion").mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(root / f"scan/ground_truth/lesion/{number}_mask.png")
            (root / "scan" / part).mkdir(parents=True, exist_ok=True)
            volume(root / "scan" / part / f"{number}.nii.gz", values)
    return root


def test_a_data_set_of_slices_is_prepared_and_evaluated_and_volumes_in_it_are_refused(tmp_path):
    root = dataset(tmp_path / "data")
    assert check(list_samples(root, None)) == []
    result = evaluate(toy(value_range=(0, 2000)), root, output=tmp_path / "out")
    assert result.mean["image_auroc"] == 1
    assert result.mean["pixel_auroc"] == 1  # with masks drawn on the slices as they are seen
    volume(root / "scan/test/good/9.nii.gz", np.zeros((32, 32, 3), np.int16))
    evaluate(toy(value_range=(0, 2000)), root, output=tmp_path / "again")
    said = (tmp_path / "again" / "results.json").read_text()
    assert "9.nii.gz: holds several images, but a data set has one label and one mask per file" in said


def test_a_range_is_measured_on_volumes(tmp_path):
    values = np.linspace(0, 1000, 16 * 16 * 4).reshape(16, 16, 4).astype(np.int16)
    path = volume(tmp_path / "a.nii", values)
    from anomalyclip.depth.ranges import measure_range

    low, high = measure_range(path)
    assert low == pytest.approx(1, abs=1)
    assert high == pytest.approx(999, abs=1)


def test_what_a_header_says_of_a_patient_is_in_no_result(tmp_path):
    path = volume(
        tmp_path / "a.nii",
        np.zeros((8, 8, 2), np.uint8),
        descrip=b"SECRET^NAME",
        db_name=b"SECRET-ID",
        aux_file=b"SECRET-FILE",
        intent_name=b"SECRET",
    )
    run = predicting.predict(toy(threshold=None), path, tmp_path / "out", save=["nifti", "heatmap", "csv"])
    assert run.scored == 2
    assert b"SECRET" not in gzip.decompress((run.folder / "volumes" / "a_map.nii.gz").read_bytes())
    for file in run.folder.rglob("*"):
        assert "SECRET" not in file.name
        assert not file.is_file() or b"SECRET" not in file.read_bytes()


@pytest.mark.parametrize("order", ["RAS", "LPS", "PIL", "SLA"])
@pytest.mark.parametrize("axis", nifti.AXES)
def test_the_maps_of_a_volume_are_one_that_lies_on_it(order, axis, tmp_path):
    path = tmp_path / "in" / "corner.nii.gz"
    path.parent.mkdir()
    rng = np.random.default_rng(3)
    image = corner(order)
    values = (rng.random((8, 8, 8)) * 200).astype(
        np.uint8
    )  # Bright's map of 8 x 8 pixels is the slice itself
    nibabel.save(nibabel.Nifti1Image(values, image.affine), path)
    run = predicting.predict(toy(), f"{path}#axis={axis}", tmp_path / "out", save=["nifti"])
    (line,) = map(json.loads, (run.folder / "volumes.jsonl").read_text().splitlines())
    found = nibabel.load(run.folder / line["files"]["nifti"])
    assert np.allclose(found.get_fdata(), values / 255, atol=1e-6)
    assert np.array_equal(found.affine, image.affine)
    assert found.get_data_dtype() == np.float32


def test_a_volume_is_as_anomalous_as_its_most_anomalous_slice(tmp_path):
    values = np.zeros((8, 8, 5), np.uint8)
    values[..., 1], values[..., 3] = 100, 200
    path = volume(tmp_path / "in" / "a.nii.gz", values, spacing=(1, 2, 4))
    volume(tmp_path / "in" / "b.nii", values[..., :2])
    run = predicting.predict(
        toy(threshold=Threshold(score=0.5)), path.parent, tmp_path / "out", save=["nifti"]
    )
    first, second = map(json.loads, (run.folder / "volumes.jsonl").read_text().splitlines())
    assert first == {
        "image_path": str(path),
        "pred_score": pytest.approx(200 / 255),
        "pred_label": True,
        "threshold": 0.5,
        "slices": 5,
        "most_anomalous": f"{path}#4",
        "files": {"nifti": "volumes/a_map.nii.gz"},
    }
    assert (second["pred_label"], second["slices"], second["most_anomalous"][-2:]) == (False, 2, "#2")
    found = nibabel.load(run.folder / "volumes" / "a_map.nii.gz")
    assert (found.shape, found.header.get_zooms()) == ((8, 8, 5), (1, 2, 4))
    assert np.allclose(found.get_fdata(), values / 255, atol=1e-6)


def test_volumes_that_are_gone_or_scored_again_leave_no_stale_maps(tmp_path):
    path = volume(tmp_path / "in" / "a.nii", np.full((8, 8, 3), 50, np.uint8))
    volume(tmp_path / "in" / "b.nii", np.full((8, 8, 3), 60, np.uint8))
    predicting.predict(toy(), path.parent, tmp_path / "out", save=["nifti"])
    assert {file.name for file in (tmp_path / "out/volumes").iterdir()} == {"a_map.nii.gz", "b_map.nii.gz"}
    (tmp_path / "in" / "b.nii").unlink()
    predicting.predict(toy(), f"{path}#every=2", tmp_path / "out", save=["nifti"], overwrite=True)
    assert {file.name for file in (tmp_path / "out/volumes").iterdir()} == {"a_map.nii.gz"}
    found = nibabel.load(tmp_path / "out/volumes/a_map.nii.gz").get_fdata()
    assert [float(found[..., k].max() * 255) for k in range(3)] == pytest.approx([50, 0, 50])


def test_a_resumed_run_ends_with_the_whole_volume(tmp_path):
    path = volume(tmp_path / "in" / "a.nii", np.full((8, 8, 3), 50, np.uint8))
    predicting.predict(toy(), f"{path}#2", tmp_path / "out", save=["nifti"])
    predicting.predict(toy(), path, tmp_path / "out", save=["nifti"], resume=True)
    (line,) = map(json.loads, (tmp_path / "out/volumes.jsonl").read_text().splitlines())
    assert line["slices"] == 3
    assert nibabel.load(tmp_path / "out" / line["files"]["nifti"]).get_fdata().min() > 0.19


@pytest.mark.parametrize("damage", ['{"files": 3}', "{}", '["files"]', "[" * 9000])
def test_a_damaged_listing_of_volumes_is_named_when_the_run_is_resumed(tmp_path, damage):
    path = volume(tmp_path / "in" / "a.nii", np.full((8, 8, 3), 50, np.uint8))
    predicting.predict(toy(), path, tmp_path / "out")
    (tmp_path / "out/volumes.jsonl").write_text(damage)
    with pytest.raises(AnomalyCLIPError, match=r"volumes\.jsonl, line 1 is damaged"):
        predicting.predict(toy(), path, tmp_path / "out", resume=True)


def test_a_selection_checks_its_values():
    with pytest.raises(AnomalyCLIPError, match="every 0s: expected"):
        Selection(every="0s")
