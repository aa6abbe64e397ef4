"""Samples, and ``meta.json``: the published interchange format that lists them."""

import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

from anomalyclip.addresses import Address, as_place, exists, is_dir, on_disk
from anomalyclip.data.tree import Tree, name_of, tree_of
from anomalyclip.errors import AnomalyCLIPError, AnomalyCLIPWarning
from anomalyclip.files import parse_json, replacing

FILE_NAME = "meta.json"


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and its ground truth.

    Parameters
    ----------
    image : str
        Path relative to the data set's root, with forward slashes.
    mask : str or None
        Path of its defect mask, in the same form; None if it has no mask.
    class_name : str
        The object or texture that it shows.
    defect : str
        Name of the kind of defect, or of the normal folder; may be empty.
    anomaly : bool
        Whether the image is anomalous.
    """

    image: str
    mask: str | None
    class_name: str
    defect: str
    anomaly: bool

    @property
    def has_mask(self) -> bool:
        """Whether the truth of every pixel is known: anomalous images need a mask for that, normal images do not."""
        return self.mask is not None or not self.anomaly


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a data set that its user should know.

    Parameters
    ----------
    kind : str
        A short name for findings of this kind, such as "missing mask".
    path : str
        The file, relative to the root; empty if the finding concerns the whole data set.
    detail : str
        The problem and its consequence.
    note : bool
        True if it is only a remark, not a problem.
    """

    kind: str
    path: str
    detail: str
    note: bool = False


@dataclass(frozen=True, slots=True)
class Missing:
    """A file that a ``meta.json`` lists and that does not exist.

    Parameters
    ----------
    path : str
        The image or the mask, relative to the root.
    sample : Sample
        The entry. Where its image is missing, it is not among the samples; where its mask is, it is there without one.
    """

    path: str
    sample: Sample


MISSING_MASK = "anomalous, but has no mask: used for image-level metrics, not for pixel-level metrics"


