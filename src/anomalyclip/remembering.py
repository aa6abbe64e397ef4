"""Detectors that also compare images with references: a memory, or the pictures themselves."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from anomalyclip.addresses import as_place, on_disk
from anomalyclip.agreement import check_fits, without_memory
from anomalyclip.clip_core import ClipCore
from anomalyclip.detector import Detector
from anomalyclip.engines.torch import TorchScorer
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import file_digest
from anomalyclip.fitting import fit, sources_of
from anomalyclip.likeness import REFERENCES, Tally
from anomalyclip.memory_core import MemoryCore
from anomalyclip.references import Memory
from anomalyclip.scorer import Description, Scorer
from anomalyclip.spec import MAX_PATCHES, DetectorSpec, is_memory_file

_TOLD = 20
"""Names of references that reports have."""


def remember(detector: Detector, memory: Memory) -> Detector:
    """Return a detector that also compares images with a memory.

    Parameters
    ----------
    detector : Detector
        The one that the memory was made for.
    memory : Memory
        See `fit`.

    Raises
    ------
    AnomalyCLIPError
        The memory was made with another model, or the detector has one already.

    Examples
    --------
    >>> from anomalyclip.demo import PICTURES
    >>> detector = Detector.from_pretrained("micro")
    >>> memory = fit(detector, PICTURES / "linen_good.jpg")
    >>> few_shot = remember(detector, memory)
    >>> prediction = few_shot.predict(PICTURES / "linen_good.jpg")
    >>> prediction.pred_score < 0.5
    True
    """
    base, value_range = without_memory(detector.scorer), detector.value_range
    check_fits(base, memory, detector.tiling, value_range)
    return Detector(
        _with(base, memory, rule=None),
        threshold=detector.threshold,
        tiling=detector.tiling,
        spec=detector.spec,
        value_range=value_range,
    )


def left_out_scores(detector: Detector) -> Iterator[tuple[float, NDArray[np.float32]]]:
    """Yield the score and map (S, S) that each reference has when it is compared with the others alone.

    Raises
    ------
    AnomalyCLIPError
        The detector has no references, only one, or tiles.
    """
    scorer = detector.scorer
    core = scorer.core if isinstance(scorer, TorchScorer) else None
    if not (isinstance(core, MemoryCore) and isinstance(scorer, TorchScorer)):
        raise AnomalyCLIPError(
            "the detector has no references to calibrate with: give normal images, or references (a PyTorch model)"
        )
    memory = core.memory
    if detector.tiling is not None:
        raise AnomalyCLIPError("with tiles the references alone give no threshold: give normal images")
    if len(memory) < 2:
        raise AnomalyCLIPError(
            "a single reference gives no threshold, since it cannot be compared with others: give normal images, or "
            "more references"
        )
    with torch.inference_mode():
        left_out = memory.left_out_maps()
        said = memory.text_maps if memory.grids is None else [torch.zeros_like(one) for one in left_out]
        for text, maps, distances in zip(memory.text_scores, said, left_out, strict=True):
            batch = (part[None].to(scorer.device) for part in (text, maps, distances.flatten()))
            score, full = core.finish(*core.fused(*batch))
            yield float(score), full[0].cpu().numpy()


def with_references(scorer: Scorer, spec: DetectorSpec) -> Scorer:
    """Return a scorer that also compares images with the references of a spec, a memory or pictures."""
    if hasattr(scorer, "of_class"):
        return _EachClass(scorer, spec)
    base, paths = without_memory(scorer), spec.references or ()
    if len(paths) == 1 and is_memory_file(paths[0]):
        memory = Memory.load(paths[0])
    else:
        plain = replace(spec, references=None, augment=False, max_patches=MAX_PATCHES)
        detector = Detector(base, tiling=spec.tiling, spec=plain, value_range=spec.value_range)
        memory = fit(detector, list(paths), augment=spec.augment, max_patches=spec.max_patches)
    check_fits(base, memory, spec.tiling, spec.value_range)
    return _with(base, memory, rule=spec.image_score)


class TallyByClass:
    """A tally for each class of a data set, whose scorers may be made more than once."""

    def __init__(self) -> None:
        self._tallies: dict[str, Tally] = {}

    def follow(self, scorer: Scorer, name: str) -> Scorer:
        """Return a scorer whose images count as those of a class."""
        core = scorer.core if isinstance(scorer, TorchScorer) else None
        if isinstance(core, MemoryCore):
            core.tally = self._tallies.setdefault(name, Tally())
        return scorer

    def remarks(self) -> list[str]:
        """Return the warnings of all classes; their counts begin anew."""
        return [
            f"class {name}: {remark}" for name, tally in self._tallies.items() for remark in tally.remarks()
        ]


class _EachClass:
    """A method that names the class, before it is known: gives a scorer for each, all with the same references."""

    def __init__(self, scorer: Any, spec: DetectorSpec) -> None:
        self.image_size, self._scorer, self._spec = scorer.image_size, scorer, spec
        self._tallies = TallyByClass()
        self._hashes: dict[str, str] = {}  # of the references, once a class is known

    def of_class(self, name: str) -> Scorer:
        """Return the scorer of a class."""
        scorer = with_references(self._scorer.of_class(name), self._spec)
        self._hashes = {REFERENCES: scorer.describe().training[REFERENCES]}
        return self._tallies.follow(scorer, name)

    def remarks(self) -> list[str]:
        """Return what the images since the last call say about their fitness for the references, class by class."""
        return self._tallies.remarks()

    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Refuse: there is no class."""
        return cast(Scorer, self._scorer)(pixels)

    def identity(self) -> dict[str, Any]:
        """Return what decides the scores of every class."""
        hashes = hashlib.sha256()
        for path in self._spec.references or ():
            for image in [path] if is_memory_file(path) else sources_of([path]):
                hashes.update(_digest(image).encode())
        made = {"augment": self._spec.augment, "max_patches": self._spec.max_patches}
        return {**self._scorer.identity(), "memory": made, "references_sha256": hashes.hexdigest()}

    def describe(self) -> Description:
        """Return what reports say of it."""
        about: Description = self._scorer.describe()
        return replace(
            about, title=f"{about.title}, with references", training={**about.training, **self._hashes}
        )


def _digest(image: Any) -> str:
    with on_disk(as_place(image)) as file:
        return file_digest(file, "sha256")


def _with(base: TorchScorer, memory: Memory, *, rule: str | None) -> TorchScorer:
    core = base.core
    assert isinstance(core, ClipCore)
    together = MemoryCore(core, memory, score_rule=rule)
    digest, settings = memory.digest(), {**memory.settings, "references": len(memory)}
    description = base.describe()
    noun = "reference" if len(memory) == 1 else "references"
    return TorchScorer(
        together,
        identity=lambda: (
            base.identity()
            | {"image_score": together.memory_rule}
            | {"memory": settings, "references_sha256": digest}
        ),
        description=Description(
            f"{description.title}, {len(memory)} {noun}",
            {
                **description.facts,
                "references": list(memory.names[:_TOLD]),
                "references_mb": round(memory.exported_size / 1e6, 2),
            },
            {**description.training, REFERENCES: " ".join(memory.hashes)},
        ),
        device=str(base.device),
        precision=base.precision,
        compiled=base.compiled,
    )
