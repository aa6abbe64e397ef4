"""DICOM as a radiologist sees it, compared with dcmtk; nothing of the patient leaves the file."""

import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalyclip import Detector, DetectorSpec, predicting
from anomalyclip.depth import Deep
from anomalyclip.errors import AnomalyCLIPError, InputError
from anomalyclip.inputs import find_images
from anomalyclip.readers import frames, open_deep, open_image, size_of
from tests.toy_methods import Bright

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import Dataset  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402

FILES = Path(pydicom.__file__).parent / "data" / "test_files"


def toy(**options):
    return Detector(Bright(DetectorSpec(image_size=8)), **options)


def by_dcmtk(path, folder, *options):
    """The picture that dcmtk makes of a file."""
    if shutil.which("dcmj2pnm") is None:
        pytest.skip("needs dcmtk: apt-get install dcmtk")
    done = subprocess.run(
        ["dcmj2pnm", "-O", *options, "+on", str(path), str(folder / "dcmtk.png")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return np.asarray(Image.open(folder / "dcmtk.png")).astype(int)


def shades(path, **options):
    return np.asarray(open_image(path, **options)).astype(int)


WINDOWED = [
    "MR_small",
    "MR_small_RLE",
    "MR_small_bigendian",
    "MR_small_implicit",
    "MR_small_padded",
    "examples_overlay",
]
COLOR = [
    *("ExplVR_BigEnd", "SC_rgb_dcmtk_+eb+cy+np", "SC_rgb_dcmtk_+eb+cy+s2", "SC_rgb_dcmtk_+eb+cr"),
    *("SC_jpeg_no_color_transform", "SC_rgb_jpeg_dcmtk", "SC_rgb_jpeg_gdcm", "SC_rgb_jpeg_lossy_gdcm"),
    *("SC_rgb_rle", "SC_rgb_rle_2frame", "SC_rgb_rle_16bit", "SC_rgb_rle_32bit", "SC_rgb_small_odd_jpeg"),
    *("SC_ybr_full_422_uncompressed", "examples_palette", "examples_rgb_color", "examples_ybr_color"),
]


def test_12_bit_jpeg_looks_as_in_dcmtk(tmp_path):
    path = FILES / "JPGExtended.dcm"
    assert (
        abs(shades(path, value_range=(0, 264)) - by_dcmtk(path, tmp_path, "+Ww", "132.5", "265")).max() <= 1
    )


@pytest.mark.parametrize("name", WINDOWED)
def test_the_files_own_window_looks_as_in_dcmtk(name, tmp_path):
    path = FILES / f"{name}.dcm"
    assert abs(shades(path) - by_dcmtk(path, tmp_path, "+Wi", "1")).max() <= 1


@pytest.mark.parametrize("name", COLOR)
def test_colour_looks_as_in_dcmtk(name, tmp_path):
    path = FILES / f"{name}.dcm"
    found = shades(path)
    assert found.shape[2] == 3
    assert abs(found - by_dcmtk(path, tmp_path)).max() <= 1


@pytest.mark.parametrize("value_range", [(0, 2500), (-100, 900)])
def test_a_given_range_is_a_window_after_rescaling(value_range, tmp_path):
    path = FILES / "CT_small.dcm"  # intercept -1024
    low, high = value_range
    width, center = (
        high - low + 1,
        (low + high + 1) / 2,
    )  # DICOM's width counts the values, and the centre is between
    expected = by_dcmtk(path, tmp_path, "+Ww", str(center), str(width))
    assert abs(shades(path, value_range=value_range) - expected).max() <= 1


@pytest.mark.parametrize("name", ["jp2klossless", "jpeg_ls_lossless", "RLE", "expb"])
def test_lossless_compression_changes_nothing(name):
    np.testing.assert_array_equal(
        open_deep(FILES / f"MR_small_{name}.dcm").values, open_deep(FILES / "MR_small.dcm").values
    )


@pytest.mark.parametrize(
    ("name", "limits"),
    [("JPEG2000", (-30, 245)), ("JPEGLSNearLossless_16", (0, 65535)), ("693_J2KI", (-3995, 1812))],
)
def test_other_compressions_are_read(name, limits):
    values = open_deep(FILES / f"{name}.dcm").values
    assert (values.min(), values.max()) == limits


def changed(folder, name="MR_small", *, file="changed.dcm", **attributes):
    """A copy of a test file with other attributes."""
    dataset = pydicom.dcmread(FILES / f"{name}.dcm")
    for key, value in attributes.items():
        setattr(dataset, key, value)
    dataset.save_as(folder / file)
    return folder / file


def table(values, *, first, bits):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(values), first, bits])
    item.add_new("LUTData", "US", [int(value) for value in values])
    return Sequence([item])


