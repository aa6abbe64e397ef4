"""Exported files that are made once for a detector's specification and kept in the cache folder. No PyTorch here.

``DetectorSpec(engine="openvino")`` is the same detector as with PyTorch, run from such a file: it starts without
importing PyTorch and runs as fast as the processor can. A file is found again by everything that decides the scores:
the specification, the files that it names, and the versions of this package and of the engine.
"""

import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from anomalyclip.addresses import as_address
from anomalyclip.clip.download import cache_folder
from anomalyclip.clip.registry import PROMPTS, resolve_backbone
from anomalyclip.clip.remembered import recall, remember, this_machine
from anomalyclip.engines.card import VERSION
from anomalyclip.engines.exported import ExportedScorer
from anomalyclip.errors import AnomalyCLIPError, AnomalyCLIPNote, reason
from anomalyclip.files import parse_json, staging
from anomalyclip.framing import framing_of
from anomalyclip.inputs import find_images
from anomalyclip.methods import METHODS
from anomalyclip.readers import holder
from anomalyclip.runs import RunFolder
from anomalyclip.scorer import Description, Scorer
from anomalyclip.spec import FIXED_BY_MODEL, DetectorSpec, is_memory_file

PAYS_FROM = 500
"""From this many images on, `prepare` makes a file for ``auto``: making it takes as long as 20 to 100 images."""

ENGINE = "engine"
"""Name under which a run tells its engine, beside its settings."""

SLOWER = 1.05
"""How many times as long as PyTorch a file may take with which ``auto`` replaces it: files start much faster."""

TOLERANCE = 1e-5
"""Largest difference of a score or a map value from PyTorch's with which a file is kept."""

_AROUND: dict[str, Any] = {"tile": None, "overlap": 0.25, "value_range": None, "range_from": None}
"""What happens before the model, and decides nothing in a file without references."""

_FILES = {"onnx": "model.onnx", "openvino": "model.xml"}
_PACKAGES = {"onnx": ("onnxruntime",), "openvino": ("openvino",)}
_TO_MAKE = ("onnx", "onnxscript", "onnxruntime")
_NAMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}


class KeptScorer(ExportedScorer):
    """A kept file, ready to score.

    Parameters
    ----------
    path : path-like
        The file.
    engine : {"onnx", "openvino"}
        What runs it.
    threads : int, optional
        Number of CPU threads. None: the library decides.
    """

    def __init__(self, path: str | os.PathLike[str], engine: str, *, threads: int | None = None) -> None:
        super().__init__(path, threads=threads)
        self.engine = engine

    def describe(self) -> Description:
        """Return what reports say about it: as with PyTorch, and the engine."""
        facts = {**self.card.facts, "device": self.device.lower(), "engine": _NAMES[self.engine]}
        return Description(self.card.title, facts, self.card.training)


def scorer_for(
    spec: DetectorSpec, *, by_class: bool = False, threads: int | None = None
) -> KeptScorer | None:
    """Return the scorer of a spec by a kept file; None: it is for PyTorch.

    Parameters
    ----------
    spec : DetectorSpec
        Without an exported file of its own. With engine ``onnx`` or ``openvino`` the file is made if there is none,
        with ``auto`` only an existing one is used, unless it was found to be slower than PyTorch on this machine.
    by_class : bool
        Whether the class of every image will be known, so that the spec need not name one.
    threads : int, optional
        Number of CPU threads. None: the library decides.

    Raises
    ------
    AnomalyCLIPError
        The engine cannot be used with this spec, is not installed, or its file cannot be made.
    """
    if spec.engine == "torch":
        return None
    METHODS[spec.method].check(spec, by_class=by_class)
    why_not = _why_not(spec, by_class)
    if spec.engine == "auto":
        return None if why_not else next(_existing(spec, threads), None)
    if why_not:
        raise AnomalyCLIPError(f"engine {spec.engine}: {why_not}; use --engine torch, or leave it out")
    if missing := [name for name in _PACKAGES[spec.engine] if find_spec(name) is None]:
        raise AnomalyCLIPError(
            f"engine {spec.engine} needs {missing[0]}: pip install 'anomalyclip[{_extra(spec.engine)}]'"
        )
    return _load(spec, spec.engine, threads) or _made(spec, spec.engine, threads)


