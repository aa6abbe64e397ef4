"""A folder to samples: by its ``meta.json``, by a data set's key, by its recognised shape, or by named folders."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from anomalyclip.data.catalog import DataSet, KnownLayout, catalog, known
from anomalyclip.data.folder import Folder
from anomalyclip.data.layouts import SHAPES, Shape
from anomalyclip.data.meta import FILE_NAME, Meta, SampleList, read_meta
from anomalyclip.data.tree import Tree, join
from anomalyclip.errors import AnomalyCLIPError


@dataclass(frozen=True)
class Match:
    """A shape that a folder has.

    Parameters
    ----------
    shape : Shape
        The shape.
    base : str
        Folder below the root where it begins.
    classes : tuple of str
        The classes that it names; empty if it names none.
    dataset : DataSet
        A data set that is known in this shape.
    layout : KnownLayout
        Its entry in the catalogue.
    why : str
        What was found, for people.
    certain : bool
        Whether it is that data set, not only of that shape.
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
    """Return the samples of a data set: from its ``meta.json`` if there is one, else from its recognised layout.

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
        No known layout, a malformed ``meta.json``, or no samples in that phase.

    Examples
    --------
    >>> import tempfile
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
    if (Path(root) / FILE_NAME).is_file():
        meta = read_meta(root, allow_outside=allow_outside)
    else:
        meta = list_samples(root, dataset, allow_outside=allow_outside)
    samples = meta.phase(phase)
    if not samples:
        there = ", ".join(f"{name} ({len(listed)})" for name, listed in meta.phases.items())
        raise AnomalyCLIPError(f"{root}: no {phase} samples; by {meta.source} there are: {there or 'none'}")
    if dataset is None:
        return samples
    return SampleList(samples.root, samples.samples, known(dataset).key, samples.source, samples.findings)


def list_samples(
    root: str | os.PathLike[str],
    dataset: str | None = None,
    *,
    folder: Folder | None = None,
    allow_outside: bool = False,
) -> Meta:
    """List a data set's samples from its files, whether there is a ``meta.json`` or not.

    Parameters
    ----------
    root : path-like
        The data set's folder.
    dataset : str, optional
        Key in the catalogue; None recognises the layout.
    folder : Folder, optional
        Folders of one's own, instead of a known layout.
    allow_outside : bool
        Follow links and paths that leave the root.

    Returns
    -------
    Meta
        Samples of all phases, and what was noticed.

    Raises
    ------
    LayoutError
        The layout is unknown or ambiguous.
    AnomalyCLIPError
        There is not one image in it.
    """
    tree = Tree(root, allow_outside=allow_outside)
    name = tree.root.resolve().name
    known_set = counts = None
    if folder is not None:
        listing, source = folder.samples(tree, name), "the folders named"
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
    """Return where and in which of its shapes a data set is.

    Raises
    ------
    AnomalyCLIPError
        It is in none of them; the message shows those that were expected.
    """
    for base in _bases(tree):
        for layout in dataset.layouts:
            shape = _shape(layout)
            classes = shape.classes(tree, base)
            if classes is not None:
                return Match(shape, base, classes, dataset, layout, _why(shape, base, dataset.name))
    expected = "\nor\n".join(_indent(layout.tree) for layout in dataset.layouts)
    raise AnomalyCLIPError(
        f"{tree.root}: not laid out as {dataset.name}. Expected\n{expected}\nbut found {_contents(tree)}. "
        f"Name the folder that holds what is expected, or {_CUSTOM}"
    )


class LayoutError(AnomalyCLIPError):
    """A folder has no known layout, or several."""


def recognise(tree: Tree) -> Match:
    """Return the shape of a folder, and the data set if shape, classes and folder names leave only one.

    Raises
    ------
    LayoutError
        No known shape fits, or several do.
    """
    for base in _bases(tree):
        matches = _matches(tree, base)
        if matches:
            return _choose(tree, base, matches)
    shapes = "\n".join(f"  {shape.title}: {shape.pattern}" for shape in SHAPES.values())
    raise LayoutError(
        f"{tree.root}: no known layout; found {_contents(tree)}. Known are\n{shapes}\n"
        f"Name the folder that holds one of these, or {_CUSTOM}"
    )


def _matches(tree: Tree, base: str) -> list[Match]:
    """Return all layouts in the catalogue that a folder has the shape of."""
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
    # What speaks for a data set: folders that are called as it is, else its classes' names. A shape that names no
    # classes fits any set of that shape.
    around = _plain(tree.root.resolve().name, *base.split("/"), *tree.folders(base))
    fits = [match for match in matches if _plain(*match.classes) <= _plain(*match.dataset.classes)]
    called = [match for match in fits if around & _names(match.dataset)]
    candidates = called or [match for match in fits if match.classes] or matches
    shapes = dict.fromkeys(match.shape for match in candidates)
    if len(shapes) > 1:
        several = "\n".join(f"  {shape.title}: {shape.pattern}" for shape in shapes)
        raise LayoutError(
            f"{tree.root}: the layout is ambiguous; it could be\n{several}\n"
            f"Say which data set it is with --dataset (see: anomalyclip datasets), or {_CUSTOM}"
        )
    likely = [match for match in candidates if match in fits]
    if len(likely) == 1:
        return likely[0]
    why = _why(candidates[0].shape, base, "a data set that is not in the catalogue")
    if likely:
        names = ", ".join(match.dataset.name for match in likely)
        why += f"; {names} look like this too: --dataset says which it is"
    return replace(candidates[0], why=why, certain=False)


def _names(dataset: DataSet) -> set[str]:
    return _plain(dataset.key, dataset.name, *dataset.aliases)


def _why(shape: Shape, base: str, name: str) -> str:
    return f'{name}, layout "{shape.title}"' + (f" in the folder {base}" if base else "")


def _plain(*names: str) -> set[str]:
    """Return names without capitals and punctuation: "electrical_commutators" is "electrical commutators"."""
    return {"".join(filter(str.isalnum, name.lower())) for name in names} - {""}


def _shape(layout: KnownLayout) -> Shape:
    return SHAPES[layout.shape](**layout.parameters)


def _bases(tree: Tree) -> Iterator[str]:
    """Give the root, and the folders that do nothing but wrap a data set, as archives have them."""
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
"""How many folders may be wrapped around a data set."""

_CUSTOM = "describe one of your own with --normal-dir, --abnormal-dir and --mask-dir (see: anomalyclip prepare --help)"
