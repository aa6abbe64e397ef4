"""The data sets that are known by name: their classes, counts, metrics, layouts, homes and published figures.

The table itself is ``catalog.yaml``, beside this file; a new set is a new entry there.
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
    """One of the shapes that a data set is found in.

    Parameters
    ----------
    shape : str
        Name of the shape, a key of `anomalyclip.data.layouts.SHAPES`.
    tree : str
        The shape as a reader sees it, one pattern a line.
    parameters : mapping
        Fields of the shape's class that differ from their defaults.
    same_counts : bool
        Whether this copy holds the images that `DataSet.counts` counts.
    """

    shape: str
    tree: str
    parameters: Mapping[str, Any]
    same_counts: bool = True


@dataclass(frozen=True)
class DataSet:
    """What is known of one data set.

    Parameters
    ----------
    key, name, domain : str
        Name on the command line, name in the literature, "industrial" or "medical".
    classes : tuple of str
        The things that it shows.
    counts : tuple of int
        Normal and anomalous images of the test split that the paper used.
    counts_verified : bool
        False where nobody has counted the files yet.
    metrics : tuple of str
        What the paper reports: "image", "pixel" or both.
    home : str
        Where it is published.
    license : str or None
        None where it is not known here.
    aliases : tuple of str
        Names of the folders that it comes in.
    layouts : tuple of KnownLayout
        The paper's own first.
    paper : mapping
        ``paper[level][method]``, percent; level "image" gives (AUROC, AP), level "pixel" (AUROC, AUPRO by the published
        protocol); None where the paper has no figure. Source: AnomalyCLIP (ICLR 2024), tables 1 and 2.
    log : mapping
        ``log[class]``, percent: (pixel AUROC, pixel AUPRO, image AUROC, image AP) of the authors' own run; "mean" is
        over the classes. Empty where the authors published none.
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
        """Return the classes that are missing among those found, and those found that the data set has not.

        Folders are written with underscores and with spaces ("electrical_commutators"); that is no difference.
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
    """Return the data set of that key.

    Raises
    ------
    AnomalyCLIPError
        There is none; the message names the nearest keys.

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
    raise AnomalyCLIPError(f"{key!r} is no known data set{meant} Known are: {', '.join(table)}")
