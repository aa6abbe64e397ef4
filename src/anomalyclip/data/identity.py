"""Recognises a data set, so that evaluating prompts on their own training data does not go unnoticed."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from anomalyclip.addresses import Address, on_disk
from anomalyclip.errors import InputError
from anomalyclip.files import file_digest, require_regular

TRAINED_ON = "trained_on"
"""Key of `Prompts.info`: the catalogue's key or the folder's name."""
TRAINED_ON_CONTENT = "trained_on_content"
"""Key of `Prompts.info`: `content_fingerprint` of the images."""


def content_digest(path: Path | Address) -> str:
    """Return the SHA-256 of a file's content in hex.

    Raises
    ------
    InputError
        It cannot be read, or is not a regular file.
    """
    try:
        with on_disk(path) as file:
            require_regular(file)
            return file_digest(file, "sha256").removeprefix("sha256:")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def content_fingerprint(digests: Iterable[str]) -> str:
    """Return a fingerprint of a set of images that ignores their names, folders and order: 64 hex digits.

    Examples
    --------
    >>> content_fingerprint(["b", "a"]) == content_fingerprint(["a", "b"])
    True
    """
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def same_data(
    info: Mapping[str, str], *, name: str | None, digests: Iterable[str] | None = None
) -> str | None:
    """Return a warning if prompts would be evaluated on the data that they were trained on.

    Parameters
    ----------
    info : mapping
        `Prompts.info`.
    name : str or None
        The evaluated data set's key in the catalogue, or its folder's name.
    digests : iterable of str, optional
        SHA-256 of the evaluated image files (`content_digest`); without them only names are compared.

    Returns
    -------
    str or None
        A warning, or None if there is no sign of it.

    Examples
    --------
    >>> same_data({"trained_on": "mvtec"}, name="mvtec")
    'the prompts were trained on mvtec, the same data as in this evaluation: its figures are not zero-shot'
    >>> same_data({"trained_on": "mvtec"}, name="visa")
    """
    trained_on = info.get(TRAINED_ON)
    content = info.get(TRAINED_ON_CONTENT)
    same_name = trained_on is not None and trained_on == name
    same_content = content is not None and digests is not None and content == content_fingerprint(digests)
    if not (same_name or same_content):
        return None
    here = "" if name in (None, trained_on) else f" (here {name})"
    what = "this model was" if "method" in info else "the prompts were"
    return (
        f"{what} trained on {trained_on}, the same data as in this evaluation{here}: "
        "its figures are not zero-shot"
    )
