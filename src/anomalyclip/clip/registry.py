"""Names of backbones and prompts: where each is published, and the digest of its content."""

import re
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

from anomalyclip.backbones.table import ASSETS, KNOWN, TABLE, KnownBackbone
from anomalyclip.clip.download import (
    DownloadError,
    RemoteFile,
    cache_folder,
    cached,
    fetch,
    unreachable,
)
from anomalyclip.errors import AnomalyCLIPError, reason
from anomalyclip.files import file_digest
from anomalyclip.spec import DEFAULT_BACKBONE

_HUB_FILE = "open_clip_model.safetensors"
_PICKLED = {_HUB_FILE: ("open_clip_pytorch_model.bin",), "model.safetensors": ("pytorch_model.bin",)}
"""What the same weights are called as a pickle, which is read with ``weights_only=True``."""
_ANOMALYCLIP = "https://raw.githubusercontent.com/zqhang/AnomalyCLIP/45ed4dd35c05797d854294b5e8d585c545920089/checkpoints"


@dataclass(frozen=True)
class Backbone:
    """A published CLIP: one set of weights, available from two places.

    Parameters
    ----------
    hub : str
        Repository on the Hugging Face hub that has the weights as ``open_clip_model.safetensors``.
    archive : RemoteFile
        OpenAI's TorchScript archive.
    """

    hub: str
    archive: RemoteFile


@dataclass(frozen=True)
class LearnedPrompts:
    """A published prompt checkpoint.

    Parameters
    ----------
    source : RemoteFile or Path
        The checkpoint.
    backbone : str
        Name of the backbone they were learned for; they do not work with any other.
    trained_on : str, optional
        The data set, if the checkpoint itself does not say it.
    """

    source: RemoteFile | Path
    backbone: str
    trained_on: str | None = None


def _obtained(one: KnownBackbone) -> Backbone | Path | None:
    if one.folder is not None:
        return one.folder
    return None if one.archive is None else Backbone(one.hub, one.archive)


BACKBONES: dict[str, Backbone | Path] = {
    one.name: found for one in TABLE if (found := _obtained(one)) is not None
}
"""Backbones that a name alone is enough for: those with a known hash are downloaded; a `Path` is in the package."""

# Named after what they were trained on; the names of the published folders suggest the opposite.
PROMPTS: dict[str, LearnedPrompts] = {
    "visa": LearnedPrompts(
        RemoteFile(
            f"{_ANOMALYCLIP}/9_12_4_multiscale/epoch_15.pth", "git:c90f1d9d92d158b436a8fc193f984d4cec8b1fc8"
        ),
        DEFAULT_BACKBONE,
        "visa",
    ),
    "mvtec": LearnedPrompts(
        RemoteFile(
            f"{_ANOMALYCLIP}/9_12_4_multiscale_visa/epoch_15.pth",
            "git:72adc786e031b49ea288ba5f815f0d38cf158708",
        ),
        DEFAULT_BACKBONE,
        "mvtec",
    ),
    "micro": LearnedPrompts(ASSETS / "micro" / "prompts.safetensors", "micro"),
}
"""Known prompts; a `Path` is included in the package."""


def resolve_backbone(name_or_path: str | PathLike[str]) -> Path:
    """Return the local file or folder of a backbone, downloading a named one on its first use.

    Parameters
    ----------
    name_or_path : str or path
        A name in `anomalyclip.backbones.table.KNOWN`, or a file or folder of weights. A name takes precedence over a
        path spelled the same.

    Returns
    -------
    Path
        A file or folder for `anomalyclip.clip.weights.read_weights`.

    Raises
    ------
    AnomalyCLIPError
        If it is neither a known name nor an existing path, or if it cannot be downloaded.

    Examples
    --------
    >>> resolve_backbone("ViT-L-41")
    Traceback (most recent call last):
    ...
    anomalyclip.errors.AnomalyCLIPError: backbone 'ViT-L-41' is neither a known name
    (ViT-L-14-336, ViT-L-14, ViT-B-16, ViT-B-32, micro) nor an existing file or folder;
    `anomalyclip models` lists more
    """
    name = fspath(name_or_path)
    entry = BACKBONES.get(name)
    if entry is None and name in KNOWN:
        return _by_file(KNOWN[name])
    if entry is None:
        return _existing("backbone", name_or_path, BACKBONES, "; `anomalyclip models` lists more")
    if isinstance(entry, Path):
        return _embedded(entry)
    return fetch_backbone(name, entry, cache_folder())


