"""Checks whether a model was trained on the data that it is evaluated on."""

from collections.abc import Iterator, Mapping
from contextlib import suppress

from anomalyclip.data.identity import TRAINED_ON_CONTENT, content_digest, same_data
from anomalyclip.data.meta import SampleList
from anomalyclip.errors import InputError


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