@dataclass(frozen=True)
class SampleList(Sequence[Sample]):
    """The samples of one phase, and the folder that their paths are relative to.

    Parameters
    ----------
    root : Path or Address
        The data set's folder.
    samples : tuple of Sample
        Sorted by class, then by folder, then by name.
    dataset : str or None
        Key in the catalogue, if known.
    source : str
        Where the list comes from: a ``meta.json``, or the recognised layout.
    findings : tuple of Finding
        Problems and remarks from listing the data set (all phases).
    missing : tuple of Missing
        Files of this phase that the ``meta.json`` lists and that do not exist.
    """

    root: Path | Address
    samples: tuple[Sample, ...]
    dataset: str | None = None
    source: str = ""
    findings: tuple[Finding, ...] = ()
    missing: tuple[Missing, ...] = ()

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Sample, ...]: ...
    def __getitem__(self, index: int | slice) -> Sample | tuple[Sample, ...]:
        return self.samples[index]

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def name(self) -> str:
        """The data set's name: its key in the catalogue, or the name of its folder after resolving links."""
        return self.dataset or name_of(self.root)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the list."""
        return tuple(dict.fromkeys(sample.class_name for sample in self.samples))

    @property
    def empty_classes(self) -> dict[str, int]:
        """Classes none of whose images exist, and how many images are listed."""
        here = set(self.classes)
        return dict(
            Counter(gone.sample.class_name for gone in self.missing if gone.sample.class_name not in here)
        )


@dataclass(frozen=True)
class Meta:
    """A data set: its samples by phase.

    Parameters
    ----------
    root : Path or Address
        The data set's folder.
    phases : mapping
        Phase ("train", "test"; DAGM 2007 writes "Train", "Test") to samples.
    dataset, source, findings
        As in `SampleList`.
    counts : tuple of int, optional
        Expected numbers of normal and anomalous test images.
    missing : mapping
        Phase to the files that are listed, but do not exist.
    """

    root: Path | Address
    phases: dict[str, tuple[Sample, ...]]
    dataset: str | None = None
    source: str = ""
    findings: tuple[Finding, ...] = ()
    counts: tuple[int, int] | None = None
    missing: dict[str, tuple[Missing, ...]] = field(default_factory=dict)

    def phase(self, name: str) -> SampleList:
        """Return the samples of a phase, or an empty list if there is no such phase; upper and lower case are equal."""
        own = next((phase for phase in self.phases if phase.lower() == name.lower()), name)
        samples, missing = self.phases.get(own, ()), self.missing.get(own, ())
        return SampleList(self.root, samples, self.dataset, self.source, self.findings, missing)

    def __iter__(self) -> Iterator[Sample]:
        for samples in self.phases.values():
            yield from samples


def write_meta(meta: Meta, path: str | os.PathLike[str] | None = None) -> Path | Address:
    """Write ``meta.json`` in the published format; the file is written completely or not at all.

    Parameters
    ----------
    meta : Meta
        What to write.
    path : path-like, optional
        File to write, or its address; by default ``meta.json`` in the root.

    Returns
    -------
    Path or Address
        The file.

    Raises
    ------
    AnomalyCLIPError
        The file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     (Path(root) / "a.png").touch()
    ...     sample = Sample("a.png", None, "nut", "good", False)
    ...     _ = write_meta(Meta(Path(root), {"test": (sample,)}))
    ...     read_meta(root).phase("test")[0]
    Sample(image='a.png', mask=None, class_name='nut', defect='good', anomaly=False)
    """
    target = as_place(path) if path is not None else meta.root / FILE_NAME
    table: dict[str, dict[str, list[dict[str, str | int]]]] = {}
    for phase, samples in meta.phases.items():
        classes = table.setdefault(phase, {})
        for sample in samples:
            classes.setdefault(sample.class_name, []).append(_to_entry(sample))
    try:
        with replacing(target) as temporary, open(temporary, "w", encoding="utf-8") as file:
            json.dump(table, file, indent=1)
    except OSError as error:
        raise AnomalyCLIPError(
            f"{target}: cannot be written: {error.strerror}; choose another file with --output"
        ) from None
    return target


def _to_entry(sample: Sample) -> dict[str, str | int]:
    return {
        "img_path": sample.image,
        "mask_path": sample.mask or "",
        "cls_name": sample.class_name,
        "specie_name": sample.defect,
        "anomaly": int(sample.anomaly),
    }


def has_meta(root: str | os.PathLike[str]) -> bool:
    """Return whether there is a ``meta.json`` in a folder, or below an address."""
    file = as_place(root) / FILE_NAME
    return exists(file) if isinstance(file, Address) and not file.is_web else Path(file).is_file()


def read_meta(
    path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    allow_outside: bool = False,
) -> Meta:
    """Read a ``meta.json`` that was written by this project or by one of the published scripts.

    Absolute paths below the root become relative. Entries whose image does not exist are skipped, and masks that do not
    exist are ignored; both are reported as findings and in `Meta.missing`. Of several entries for the same image in a
    phase the first counts, with a warning.

    Parameters
    ----------
    path : path-like
        The file, or the folder that holds it; also as an address.
    root : path-like, optional
        The folder that its paths are relative to; by default the file's folder.
    allow_outside : bool
        Accept paths and links that leave the root.

    Returns
    -------
    Meta
        Its samples; classes and entries are in the file's order.

    Raises
    ------
    AnomalyCLIPError
        The file does not exist or is not JSON, an entry is malformed or leaves the root (the message names entry and
        field), or none of its images exist.
    """
    file = as_place(path)
    if is_dir(file):
        file = file / FILE_NAME
    tree = tree_of(file.parent if root is None else root, allow_outside=allow_outside)
    try:
        if isinstance(file, Address) and not exists(file):
            raise FileNotFoundError
        with on_disk(file) as here:
            table = parse_json(here.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise AnomalyCLIPError(f"{file}: no such file; create it with: anomalyclip prepare ROOT") from None
    except (OSError, ValueError) as error:
        raise AnomalyCLIPError(f"{file}: cannot be read as JSON: {error}") from None
    phases, missing = {}, {}
    for phase, classes in _object(table, str(file)).items():
        gone: list[Missing] = []
        phases[phase] = _once(
            (
                sample
                for name, entries in _object(classes, f"{file}: {phase}").items()
                for number, entry in enumerate(_list(entries, f"{file}: {phase} / {name}"))
                if (sample := _read_entry(entry, tree, f"{file}: {phase} / {name} / entry {number}", gone))
            ),
            f"{file}: {phase}",
        )
        missing[phase] = tuple(gone)
    findings = [_finding(gone) for several in missing.values() for gone in several]
    total = sum(map(len, phases.values()))
    if findings and not total:
        raise AnomalyCLIPError(
            f"{file}: none of its images are in {tree.root}, for example {findings[0].path}"
        )
    if any(sample.mask for samples in phases.values() for sample in samples):
        known = {finding.path for finding in findings}
        findings += [
            Finding("missing mask", sample.image, MISSING_MASK)
            for samples in phases.values()
            for sample in samples
            if not sample.has_mask and sample.image not in known
        ]
    return Meta(tree.root, phases, source=str(file), findings=tuple(findings), missing=missing)


def _once(samples: Iterable[Sample], where: str) -> tuple[Sample, ...]:
    """Return the first sample of each image, and warn if there are others."""
    first: dict[str, Sample] = {}
    repeated: list[str] = []
    for sample in samples:
        if first.setdefault(sample.image, sample) is not sample:
            repeated.append(sample.image)
    if repeated:
        warnings.warn(
            f"{where}: {len(repeated)} entries are for images that are listed before (such as {repeated[0]}); only the "
            "first entry of an image counts",
            AnomalyCLIPWarning,
            stacklevel=3,
        )
    return tuple(first.values())


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise AnomalyCLIPError(f"{where}: is {_describe(value)}, expected an object; {_FORM}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise AnomalyCLIPError(f"{where}: is {_describe(value)}, expected a list; {_FORM}")
    return value


_FORM = 'the format is {"test": {"<class>": [{"img_path": ..., "mask_path": ..., "cls_name": ..., ...}]}}'


def _describe(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _to_sample(entry: Any, tree: Tree, where: str) -> Sample:
    fields = _object(entry, where)
    texts = {}
    for name in ("img_path", "mask_path", "cls_name", "specie_name"):
        if not isinstance(fields.get(name), str):
            problem = f"is {_describe(fields[name])}" if name in fields else "is missing"
            raise AnomalyCLIPError(f"{where}: field {name!r} {problem}, expected text")
        if "\0" in fields[name]:
            raise AnomalyCLIPError(
                f"{where}: field {name!r} is {_describe(fields[name])}, expected text without NUL"
            )
        texts[name] = fields[name]
    if not texts["img_path"]:
        raise AnomalyCLIPError(f"{where}: field 'img_path' is empty, expected the path of an image")
    if fields.get("anomaly") not in (0, 1):
        problem = f"is {_describe(fields['anomaly'])}" if "anomaly" in fields else "is missing"
        raise AnomalyCLIPError(f"{where}: field 'anomaly' {problem}, expected 0 or 1")
    for name in ("img_path", "mask_path"):
        try:
            texts[name] = texts[name] and tree.relative(texts[name])
        except AnomalyCLIPError as error:
            raise AnomalyCLIPError(f"{where}: field {name!r}: {error}") from None
    return Sample(
        image=texts["img_path"],
        mask=texts["mask_path"] or None,
        class_name=sys.intern(texts["cls_name"]),
        defect=sys.intern(texts["specie_name"]),
        anomaly=bool(fields["anomaly"]),
    )


def _read_entry(entry: Any, tree: Tree, where: str, missing: list[Missing]) -> Sample | None:
    """Return the sample without files that do not exist, which become `missing`; None if its image does not exist."""
    sample = _to_sample(entry, tree, where)
    if not tree.has_file(sample.image):
        missing.append(Missing(sample.image, sample))
        return None
    if sample.mask and not tree.has_file(sample.mask):
        missing.append(Missing(sample.mask, sample))
        return replace(sample, mask=None)
    return sample


def _finding(missing: Missing) -> Finding:
    sample = missing.sample
    if missing.path == sample.image:
        return Finding("missing image", sample.image, "listed, but does not exist: skipped")
    return Finding("missing mask", sample.image, f"{sample.mask} does not exist: {MISSING_MASK}")
