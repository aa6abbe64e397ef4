"""What each method of a comparison costs: its share of the passes through a backbone, and what it does on its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anomalyclip.clip.taps import gflop
from anomalyclip.clip_core import ClipCore
from anomalyclip.engines.torch import TorchScorer
from anomalyclip.evaluation.contenders import Lineup
from anomalyclip.evaluation.results import DatasetResult
from anomalyclip.scorer import Scorer


@dataclass(frozen=True)
class Cost:
    """Time of one method, in seconds per image scored in this run; None: no image was.

    Parameters
    ----------
    shared : float or None
        Pass through the backbone, which other methods may share.
    others : tuple of str
        Which methods share it.
    own : float or None
        After the pass: comparing, enlarging, smoothing.
    texts : float or None
        Seconds per class: encoding the texts that name it. None: no text does.
    gflop : float or None
        GFLOP of the matrix products per image if the method ran alone; None if unknown.
    pass_gflop : float or None
        The same of the shared pass.
    alone : float or None
        Seconds per image if the method ran alone: its own part, and its share of the pass by operations.
    """

    shared: float | None
    others: tuple[str, ...]
    own: float | None
    texts: float | None
    gflop: float | None
    pass_gflop: float | None
    alone: float | None


def costs(lineup: Lineup, results: Mapping[str, Mapping[str, DatasetResult]]) -> dict[str, Cost]:
    """Return what each method costs.

    Parameters
    ----------
    lineup : Lineup
    results : mapping of str to mapping of str to DatasetResult
        By data set and name; the seconds of their classes are those of `Spent`.
    """
    first = next(iter(next(iter(results.values())).values())).classes[0].name
    joint = lineup.joint(first)
    found = {}
    for names in joint.shared:
        operations = {name: _gflop(joint.scorers[name]) for name in names}
        whole = joint.gflop(names)
        for name in names:
            seconds = _Seconds([of_set[name] for of_set in results.values()])
            shared, own, each = seconds.per_image("pass"), seconds.per_image("own"), operations[name]
            alone = None
            if shared is not None and own is not None:
                if len(names) == 1:
                    alone = shared + own
                elif each is not None and whole:
                    alone = shared * each / whole + own
            others = tuple(other for other in names if other != name)
            found[name] = Cost(shared, others, own, lineup.texts.get(name), each, whole, alone)
    return {name: found[name] for name in lineup.names}


class _Seconds:
    """What was spent on the images that were scored in this run."""

    def __init__(self, results: list[DatasetResult]) -> None:
        self._classes = [entry for result in results for entry in result.classes]

    def per_image(self, what: str) -> float | None:
        images = sum(entry.seconds.get("images", 0.0) for entry in self._classes)
        return sum(entry.seconds.get(what, 0.0) for entry in self._classes) / images if images else None


def _gflop(scorer: Scorer) -> float | None:
    core: Any = scorer.core if isinstance(scorer, TorchScorer) else None
    return gflop(core.config, core.taps, core.patch_grid) if isinstance(core, ClipCore) else None
