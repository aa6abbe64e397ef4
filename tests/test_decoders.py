"""What decoders print of damaged files carries the file's name, whichever thread decodes, and floods no screen."""

import io
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from anomalyclip.decoders import heard
from anomalyclip.errors import AnomalyCLIPWarning, InputError
from anomalyclip.images import read_image


def damaged(compression, mode="RGB"):
    """A TIFF file with noise where its compressed pixels were."""
    noise = np.random.default_rng(0)
    pixels = Image.fromarray((noise.integers(0, 256, (120, 160, 3)) // 8).astype(np.uint8)).convert(mode)
    content = io.BytesIO()
    pixels.save(content, "tiff", compression=compression)
    changed = bytearray(content.getvalue())
    for _ in range(60):
        changed[noise.integers(100, len(changed) - 500)] = noise.integers(256)
    return bytes(changed)


@pytest.fixture
def folder(tmp_path):
    for name, content in (
        ("zip.tif", damaged("tiff_adobe_deflate")),
        ("lzw.tif", damaged("tiff_lzw")),
        ("fax.tif", damaged("group4", "1")),
    ):
        (tmp_path / name).write_bytes(content)
    Image.new("RGB", (160, 120)).save(tmp_path / "whole.tif", compression="tiff_lzw")
    return tmp_path


def test_what_libtiff_says_is_part_of_the_error_and_not_printed(folder, capfd):
    with pytest.raises(InputError, match=r"zip\.tif: damaged image: .* \(libtiff: ZIPDecode: .*\)"):
        read_image(folder / "zip.tif")
    assert capfd.readouterr().err == ""


def test_a_file_that_is_read_although_it_is_damaged_is_warned_of(folder, capfd):
    with pytest.warns(
        AnomalyCLIPWarning, match=r"fax\.tif: read, but damaged in places \(libtiff: Fax4Decode: "
    ):
        assert read_image(folder / "fax.tif").size == (160, 120)
    assert capfd.readouterr().err == ""


def test_each_thread_hears_of_its_own_file_alone(folder, capfd):
    def said(name):
        try:
            read_image(folder / name)
        except InputError as error:
            return str(error)
        return ""

    names = ["zip.tif", "whole.tif", "lzw.tif", "whole.tif"] * 25
    with warnings.catch_warnings():
        warnings.simplefilter("error", AnomalyCLIPWarning)  # whole.tif has nothing to warn of
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(said, names))
    for name, text in zip(names, found, strict=True):
        assert (name in text, "libtiff" in text) == ((False, False) if name == "whole.tif" else (True, True))
        assert "ZIPDecode" not in text or name == "zip.tif"
    assert capfd.readouterr().err == ""
    assert not heard("outside of a file nobody listens")


def test_the_command_line_names_the_file_in_every_line_and_counts_what_would_flood_the_screen(
    folder, tmp_path
):
    for number in range(24):
        (folder / f"fax{number:02}.tif").write_bytes((folder / "fax.tif").read_bytes())
    (folder / "exif.tif").write_bytes(damaged("tiff_lzw")[:-40])
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "anomalyclip",
            "predict",
            str(folder),
            "--backbone",
            "micro",
            "--output",
            str(tmp_path / "o"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert sum(".tif: read, but damaged in places" in line for line in lines) == 20
    assert "warning: ... and 5 more warnings" in lines
    assert all(".tif: " in line or "more warnings" in line for line in lines), done.stderr
