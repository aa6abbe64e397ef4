"""Stores of Azure and Google: their own emulators on loopback, where these and the libraries are installed.

For az://, ``npm install azurite`` and ``pip install adlfs``; for gs://, ``pip install gcsfs gcp-storage-emulator
google-cloud-storage-control``.
"""

import base64
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from anomalyclip import Detector, DetectorSpec, Threshold, evaluate
from anomalyclip.addresses import Address, delete, exists, is_dir, length, objects, put
from anomalyclip.addresses.stores import store_of
from anomalyclip.data.listing import load_samples
from anomalyclip.files import check_writable
from anomalyclip.predicting import predict
from tests.generated_sets import make_set
from tests.toy_methods import Bright

pytestmark = pytest.mark.slow

AZURITE = (
    "--inMemoryPersistence",
    "--skipApiVersionCheck",
    "--silent",
    "--blobHost",
    "127.0.0.1",
    "--blobPort",
)


@contextmanager
def running(command, port):
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until = time.monotonic() + 60
            while time.monotonic() < until and process.poll() is None:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
            yield
        finally:
            process.terminate()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(params=["az", "gs"])
def bucket(request, monkeypatch):
    """The address of an empty bucket."""
    port = free_port()
    if request.param == "az":
        program = shutil.which("azurite-blob")
        if program is None or importlib.util.find_spec("adlfs") is None:
            pytest.skip("needs azurite-blob (npm install azurite) and adlfs")
        command = [program, *AZURITE, str(port)]
        key = base64.b64encode(os.urandom(32)).decode()
        monkeypatch.setenv("AZURITE_ACCOUNTS", f"tester:{key}")
        account = f"AccountName=tester;AccountKey={key};BlobEndpoint=http://127.0.0.1:{port}/tester;"
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"DefaultEndpointsProtocol=http;{account}")
    else:
        if (
            importlib.util.find_spec("gcsfs") is None
            or importlib.util.find_spec("gcp_storage_emulator") is None
        ):
            pytest.skip("needs gcsfs and gcp-storage-emulator")
        start = ("start", "--host=127.0.0.1", f"--port={port}", "--in-memory", "--default-bucket=box")
        command = [sys.executable, "-m", "gcp_storage_emulator", *start]
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    with running(command, port):
        if request.param == "az":
            store_of(Address("az://box"))[0].mkdir("box")
        yield f"{request.param}://box"


def test_a_store_of_another_kind_is_listed_read_and_written(bucket, tmp_path):
    data = make_set(tmp_path / "parts", classes=("nut",), normal=2, anomalous=2, side=56)
    for path in filter(Path.is_file, data.rglob("*")):
        put(path, Address(bucket) / f"parts/{path.relative_to(data).as_posix()}")
    detector = Detector(Bright(DetectorSpec(image_size=8)), threshold=Threshold(score=0.5, pixel=0.5))
    options = {"save": ["heatmap", "map"]}

    predict(detector, [f"{bucket}/parts"], tmp_path / "run", **options)
    predict(detector, [f"{bucket}/parts"], f"{bucket}/run", **options)
    again = predict(detector, [f"{bucket}/parts"], f"{bucket}/run", resume=True, **options)

    assert again.skipped == 4
    run = Address(f"{bucket}/run")
    there = {found[len(run) + 1 :]: store_of(found)[0].cat_file(store_of(found)[1]) for found in objects(run)}
    here = {path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != ".lock"}
    assert there == {path.relative_to(tmp_path / "run").as_posix(): path.read_bytes() for path in here}
    assert [sample.image for sample in load_samples(f"{bucket}/parts")] == [
        sample.image for sample in load_samples(data)
    ]
    assert evaluate(detector, f"{bucket}/parts").mean == evaluate(detector, data).mean
    limits = Address(f"{bucket}/t.json")
    check_writable(limits, overwrite=False)
    Threshold(score=0.4).to_file(limits)
    assert Threshold.from_file(limits).score == 0.4
    assert (length(limits) > 20, is_dir(run), is_dir(limits / "none")) == (True, True, False)
    delete(limits)
    assert not exists(limits)
