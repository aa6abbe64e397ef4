"""A folder to samples: from its ``meta.json``, a data set's key, its recognised layout, or folders that are named."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

from anomalyclip.data.catalog import DataSet, KnownLayout, catalog, known
from anomalyclip.data.folder import Folder
from anomalyclip.data.layouts import SHAPES, Shape
from anomalyclip.data.meta import Meta, SampleList, has_meta, read_meta
from anomalyclip.data.tree import Tree, join, name_of, tree_of
from anomalyclip.errors import AnomalyCLIPError


@dataclass(frozen=True)
class Match:
    """A layout that a folder matches.

    Parameters
    ----------
    shape : Shape
        The shape of the layout.
    base : str
        Folder below the root where the layout starts.
    classes : tuple of str
        The class names in the folder; empty if the shape has no class folders.
    dataset : DataSet
        A data set that is known to have this layout.
    layout : KnownLayout
        The layout's entry in the catalogue.
    why : str
        A description of the match, for people.
    certain : bool
        Whether the folder is this data set, and not only laid out like it.
    """

    shape: Shape
    base: str
    classes: tuple[str, ...]
    dataset: DataSet
    layout: KnownLayout
    why: str
    certain: bool = True


def load_samples(
    root: str | os.PathLike[str],
    dataset: str | None = None,
    phase: str = "test",
    *,
    allow_outside: bool = False,
) -> SampleList:
    """Return the samples of a data set: from its ``meta.json`` if it has one, otherwise from its recognised layout.

    Parameters
    ----------
    root : path-like
        The data set's folder.
    dataset : str, optional
        Key in the catalogue (`anomalyclip datasets`); None recognises the layout.
    phase : str
        "train" or "test".
    allow_outside : bool
        Follow links and paths that leave the root.

    Returns
    -------
    SampleList
        Never empty.

    Raises
    ------
    AnomalyCLIPError
        The layout is unknown, ``meta.json`` is malformed, or the phase has no samples.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name in ("train/good/0.png", "test/good/0.png", "test/bent/0.png", "ground_truth/bent/0_mask.png"):
    ...         path = Path(root) / "nut" / name
    ...         path.parent.mkdir(parents=True, exist_ok=True)
    ...         path.touch()
    ...     for sample in load_samples(root):
    ...         print(sample.image, sample.mask, sample.anomaly)
    nut/test/bent/0.png nut/ground_truth/bent/0_mask.png True
    nut/test/good/0.png None False
    """
    if has_meta(root):
        meta = read_meta(root, allow_outside=allow_outside)
    else:
        meta = list_samples(root, dataset, allow_outside=allow_outside)
    samples = meta.phase(phase)
    if not samples:
        there = ", ".join(f"{name} ({len(listed)})" for name, listed in meta.phases.items())
        gone = f"; {len(samples.missing)} are listed, but do not exist" if samples.missing else ""
        raise AnomalyCLIPError(
            f"{root}: no {phase} samples; found with {meta.source}: {there or 'none'}{gone}"
        )
    return samples if dataset is None else replace(samples, dataset=known(dataset).key)


def list_samples(
    root: str | os.PathLike[str],
    dataset: str | None = None,
    *,
    folder: Folder | None = None,
    allow_outside: bool = False,
) -> Meta:
    """List a data set's samples from its files; an existing ``meta.json`` is ignored.

    Parameters
    ----------
    root : path-like
        The data set's folder.
    dataset : str, optional
        Key in the catalogue; None recognises the layout.
    folder : Folder, optional
        Folders that the user named, instead of a known layout.
    allow_outside : bool
        Follow links and paths that leave the root.

    Returns
    -------
    Meta
        Samples of all phases, and the findings.

    Raises
    ------
    LayoutError
        The layout is unknown or ambiguous.
    AnomalyCLIPError
        There are no images in it.
    """
    tree = tree_of(root, allow_outside=allow_outside)
    name = name_of(tree.root)
    known_set = counts = None
    if folder is not None:
        listing, source = folder.samples(tree, name), "the named folders"
    else:
        match = find(tree, known(dataset)) if dataset else recognise(tree)
        if match.certain:
            known_set, name = match.dataset.key, match.dataset.classes[0]
            counts = match.dataset.counts if match.layout.same_counts else None
        listing, source = match.shape.samples(tree, match.base, name), match.why
    if not any(listing.phases.values()):
        raise AnomalyCLIPError(f"{root}: no images in {source}")
    return Meta(
        root=tree.root,
        phases={phase: tuple(samples) for phase, samples in listing.phases.items()},
        dataset=known_set,
        source=source,
        findings=tuple(listing.findings),
        counts=counts,
    )


def find(tree: Tree, dataset: DataSet) -> Match:
    """Return which of its layouts a data set has, and where it starts.

    Raises
    ------
    AnomalyCLIPError
        It has none of them; the message shows the expected layouts.
    """
    for base in _bases(tree):
        for layout in dataset.layouts:
            shape = _shape(layout)
            classes = shape.classes(tree, base)
            if classes is not None:
                return Match(shape, base, classes, dataset, layout, _why(shape, base, dataset.name))
    expected = "\nor\n".join(_indent(layout.tree) for layout in dataset.layouts)
    raise AnomalyCLIPError(
        f"{tree.root}: does not have the layout of {dataset.name}. Expected\n{expected}\nbut found {_contents(tree)}. "
        f"Give the folder with the expected layout, or {_CUSTOM}"
    )


class LayoutError(AnomalyCLIPError):
    """A folder matches no known layout, or several."""


def recognise(tree: Tree) -> Match:
    """Return the layout of a folder, and the data set if layout, classes and folder names leave only one.

    Raises
    ------
    LayoutError
        No known layout matches, or several do.
    """
    for base in _bases(tree):
        matches = _matches(tree, base)
        if matches:
            return _choose(tree, base, matches)
    shapes = "\n".join(f"  {shape.title}: {shape.pattern}" for shape in SHAPES.values())
    raise LayoutError(
        f"{tree.root}: unknown layout; found {_contents(tree)}. Known layouts are\n{shapes}\n"
        f"Give the folder with one of these layouts, or {_CUSTOM}"
    )


def _matches(tree: Tree, base: str) -> list[Match]:
    """Return all layouts in the catalogue that a folder matches."""
    classes: dict[Shape, tuple[str, ...] | None] = {}
    matches = []
    for dataset in catalog().values():
        for layout in dataset.layouts:
            shape = _shape(layout)
            if shape not in classes:
                classes[shape] = shape.classes(tree, base)
            found = classes[shape]
            if found is not None:
                matches.append(Match(shape, base, found, dataset, layout, _why(shape, base, dataset.name)))
    return matches


def _choose(tree: Tree, base: str, matches: list[Match]) -> Match:
    # A data set is recognised by folders that have its name, otherwise by its class names. A layout without class
    # names fits every data set with that layout.
    around = _plain(name_of(tree.root), *base.split("/"), *tree.folders(base))
    fits = [match for match in matches if _plain(*match.classes) <= _plain(*match.dataset.classes)]
    called = [match for match in fits if around & _names(match.dataset)]
    candidates = called or [match for match in fits if match.classes] or matches
    shapes = dict.fromkeys(match.shape for match in candidates)
    if len(shapes) > 1:
        several = "\n".join(f"  {shape.title}: {shape.pattern}" for shape in shapes)
        raise LayoutError(
            f"{tree.root}: the layout is ambiguous; it could be\n{several}\n"
            f"Name the data set with --dataset (see: anomalyclip datasets), or {_CUSTOM}"
        )
    likely = [match for match in candidates if match in fits]
    if len(likely) == 1:
        return likely[0]
    why = _why(candidates[0].shape, base, "a data set that is not in the catalogue")
    if likely:
        names = ", ".join(match.dataset.name for match in likely)
        why += f"; it could also be {names}: name the data set with --dataset"
    return replace(candidates[0], why=why, certain=False)


def _names(dataset: DataSet) -> set[str]:
    return _plain(dataset.key, dataset.name, *dataset.aliases)


def _why(shape: Shape, base: str, name: str) -> str:
    return f'{name}, layout "{shape.title}"' + (f" in the folder {base}" if base else "")


def _plain(*names: str) -> set[str]:
    """Return names in lower case and without punctuation: "electrical_commutators" is "electrical commutators"."""
    return {"".join(filter(str.isalnum, name.lower())) for name in names} - {""}


def _shape(layout: KnownLayout) -> Shape:
    return SHAPES[layout.shape](**layout.parameters)


def _bases(tree: Tree) -> Iterator[str]:
    """Yield the root, and folders that only wrap the data set, as in many archives."""
    base = ""
    for _ in range(_WRAPPERS + 1):
        yield base
        folders = tree.folders(base)
        if len(folders) != 1 or tree.images(base):
            return
        base = join(base, folders[0])


def _contents(tree: Tree) -> str:
    names = [f"{name}/" for name in tree.folders()] + tree.images()
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return shown or "neither folders nor images"


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


_WRAPPERS = 2
"""Maximum number of folders that wrap a data set."""

_CUSTOM = "describe your own layout with --normal-dir, --abnormal-dir and --mask-dir (see: anomalyclip prepare --help)"
