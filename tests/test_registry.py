"""Named backbones and prompts: downloaded whole or not at all, then never asked for again."""

import hashlib
import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from anomalyclip.clip.download import DownloadError, RemoteFile, cache_folder, fetch, trusted, unreachable
from anomalyclip.clip.registry import (
    BACKBONES,
    PROMPTS,
    Backbone,
    fetch_backbone,
    fetch_prompts,
    resolve_backbone,
    resolve_prompts,
)
from anomalyclip.clip.weights import read_weights
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import file_digest
from tests import clip_forms as forms
from tests.http_files import Files, serve

CONTENT = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def files() -> Iterator[Files]:
    with serve() as running:
        yield running


def remote(files: Files, content: bytes = CONTENT, name: str = "model.pt") -> RemoteFile:
    files.content[f"/{name}"] = content
    return RemoteFile(f"{files.url}/{name}", f"sha256:{hashlib.sha256(content).hexdigest()}")


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


# --- one file over HTTP -------------------------------------------------------------------------------------


def test_a_file_is_downloaded_once(files: Files, tmp_path: Path) -> None:
    wanted = remote(files)
    seen: list[tuple[int, int | None]] = []

    path = fetch(wanted, tmp_path, progress=lambda done, total: seen.append((done, total)))
    again = fetch(wanted, tmp_path)

    assert again == path
    assert path.read_bytes() == CONTENT
    assert path.name.endswith("-model.pt")
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert files.gets == [None]
    assert leftovers(tmp_path) == [path.name]


def test_a_git_blob_id_is_checked_as_git_counts_it(files: Files, tmp_path: Path) -> None:
    files.content["/epoch_15.pth"] = b"hello\n"
    # printf 'hello\n' | git hash-object --stdin
    good = RemoteFile(f"{files.url}/epoch_15.pth", "git:ce013625030ba8dba906f756967f9e9ca394464a")
    assert fetch(good, tmp_path).read_bytes() == b"hello\n"


def test_other_content_is_removed_and_both_digests_are_named(files: Files, tmp_path: Path) -> None:
    wanted = remote(files)
    files.content["/model.pt"] = b"<html>please log in</html>"
    with pytest.raises(DownloadError) as refused:
        fetch(wanted, tmp_path)
    assert wanted.digest in str(refused.value)
    assert hashlib.sha256(b"<html>please log in</html>").hexdigest() in str(refused.value)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("length", ["abc", "-5", "1e9", "\u0663"])
def test_a_length_that_is_no_number_is_passed_over(length: str, files: Files, tmp_path: Path) -> None:
    wanted = remote(files)
    files.length = length.encode().decode("latin-1")
    assert fetch(wanted, tmp_path, attempts=1).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "location", ["http://[::1/model.pt", "http://host:port/", "file:///etc/passwd", "//", "x://"]
)
def test_a_server_that_refers_to_no_usable_address_is_named(
    location: str, files: Files, tmp_path: Path
) -> None:
    wanted = remote(files)
    files.location = location
    with pytest.raises(DownloadError, match=re.escape(wanted.url)):
        fetch(wanted, tmp_path, attempts=1, pause=0)
    assert unreachable(wanted.url) is None or isinstance(unreachable(wanted.url), str)


def test_a_connection_cut_half_way_is_resumed_where_it_broke(files: Files, tmp_path: Path) -> None:
    wanted = remote(files)
    files.cuts = [300_000, 200_000]
    assert fetch(wanted, tmp_path, pause=0).read_bytes() == CONTENT
    assert files.gets == [None, "bytes=300000-", "bytes=500000-"]


def test_a_later_call_resumes_what_an_earlier_one_left(files: Files, tmp_path: Path) -> None:
    wanted = remote(files)
    files.cuts = [300_000]
    with pytest.raises(DownloadError, match=r"broke 1 times \(closed after 300000 of 1048576 bytes\)"):
        fetch(wanted, tmp_path, attempts=1)
    assert leftovers(tmp_path) == [f"{wanted.name}.part"]

    assert fetch(wanted, tmp_path).read_bytes() == CONTENT
    assert files.gets == [None, "bytes=300000-"]
    assert leftovers(tmp_path) == [wanted.name]