def cached_file(one: KnownBackbone) -> Path | None:
    """Return where a known backbone already is on this machine; None: it is not."""
    if one.folder is not None:
        return one.folder
    if (hit := _in_hub_cache(one.hub, one.file)) is not None:
        return hit
    if one.archive is None:
        return None
    converted = _converted_path(one.archive, cache_folder())
    return converted if converted.is_file() else cached(one.archive, cache_folder())


def _in_hub_cache(repository: str, file: str) -> Path | None:
    """Return a file of weights in the hub's own cache, or the same as a pickle; None: neither is there."""
    from huggingface_hub import try_to_load_from_cache

    for name in (file, *_PICKLED.get(file, ())):
        if isinstance(hit := try_to_load_from_cache(repository, name), str):
            return Path(hit)
    return None


def _by_file(one: KnownBackbone) -> Path:
    """Return a backbone without a known hash: from the hub's own cache, which is never filled from here."""
    if (found := _in_hub_cache(one.hub, one.file)) is not None:
        return found
    raise AnomalyCLIPError(
        f"backbone {one.name!r} is not downloaded by name: no hash of its file is known here. Download it yourself "
        f"({one.source}; licence: {one.licence}), and give --backbone FILE; or put it into the hub's cache: "
        f"hf download {one.hub}"
    )


def resolve_prompts(
    name_or_path: str | PathLike[str], *, backbone: str | PathLike[str] | None = None
) -> Path:
    """Return the local file of learned prompts, downloading named ones on their first use.

    Parameters
    ----------
    name_or_path : str or path
        A name in `PROMPTS`, or a file. A name takes precedence over a path spelled the same.
    backbone : str or path, optional
        The backbone to use them with. If both are names, it must be the backbone they were learned for.

    Returns
    -------
    Path
        A prompt checkpoint.

    Raises
    ------
    AnomalyCLIPError
        If it is neither a known name nor an existing path, belongs to another backbone, or cannot be
        downloaded.

    Examples
    --------
    >>> resolve_prompts("visa", backbone="ViT-B-32")
    Traceback (most recent call last):
    ...
    anomalyclip.errors.AnomalyCLIPError: prompts 'visa' were learned for the backbone ViT-L-14-336 and do not work
    with ViT-B-32; use --backbone ViT-L-14-336, or learn prompts for ViT-B-32 with `anomalyclip train`
    """
    entry = PROMPTS.get(fspath(name_or_path))
    if entry is None:
        return _existing("prompts", name_or_path, PROMPTS)
    if backbone is not None and fspath(backbone) in KNOWN and fspath(backbone) != entry.backbone:
        raise AnomalyCLIPError(
            f"prompts {fspath(name_or_path)!r} were learned for the backbone {entry.backbone} and do not work "
            f"with {fspath(backbone)}; use --backbone {entry.backbone}, or learn prompts for {fspath(backbone)} with "
            "`anomalyclip train`"
        )
    if isinstance(entry.source, Path):
        return _embedded(entry.source)
    return fetch_prompts(fspath(name_or_path), entry.source, cache_folder())


def fetch_backbone(name: str, entry: Backbone, folder: Path) -> Path:
    """Return a published backbone: from the caches, else from the hub, else from OpenAI.

    A cached backbone needs no network. ``HF_HUB_OFFLINE`` forbids all downloads, including those from OpenAI.

    Parameters
    ----------
    name : str
        Its name in messages.
    entry : Backbone
        Where it is published.
    folder : Path
        Cache for OpenAI's archive and its conversion to safetensors; the hub has its own cache (``HF_HOME``).

    Returns
    -------
    Path
        A safetensors file; OpenAI's archive itself if `folder` cannot be written.

    Raises
    ------
    DownloadError
        If it is not cached and cannot be downloaded; the message says how to download it manually.
    """
    from huggingface_hub import constants

    if (hit := _in_hub_cache(entry.hub, _HUB_FILE)) is not None:
        return hit
    if converted := _converted(entry.archive, folder):
        return converted
    if archive := cached(entry.archive, folder):
        return _convert(archive, entry.archive, folder)
    if constants.HF_HUB_OFFLINE:
        failures = ["it is not cached, and HF_HUB_OFFLINE forbids downloads"]
    else:
        try:
            return _from_hub(entry.hub)
        except DownloadError as hub_error:
            failures = [str(hub_error)]
        try:
            return _convert(fetch(entry.archive, folder), entry.archive, folder)
        except DownloadError as openai_error:
            failures.append(str(openai_error))
    raise DownloadError(
        _by_hand(f"backbone {name!r}", failures, entry.archive.url, "--backbone")
        + "\nTo try anomalyclip without any download: --backbone micro"
    )


