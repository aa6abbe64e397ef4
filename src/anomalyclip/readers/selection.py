"""Which images of a file with many are wanted: ``line.mp4#every=0.5s``, ``scan.nii.gz#axis=coronal&every=2``."""

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from anomalyclip.addresses import Address
from anomalyclip.errors import AnomalyCLIPError, InputError

AXES = ("axial", "coronal", "sagittal")
"""Ways to cut a volume into slices; the first is the usual one."""

_SELECTED = re.compile(r"(.+)#((?:every|axis)=[^#]*)", re.DOTALL)

Picker = Callable[[int, float | None], bool]
"""From an image's position in its file (from 0) and its time in seconds to whether it is wanted; called in order."""


@dataclass(frozen=True)
class Selection:
    """Which images of a video or a volume are wanted.

    Parameters
    ----------
    every : str, optional
        ``10``: every tenth image; ``0.5s``: one every half second of a video. None: all.
    axis : {"axial", "coronal", "sagittal"}, optional
        How a volume is cut. None: axial.

    Raises
    ------
    AnomalyCLIPError
        A value is none of these.

    Examples
    --------
    >>> str(Selection(every="0.5s", axis="coronal")), str(Selection())
    ('#axis=coronal&every=0.5s', '')
    >>> Selection(every="0")
    Traceback (most recent call last):
    anomalyclip.errors.AnomalyCLIPError: every 0: expected a number of images such as 10, or seconds such as 0.5s
    """

    every: str | None = None
    axis: str | None = None

    def __post_init__(self) -> None:
        if self.every is not None and self._step() is None:
            raise AnomalyCLIPError(
                f"every {self.every}: expected a number of images such as 10, or seconds such as 0.5s"
            )
        if self.axis is not None and self.axis not in AXES:
            raise AnomalyCLIPError(f"axis {self.axis}: expected {', '.join(AXES)}")

    def __str__(self) -> str:
        pairs = [
            f"{name}={value}" for name in ("axis", "every") if (value := getattr(self, name)) is not None
        ]
        return f"#{'&'.join(pairs)}" if pairs else ""

    def picker(self, name: str) -> Picker:
        """Return what picks the wanted images; `name` is the file's, for messages.

        One every half second is the first image at or after each half second.

        Examples
        --------
        >>> pick = Selection(every="0.5s").picker("line.mp4")
        >>> [time for time in (0.0, 0.2, 0.4, 0.6, 0.8, 1.7, 1.8) if pick(0, time)]
        [0.0, 0.6, 1.7]
        """
        due = -math.inf

        def by_time(_: int, time: float | None) -> bool:
            nonlocal due
            if time is None:
                raise InputError(f"{name}: its images have no times; give a number, for example every=10")
            if time < due:
                return False
            due = (math.floor(time / step + 1e-6) + 1) * step - 1e-6
            return True

        step = self._step() or 1.0
        if self.every is not None and self.every.endswith("s"):
            return by_time
        return lambda position, _: position % int(step) == 0

    def _step(self) -> float | None:
        """Return the step, if it is one."""
        text = str(self.every)
        if re.fullmatch(r"[1-9][0-9]{0,8}", text):
            return float(text)
        if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?s", text) and float(text[:-1]) > 0:
            return float(text[:-1])
        return None


def parted(path: str) -> tuple[str, Selection]:
    """Return the file of a path, and what is selected of it.

    Raises
    ------
    InputError
        Something unknown is selected.

    Examples
    --------
    >>> parted("line.mp4#every=10")
    ('line.mp4', Selection(every='10', axis=None))
    >>> parted("line.mp4")[0], parted("line.mp4#7")[0]
    ('line.mp4', 'line.mp4#7')
    """
    found = _SELECTED.fullmatch(path)
    if found is None or os.path.lexists(path):
        return path, Selection()
    pairs = [pair.partition("=")[::2] for pair in found[2].split("&")]
    values = dict(pairs)
    if len(values) < len(pairs) or not values.keys() <= {"every", "axis"}:
        raise InputError(f"{path}: after # expected a number, every=STEP or axis=AXIS, joined by &")
    try:
        return found[1], Selection(**values)
    except AnomalyCLIPError as error:
        raise InputError(f"{path}: {error}") from None


def holder(path: str) -> str:
    """Return what the ids of the selected images begin with: the file, and the axis if it is not the usual one.

    Examples
    --------
    >>> holder("scan.nii.gz#axis=coronal&every=2"), holder("line.mp4#every=10"), holder("a.png")
    ('scan.nii.gz#axis=coronal', 'line.mp4', 'a.png')
    """
    if isinstance(path, Address):
        return Address(path.url, holder(f".{path.inner}")[1:])
    file, selection = parted(path)
    return f"{file}{Selection(axis=None if selection.axis == AXES[0] else selection.axis)}"