def test_a_server_without_ranges_sends_all_of_it_again(files: Files, tmp_path: Path) -> None:
    wanted = remote(files)
    files.ranges = False
    files.cuts = [300_000]
    assert fetch(wanted, tmp_path, pause=0).read_bytes() == CONTENT
    assert files.gets == [None, "bytes=300000-"]


def test_a_part_that_is_complete_already_is_taken(files: Files, tmp_path: Path) -> None:
    wanted = remote(files)
    (tmp_path / f"{wanted.name}.part").write_bytes(CONTENT)
    assert fetch(wanted, tmp_path).read_bytes() == CONTENT
    assert files.gets == [f"bytes={len(CONTENT)}-"]


def test_a_damaged_part_costs_one_failure_not_all_later_calls(files: Files, tmp_path: Path) -> None:
    wanted = remote(files)
    (tmp_path / f"{wanted.name}.part").write_bytes(b"damaged")
    with pytest.raises(DownloadError, match="not the published file"):
        fetch(wanted, tmp_path)
    assert fetch(wanted, tmp_path).read_bytes() == CONTENT


def test_a_damaged_cached_file_is_downloaded_again(files: Files, tmp_path: Path) -> None:
    wanted = remote(files)
    fetch(wanted, tmp_path).write_bytes(b"damaged")
    assert fetch(wanted, tmp_path).read_bytes() == CONTENT


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(files: Files, tmp_path: Path) -> None:
    wanted = remote(files)
    files.fail = [503, 429]
    assert fetch(wanted, tmp_path, pause=0).read_bytes() == CONTENT

    files.requests.clear()
    missing = RemoteFile(f"{files.url}/none.pt", wanted.digest[:-1] + "x")
    with pytest.raises(DownloadError, match=rf"{files.url}/none\.pt: the server answered HTTP 404 Not Found"):
        fetch(missing, tmp_path)
    assert files.gets == [None]


def test_no_network_is_said_so(tmp_path: Path) -> None:
    url = f"{closed_port()}/model.pt"
    with pytest.raises(DownloadError, match=rf"{url}: no connection \(.*refused\)"):
        fetch(RemoteFile(url, "sha256:00"), tmp_path)


