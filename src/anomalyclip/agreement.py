"""Whether a memory of references and a detector belong together."""

from typing import Any

from anomalyclip.clip_core import ClipCore
from anomalyclip.depth import Range, require_range
from anomalyclip.detector import VALUE_RANGE
from anomalyclip.engines.torch import TorchScorer
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.identity import differences
from anomalyclip.memory_core import MemoryCore
from anomalyclip.references import Memory
from anomalyclip.scorer import Scorer
from anomalyclip.tiling import Tiling

_FREE = ("sigma", "image_score", "precision", "tile", "overlap")
"""Parts of an identity that change nothing in a memory's features, or are compared apart."""


def features_made_with(scorer: Scorer) -> dict[str, Any]:
    """Return the parts of a scorer's identity that decide a memory's features."""
    return {name: value for name, value in scorer.identity().items() if name not in _FREE}


def without_memory(scorer: Scorer) -> TorchScorer:
    """Return the scorer that a memory can be made for."""
    core = scorer.core if isinstance(scorer, TorchScorer) else None
    if isinstance(core, MemoryCore):
        raise AnomalyCLIPError("this detector has references already: load it without them")
    if not isinstance(core, ClipCore):
        method = scorer.identity().get("method", type(scorer).__name__)
        raise AnomalyCLIPError(
            f"method {method!r} does not support references: it is not a PyTorch module on CLIP"
        )
    assert isinstance(scorer, TorchScorer)
    return scorer


def check_fits(base: TorchScorer, memory: Memory, tiling: Tiling | None, value_range: Range | None) -> None:
    """Refuse a memory that was made with another model or other options than a detector has.

    Raises
    ------
    AnomalyCLIPError
        The message says what differs.
    """
    if differ := differences(dict(memory.identity), features_made_with(base)):
        raise AnomalyCLIPError(
            f"the memory was made with another model or other options ({'; '.join(differ)}): use the same, or fit it "
            "again"
        )
    cut = cut_of(tiling)
    if (made := memory.settings.get("tiles")) != cut:
        raise AnomalyCLIPError(
            f"the memory was made {_in_words(made)}, and images are scored {_in_words(cut)}: use the same --tile and "
            "--overlap, or fit it again"
        )
    scale = require_range(memory.settings.get(VALUE_RANGE))
    if value_range is not None and scale not in (None, value_range):
        raise AnomalyCLIPError(
            f"the memory was made with --range {scale[0]:g} {scale[1]:g}, and images are scored with "
            f"{value_range[0]:g} {value_range[1]:g}: leave the range out, or fit it again"
        )


def cut_of(tiling: Tiling | None) -> list[float] | None:
    """Return how images are cut into tiles, as a memory records it."""
    return None if tiling is None else [tiling.size, tiling.overlap]


def _in_words(cut: Any) -> str:
    return "without tiles" if cut is None else f"with tiles of {cut[0]} pixels, overlap {cut[1]}"
