"""What is fuzzed: a reader, real files for it, and what damaged ones may lead to."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomalyclip.errors import AnomalyCLIPError


@dataclass(frozen=True)
class Target:
    """A reader, and real files for it.

    Parameters
    ----------
    name : str
        Also that of its folder of regression files.
    share : int
        How many damaged files it gets, in proportion to the other targets.
    make : callable
        Writes real files into a folder, one folder per case.
    read : callable
        Reads a file or folder and does with it what a user would do.
    entry : str
        Pattern of the file in a case's folder that is read; "." is the folder itself.
    damaged : tuple of str
        Patterns of the files that get damaged.
    error : type
        What may be raised; nothing else may.
    memory : int
        Megabytes that one damaged file may need.
    seconds : int
        Seconds of the CPU that it may take.
    named : bool
        Whether messages name the file; not where the reader is handed its content.
    """

    name: str
    share: int
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    entry: str = "*"
    damaged: tuple[str, ...] = ("*",)
    error: type[AnomalyCLIPError] = AnomalyCLIPError
    memory: int = 300
    seconds: int = 20
    named: bool = True
