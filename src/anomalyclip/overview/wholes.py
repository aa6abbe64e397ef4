"""Files that hold many images, as a whole: a score for each volume and each video, and the maps of a volume as one.

```
OUTPUT/volumes.jsonl            one JSON object per NIfTI volume
OUTPUT/volumes/NAME_map.nii.gz  the maps of its slices, float32, with its shape and its affine
OUTPUT/videos.jsonl             one JSON object per video
OUTPUT/videos/NAME.webm         its frames with the map over them (`anomalyclip.overview.films`)
```

A whole is as anomalous as its most anomalous image: its score is the highest of theirs, and so is its verdict. A slice
that was not scored is 0 in the map.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from anomalyclip.addresses import as_address
from anomalyclip.errors import AnomalyCLIPError, AnomalyCLIPWarning, reason
from anomalyclip.files import replacing, writing
from anomalyclip.overview.films import ENDING as FILM
from anomalyclip.overview.films import FOLDER as FILMS
from anomalyclip.overview.summary import predictions, records
from anomalyclip.readers import here, locate
from anomalyclip.readers.nifti import MapVolume, is_volume
from anomalyclip.writers import without_ending

VOLUMES, VIDEOS = "volumes.jsonl", "videos.jsonl"

FOLDER = "volumes"
"""Where the maps of volumes are."""

_ENDING = "_map.nii.gz"


@dataclass
class _Whole:
    """What the lines say of the images of one file; of a volume those along one axis."""

    images: int = 0
    top: dict[str, Any] = field(default_factory=dict)
    maps: list[tuple[int, str]] = field(default_factory=list)

    def add(self, number: int, record: dict[str, Any]) -> None:
        self.images += 1
        if not self.top or record["pred_score"] > self.top["pred_score"]:
            self.top = record
        if "map" in record["files"] and "time" not in record:
            self.maps.append((number, record["files"]["map"]))

    def line(self, path: str, what: str, files: dict[str, str]) -> dict[str, Any]:
        kept = {name: self.top[name] for name in ("pred_score", "pred_label", "threshold")}
        time = {"time": self.top["time"]} if "time" in self.top else {}
        return {
            "image_path": path,
            **kept,
            what: self.images,
            "most_anomalous": self.top["image_path"],
            **time,
            "files": files,
        }


def write_wholes(folder: Path, *, maps: bool = False, films: Mapping[str, str] | None = None) -> None:
    """Write ``volumes.jsonl`` and ``videos.jsonl``, if there are volumes and videos among the images.

    Parameters
    ----------
    folder : Path
        Of the run.
    maps : bool
        Write a NIfTI file for each volume too, of the maps that the run has saved.
    films : mapping, optional
        The files that were written for videos, by their paths.

    Raises
    ------
    AnomalyCLIPError
        A file cannot be written.
    """
    _clear(folder, films or {})
    volumes: dict[str, _Whole] = {}
    videos: dict[str, _Whole] = {}
    for record in predictions(folder):
        id = str(record["image_path"])
        path, number = locate(as_address(id) or id)
        if "time" in record:
            videos.setdefault(path, _Whole()).add(number or 1, record)
        elif is_volume(path):
            volumes.setdefault(path, _Whole()).add(number or 1, record)
    if volumes:
        lines = (
            volume.line(path, "slices", _written(folder, path, volume) if maps and volume.maps else {})
            for path, volume in volumes.items()
        )
        _write(folder / VOLUMES, lines)
    if videos:
        named = {path: {"video": file} for path, file in (films or {}).items()}
        _write(
            folder / VIDEOS,
            (video.line(path, "frames", named.get(path, {})) for path, video in videos.items()),
        )


def _write(target: Path, lines: Iterator[dict[str, Any]]) -> None:
    with writing(target), replacing(target) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def _written(folder: Path, path: str, volume: _Whole) -> dict[str, str]:
    """Write the maps of a volume and return its file; none if the volume cannot be read any more."""
    name = f"{FOLDER}/{_common_name(volume.maps)}{_ENDING}"
    try:
        with here(path) as (copy, _):
            whole = MapVolume(copy)
            for number, file in volume.maps:
                whole.put(number, np.load(folder / file, allow_pickle=False))
            content = whole.encoded()
    except Exception as error:  # it was scored, and the map is one more picture of that
        said = str(error) if isinstance(error, AnomalyCLIPError) else f"{path}: {reason(error)}"
        warnings.warn(f"no NIfTI map was written: {said}", AnomalyCLIPWarning, stacklevel=2)
        return {}
    with writing(folder / name), replacing(folder / name) as temporary:
        temporary.write_bytes(content)
    return {"nifti": name}


def _common_name(maps: list[tuple[int, str]]) -> str:
    """Return the name of the maps of slices, without folder, number and ending."""
    inner = maps[0][1].removeprefix("maps/").removesuffix(".npy")
    return without_ending(inner).rpartition("#")[0] or inner


def _files(line: dict[str, Any]) -> list[str]:
    """Return the files that a line of a listing names."""
    return [str(file) for file in line["files"].values()]


def _clear(folder: Path, films: Mapping[str, str]) -> None:
    """Delete what an earlier part of the run, or an earlier run, has written; the new videos stay."""
    for listing, inside, ending in ((VOLUMES, FOLDER, _ENDING), (VIDEOS, FILMS, FILM)):
        within = folder.resolve() / inside
        for files in records(folder / listing, _files):
            for file in files:
                path = folder / file
                if file in films.values() or not file.endswith(ending):
                    continue
                if path.resolve().is_relative_to(within):  # a line may be anybody's
                    path.unlink(missing_ok=True)
        (folder / listing).unlink(missing_ok=True)