def fetch_prompts(name: str, source: RemoteFile, folder: Path) -> Path:
    """Return published prompts from the cache, or download them.

    Parameters
    ----------
    name : str
        Their name in messages.
    source : RemoteFile
        Where they are published.
    folder : Path
        The cache.

    Returns
    -------
    Path
        The checked file.

    Raises
    ------
    DownloadError
        If they are not cached and cannot be downloaded; the message says how to download them manually.
    """
    from huggingface_hub import constants

    if path := cached(source, folder):
        return path
    try:
        if constants.HF_HUB_OFFLINE:
            raise DownloadError("they are not cached, and HF_HUB_OFFLINE forbids downloads")
        return fetch(source, folder)
    except DownloadError as error:
        raise DownloadError(_by_hand(f"prompts {name!r}", [str(error)], source.url, "--prompts")) from error


def _by_hand(what: str, failures: list[str], url: str, option: str) -> str:
    name = url.rsplit("/", 1)[-1]
    tried = "".join(f"\n  - {failure}" for failure in failures)
    return (
        f"{what} could not be downloaded:{tried}\n"
        f"To download it manually, on any machine with a connection: curl -L -O {url}\n"
        f"then: {option} {name}"
    )


def _from_hub(repository: str) -> Path:
    """Download the weights from the hub, and check them against the hub's SHA-256."""
    from huggingface_hub import constants, hf_hub_download

    where = f"{constants.ENDPOINT}/{repository} ({_HUB_FILE})"
    # Without a network the hub's client retries for 23 s; this check fails at once.
    if why := unreachable(constants.ENDPOINT):
        raise DownloadError(f"{where}: no connection ({why})")
    try:
        path = Path(hf_hub_download(repository, _HUB_FILE))
    except (
        Exception
    ) as error:  # what the client raises depends on its version; the other source is tried next
        raise DownloadError(f"{where}: {reason(error).splitlines()[0]}") from error
    blob = path.resolve()  # the hub's cache names a large file by its SHA-256
    if (
        re.fullmatch("[0-9a-f]{64}", blob.name)
        and (got := file_digest(blob, "sha256")) != f"sha256:{blob.name}"
    ):
        path.unlink()
        blob.unlink()
        raise DownloadError(
            f"{where}: damaged during the download (expected sha256:{blob.name}, got {got}); it was removed"
        )
    return path


def _converted(archive: RemoteFile, folder: Path) -> Path | None:
    """Return the safetensors form of an archive if it exists and is complete."""
    path = _converted_path(archive, folder)
    if not path.is_file():
        return None
    from anomalyclip.clip.weights import read_weights  # imports torch

    try:
        read_weights(path)  # memory-mapped: checks header, size, names and shapes without reading the content
    except AnomalyCLIPError:
        return None
    return path


def _convert(path: Path, archive: RemoteFile, folder: Path) -> Path:
    """Write the safetensors form of an archive, which later starts can memory-map, and return it.

    If the cache cannot be written, the archive itself is returned.
    """
    from anomalyclip.clip.weights import read_weights, save_weights

    weights = read_weights(path)
    try:
        return save_weights(weights, _converted_path(archive, folder))
    except AnomalyCLIPError:
        return path


def _converted_path(archive: RemoteFile, folder: Path) -> Path:
    return folder / f"{archive.digest.partition(':')[2]}.safetensors"


def _existing(
    kind: str,
    name_or_path: str | PathLike[str],
    known: "dict[str, Backbone | Path] | dict[str, LearnedPrompts]",
    more: str = "",
) -> Path:
    path = Path(name_or_path).expanduser()
    if not path.exists():
        raise AnomalyCLIPError(
            f"{kind} {fspath(name_or_path)!r} is neither a known name ({', '.join(known)}) "
            f"nor an existing file or folder{more}"
        )
    return path


def _embedded(path: Path) -> Path:
    if not path.exists():
        raise AnomalyCLIPError(
            f"{path}: missing from this installation of anomalyclip; reinstall the package"
        )
    return path
