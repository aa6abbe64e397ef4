"""A run on a Ray cluster: this process lists and writes, actors on all nodes read and score."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from anomalyclip.addresses import Address, as_address
from anomalyclip.distributed.cluster import Actors, actors_for, check_no_client, connected
from anomalyclip.distributed.predictor import Predictor, check_columns
from anomalyclip.distributed.tables import PARTS, ROWS, Parts, arrow, earlier_parts, valid
from anomalyclip.errors import AnomalyCLIPError, InputError
from anomalyclip.inputs import ImageFile, absolute
from anomalyclip.loading import load, measured, require_references
from anomalyclip.names import Names
from anomalyclip.predicting import PredictionRun, about, stream_images
from anomalyclip.prediction import Threshold, as_threshold
from anomalyclip.progress import Track, silent
from anomalyclip.remote_runs import AtAddress
from anomalyclip.runs import RunFolder
from anomalyclip.spec import DetectorSpec

if TYPE_CHECKING:
    import pyarrow

_LISTED = 8192
"""Names that are looked up at a time."""

_WAVE = 1 << 20
"""Images that are given to the cluster at a time: their paths are in this process and in Ray's store until then."""

_BLOCK = 64
"""Images of a task at most."""

_ROUNDS = 3
"""How often images without a result are given to the cluster."""

COMMAND = "predict --ray"

_WRAPPED = "\n\nThe above exception was the direct cause"
"""What comes before it in the text of Ray's errors is what failed; after it, Ray says that something did."""

_RAISED = re.compile(r"(?P<kind>(?:\w+\.)*\w*(?:Error|Exception)): (?P<says>.+)")
"""The line of a traceback that says what was raised."""

_OURS = {f"{kind.__module__}.{kind.__qualname__}" for kind in (AnomalyCLIPError, InputError)}


@dataclass(frozen=True)
class Cluster:
    """Where a run is done.

    Parameters
    ----------
    address : str
        ``local``: this machine alone; ``auto``: the cluster that this machine belongs to; or ``HOST:PORT``.
    actors : int, optional
        At most so many copies of the model. None: one for each GPU of the cluster, or for each core.

    Raises
    ------
    AnomalyCLIPError
        The address is one of Ray Client (``ray://HOST:PORT``), through which Ray Data cannot run.
    """

    address: str = "auto"
    actors: int | None = None

    def __post_init__(self) -> None:
        check_no_client(self.address)


def predict(
    images: "str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Iterable[ImageFile] | Any",
    spec: DetectorSpec,
    output: str | os.PathLike[str] | RunFolder | None = None,
    *,
    threshold: float | Threshold | str | os.PathLike[str] | None = None,
    maps: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    batch_size: int = 1,
    rows_per_file: int = ROWS,
    cluster: Cluster = Cluster(),
    on_error: Callable[[str, InputError], None] | None = None,
    track: Track = silent,
) -> PredictionRun:
    """Score images on a Ray cluster into Parquet files: ``OUTPUT/part-000000.parquet``, ...

    Every image has one row, whatever happens: nodes may be lost, and this process may be killed and resume the run.
    Files are written by this process alone and are whole or not there; before anything is scored, the images are
    compared with what is written.

    Parameters
    ----------
    images : path, sequence of paths, iterable of ImageFile, or ray.data.Dataset
        Files, folders and patterns, which every node must see under the same path; or a data set with the columns of
        `Predictor`.
    spec : DetectorSpec
        What each actor loads. Its files must be on every node, under the same path or by name.
    output : path or RunFolder, optional
        The folder, on the machine of this process, or an address such as ``s3://bucket/run``; or what `run_folder`
        returns for it. None: a new folder, ``runs/predict-1``, ``-2``, ...
    threshold : float, Threshold or path, optional
        As for `DetectorSpec.load`.
    maps : bool
        Whether rows have the anomaly map; `map_of` decodes it.
    resume, overwrite : bool
        Resume the run in `output` (images that failed are tried again), or start again there.
    batch_size : int
        Images per step of the model.
    rows_per_file : int
        A file is written as soon as it has so many rows, or 64 MB, or its first row is 30 seconds old.
    cluster : Cluster
        Where.
    on_error : callable, optional
        Called with each image that cannot be used, and the error.
    track : Track
        Reports progress.

    Returns
    -------
    PredictionRun

    Raises
    ------
    AnomalyCLIPError
        Ray is missing or too old or there is no cluster; there is no image; the folder cannot be used; or images have
        no result after three attempts.
    """
    arrow()
    folder = (
        output if isinstance(output, RunFolder) else run_folder(output, resume=resume, overwrite=overwrite)
    )
    spec, limits = _of_all_nodes(measured(spec).located()), as_threshold(threshold)
    detector = load(spec, threshold=limits)
    require_references(detector)
    given = detector.threshold
    settings = {
        **detector.identity(),
        "threshold": None if given is None else {"score": given.score, "pixel": given.pixel},
        "maps": maps,
    }
    described = about(detector)
    del detector
    kept = {"spec": spec.to_json(), "threshold": given, "maps": maps, "batch_size": batch_size}
    with connected(cluster.address) as package, folder.begin(settings, about=described) as begun:
        place = folder.place or begun
        parts = Parts(place, maps=maps, rows=rows_per_file)
        run = PredictionRun(place, skipped=parts.skipped)
        work = _Work(package, cluster, spec, kept, parts, run, on_error)
        if isinstance(images, package.data.Dataset):
            work.score_dataset(images, track)
        else:
            work.score_listed(_listed(images), track)
    work.run.trim()
    return work.run


