"""What a configuration says that tensors do not show."""

from dataclasses import dataclass
from typing import Any

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
