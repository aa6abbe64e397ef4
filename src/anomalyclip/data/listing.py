"""A folder to samples: by its ``meta.json``, by a data set's key, by its recognised shape, or by folders that are named."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from anomalyclip.data.catalog import DataSet, KnownLayout, catalog, known
from anomalyclip.data.layouts import SHAPES, Folder, Listing, Shape
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
    dataset : DataSet or None
        The data set that is known in this shape, if only one is.
    layout : KnownLayout or None
        Its entry in the catalogue.
    why : str
        What the match rests on, for people.
    """

    shape: Shape
    base: str
    classes: tuple[str, ...]
    dataset: DataSet | None
    layout: KnownLayout | None
    why: str


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
    AnomalyCLIPError
        The layout is unknown or ambiguous, or there is not one image in it.
    """
    tree = Tree(root, allow_outside=allow_outside)
    if folder is not None:
        listing, match = folder.samples(tree, tree.root.resolve().name), None
        source = "the folders named"
    else:
        match = find(tree, known(dataset)) if dataset else recognise(tree)
        class_name = match.dataset.classes[0] if match.dataset else tree.root.resolve().name
        listing = match.shape.samples(tree, match.base, class_name)
        source = match.why
    if not any(listing.phases.values()):
        raise AnomalyCLIPError(f"{root}: no images in {source}")
    return _meta(tree, listing, source, match)


def _meta(tree: Tree, listing: Listing, source: str, match: Match | None) -> Meta:
    known_set = match.dataset if match else None
    comparable = known_set and match and match.layout and match.layout.same_counts
    return Meta(
        root=tree.root,
        phases={phase: tuple(samples) for phase, samples in listing.phases.items()},
        dataset=known_set.key if known_set else None,
        source=source,
        findings=tuple(listing.findings),
        counts=known_set.counts if known_set and comparable else None,
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


def recognise(tree: Tree) -> Match:
    """Return the shape of a folder, and the data set if shape, classes and folder names leave only one.

    Raises
    ------
    AnomalyCLIPError
        No known shape fits, or several do.
    """
    for base in _bases(tree):
        matches = _matches(tree, base)
        if matches:
            return _choose(tree, base, matches)
    shapes = "\n".join(f"  {shape.title}: {shape.pattern}" for shape in SHAPES.values())
    raise AnomalyCLIPError(
        f"{tree.root}: no known layout; found {_contents(tree)}. Known are\n{shapes}\n"
        f"Name the folder that holds one of these, or {_CUSTOM}"
    )


def _matches(tree: Tree, base: str) -> list[tuple[DataSet, KnownLayout, Shape, tuple[str, ...]]]:
    """Return all catalogue layouts that a folder has the shape of."""
    classes: dict[Shape, tuple[str, ...] | None] = {}
    matches = []
    for dataset in catalog().values():
        for layout in dataset.layouts:
            shape = _shape(layout)
            if shape not in classes:
                classes[shape] = shape.classes(tree, base)
            found = classes[shape]
            if found is not None:
                matches.append((dataset, layout, shape, found))
    return matches


def _choose(
    tree: Tree, base: str, matches: list[tuple[DataSet, KnownLayout, Shape, tuple[str, ...]]]
) -> Match:
    named = [match for match in matches if _plain(*match[3]) <= _plain(*match[0].classes)]
    around = _plain(tree.root.resolve().name, *base.split("/"), *tree.folders(base))
    hinted = [match for match in named if around & _plain(match[0].key, match[0].name, *match[0].aliases)]
    candidates = hinted or named or matches
    shapes = dict.fromkeys(match[2] for match in candidates)
    if len(shapes) > 1:
        several = "\n".join(f"  {shape.title}: {shape.pattern}" for shape in shapes)
        raise AnomalyCLIPError(
            f"{tree.root}: the layout is ambiguous; it could be\n{several}\n"
            f"Say which data set it is with --dataset (see: anomalyclip datasets), or {_CUSTOM}"
        )
    dataset, layout, shape, classes = candidates[0]
    datasets = list(dict.fromkeys(match[0].name for match in candidates)) if named else []
    if len(datasets) == 1:
        return Match(shape, base, classes, dataset, layout, _why(shape, base, dataset.name))
    why = _why(shape, base, "a data set of one's own")
    if datasets:
        why += f"; {', '.join(datasets)} look like this too: --dataset says which it is"
    return Match(shape, base, classes, None, None, why)


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

_CUSTOM = "describe a folder of your own with --normal-dir, --abnormal-dir and --mask-dir (see: anomalyclip prepare --help)"