def _of_all_nodes(spec: DetectorSpec) -> DetectorSpec:
    """Return a spec that is the same on all nodes: only some may have an exported file in their cache."""
    return replace(spec, engine="torch") if spec.engine == "auto" and spec.model is None else spec


def run_folder(
    output: str | os.PathLike[str] | None, *, resume: bool = False, overwrite: bool = False
) -> RunFolder:
    """Return the folder for the results of a run on a cluster, or an address."""
    if output is not None and (address := as_address(os.fspath(output))) is not None:
        return AtAddress(
            COMMAND, address, resume=resume, overwrite=overwrite, results=PARTS, earlier=earlier_parts
        )
    return RunFolder(
        COMMAND, output, resume=resume, overwrite=overwrite, results=PARTS, earlier=earlier_parts
    )


def _listed(
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Iterable[ImageFile],
) -> Iterator[str]:
    """Yield absolute paths, or addresses: actors have working folders of their own."""
    if isinstance(images, str | os.PathLike):
        images = [images]
    if isinstance(images, Sequence) and all(isinstance(image, str | os.PathLike) for image in images):
        images = stream_images([os.fspath(image) for image in images])
    for image in images:
        path = absolute(image.path)  # type: ignore[union-attr]
        if isinstance(path, Address) and path.hides:
            raise AnomalyCLIPError(
                f"{path}: addresses with a query or a password are not sent to a cluster; give the credentials to its "
                "nodes, as the documentation of the store says"
            )
        yield path


