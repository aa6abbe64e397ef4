"""Small trees of files for the tests of data sets."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from anomalyclip.data.meta import Meta

GOLDEN = json.loads((Path(__file__).parent / "golden" / "layouts.json").read_text())
"""By key: files, text files, and the samples that the published scripts listed."""


def plant(root: Path, files: Iterable[str], texts: Mapping[str, str] | None = None) -> Path:
    """Make empty files and text files below a root."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    for name, text in (texts or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode())
    return root


def plant_golden(root: Path, key: str) -> Path:
    case = GOLDEN[key]
    return plant(root, case["files"], dict(case["text_files"]))


def paint(path: Path, size: tuple[int, int] = (8, 6), color: int = 0, mode: str = "L") -> None:
    """Make a real image of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)


def rows(meta: Meta) -> set[tuple[str, str, str, str, str, int]]:
    """Return all samples as (phase, class, image, mask, defect, anomaly)."""
    return {
        (phase, s.class_name, s.image, s.mask or "", s.defect, int(s.anomaly))
        for phase, samples in meta.phases.items()
        for s in samples
    }


def golden_rows(key: str) -> set[tuple[str, str, str, str, str, int]]:
    return {
        (phase, class_name, *entry)
        for phase, classes in GOLDEN[key]["expected"].items()
        for class_name, entries in classes.items()
        for entry in entries
    }
