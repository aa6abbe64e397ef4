"""Run folders: they never overwrite each other, and a resumed run goes on with the settings it began with."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import replacing

SETTINGS = "settings.json"


def new_folder(kind: str, *, parent: str | os.PathLike[str] = "runs") -> Path:
    """Make and return the first of ``runs/<kind>-1``, ``runs/<kind>-2``, ... that does not exist.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     [new_folder("predict", parent=parent).name for _ in range(2)]
    ['predict-1', 'predict-2']
    """
    number = 1
    while True:
        folder = Path(parent) / f"{kind}-{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise AnomalyCLIPError(f"{folder}: cannot be made ({error.strerror}); give --output FOLDER") from None
        else:
            return folder


def keep_settings(folder: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
    """Write a run's settings into its folder, or, when it is resumed, check that they are the same.

    Parameters
    ----------
    folder : Path
        The run folder.
    settings : mapping
        JSON-ready; what changes the results, and nothing else.
    resume : bool
        Whether the folder's earlier results are to be continued.

    Raises
    ------
    AnomalyCLIPError
        The run began with other settings; the message says which differ.
    """
    path = folder / SETTINGS
    if resume and path.is_file():
        try:
            before = dict(json.loads(path.read_text()))
        except (ValueError, TypeError):
            raise AnomalyCLIPError(f"{path}: damaged; begin anew in another folder") from None
        now = json.loads(json.dumps(settings))
        differ = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
        if differ:
            changes = "; ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in differ)
            raise AnomalyCLIPError(
                f"{folder} began with other settings ({changes}): resume with the same, or choose another folder"
            )
        return
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=1) + "\n")
