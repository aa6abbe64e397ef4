"""Names of tensors as a form has them and as the models here have them, in both directions."""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

Pairs = Sequence[tuple[str, str]]
"""A form's name and ours, in the order in which they are replaced: a whole name, the start of one (the last character
is a dot: "blocks."), or a part inside (its first one is: ".norm1."). Several may have one of ours."""


def renamed(name: str, pairs: Pairs) -> str:
    """Return our name of a tensor.

    Examples
    --------
    >>> renamed("blocks.1.norm1.bias", [("blocks.", "resblocks."), (".norm1.", ".ln_1.")])
    'resblocks.1.ln_1.bias'
    """
    for theirs, ours in pairs:
        name = _replaced(name, theirs, ours)
    return name


def name_in_file(name: str, pairs: Pairs, names: Collection[str]) -> str:
    """Return what a tensor of ours is called in a file, for messages.

    Parameters
    ----------
    name : str
        Our name; the file need not have the tensor.
    pairs : Pairs
        Of the form.
    names : collection of str
        All names in the file: of several in a form, one that occurs there is taken.

    Examples
    --------
    >>> pairs = [(".fc2.", ".c_proj."), (".w3.", ".c_proj.")]
    >>> name_in_file("blocks.1.c_proj.bias", pairs, ["blocks.0.w3.bias"])
    'blocks.1.w3.bias'
    """
    chosen: dict[str, str] = {}
    for theirs, ours in pairs:
        if ours not in chosen or (_occurs(theirs, names) and not _occurs(chosen[ours], names)):
            chosen[ours] = theirs
    for ours, theirs in reversed(chosen.items()):
        if _occurs(theirs, names) or not _occurs(ours, names):
            name = _replaced(name, ours, theirs)
    return name


def stack(tensors: dict[str, Tensor]) -> None:
    """Stack the projections to queries, keys and values, in place, where all three are there and alike."""
    for name in [name for name in tensors if ".attn.q_proj." in name]:
        parts = _parts(name.replace("q_proj.", "in_proj_"))
        alike = len({tensors[part].shape if part in tensors else None for part in parts}) == 1
        if alike and tensors[name].ndim:
            stacked = torch.cat([tensors.pop(part) for part in parts])
            tensors[name.replace("q_proj.", "in_proj_")] = stacked


def apart(name: str, called: Callable[[str], str], names: Collection[str]) -> str:
    """Return the names in a file of what `stack` makes one: of those that are missing, or else of all three.

    Parameters
    ----------
    name : str
        Our name.
    called : callable
        From each of them to the name in the file.
    names : collection of str
        All names in the file.
    """
    if ".attn.in_proj_" not in name:
        return called(name)
    there = [called(part) for part in _parts(name)]
    missing = [one for one in there if one not in names]
    return ", ".join(missing) if missing else f"{' or '.join(there)} of the right shape"


def _parts(name: str) -> list[str]:
    return [name.replace("in_proj_", f"{part}_proj.") for part in "qkv"]


def _replaced(name: str, old: str, new: str) -> str:
    if old.startswith("."):
        return name.replace(old, new, 1)
    if old.endswith("."):
        return new + name.removeprefix(old) if name.startswith(old) else name
    return new if name == old else name


def _occurs(part: str, names: Collection[str]) -> bool:
    return any(part in name for name in names)
