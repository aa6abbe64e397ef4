"""What a configuration says that tensors do not show."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomalyclip.clip.tensors import Unusable, read_json
from anomalyclip.errors import AnomalyCLIPNote
from anomalyclip.images import OPENAI_MEAN, OPENAI_STD


@dataclass(frozen=True)
class Settings:
    """Settings that cannot be inferred from the tensors; by default those of OpenAI's models."""

    vision_heads: int | None = None
    text_heads: int | None = None
    quick_gelu: bool = True
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    stated: dict[str, Any] | None = None  # more fields of a configuration, to compare with the tensors


def three(values: Any, name: str) -> tuple[float, ...]:
    """Return three numbers, one for each channel."""
    found = tuple(float(value) for value in values)
    if len(found) != 3 or not all(abs(value) < 1e3 for value in found):
        raise ValueError(f"{name} {list(values)}: expected one number for each of three channels")
    return found


PREPROCESSING = "preprocessor_config.json"
"""Where transformers keeps how pixels are normalised."""


def normalisation_beside(file: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and standard deviation of transformers' configuration beside a file; None: it says neither.

    Raises
    ------
    Unusable
        It says only one of them.
    """
    images = file.with_name(PREPROCESSING)
    content = read_json(images) if images.is_file() else {}
    missing = [name for name in ("image_mean", "image_std") if content.get(name) is None]
    if len(missing) == 1:
        raise Unusable(f"its {PREPROCESSING} has no {missing[0]}; expected image_mean and image_std")
    if missing:
        return None
    return three(content["image_mean"], "image_mean"), three(content["image_std"], "image_std")


_READ_AGAIN: ContextVar[bool] = ContextVar("read again", default=False)


@contextmanager
def read_again() -> Iterator[None]:
    """Until the block ends, `note` says nothing: what it would say was said when the weights were first read."""
    token = _READ_AGAIN.set(True)
    try:
        yield
    finally:
        _READ_AGAIN.reset(token)


def note(said: str) -> None:
    """Tell the user what was assumed of weights."""
    if not _READ_AGAIN.get():
        warnings.warn(said, AnomalyCLIPNote, stacklevel=3)