def prepare(spec: DetectorSpec, *, images: int | None) -> None:
    """Make the file that engine ``auto`` would use, if there are so many images that it pays off.

    Its speed and PyTorch's are measured then, and remembered for this machine. Whatever prevents it, or speaks for
    PyTorch, is a note: the images are then scored with PyTorch.

    Parameters
    ----------
    spec : DetectorSpec
    images : int or None
        How many there are to score; None: not known.
    """
    if spec.engine != "auto" or images is None or images < PAYS_FROM or _why_not(spec, by_class=False):
        return
    engine = next(iter(_installed()), None)
    if engine is None or any(find_spec(name) is None for name in _TO_MAKE) or next(_existing(spec), None):
        return
    if _is_slower(spec, engine):
        return
    try:
        _made(spec, engine)
        if _is_slower(spec, engine):
            shutil.rmtree(_folder(spec, engine), ignore_errors=True)
            raise AnomalyCLIPError(f"it is faster here than the {_NAMES[engine]} file, which is not kept")
    except AnomalyCLIPError as error:
        warnings.warn(f"PyTorch is used: {error}", AnomalyCLIPNote, stacklevel=2)


def of_run(spec: DetectorSpec, folder: RunFolder | None) -> DetectorSpec:
    """Return a spec with the engine that a resumed run was started with, if it leaves the choice.

    Two engines differ in the last digits, and a file may have been made since.
    """
    if spec.engine != "auto" or spec.model is not None or folder is None or not folder.resume:
        return spec
    return replace(spec, engine=folder.told().get(ENGINE) or "auto")


def told(detector: Any) -> dict[str, Any]:
    """Return what a run tells of its detector, or of the `Workers` that run one: the spec and the engine, if any."""
    spec = detector.spec
    if spec is None:
        return {}
    name = detector.describe().facts.get("engine")
    engine = next((engine for engine in _NAMES if _NAMES[engine] == name), "torch")
    if spec.model:
        return {"spec": spec.located().to_dict()}
    # The engine in both: a run that is resumed, and so names its engine, tells the same.
    return {"spec": replace(spec, engine=engine).located().to_dict(), ENGINE: engine}


def _why_not(spec: DetectorSpec, by_class: bool) -> str | None:
    """Return why a spec cannot run from a kept file; None: it can."""
    if spec.model is not None:
        return f"{spec.model} is an exported file, which has its own engine"
    if spec.precision != "fp32" or spec.compiled:
        return f"it runs in float32 ({'--compile' if spec.compiled else f'precision {spec.precision}'} is PyTorch's)"
    if spec.device != "cpu" and (spec.device != "auto" or _has_gpu()):
        return "it runs on the CPU, and the device is another"
    if "backbone" not in METHODS[spec.method].options:
        return f"method {spec.method} has no backbone that could be exported"
    if METHODS[spec.method].keeps_proportions:
        return f"images of method {spec.method} have any proportions, and an exported file takes one shape"
    if spec.references is not None and spec.engine == "auto":
        return "only PyTorch says which place of the references a finding is compared with"
    if addresses := [path for path in spec.references or () if as_address(path) is not None]:
        return f"references must be on this machine ({addresses[0]} is not)"
    if by_class and METHODS[spec.method].lacks_class(spec):
        return f"method {spec.method} needs other sentences for each class"
    return None