def test_monochrome1_is_inverted_last(tmp_path):
    path = changed(tmp_path, PhotometricInterpretation="MONOCHROME1")
    assert abs(shades(path) - by_dcmtk(path, tmp_path, "+Wi", "1")).max() <= 1
    assert abs(shades(path) - (255 - shades(FILES / "MR_small.dcm"))).max() <= 1
    assert (
        abs(
            shades(path, value_range=(0, 2000)) + shades(FILES / "MR_small.dcm", value_range=(0, 2000)) - 255
        ).max()
        <= 1
    )


@pytest.mark.parametrize("function", ["SIGMOID", "LINEAR", "LINEAR_EXACT"])
def test_the_functions_of_a_window(function, tmp_path):
    path = changed(tmp_path, VOILUTFunction=function, WindowCenter=700, WindowWidth=300)
    flag = ["+Wfs"] if function == "SIGMOID" else []
    assert abs(shades(path) - by_dcmtk(path, tmp_path, "+Wi", "1", *flag)).max() <= 1


def test_a_table_of_interest_and_a_modality_table(tmp_path):
    curve = (np.linspace(0, 1, 2400) ** 2 * 4095).round()
    path = changed(tmp_path, VOILUTSequence=table(curve, first=100, bits=12))
    assert abs(shades(path) - by_dcmtk(path, tmp_path, "+Wl", "1")).max() <= 1
    path = changed(
        tmp_path, ModalityLUTSequence=table(curve, first=100, bits=12), WindowCenter=2000, WindowWidth=3000
    )
    assert abs(shades(path) - by_dcmtk(path, tmp_path, "+Wi", "1")).max() <= 1


def test_the_first_of_several_windows_counts(tmp_path):
    path = changed(tmp_path, WindowCenter=[600, 100], WindowWidth=[1600, 50])
    np.testing.assert_array_equal(shades(path), shades(FILES / "MR_small.dcm"))


def enhanced(folder, spacing):
    """Two frames of one picture; each has a rescale and a window of its own, which the file as a whole has not."""
    dataset = pydicom.dcmread(FILES / "MR_small.dcm")
    groups = []
    for slope, intercept, center, width in LOOKS:
        transformation, voi, group = Dataset(), Dataset(), Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept = slope, intercept
        transformation.RescaleType = "US"
        voi.WindowCenter, voi.WindowWidth = center, width
        group.PixelValueTransformationSequence = Sequence([transformation])
        group.FrameVOILUTSequence = Sequence([voi])
        groups.append(group)
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing = spacing
    shared.PixelMeasuresSequence = Sequence([measures])
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    dataset.NumberOfFrames = 2
    dataset.PixelData = dataset.PixelData[: 64 * 64 * 2] * 2
    for name in ("WindowCenter", "WindowWidth", "PixelSpacing"):
        delattr(dataset, name)
    dataset.save_as(folder / "enhanced.dcm")
    return str(folder / "enhanced.dcm")


def test_a_number_of_frames_that_is_none_is_named_and_its_value_is_printed_nowhere(cli, tmp_path):
    path = str(Path(pydicom.data.__file__).parent / "test_files" / "badVR.dcm")
    done = cli("predict", path, "--backbone", "micro", "--output", tmp_path / "out")
    assert "badVR.dcm: its NumberOfFrames is no number" in done.err.replace("\n", " ")
    assert "1A" not in done.err


LOOKS = [(1, 0, 600, 1600), (2, -1000, 1500, 2000)]


