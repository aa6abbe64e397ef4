"""Checks whether a model knows the data that it is evaluated on: from its training, or as its references."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from PIL import Image

from anomalyclip.data.identity import TRAINED_ON_CONTENT, content_digest, same_data
from anomalyclip.data.meta import SampleList
from anomalyclip.data.tree import path_of
from anomalyclip.depth import Range, Scale
from anomalyclip.depth.in_scale import Shown, decode_in_scale
from anomalyclip.errors import InputError
from anomalyclip.framing import framing_of
from anomalyclip.likeness import REFERENCES, pixels_digest
from anomalyclip.scorer import Scorer
from anomalyclip.tiling import Tiling, pieces


def known_here(
    scorer: Scorer, data: SampleList, *, tiling: Tiling | None = None, value_range: Range | None = None
) -> list[str]:
    """Return warnings if a model was trained on the data that it is evaluated on, or has its images as references.

    Parameters
    ----------
    scorer : Scorer
        The model.
    data : SampleList
        The data that it is evaluated on.
    tiling, value_range : optional
        As the images are scored.
    """
    found = (
        trained_on_this(scorer.describe().training, data),
        references_here(scorer, data, tiling=tiling, value_range=value_range),
    )
    return [warning for warning in found if warning is not None]


def trained_on_this(training: Mapping[str, str], data: SampleList) -> str | None:
    """Return a warning if a model was trained on the data set that it is evaluated on; None otherwise.

    Parameters
    ----------
    training : mapping of str to str
        `anomalyclip.scorer.Description.training`.
    data : SampleList
        The data that it is evaluated on.
    """
    digests = _digests(data) if TRAINED_ON_CONTENT in training else None
    return same_data(training, name=data.name, digests=digests)


def _digests(data: SampleList) -> Iterator[str]:
    """Yield the digest of each image; images that cannot be read are reported by the evaluation."""
    for sample in data:
        with suppress(InputError):
            yield content_digest(data.root / sample.image)


def references_here(
    scorer: Scorer, data: SampleList, *, tiling: Tiling | None = None, value_range: Range | None = None
) -> str | None:
    """Return a warning if images of a data set are references of the model that it evaluates; None otherwise.

    Parameters
    ----------
    scorer, data, tiling, value_range
        As for `known_here`. Every image is decoded once more.
    """
    is_reference = reference_test(scorer, tiling)
    if is_reference is None:
        return None
    images = {path_of(data.root, sample.image): sample.image for sample in data}

    def same(shown: Shown) -> tuple[str, bool]:
        return images.get(str(shown.source), str(shown.source)), is_reference(shown.image)

    found = decode_in_scale(
        list(images),
        same,
        Scale(value_range, strict=True),  # references have no scale that was only assumed
        depth=8 if tiling is None else None,
        on_error=lambda image, error: None,  # which the evaluation reports
    )
    names = [name for name, is_one in found if is_one]
    if not names:
        return None
    which = "is also a reference" if len(names) == 1 else "are also references"
    return (
        f"{len(names)} of {len(images)} test images {which} (same pixels; {names[0]}): an image is at distance "
        "0 from itself, so the figures are too good. Use other images as references, or test on others"
    )


OWN_REFERENCE = (
    "is a reference of this model (same pixels): at distance 0 from itself, it says nothing about new images, and is "
    "left out"
)
"""Why an image is not used to calibrate."""


def reference_test(scorer: Scorer, tiling: Tiling | None) -> Callable[[Image.Image], bool] | None:
    """Return what tells whether an image, in the scale of the run, has the pixels of a reference; None: there are none.

    Parameters
    ----------
    scorer : Scorer
        In PyTorch, or an exported file.
    tiling : Tiling or None
        How images are cut.
    """
    known = frozenset(scorer.describe().training.get(REFERENCES, "").split())
    framing = framing_of(scorer)
    if not known:
        return None
    return lambda image: pixels_digest(pieces(image, tiling, framing)) in known
