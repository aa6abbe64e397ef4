"""`Wanted`: what a caller wants to know of images; the same fields in forms and in JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.readers.selection import Selection
from anomalyclip.serve.refusals import Refusal
from anomalyclip.serve.uploads import ALL

MAPS = ("none", "png", "npy", "rle")
"""How the map can be sent: not at all, as 8-bit gray PNG, as float32 of NumPy, or as the mask's runs."""

FIELDS = ("model", "map", "map_size", "threshold", "class_name", "preview", "every", "axis")


@dataclass(frozen=True)
class Wanted:
    """What a caller wants to know.

    Parameters
    ----------
    model : str, optional
        Id of the model. None: the service's own.
    map : str
        One of `MAPS`.
    map_size : int, optional
        Longest side of the map that is sent. None: the image's size; 0: as the model made it.
    threshold : float, optional
        Replaces the model's, for score and pixels.
    class_name : str, optional
        What the images show, for methods that name it.
    preview : bool
        Whether a small JPEG of each image is sent too.
    selection : Selection
        Which images of videos and volumes are wanted: the fields ``every`` and ``axis``.

    Examples
    --------
    >>> Wanted.of({"map": "png", "map_size": "256", "preview": "1"})
    Wanted(model=None, map='png', map_size=256, threshold=None, class_name=None, preview=True,
           selection=Selection(every=None, axis=None))
    """

    model: str | None = None
    map: str = "none"
    map_size: int | None = None
    threshold: float | None = None
    class_name: str | None = None
    preview: bool = False
    selection: Selection = ALL

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Wanted":
        """Return what the fields of a form or of a JSON object say; empty ones are as if they were not there.

        Raises
        ------
        Refusal
            A field is unknown, or its value cannot be used.
        """
        if unknown := sorted(set(fields) - set(FIELDS)):
            raise Refusal(
                422, f"{', '.join(unknown)[:200]}: unknown field; expected some of {', '.join(FIELDS)}"
            )
        given = {name: value for name, value in fields.items() if value not in (None, "")}
        return cls(
            model=_text(given, "model"),
            map=_one_of(given, "map", MAPS),
            map_size=_whole(given, "map_size", 0, 65_536),
            threshold=share(given, "threshold"),
            class_name=_text(given, "class_name"),
            preview=truth(given, "preview"),
            selection=_selection(given),
        )


def _text(given: Mapping[str, Any], name: str) -> str | None:
    value = given.get(name)
    if value is not None and (not isinstance(value, str) or len(value) > 200):
        raise Refusal(422, f"{name}: expected a text of at most 200 characters")
    return value


def _selection(given: Mapping[str, Any]) -> Selection:
    try:
        return Selection(every=_text(given, "every"), axis=_text(given, "axis"))
    except AnomalyCLIPError as error:
        raise error if isinstance(error, Refusal) else Refusal(422, str(error)) from None


def _one_of(given: Mapping[str, Any], name: str, known: tuple[str, ...]) -> str:
    value = given.get(name, known[0])
    if value not in known:
        raise Refusal(422, f"{name}: expected one of {', '.join(known)}")
    return str(value)


def _number(given: Mapping[str, Any], name: str, expected: str) -> float | None:
    value = given.get(name)
    if value in (None, ""):
        return None
    try:
        if isinstance(value, bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise Refusal(422, f"{name}: expected {expected}") from None


def _whole(given: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    expected = f"a whole number from {low} to {high}"
    value = _number(given, name, expected)
    if value is not None and not (low <= value <= high and value == int(value)):
        raise Refusal(422, f"{name}: expected {expected}")
    return None if value is None else int(value)


def share(given: Mapping[str, Any], name: str) -> float | None:
    """Return a field that is a number from 0 to 1; None if it is not there.

    Examples
    --------
    >>> share({"threshold": "0.25"}, "threshold")
    0.25
    """
    value = _number(given, name, "a number from 0 to 1")
    if value is not None and not 0 <= value <= 1:
        raise Refusal(422, f"{name}: expected a number from 0 to 1")
    return value


def truth(given: Mapping[str, Any], name: str) -> bool:
    """Return a field that is 1 or 0, true or false; it is false if it is not there.

    Examples
    --------
    >>> truth({"preview": "1"}, "preview"), truth({}, "preview")
    (True, False)
    """
    value = given.get(name) or False
    if str(value).lower() not in ("0", "1", "true", "false"):
        raise Refusal(422, f"{name}: expected 1 or 0")
    return str(value).lower() in ("1", "true")