def test_each_frame_of_an_enhanced_file_has_its_own_rescale_and_window(tmp_path):
    path = enhanced(tmp_path, [1, 1])
    found = list(frames(path))
    assert [frame.id for frame in found] == [f"{path}#1", f"{path}#2"]
    for frame, (slope, intercept, center, width) in zip(found, LOOKS, strict=True):
        single = changed(
            tmp_path, RescaleSlope=slope, RescaleIntercept=intercept, WindowCenter=center, WindowWidth=width
        )
        assert abs(shades(frame.id) - by_dcmtk(single, tmp_path, "+Wi", "1")).max() <= 1
        np.testing.assert_array_equal(frame.image.values, open_deep(frame.id).values)


def test_the_spacing_of_an_enhanced_file_is_read(tmp_path):
    path = enhanced(tmp_path, [2, 1])
    assert size_of(f"{path}#2") == open_image(f"{path}#2").size == (64, 128)


def test_frames_are_numbered_and_decoded_one_by_one(tmp_path):
    path = str(FILES / "examples_ybr_color.dcm")
    found = [frame.id for frame in frames(path)]
    assert found == [f"{path}#{number}" for number in range(1, 31)]
    image = next(frame.image for frame in frames(path) if frame.id == f"{path}#7")
    np.testing.assert_array_equal(np.asarray(open_image(f"{path}#7")), np.asarray(image))
    with pytest.raises(InputError, match=r"#31: the file holds fewer images"):
        open_image(f"{path}#31")


@pytest.mark.parametrize(
    ("spacing", "size"), [([0.5, 0.5], (64, 64)), ([1.0, 0.5], (64, 128)), ([0.5, 1.0], (128, 64))]
)
def test_pixels_that_are_not_square_are_resampled(spacing, size, tmp_path):
    path = changed(tmp_path, PixelSpacing=spacing)
    assert open_image(path).size == size_of(path) == size
    gray = shades(FILES / "MR_small.dcm")
    assert shades(path).mean() == pytest.approx(gray.mean(), abs=1)


def test_without_a_window_the_range_is_assumed_for_all_and_negative_values_are_refused(tmp_path):
    plain = pydicom.dcmread(FILES / "MR_small.dcm")
    del plain.WindowCenter, plain.WindowWidth
    plain.save_as(tmp_path / "plain.dcm")
    assert open_deep(tmp_path / "plain.dcm").own is None
    assert toy().predict(tmp_path / "plain.dcm").value_range == (0, 4095)
    with pytest.raises(InputError, match=r"CT_small.dcm: gray values from -896 to .*--range LOW HIGH"):
        toy().predict(FILES / "CT_small.dcm")


def test_a_window_of_the_file_is_not_the_runs_range(tmp_path):
    assert toy().predict(FILES / "MR_small.dcm").value_range is None
    assert toy(value_range=(0, 3000)).predict(FILES / "MR_small.dcm").value_range == (0, 3000)
    assert isinstance(open_deep(FILES / "MR_small.dcm"), Deep)


def test_in_a_folder_files_without_an_extension_are_found_by_their_content(tmp_path):
    for name in ("IM0001", "1.2.840.113619.2"):
        shutil.copy(FILES / "MR_small.dcm", tmp_path / name)
    (tmp_path / "README").write_text("no image")
    (tmp_path / "notes.txt").write_bytes(bytes(128) + b"DICM")
    assert [image.name for image in find_images([tmp_path])] == ["1.2.840.113619.2", "IM0001"]
    assert open_image(tmp_path / "IM0001").size == (64, 64)


def test_a_dicomdir_stands_for_the_files_that_it_lists(tmp_path):
    disc = FILES / "dicomdirtests"
    listed = [image.path for image in find_images([disc / "DICOMDIR"])]
    assert len(listed) == 31
    assert all(Path(path).is_file() and Path(path).is_relative_to(disc) for path in listed)
    walked = {image.path for image in find_images([disc])}
    assert set(listed) <= walked
    assert str(disc / "DICOMDIR") not in walked


def test_a_dicomdir_cannot_lead_out_of_its_folder(tmp_path):
    index = pydicom.dcmread(FILES / "dicomdirtests" / "DICOMDIR")
    record = next(record for record in index.DirectoryRecordSequence if record.DirectoryRecordType == "IMAGE")
    record.ReferencedFileID = ["..", "SECRET"]
    pydicom.Dataset.save_as(index, tmp_path / "DICOMDIR")
    with pytest.raises(AnomalyCLIPError, match=r"DICOMDIR: lists ../SECRET, which is not in its folder"):
        list(find_images([tmp_path / "DICOMDIR"]))