def _has_gpu() -> bool:
    """Tell whether PyTorch may have a GPU here, without importing it."""
    return sys.platform == "darwin" or any(map(os.path.exists, ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")))


def _installed() -> Iterator[str]:
    """Yield the engines that are installed, the fastest first."""
    for engine in ("openvino", "onnx"):
        if all(find_spec(name) is not None for name in _PACKAGES[engine]):
            yield engine


def _existing(spec: DetectorSpec, threads: int | None = None) -> Iterator[KeptScorer]:
    if not _place().is_dir():  # nor is the backbone looked for, which may mean a download
        return
    for engine in _installed():
        if not _is_slower(spec, engine) and (scorer := _load(spec, engine, threads)) is not None:
            yield scorer


def _load(spec: DetectorSpec, engine: str, threads: int | None = None) -> KeptScorer | None:
    """Return the kept scorer; None if there is none, or its file is damaged."""
    path = _folder(spec, engine) / _FILES[engine]
    try:
        return KeptScorer(path, engine, threads=threads) if path.is_file() else None
    except AnomalyCLIPError:
        return None


def _made(spec: DetectorSpec, engine: str, threads: int | None = None) -> KeptScorer:
    """Export the detector into the cache folder; of two processes one does and the other waits.

    Raises
    ------
    AnomalyCLIPError
        It cannot be exported, or the cache folder cannot be written to.
    """
    folder = _folder(spec, engine)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if (scorer := _load(spec, engine, threads)) is not None:
                return scorer
            warnings.warn(
                f"the {_NAMES[engine]} file of this detector is made once, which takes up to some minutes; it is kept "
                f"in {folder.parent}",
                AnomalyCLIPNote,
                stacklevel=4,
            )
            plain = _write(spec, engine, folder)
    except OSError as error:
        raise AnomalyCLIPError(
            f"the {_NAMES[engine]} file cannot be kept in {folder.parent} ({reason(error)}); set ANOMALYCLIP_CACHE to "
            "a folder that can be written to"
        ) from None
    scorer = KeptScorer(folder / _FILES[engine], engine, threads=threads)
    seconds = {"torch": plain, engine: _seconds(scorer)}
    remember("speed", _speed_of(spec, engine), {"seconds": seconds})
    return scorer


def _write(spec: DetectorSpec, engine: str, folder: Path) -> float:
    """Export into the folder; return the seconds that PyTorch takes for one image."""
    from anomalyclip.engines.export import export

    with staging(folder.parent) as temporary:
        plain = replace(spec, engine="torch")
        if spec.references is None:
            plain = replace(plain, **_AROUND)
        detector = plain.load()
        report = export(detector, temporary / _FILES[engine], format=engine, dynamic_batch=True)
        difference = max(report.score_difference, report.map_difference)
        if difference > TOLERANCE:
            raise AnomalyCLIPError(
                f"{_NAMES[engine]} differs from PyTorch by {difference:.2g} here; at most {TOLERANCE:g} is accepted"
            )
        seconds = _seconds(detector.scorer)
        (temporary / "about.json").write_text(json.dumps(_about(spec, engine)))
        shutil.rmtree(folder, ignore_errors=True)  # damaged
        whole = temporary / "whole"
        whole.mkdir()
        for file in list(temporary.iterdir()):
            if file != whole:
                file.rename(whole / file.name)
        whole.rename(folder)
    _forget_others(spec, engine, folder)
    return seconds


def _seconds(scorer: Scorer) -> float:
    """Return the seconds that one image takes; best of three, after a first one that settles memory."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, *framing_of(scorer).blank, 3), np.uint8)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        scorer(pixels)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _is_slower(spec: DetectorSpec, engine: str) -> bool:
    """Tell whether the file was found to be slower than PyTorch on this machine."""
    try:
        seconds = (recall("speed", _speed_of(spec, engine)) or {})["seconds"]
        return bool(seconds[engine] > SLOWER * seconds["torch"])
    except (KeyError, TypeError):  # not measured here, but on another machine that shares the cache folder
        return False


def _speed_of(spec: DetectorSpec, engine: str) -> list[Any]:
    return [*this_machine(), _version("torch"), _about(spec, engine)]


def _forget_others(spec: DetectorSpec, engine: str, folder: Path) -> None:
    """Delete what was made for the same spec with other versions or weights."""
    asked = _about(spec, engine)["spec"]
    for note in folder.parent.glob("*/about.json"):
        try:
            about = parse_json(note.read_text())
            if note.parent != folder and about["spec"] == asked and about["engine"] == engine:
                shutil.rmtree(note.parent)
        except (OSError, ValueError, KeyError, TypeError):
            continue


def _folder(spec: DetectorSpec, engine: str) -> Path:
    digest = sha256(json.dumps(_about(spec, engine), sort_keys=True).encode()).hexdigest()
    return _place() / digest[:32]


def _place() -> Path:
    return cache_folder() / "engines"


def _about(spec: DetectorSpec, engine: str) -> dict[str, Any]:
    """Return everything that a file depends on, JSON-ready."""
    names = {*FIXED_BY_MODEL, *(_AROUND if spec.references else ())}
    decides = {name: value for name, value in spec.located().to_dict().items() if name in names}
    return {
        "engine": engine,
        "spec": decides,
        "files": [_state(path) for path in _named_files(spec)],
        "versions": {name: _version(name) for name in ("anomalyclip", *_PACKAGES[engine])},
        "format": VERSION,
    }


def _named_files(spec: DetectorSpec) -> Iterator[Path]:
    """Yield the files that the spec names; what is downloaded by name is known by its hash."""
    backbone = resolve_backbone(spec.backbone)
    if backbone.is_dir():
        yield from sorted(path for path in backbone.iterdir() if path.is_file())
    else:
        yield backbone
        yield from sorted(backbone.parent.glob("*.json"))  # its configuration, its words
    for path in (spec.prompts, spec.trained, spec.templates):
        if path is not None and path not in PROMPTS and os.path.isfile(path):
            yield Path(path)
    references = spec.references or ()
    if len(references) == 1 and is_memory_file(references[0]):
        yield Path(references[0])
    elif references:
        yield from (Path(holder(image.path)) for image in find_images(references))


def _state(path: Path) -> list[Any]:
    status = path.stat()
    return [os.path.abspath(path), status.st_size, status.st_mtime_ns, status.st_ino]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # onnxruntime-gpu, a folder on the path, ...
        return "unknown"


def _extra(engine: str) -> str:
    return "export" if engine == "onnx" else "export,openvino"