def test_a_python_without_certificates_of_its_own_trusts_those_of_certifi(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    assert not ssl.create_default_context().get_ca_certs()
    assert len(trusted().get_ca_certs()) > 50


def test_a_cache_that_cannot_be_written_is_said_so(files: Files, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match=r"cannot be stored in .*set ANOMALYCLIP_CACHE to a folder"):
        fetch(remote(files), tmp_path / "file" / "cache")


def test_processes_that_want_the_same_file_download_it_once(files: Files, tmp_path: Path) -> None:
    wanted = remote(files, CONTENT * 16)
    program = (
        "import sys; from pathlib import Path; from anomalyclip.clip.download import *;"
        "print(fetch(RemoteFile(*sys.argv[1:3]), Path(sys.argv[3])))"
    )
    command = [sys.executable, "-c", program, wanted.url, wanted.digest, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = {process.communicate()[0].strip() for process in both}
    assert printed == {str(tmp_path / wanted.name)}
    assert file_digest(tmp_path / wanted.name, "sha256") == wanted.digest
    assert files.gets == [None]


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ANOMALYCLIP_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / "home" / ".cache" / "anomalyclip"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "anomalyclip"
    monkeypatch.setenv("ANOMALYCLIP_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


# --- backbones ----------------------------------------------------------------------------------------------

REPOSITORY = "timm/tiny.openai"
HUB_PATH = f"/{REPOSITORY}/resolve/main/open_clip_model.safetensors"


def run(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run in a process of its own: the hub's client reads its environment when it is imported."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "HF_HUB_DISABLE_XET": "1", **environment},
        capture_output=True,
        text=True,
    )


FETCH = """
import sys
from pathlib import Path
from anomalyclip.clip.download import DownloadError, RemoteFile
from anomalyclip.clip.registry import Backbone, fetch_backbone
hub, url, digest, folder = sys.argv[1:]
try:
    print(fetch_backbone("tiny", Backbone(hub, RemoteFile(url, digest)), Path(folder)))
except DownloadError as error:
    sys.exit(str(error))
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return forms.archive(forms.tiny(), tmp_path_factory.mktemp("archive")).read_bytes()


def test_a_backbone_comes_from_the_hub_and_is_then_had_offline(files: Files, tmp_path: Path) -> None:
    from safetensors.torch import save

    files.content[HUB_PATH] = save(forms.tiny())
    arguments = (REPOSITORY, f"{files.url}/never-asked.pt", "sha256:00", str(tmp_path / "cache"))
    environment = {"HF_ENDPOINT": files.url, "HF_HOME": str(tmp_path / "hf")}

    first = run(FETCH, *arguments, **environment)
    assert first.returncode == 0, first.stderr
    asked = len(files.requests)
    second = run(FETCH, *arguments, **environment)
    offline = run(FETCH, *arguments, **{**environment, "HF_ENDPOINT": closed_port(), "HF_HUB_OFFLINE": "1"})

    assert first.stdout == second.stdout == offline.stdout
    assert len(files.requests) == asked  # what is cached needs no network
    path = Path(first.stdout.strip())
    assert path.is_relative_to(tmp_path / "hf")
    assert read_weights(path).config == forms.CONFIG
    assert not any("never-asked" in asked_path for _, asked_path, _ in files.requests)


def test_without_the_hub_openais_archive_is_fetched_and_converted(
    files: Files, archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", closed_port())  # as HF_ENDPOINT, which is read at import
    entry = Backbone(REPOSITORY, remote(files, archive))

    path = fetch_backbone("tiny", entry, tmp_path)

    assert path == tmp_path / f"{entry.archive.digest.removeprefix('sha256:')}.safetensors"
    weights = read_weights(path)
    assert weights.config == forms.CONFIG
    assert all(torch.equal(weights.state_dict[name], tensor) for name, tensor in forms.tiny().items())
    assert fetch_backbone("tiny", entry, tmp_path) == path
    assert len(files.requests) == 1  # the conversion needs no network


def test_a_converted_file_that_was_damaged_is_made_again_from_the_archive(
    files: Files, archive: bytes, tmp_path: Path
) -> None:
    wanted = remote(files, archive)
    fetch(wanted, tmp_path / "cache")
    entry = Backbone("timm/nothing-of-that-name", wanted)
    path = fetch_backbone("tiny", entry, tmp_path / "cache")
    assert path.suffix == ".safetensors"
    whole = path.read_bytes()

    path.write_bytes(whole[:-1])
    assert fetch_backbone("tiny", entry, tmp_path / "cache") == path
    assert path.read_bytes() == whole

    (tmp_path / "cache" / wanted.name).unlink()  # the conversion is enough
    assert fetch_backbone("tiny", entry, tmp_path / "cache") == path
    assert len(files.requests) == 1


def test_a_cache_that_takes_no_conversion_does_without(files: Files, archive: bytes, tmp_path: Path) -> None:
    wanted = remote(files, archive)
    path = fetch(wanted, tmp_path / "cache")
    blocked = tmp_path / "cache" / f"{wanted.digest.removeprefix('sha256:')}.safetensors"
    blocked.mkdir()  # a folder is in the way: works for root too, whom no permission stops
    assert fetch_backbone("tiny", Backbone("timm/nothing-of-that-name", wanted), tmp_path / "cache") == path


def test_when_nothing_can_be_reached_the_message_says_what_to_do(tmp_path: Path) -> None:
    nowhere = closed_port()
    arguments = (REPOSITORY, f"{nowhere}/ViT.pt", "sha256:00", str(tmp_path / "cache"))
    environment = {"HF_ENDPOINT": nowhere, "HF_HOME": str(tmp_path / "hf")}

    message = run(FETCH, *arguments, **environment).stderr
    assert "backbone 'tiny' could not be downloaded" in message
    assert f"{nowhere}/{REPOSITORY} (open_clip_model.safetensors): no connection" in message
    assert f"{nowhere}/ViT.pt: no connection" in message
    assert f"curl -L -O {nowhere}/ViT.pt" in message
    assert "--backbone ViT.pt" in message
    assert "--backbone micro" in message

    offline = run(FETCH, *arguments, **environment, HF_HUB_OFFLINE="1").stderr
    assert "HF_HUB_OFFLINE forbids downloads" in offline
    assert f"curl -L -O {nowhere}/ViT.pt" in offline


def test_hub_content_that_is_not_what_the_hub_states_is_removed(files: Files, tmp_path: Path) -> None:
    files.content[HUB_PATH] = b"other content"
    files.etag = "0" * 64
    arguments = (REPOSITORY, f"{files.url}/none.pt", "sha256:00", str(tmp_path / "cache"))
    got = run(FETCH, *arguments, HF_ENDPOINT=files.url, HF_HOME=str(tmp_path / "hf"))
    assert "damaged during the download (expected sha256:0000" in got.stderr
    assert hashlib.sha256(b"other content").hexdigest() in got.stderr
    assert "none.pt: the server answered HTTP 404" in got.stderr
    assert not list((tmp_path / "hf").rglob("open_clip_model.safetensors"))


# --- names --------------------------------------------------------------------------------------------------


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    assert resolve_backbone(tmp_path) == tmp_path
    assert resolve_prompts(str(tmp_path)) == tmp_path


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(AnomalyCLIPError, match=r"backbone 'ViT-X' .*ViT-L-14-336, ViT-L-14, .*micro"):
        resolve_backbone("ViT-X")
    with pytest.raises(AnomalyCLIPError, match=r"prompts 'bottle' .*visa, mvtec, micro"):
        resolve_prompts("bottle")


def test_prompts_of_another_backbone_are_refused() -> None:
    with pytest.raises(AnomalyCLIPError, match=r"'mvtec' were learned for the backbone ViT-L-14-336"):
        resolve_prompts("mvtec", backbone="micro")


def test_prompts_are_downloaded_once(files: Files, tmp_path: Path) -> None:
    wanted = remote(files)
    path = fetch_prompts("visa", wanted, tmp_path)
    assert fetch_prompts("visa", wanted, tmp_path) == path
    assert path.read_bytes() == CONTENT
    assert len(files.requests) == 1


def test_prompts_that_cannot_be_reached_say_what_to_do(tmp_path: Path) -> None:
    url = f"{closed_port()}/epoch_15.pth"
    with pytest.raises(DownloadError, match=r"prompts 'visa' could not be downloaded") as refused:
        fetch_prompts("visa", RemoteFile(url, "git:00"), tmp_path)
    assert f"curl -L -O {url}" in str(refused.value)
    assert "--prompts epoch_15.pth" in str(refused.value)


def test_what_is_published_is_pinned() -> None:
    for entry in BACKBONES.values():
        if isinstance(entry, Backbone):
            sha256 = entry.archive.digest.removeprefix("sha256:")
            assert len(sha256) == 64
            assert f"/{sha256}/" in entry.archive.url  # OpenAI's addresses hold the digest
    published = {name: PROMPTS[name].source for name in ("visa", "mvtec")}
    assert published["visa"].digest == "git:c90f1d9d92d158b436a8fc193f984d4cec8b1fc8"
    assert published["mvtec"].digest == "git:72adc786e031b49ea288ba5f815f0d38cf158708"
    assert "multiscale_visa/" in published["mvtec"].url  # the published names read the wrong way round
    assert "multiscale/" in published["visa"].url
