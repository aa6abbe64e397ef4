"""Compare the identities of two scorers and describe the differences: for resumed runs, thresholds and exports."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

HASH = "_sha256"
"""Suffix of the names of hashes in an identity."""


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe which values differ, at any depth; hashes are shortened.

    Parameters
    ----------
    before, now : mapping
        JSON-ready. A missing value counts as None.

    Examples
    --------
    >>> differences({"sigma": 4.0, "layers": [24]}, {"sigma": 2.0, "layers": [24]})
    ['sigma: 4.0 then, 2.0 now']
    >>> differences({"weights_sha256": "0123456789ab"}, {"weights_sha256": "fedcba987654"})
    ['other weights: 01234567... then, fedcba98... now']
    """
    then, later = (dict(_leaves(json.loads(json.dumps(value)))) for value in (before, now))
    return [
        f"{_named(name)}: {_shown(name, then.get(name))} then, {_shown(name, later.get(name))} now"
        for name in dict.fromkeys([*then, *later])
        if then.get(name) != later.get(name)
    ]


def _named(name: str) -> str:
    return f"other {name.removesuffix(HASH)}" if name.endswith(HASH) else name


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "none"
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{text[:8]}..." if name.endswith(HASH[1:]) and len(text) > 8 else text


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for number, inner in enumerate(value, start=1):
            yield from _leaves(inner, f"{name} {number}")
    else:
        yield name, value