@dataclass
class _Work:
    """A run in progress."""

    package: Any
    cluster: Cluster
    spec: DetectorSpec
    kept: dict[str, Any]
    parts: Parts
    run: PredictionRun
    told: Callable[[str, InputError], None] | None

    def score_listed(self, paths: Iterator[str], track: Track) -> None:
        """Score files, a part of the listing at a time."""
        wave = self._missing(paths)
        if not len(wave) and not self.run.skipped:
            raise AnomalyCLIPError("there was no image to score")
        with track("Scoring", len(wave) if len(wave) < _WAVE else None) as advance:
            while len(wave):
                self._score_wave(wave, advance)
                wave = self._missing(paths)

    def _score_wave(self, left: "pyarrow.Table", advance: Callable[[], None]) -> None:
        """Score files, and those again for which no result came."""
        lost: AnomalyCLIPError | None = None
        for _ in range(_ROUNDS):
            if not len(left):
                return
            actors = self._actors(readers=False)
            size = max(1, min(_BLOCK, len(left) // (4 * actors.count)))
            blocks = [left.slice(start, size) for start in range(0, len(left), size)]
            try:
                self._score(partial(self.package.data.from_blocks, blocks), actors, advance, follow=True)
            except _LostError as error:
                lost = error
            left = self._missing(os.fsdecode(path.as_py()) for path in left["path"])
        if len(left):
            raise AnomalyCLIPError(
                f"{len(left):,} images have no result after {_ROUNDS} attempts, such as "
                f"{os.fsdecode(left['path'][0].as_py())}{'' if lost is None else f' ({lost})'}; resume the run with "
                "--resume"
            )

    def score_dataset(self, dataset: Any, track: Track) -> None:
        """Score a data set, without the rows that are done."""
        rest = dataset.map_batches(_without, fn_args=[self.parts.done], batch_format="pyarrow")
        with track("Scoring", None) as advance:
            self._score(lambda: rest, self._actors(readers=True), advance)

    def _missing(self, paths: Iterator[str]) -> "pyarrow.Table":
        """Return the next paths without a result: as many as are given to the cluster at a time."""
        pa = arrow()
        chunks: list[Any] = []
        while sum(map(len, chunks)) < _WAVE and (chunk := list(islice(paths, _LISTED))):
            missing = [os.fsencode(path) for path in chunk if valid(path) not in self.parts.done]
            chunks.append(pa.array(missing, pa.binary()))
        return pa.table({"path": pa.chunked_array(chunks, pa.binary())})

    def _actors(self, *, readers: bool) -> Actors:
        return actors_for(self.package, self.spec, most=self.cluster.actors, readers=readers)

    def _score(
        self, dataset: Callable[[], Any], actors: Actors, advance: Callable[[], None], *, follow: bool = False
    ) -> None:
        """Score the rows of a data set and write them as they come.

        Raises
        ------
        AnomalyCLIPError
            The model cannot be used; or, as `_LostError`, the cluster could not go on.
        """
        data = self.package.data
        try:
            scored = dataset().map_batches(
                Predictor,
                fn_constructor_kwargs={**self.kept, "follow": follow},
                batch_format="numpy",
                batch_size=None if actors.gpus == 0 else max(_BLOCK, self.kept["batch_size"]),
                compute=data.ActorPoolStrategy(min_size=1, max_size=actors.count),
                num_cpus=actors.cpus,
                num_gpus=actors.gpus,
            )
            for table in scored.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
                for new in self.parts.add(table):
                    self._count(new, advance)
        except self.package.exceptions.RayError as error:
            raise _cause(error) from None
        finally:
            self.parts.flush()

    def _count(self, rows: "pyarrow.Table", advance: Callable[[], None]) -> None:
        for row in rows.select(["path", "score", "label", "error"]).to_pylist():
            if row["error"] is None:
                self.run.add(
                    {"image_path": row["path"], "pred_score": row["score"], "pred_label": row["label"]}
                )
            else:
                self.run.failed += 1
                if self.told is not None:
                    self.told(row["path"], InputError(row["error"]))
        advance()


class _LostError(AnomalyCLIPError):
    """The cluster could not go on, which may be different the next time."""


def _without(rows: "pyarrow.Table", done: Names) -> "pyarrow.Table":
    """Return the rows of a data set that are not written."""
    check_columns(rows.column_names)
    return rows.filter(
        arrow().array([valid(os.fsdecode(path)) not in done for path in rows["path"].to_pylist()])
    )


def _cause(error: BaseException) -> AnomalyCLIPError:
    """Return what failed on the cluster, in one sentence."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(cause := getattr(seen, "cause", None), AnomalyCLIPError):
            return cause
        if isinstance(seen, AnomalyCLIPError):
            return seen
        seen = seen.__cause__
    lines = [line.strip() for line in str(error).split(_WRAPPED)[0].splitlines() if line.strip()]
    raised = [found for line in lines if (found := _RAISED.fullmatch(line))]
    if raised and raised[-1]["kind"] in _OURS:
        return AnomalyCLIPError(raised[-1]["says"])
    last = raised[-1][0] if raised else lines[-1] if lines else type(error).__name__
    return _LostError(f"the cluster could not go on: {last}")