def cut(content):
    return content[:-2000]


def wrong_length(content):
    """The rows say more than there are pixels."""
    at = content.index(b"\x28\x00\x10\x00US\x02\x00") + 8
    return content[:at] + (4000).to_bytes(2, "little") + content[at + 2 :]


@pytest.mark.parametrize("damage", [cut, wrong_length])
def test_a_damaged_file_is_one_message_and_the_rest_is_scored(damage, tmp_path):
    content = (FILES / "MR_small.dcm").read_bytes()
    (tmp_path / "in").mkdir()
    (tmp_path / "in/bad.dcm").write_bytes(damage(content))
    (tmp_path / "in/good.dcm").write_bytes(content)
    told = []
    run = predicting.predict(
        toy(), tmp_path / "in", tmp_path / "out", on_error=lambda path, error: told.append(str(error))
    )
    assert (run.scored, run.failed) == (1, 1)
    assert len(told) == 1
    assert f"{tmp_path}/in/bad.dcm: its pixels cannot be decoded (Explicit VR Little Endian; " in told[0]
    assert "\n" not in told[0]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("reportsi", "a DICOM file without an image"),
        ("rtplan", "a DICOM file without an image"),
        ("image_dfl", "deflated DICOM; convert it first"),
        ("rtstruct", "not a DICOM file"),
    ],
)
def test_what_is_not_read_is_refused_with_the_reason(name, why):
    with pytest.raises(InputError, match=rf"{name}.dcm: {why}"):
        open_image(FILES / f"{name}.dcm")


def test_nothing_of_the_patient_leaves_the_file(tmp_path, caplog, capfd):
    """No name, no id, no UID: not in results, not in names of files, not in messages and logs."""
    secrets = {"Secret^Patient", "ID-4711", "19700101", "Secret Hospital", "ACC-0815"}
    dataset = pydicom.dcmread(FILES / "CT_small.dcm")
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "Secret^Patient", "ID-4711", "19700101"
    dataset.InstitutionName, dataset.AccessionNumber = "Secret Hospital", "ACC-0815"
    secrets |= {str(dataset.SOPInstanceUID), str(dataset.StudyInstanceUID)}
    source = tmp_path / "in"
    source.mkdir()
    dataset.save_as(source / "a.dcm")
    content = (source / "a.dcm").read_bytes()
    (source / "b.dcm").write_bytes(content[:-500])
    at = content.index(b"Secret^Patient")
    (source / "c.dcm").write_bytes(content[: at + 9] + b"\xff\xfe\xff" + content[at + 12 :])
    (source / "d.dcm").write_bytes(content[: at + 10])
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        messages = []
        run = predicting.predict(
            toy(value_range=(-1000, 1000), threshold=None),
            source,
            tmp_path / "out",
            save=["map", "heatmap"],
            on_error=lambda path, error: messages.append(str(error)),
        )
    assert (run.scored, run.failed) == (2, 2)
    written = "".join(
        str(path) + path.read_bytes().decode("latin-1")
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    )
    said = "".join([*messages, *(str(one.message) for one in told), caplog.text, *capfd.readouterr()])
    assert [secret for secret in secrets if secret in written + said] == []
    assert json.loads((tmp_path / "out/predictions.jsonl").read_text().splitlines()[0])[
        "image_path"
    ].endswith("a.dcm")


def test_without_the_extra_a_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(
        InputError, match=r"MR_small.dcm: DICOM needs pydicom: pip install 'anomalyclip\[dicom\]'"
    ):
        open_image(FILES / "MR_small.dcm")


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="files in memory have a path on Linux alone")
def test_a_file_in_memory_is_read_by_its_path():
    descriptor = os.memfd_create("upload")
    try:
        os.write(descriptor, (FILES / "MR_small.dcm").read_bytes())
        (frame,) = frames(f"/proc/self/fd/{descriptor}")
        again = open_deep(frame.id)
    finally:
        os.close(descriptor)
    expected = open_deep(FILES / "MR_small.dcm").values.tolist()
    assert frame.image.values.tolist() == again.values.tolist() == expected
