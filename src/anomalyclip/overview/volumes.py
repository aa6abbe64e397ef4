"""Volumes as a whole: a score for each, and its maps as a NIfTI file that lies on it.

```
OUTPUT/volumes.jsonl            one JSON object per volume
OUTPUT/volumes/NAME_map.nii.gz  the maps of its slices, float32, with its shape and its affine
```

A volume is as anomalous as its most anomalous slice: its score is the highest of theirs, and so is its verdict. A slice
that was not scored is 0 in the map.
"""

import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from anomalyclip.errors import AnomalyCLIPError, AnomalyCLIPWarning, reason
from anomalyclip.files import replacing, writing
from anomalyclip.overview.summary import records
from anomalyclip.readers import locate
from anomalyclip.readers.nifti import MapVolume, is_volume
from anomalyclip.writers import PREDICTIONS, without_ending

VOLUMES = "volumes.jsonl"

_FOLDER, _ENDING = "volumes", "_map.nii.gz"


@dataclass
class _Volume:
    """What the lines say of the slices of one volume, cut along one axis."""

    slices: int = 0
    top: dict[str, Any] = field(default_factory=dict)
    maps: list[tuple[int, str]] = field(default_factory=list)

    def add(self, number: int, record: dict[str, Any]) -> None:
        self.slices += 1
        if not self.top or record["pred_score"] > self.top["pred_score"]:
            self.top = record
        if "map" in record["files"]:
            self.maps.append((number, record["files"]["map"]))


def write_volumes(folder: Path, *, maps: bool = False) -> int:
    """Write ``volumes.jsonl``, if there are volumes among the images, and return how many there are.

    Parameters
    ----------
    folder : Path
        Of the run.
    maps : bool
        Write a NIfTI file for each volume too, of the maps that the run has saved.

    Raises
    ------
    AnomalyCLIPError
        A file cannot be written.
    """
    _clear(folder)
    volumes: dict[str, _Volume] = {}
    for record in records(folder / PREDICTIONS):
        path, number = locate(str(record["image_path"]))
        if is_volume(path):
            volumes.setdefault(path, _Volume()).add(number or 1, record)
    if not volumes:
        return 0
    target = folder / VOLUMES
    with writing(target), replacing(target) as temporary, open(temporary, "w", encoding="utf-8") as lines:
        for path, volume in volumes.items():
            file = _written(folder, path, volume) if maps and volume.maps else None
            lines.write(json.dumps(_line(path, volume, file)) + "\n")
    return len(volumes)


def _line(path: str, volume: _Volume, file: str | None) -> dict[str, Any]:
    kept = {name: volume.top[name] for name in ("pred_score", "pred_label", "threshold")}
    files = {} if file is None else {"nifti": file}
    return {
        "image_path": path,
        **kept,
        "slices": volume.slices,
        "most_anomalous": volume.top["image_path"],
        "files": files,
    }


def _written(folder: Path, path: str, volume: _Volume) -> str | None:
    """Write the maps of a volume and return the name of the file; None if the volume cannot be read any more."""
    name = f"{_FOLDER}/{_common_name(volume.maps)}{_ENDING}"
    try:
        whole = MapVolume(path)
        for number, file in volume.maps:
            whole.put(number, np.load(folder / file, allow_pickle=False))
    except Exception as error:  # it was scored, and the map is one more picture of that
        said = str(error) if isinstance(error, AnomalyCLIPError) else f"{path}: {reason(error)}"
        warnings.warn(f"no NIfTI map was written: {said}", AnomalyCLIPWarning, stacklevel=2)
        return None
    with writing(folder / name), replacing(folder / name) as temporary:
        temporary.write_bytes(whole.encoded())
    return name


def _common_name(maps: list[tuple[int, str]]) -> str:
    """Return the name of the maps of slices, without folder, number and ending."""
    inner = maps[0][1].removeprefix("maps/").removesuffix(".npy")
    return without_ending(inner).rpartition("#")[0] or inner


def _clear(folder: Path) -> None:
    """Delete what an earlier part of the run, or an earlier run, has written."""
    inside = folder.resolve() / _FOLDER
    for line in records(folder / VOLUMES):
        file = str(dict(line.get("files") or {}).get("nifti"))
        if file.endswith(_ENDING) and (folder / file).resolve().is_relative_to(
            inside
        ):  # a line may be anybody's
            (folder / file).unlink(missing_ok=True)
    (folder / VOLUMES).unlink(missing_ok=True)
