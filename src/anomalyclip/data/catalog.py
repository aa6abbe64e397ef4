"""The data sets that are known by name: classes, counts, metrics, layouts, home pages and published figures.

The table itself is ``catalog.yaml``, next to this file; a new data set is a new entry there.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from anomalyclip.errors import AnomalyCLIPError


@dataclass(frozen=True)
class KnownLayout:
    """One of the folder layouts that a data set is distributed in.

    Parameters
    ----------
    shape : str
        Name of the layout's shape, a key of `anomalyclip.data.layouts.SHAPES`.
    tree : str
        A description of the layout for people, one pattern per line.
    parameters : mapping
        Fields of the shape's class that differ from their defaults.
    same_counts : bool
        Whether this copy has the numbers of images in `DataSet.counts`.
    """

    shape: str
    tree: str
    parameters: Mapping[str, Any]
    same_counts: bool = True


@dataclass(frozen=True)
class DataSet:
    """An entry of the catalogue.

    Parameters
    ----------
    key, name, domain : str
        Name on the command line, name in the literature, "industrial" or "medical".
    classes : tuple of str
        The objects and textures in the data set.
    counts : tuple of int
        Normal and anomalous images in the test split that the paper used.
    counts_verified : bool
        False if these numbers have not been checked against the files yet.
    metrics : tuple of str
        The levels that the paper reports: "image", "pixel" or both.
    home : str
        URL where it is published.
    license : str or None
        None if it is not known here.
    aliases : tuple of str
        Folder names that the data set is distributed with.
    layouts : tuple of KnownLayout
        Known layouts, the paper's first.
    paper : mapping
        ``paper[level][method]``, percent; level "image" gives (AUROC, AP), level "pixel" (AUROC, AUPRO by the published
        protocol); None if the paper has no figure. Source: AnomalyCLIP (ICLR 2024), tables 1 and 2.
    log : mapping
        ``log[class]``, percent: (pixel AUROC, pixel AUPRO, image AUROC, image AP) of the authors' own run; "mean" is
        the mean over the classes. Empty if the authors published no log.
    """

    key: str
    name: str
    domain: str
    classes: tuple[str, ...]
    counts: tuple[int, int]
    counts_verified: bool
    metrics: tuple[str, ...]
    home: str
    license: str | None
    aliases: tuple[str, ...]
    layouts: tuple[KnownLayout, ...]
    paper: Mapping[str, Mapping[str, tuple[float, float] | None]]
    log: Mapping[str, tuple[float, float, float, float]]

    def class_differences(self, found: Iterable[str]) -> tuple[list[str], list[str]]:
        """Return the classes that were not found, and the names that were found but are not classes of the data set.

        Underscores and spaces in names ("electrical_commutators") are treated as equal.
        """
        there = {name.replace("_", " "): name for name in found}
        known = {name.replace("_", " "): name for name in self.classes}
        missing = [name for plain, name in known.items() if plain not in there]
        return missing, sorted(name for plain, name in there.items() if plain not in known)


@cache
def catalog() -> Mapping[str, DataSet]:
    """Return all known data sets by key, in the order of the table.

    Examples
    --------
    >>> len(catalog())
    17
    >>> catalog()["mvtec"].counts, catalog()["mvtec"].paper["pixel"]["AnomalyCLIP"]
    ((467, 1258), (91.1, 81.4))
    """
    import yaml

    table = yaml.safe_load((files(__package__) / "catalog.yaml").read_text("utf-8"))
    return {key: _entry(key, fields) for key, fields in table.items()}


def _entry(key: str, fields: dict[str, Any]) -> DataSet:
    normal, anomalous = fields["counts"]
    return DataSet(
        key=key,
        name=fields["name"],
        domain=fields["domain"],
        classes=tuple(fields["classes"]),
        counts=(normal, anomalous),
        counts_verified=not fields.get("unverified", False),
        metrics=tuple(fields["metrics"]),
        home=fields["home"],
        license=fields["license"],
        aliases=tuple(fields.get("aliases", ())),
        layouts=tuple(_layout(**layout) for layout in fields["layouts"]),
        paper={
            level: {method: pair and (pair[0], pair[1]) for method, pair in methods.items()}
            for level, methods in fields["paper"].items()
        },
        log={name: tuple(figures) for name, figures in fields.get("log", {}).items()},
    )


def _layout(
    shape: str, tree: str, parameters: dict[str, Any] | None = None, same_counts: bool = True
) -> KnownLayout:
    return KnownLayout(shape, tree.rstrip("\n"), parameters or {}, same_counts)


def known(key: str) -> DataSet:
    """Return the data set with this key.

    Raises
    ------
    AnomalyCLIPError
        The key is unknown; the message suggests similar keys.

    Examples
    --------
    >>> known("visa").name
    'VisA'
    """
    table = catalog()
    if key in table:
        return table[key]
    near = difflib.get_close_matches(key.lower(), table, n=3, cutoff=0.5)
    meant = f"; did you mean {' or '.join(near)}?" if near else "."
    raise AnomalyCLIPError(f"unknown data set {key!r}{meant} Known data sets: {', '.join(table)}")
