"""Which methods work with which of the backbones that callers may choose, and what they have to be told."""

from collections.abc import Iterable, Mapping
from typing import Any

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.spec import DetectorSpec

_ABOUT_TEXT = frozenset({"prompts", "normal", "class_name"})


def choices(own: DetectorSpec | None, backbones: Iterable[str]) -> list[dict[str, Any]]:
    """Return the pairs of backbone and method that a caller, who sends no files, can make a model of.

    Parameters
    ----------
    own : DetectorSpec or None
        Of the service's own model: what it was started with is there for its own method and backbone.
    backbones : iterable of str
        Names that callers may choose.

    Returns
    -------
    list of dict
        ``backbone`` (None: the service's own, which is a file), ``method``, ``class_name`` (needed, optional or none:
        what the images show) and ``words`` (whether it takes words of one's own).

    Examples
    --------
    >>> found = choices(DetectorSpec("micro"), ["micro"])
    >>> [(one["method"], one["class_name"]) for one in found if one["words"]]
    [('clip', 'needed'), ('clip-ac', 'needed'), ('words', 'optional'), ('winclip', 'needed')]
    """
    from anomalyclip.clip.registry import BACKBONES

    if own is not None and own.model is not None:
        own = None  # an exported file cannot be changed
    by_file = own is not None and own.backbone not in BACKBONES
    methods = _methods()
    found = []
    for backbone in [*([None] if by_file else []), *backbones]:
        for name, method in methods.items():
            is_own = own is not None and name == own.method and backbone in (None, own.backbone)
            if is_own or _works(method.options, backbone, own):
                needed = method.names_class and not (is_own and own is not None and own.class_name)
                takes = "class_name" in method.options
                found.append(
                    {
                        "backbone": backbone,
                        "method": name,
                        "class_name": "needed" if needed else "optional" if takes else "none",
                        "words": "normal" in method.options,
                    }
                )
    return found


def _methods() -> Mapping[str, Any]:
    """Return the methods that can be used; one of another package may not be."""
    from anomalyclip.methods import METHODS

    found = {}
    for name in METHODS:
        try:
            found[name] = METHODS[name]
        except AnomalyCLIPError:
            continue
    return found


def _works(options: frozenset[str], backbone: str | None, own: DetectorSpec | None) -> bool:
    """Tell whether a method works with a backbone, without a file of a trained part or of prompts."""
    from anomalyclip.clip.registry import PROMPTS

    if "trained" in options:
        return False
    if "prompts" in options:
        return any(prompts.backbone == backbone for prompts in PROMPTS.values())
    return not options & _ABOUT_TEXT or _has_text(backbone, own)


def _has_text(backbone: str | None, own: DetectorSpec | None) -> bool:
    """Tell whether a backbone compares images with words; that of a file is known by the method that uses it."""
    from anomalyclip.backbones.table import KNOWN
    from anomalyclip.methods import METHODS

    name = own.backbone if backbone is None and own is not None else backbone
    if (known := KNOWN.get(str(name))) is not None:
        return known.has_text
    return own is not None and bool(METHODS[own.method].options & _ABOUT_TEXT)
