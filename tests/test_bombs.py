"""Small files that say to be large: they are refused before they fill the memory."""

import json
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import tests.clip_forms as forms
from anomalyclip.clip.weights import read_weights, tensor_shapes
from anomalyclip.errors import AnomalyCLIPError

READ = """
import json, resource, sys
from anomalyclip.clip.weights import read_weights
from anomalyclip.errors import AnomalyCLIPError
try:
    said = str(read_weights(sys.argv[1]).config)
except AnomalyCLIPError as error:
    said = str(error)
print(json.dumps([said, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024]))
"""


def read(path):
    """What reading says, and the peak memory in MB of the process that reads; 6 GB at most, so that nothing dies."""
    limit = 6 << 30
    done = subprocess.run(
        [sys.executable, "-c", READ, path],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    return json.loads(done.stdout)


@pytest.fixture
def archive(tmp_path):
    """A TorchScript archive of a tiny CLIP, and how to write it again with other records."""
    path = forms.archive(forms.tiny(), tmp_path)
    with zipfile.ZipFile(path) as whole:
        records = {record.filename: whole.read(record) for record in whole.infolist()}

    def again(name, change, how=zipfile.ZIP_STORED, **options):
        with zipfile.ZipFile(tmp_path / name, "w") as changed:
            for record, content in records.items():
                new = change(record, content)
                changed.writestr(
                    record, new, **({"compress_type": how, **options} if new is not content else {})
                )
        return tmp_path / name

    return path, again


def test_a_compressed_tensor_is_refused(archive):
    good, again = archive
    largest = f"ViT/data/{_largest(good)}"
    path = again(
        "small.pt",
        lambda name, content: content[:] if name != largest else bytes(len(content)),
        zipfile.ZIP_DEFLATED,
    )
    with pytest.raises(
        AnomalyCLIPError, match=rf"small\.pt: .*{largest} is compressed, as PyTorch never writes a tensor"
    ):
        read_weights(path)


@pytest.mark.slow
def test_an_archive_of_compressed_zeros_takes_no_more_memory_than_a_good_one(archive):
    good, again = archive
    zeros = bytes(400 << 20)
    largest = f"ViT/data/{_largest(good)}"
    bomb = again(
        "bomb.pt",
        lambda name, content: zeros if name == largest else content,
        zipfile.ZIP_DEFLATED,
        compresslevel=1,
    )
    assert bomb.stat().st_size < 4 << 20
    (said_of_good, usual), (said, peak) = read(good), read(bomb)
    assert said_of_good.startswith("CLIPConfig(")
    assert f"{largest} is compressed, as PyTorch never writes a tensor" in said
    assert peak < usual + 50


def _largest(path):
    with zipfile.ZipFile(path) as whole:
        data = [record for record in whole.infolist() if "/data/" in record.filename]
    return Path(max(data, key=lambda record: record.file_size).filename).name


def test_a_record_of_another_size_than_its_tensors_need_is_refused(archive):
    good, again = archive
    largest = f"ViT/data/{_largest(good)}"
    for name, change in (
        ("long.pt", lambda content: content + b"12"),
        ("short.pt", lambda content: content[:-2]),
    ):
        path = again(
            name, lambda record, content, change=change: change(content) if record == largest else content
        )
        with pytest.raises(
            AnomalyCLIPError, match=rf"{name}: .*{largest} has \d+ bytes, and its tensors need \d+"
        ):
            read_weights(path)


def test_a_giant_pickle_is_refused(archive):
    _, again = archive
    path = again("pickle.pt", lambda name, content: bytes(20 << 20) if name.endswith("data.pkl") else content)
    with pytest.raises(AnomalyCLIPError, match=r"pickle\.pt: .*its data\.pkl has 20971520 bytes"):
        read_weights(path)


def test_layers_that_share_their_numbers_are_refused(tmp_path):
    """One layer of 0.4 MB, said to be two thousand."""
    state = forms.tiny()
    layer = {
        name: tensor for name, tensor in state.items() if name.startswith("visual.transformer.resblocks.0.")
    }
    for index in range(2, 2000):
        state |= {name.replace(".0.", f".{index}.", 1): tensor for name, tensor in layer.items()}
    torch.save(state, tmp_path / "shared.pt")
    with pytest.raises(
        AnomalyCLIPError, match=r"shared\.pt: its tensors claim \d+ bytes, and the file has \d+"
    ):
        read_weights(tmp_path / "shared.pt")


def test_every_whole_form_is_within_its_bounds(tmp_path):
    """Nothing that is published is taken for a bomb."""
    for write in (
        forms.archive,
        forms.state_dict,
        forms.old_state_dict,
        forms.open_clip_file,
        forms.own_file,
    ):
        weights = read_weights(write(forms.tiny(), tmp_path))
        assert set(weights.state_dict) == set(tensor_shapes(weights.config))
