"""Build detectors from specs."""

import os
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

from anomalyclip.errors import AnomalyCLIPError, AnomalyCLIPWarning
from anomalyclip.spec import DetectorSpec

if TYPE_CHECKING:
    from anomalyclip.detector import Detector
    from anomalyclip.prediction import Threshold
    from anomalyclip.scorer import Scorer


def load(
    spec: DetectorSpec,
    *,
    threshold: "float | Threshold | str | os.PathLike[str] | None" = None,
    by_class: bool = False,
    threads: int | None = None,
) -> "Detector":
    """Return the detector of a spec; see `DetectorSpec.load`. An exported file does not import PyTorch.

    `threads` is for a file that is kept for the spec (`anomalyclip.engines.kept`); None: the library decides.
    """
    from anomalyclip.detector import Detector
    from anomalyclip.prediction import as_threshold

    ready = as_threshold(threshold)
    spec = measured(spec)
    tiling = spec.tiling
    if spec.model is None:
        detector = Detector(
            _scorer(spec, by_class, threads),
            threshold=ready,
            tiling=tiling,
            spec=spec,
            value_range=spec.value_range,
        )
    else:
        from anomalyclip.engines.exported import ExportedScorer

        exported = ExportedScorer(spec.model, providers=spec.provider, threads=spec.threads)
        detector = Detector(
            exported,
            threshold=exported.card.limits if ready is None else ready,
            tiling=exported.card.tiling if tiling is None else tiling,
            spec=spec,
            value_range=spec.value_range or exported.card.value_range,
        )
    _warn_of(detector)
    return detector


def load_one_of_several(
    spec: DetectorSpec, threshold: "Threshold | None", *, threads: int, place: int = 0
) -> "Detector":
    """Return the detector of a spec for one of several processes that share a machine.

    Parameters
    ----------
    spec, threshold
        See `load`.
    threads : int
        CPU threads of this process.
    place : int
        Number of the process: it takes this one of the machine's GPUs, if there are several.
    """
    if spec.model is None:
        import torch

        torch.set_num_threads(threads)
        gpus = torch.cuda.device_count()
        if gpus > 1 and spec.device in ("auto", "cuda"):
            spec = replace(spec, device=f"cuda:{place % gpus}")
    elif spec.threads is None:
        spec = replace(spec, threads=threads)
    detector = load(spec, threshold=threshold, threads=threads)
    require_references(detector)
    return detector


def needs_references(detector: "Detector") -> bool:
    """Return whether a detector can score nothing until it is given references."""
    return bool(getattr(getattr(detector.scorer, "core", None), "needs_references", False))


def require_references(detector: "Detector") -> None:
    """Refuse a detector that can score nothing without references, before a folder is made for its results.

    Raises
    ------
    AnomalyCLIPError
        Its method compares images with normal ones, and there are none.
    """
    if needs_references(detector):
        raise AnomalyCLIPError(
            f"method {detector.identity().get('method')!r} compares images with normal ones: give references "
            "(--references PATH)"
        )


def _scorer(spec: DetectorSpec, by_class: bool, threads: int | None) -> "Scorer":
    from anomalyclip.engines import kept
    from anomalyclip.methods import METHODS

    exported = kept.scorer_for(spec, by_class=by_class, threads=threads)
    return exported or METHODS[spec.method](spec, by_class=by_class)


def measured(spec: DetectorSpec) -> DetectorSpec:
    """Return a spec with the values of its range in place of the folder that they are measured on.

    Raises
    ------
    AnomalyCLIPError
        The images cannot be used; see `anomalyclip.depth.ranges.measure_range`.
    """
    if spec.range_from is None:
        return spec
    from anomalyclip.depth.ranges import measure_range

    return replace(spec, value_range=measure_range(spec.range_from), range_from=None)


def as_detector(
    detector: "Detector | DetectorSpec", *, threshold: "Threshold | None" = None, by_class: bool = False
) -> "Detector":
    """Return a detector, loading it if a spec is given; `threshold` replaces the detector's own if it is given.

    With `by_class` the spec need not name a class, since `Detector.of_class` will be told it.
    """
    if isinstance(detector, DetectorSpec):
        return load(detector, threshold=threshold, by_class=by_class)
    if threshold is None:
        return detector
    from anomalyclip.detector import Detector

    judged = Detector(
        detector.scorer,
        threshold=threshold,
        tiling=detector.tiling,
        spec=detector.spec,
        value_range=detector.value_range,
    )
    _warn_of(judged)
    return judged


def in_pytorch(detector: "Detector | DetectorSpec", *, by_class: bool = False) -> "Detector":
    """Return the same detector for what only PyTorch can do, such as remembering references, comparing and exporting.

    A spec is loaded; a detector that runs from a kept file (`anomalyclip.engines.kept`) is loaded again.
    """
    from anomalyclip.engines.kept import KeptScorer

    if isinstance(detector, DetectorSpec):
        return load(detector if detector.model else replace(detector, engine="torch"), by_class=by_class)
    if not isinstance(detector.scorer, KeptScorer) or detector.spec is None:
        return detector
    return load(replace(detector.spec, engine="torch"), threshold=detector.threshold, by_class=by_class)


def _warn_of(detector: "Detector") -> None:
    for remark in detector.remarks():
        warnings.warn(remark, AnomalyCLIPWarning, stacklevel=4)
