"""Checks a data set for problems before hours of computation are spent on it."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from anomalyclip.addresses import Address, length, on_disk
from anomalyclip.data.catalog import DataSet, catalog
from anomalyclip.data.meta import Finding, Meta, Sample
from anomalyclip.errors import InputError
from anomalyclip.files import require_regular
from anomalyclip.readers import size_of


def check(meta: Meta, *, progress: Callable[[], None] | None = None) -> list[Finding]:
    """Return all findings about a data set: from listing it and from reading its files.

    The headers of all images are read, masks of anomalous images are decoded, and image files of equal size are
    compared by their content (BLAKE2).

    Parameters
    ----------
    meta : Meta
        The data set.
    progress : callable, optional
        Called once per sample.

    Returns
    -------
    list of Finding
        In this order: listing, each sample, duplicates, counts. Findings with `note` set are not problems.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as root:
    ...     Image.new("RGB", (8, 6)).save(f"{root}/0.png")
    ...     Image.new("L", (8, 8)).save(f"{root}/0_mask.png")
    ...     sample = Sample("0.png", "0_mask.png", "nut", "bent", True)
    ...     for finding in check(Meta(Path(root), {"test": (sample,)})):
    ...         print(finding.kind, finding.path, "-", finding.detail)
    sizes differ 0.png - is 8x6 pixels, but its mask 0_mask.png is 8x8
    empty mask 0_mask.png - no pixel above zero, but 0.png is anomalous
    """
    findings = list(meta.findings)
    for sample in meta:
        findings += _check_sample(meta.root, sample)
        if progress:
            progress()
    findings += _duplicates(meta)
    findings += _check_counts(meta)
    dataset = catalog()[meta.dataset] if meta.dataset else None
    if dataset:
        findings += _check_classes(meta, dataset)
    return findings


def _check_sample(root: Path | Address, sample: Sample) -> Iterator[Finding]:
    from anomalyclip.images import read_mask

    try:
        size = size_of(root / sample.image)
    except InputError as error:
        yield Finding("unreadable", sample.image, _without(error, root / sample.image))
        size = None
    if sample.mask is None or not sample.anomaly:
        return
    try:
        mask = read_mask(root / sample.mask)
    except InputError as error:
        yield Finding("unreadable", sample.mask, _without(error, root / sample.mask))
        return
    height, width = mask.shape
    if size and size != (width, height):
        detail = f"is {size[0]}x{size[1]} pixels, but its mask {sample.mask} is {width}x{height}"
        yield Finding("sizes differ", sample.image, detail)
    if not mask.any():
        yield Finding("empty mask", sample.mask, f"no pixel above zero, but {sample.image} is anomalous")


def _without(error: InputError, path: Path | Address) -> str:
    """Return an error's message without the path, which the finding already has."""
    return str(error).removeprefix(f"{path}: ")


def _duplicates(meta: Meta) -> Iterator[Finding]:
    by_size = defaultdict(list)
    for image in dict.fromkeys(sample.image for sample in meta):
        try:
            by_size[_length(meta.root / image)].append(image)
        except (OSError, InputError):
            continue  # reported as unreadable
    first: dict[bytes, str] = {}
    for images in by_size.values():
        if len(images) == 1:
            continue
        for image in images:
            content = _hash(meta.root / image)
            if content and first.setdefault(content, image) != image:
                yield Finding("duplicate", image, f"has the same content as {first[content]}")


def _length(path: Path | Address) -> int:
    return length(path) if isinstance(path, Address) else require_regular(path)


def _hash(path: Path | Address) -> bytes | None:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with on_disk(path) as here, open(here, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except (OSError, InputError):
        return None  # reported as unreadable
    return digest.digest()


def _check_counts(meta: Meta) -> Iterator[Finding]:
    test = meta.phase("test")
    if meta.dataset is None:
        return
    anomalous = sum(sample.anomaly for sample in test)
    found = (len(test) - anomalous, anomalous)
    dataset = catalog()[meta.dataset]
    said = f"{found[0]} normal and {found[1]} anomalous test images"
    if meta.counts is None:
        yield Finding("counts", "", f"{said}; this copy is not the paper's selection of images", note=True)
    elif found != meta.counts:
        detail = f"{said}, but {dataset.name} has {meta.counts[0]} and {meta.counts[1]}"
        if not dataset.counts_verified:
            detail += " (not verified)"
        yield Finding("counts", "", detail, note=not dataset.counts_verified)


def _check_classes(meta: Meta, dataset: DataSet) -> Iterator[Finding]:
    missing, unknown = dataset.class_differences(meta.phase("test").classes)
    for name in missing:
        yield Finding(
            "missing class", name, f"{dataset.name} has this class, but there are no test images of it"
        )
    for name in unknown:
        yield Finding("unknown class", name, f"{dataset.name} has no such class")
    if "pixel" in dataset.metrics and not any(sample.mask for sample in meta):
        yield Finding(
            "missing mask", "", f"no masks at all, but {dataset.name} has masks: no pixel-level metrics"
        )
