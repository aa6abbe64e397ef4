"""Prepare a training run from its options: load what it needs, estimate its cost, set up its folder and trainer."""

import os
import platform
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

import anomalyclip
from anomalyclip.addresses import Address, as_address
from anomalyclip.clip.backbone import load_backbone
from anomalyclip.clip.config import CLIPConfig
from anomalyclip.clip.download import cache_folder
from anomalyclip.clip_core import ClipCore, TextCore
from anomalyclip.data.identity import TRAINED_ON, TRAINED_ON_CONTENT, content_fingerprint, same_data
from anomalyclip.data.listing import load_samples
from anomalyclip.engines.torch import TorchScorer
from anomalyclip.errors import AnomalyCLIPError, AnomalyCLIPWarning
from anomalyclip.files import replacing, writing
from anomalyclip.loading import measured
from anomalyclip.methods.april_gan import activation_of
from anomalyclip.progress import Track, silent
from anomalyclip.spec import DetectorSpec
from anomalyclip.training.batches import Batch, TrainingData, split_layers
from anomalyclip.training.features import FeatureStore
from anomalyclip.training.samples import OnUnreadable, TrainingImage, identify, order_fingerprint, split
from anomalyclip.training.settings import Learning, TrainingSettings
from anomalyclip.training.task import Task
from anomalyclip.training.tasks import check_spec, prepare
from anomalyclip.training.trainer import Trainer
from anomalyclip.training.validation import Validation

_LEARNING = tuple(one.name for one in fields(Learning))


@dataclass(frozen=True)
class Estimate:
    """Estimated time of a run in seconds, measured on a few images."""

    encode: float
    """One image."""
    step: float
    """One step of training."""
    encode_all: float
    """All images that have no features yet."""
    learn_all: float
    """All steps."""


@dataclass
class Session:
    """Everything a training run needs, prepared by `open_session`.

    Attributes
    ----------
    root, spec, settings
        As given.
    name : str
        The data set's name: its key, or its folder's name.
    scorer, task
        The encoder, and what is learned.
    store : FeatureStore
        The cached features, which may still be incomplete.
    images, held_out : list of TrainingImage
        Images to train on, and to evaluate on.
    remarks : list of str
        What the user should know.
    before : dict of str to float
        `Task.summary` before anything is learned.
    """

    root: Path | Address
    spec: DetectorSpec
    settings: TrainingSettings
    name: str
    scorer: TorchScorer
    task: Task
    store: FeatureStore
    images: list[TrainingImage]
    held_out: list[TrainingImage] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)

    @property
    def all_images(self) -> list[TrainingImage]:
        """Every image whose features are needed."""
        return [*self.images, *self.held_out]

    def shard(self, index: int, count: int) -> list[TrainingImage]:
        """Return the images that process `index` (from 1) of `count` encodes; together, the processes encode all."""
        if not 1 <= index <= count:
            raise AnomalyCLIPError(f"shard {index}/{count}: expected 1/{count} to {count}/{count}")
        return self.all_images[index - 1 :: count]

    def encode(
        self,
        *,
        part: tuple[int, int] | None = None,
        on_error: OnUnreadable,
        stop: Callable[[], bool] = lambda: False,
        track: Track = silent,
    ) -> int:
        """Encode the images that have no features yet; images that cannot be used are removed from the session.

        Parameters
        ----------
        part : tuple of int, optional
            Index (from 1) and count: encode only the images that `shard` returns.
        on_error : callable
            Called with an image that cannot be used and the error.
        stop : callable
            Called before each image; if it returns true, encoding stops.
        track : Track
            Receives the progress.

        Returns
        -------
        int
            Number of images that still have to be encoded.
        """
        images = self.all_images if part is None else self.shard(*part)
        missing = len(self.store.missing(images))
        if missing:
            with track("Encoding", missing) as advance:
                self.drop(self.store.fill(images, on_error=on_error, advance=advance, stop=stop))
        return len(self.store.missing(self.all_images if part is None else self.shard(*part)))

    def drop(self, digests: set[str]) -> None:
        """Remove the images with these digests."""
        self.images = [image for image in self.images if image.digest not in digests]
        self.held_out = [image for image in self.held_out if image.digest not in digests]

    def data(self) -> TrainingData:
        """Return the training data; all features must have been computed."""
        return TrainingData(self.store, self.images)

    def trainer(
        self,
        folder: Path,
        *,
        resume: bool,
        on_record: Callable[[Mapping[str, Any]], None] = lambda record: None,
    ) -> Trainer:
        """Return the trainer of a run folder that we own, at the start or where an earlier process stopped."""
        self._describe(folder)
        trainer = Trainer(
            self.task,
            self.data(),
            self.settings,
            folder,
            info=self._info(),
            validation=self._validation(),
            on_record=on_record,
        )
        if resume:
            trainer.resume()
        return trainer

    def _validation(self) -> Validation | None:
        return Validation(self.store, self.held_out, sigma=self.task.sigma) if self.held_out else None

    def determinants(self) -> dict[str, Any]:
        """Return everything that determines the exact result, JSON-ready."""
        return {
            "images": order_fingerprint(self.images),
            "held_out": order_fingerprint(self.held_out),
            "start": self.task.digest(),
            "features": self.store.key.facts(),
            **{name: getattr(self.settings, name) for name in _LEARNING},
        }

    def _describe(self, folder: Path) -> None:
        """Write ``config.yaml``, which describes the run for its reader."""
        import yaml

        path = folder / "config.yaml"
        if path.exists():
            return
        chosen = {
            key: str(as_address(v) or v) if isinstance(v, Path) else v
            for key, v in asdict(self.settings).items()
        }
        settings = {name: chosen.pop(name) for name in _LEARNING} | {"betas": list(self.settings.betas)}
        spec = self.spec.located().to_dict() | self._sizes()
        options = {"root": str(self.root), "spec": spec, **chosen}
        facts = {
            "data": self.name,
            "images": len(self.images),
            "anomalous": sum(image.anomaly for image in self.images),
            "held_out": len(self.held_out),
            "features": str(self.store.folder),
            "device": str(self.scorer.device),
            "threads": torch.get_num_threads(),
            "anomalyclip": anomalyclip.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        }
        with writing(path), replacing(path) as temporary:
            content = {"options": options, "training": settings, "run": facts}
            temporary.write_text(yaml.safe_dump(content, sort_keys=False))

    def _sizes(self) -> dict[str, Any]:
        """Return the values that the backbone's defaults resolved to."""
        key = self.store.key
        return {"image_size": key.image_size, "layers": list(key.layers), "dpam_layers": key.dpam_layers}

    def _info(self) -> dict[str, str]:
        settings, key = self.settings, self.store.key
        return {
            TRAINED_ON: self.name,
            TRAINED_ON_CONTENT: content_fingerprint(image.digest for image in self.images),
            "phase": self.settings.phase,
            "images": str(len(self.images)),
            "backbone_fingerprint": key.weights,
            "image_size": str(key.image_size),
            "layers": " ".join(map(str, key.layers)),
            **self._of_method(),
            "epochs": str(settings.epochs),
            "batch_size": str(settings.batch_size),
            "learning_rate": str(settings.learning_rate),
            "seed": str(settings.seed),
            "anomalyclip": anomalyclip.__version__,
        }

    def _of_method(self) -> dict[str, str]:
        """Return settings that only some methods have."""
        spec, core = self.spec, self.scorer.core
        facts = {} if spec.method == "anomalyclip" else {"method": spec.method}
        if isinstance(core, TextCore):
            facts["dpam_layers"] = str(core.dpam_layers)
            if core.path.blocks:
                facts["local_attention"] = core.path.attends
        if (
            isinstance(core, ClipCore)
            and isinstance(core.config, CLIPConfig)
            and spec.method != "anomalyclip"
        ):
            facts["activation"] = activation_of(core.config)
        return facts

    def estimate(self, *, samples: int = 3) -> Estimate:
        """Time a few images and one step; nothing is written.

        Parameters
        ----------
        samples : int
            Maximum number of images to encode.
        """
        missing = self.store.missing(self.all_images)
        chosen = (missing or self.images)[:samples]
        if not chosen:
            raise AnomalyCLIPError("there are no images to train on")
        begin = time.perf_counter()
        rows = [torch.from_numpy(self.store.encode(image.path)) for image in chosen]
        encode = (time.perf_counter() - begin) / len(chosen)
        count = min(self.settings.batch_size, max(len(self.images), 1))
        step = self._time_step(torch.stack([rows[index % len(rows)] for index in range(count)]))
        steps = self.settings.epochs * -(-len(self.images) // self.settings.batch_size)
        return Estimate(encode, step, encode * len(missing), step * steps)

    def _time_step(self, rows: torch.Tensor) -> float:
        device, size, layers = self.scorer.device, self.scorer.image_size, len(self.store.key.layers)
        rows = rows.to(device)  # B 1+LN E
        batch = Batch(
            images=rows[:, 0],
            labels=torch.zeros(len(rows), dtype=torch.bool, device=device),
            patches=split_layers(rows[:, 1:], layers),
            masks=torch.zeros(len(rows), size, size, dtype=torch.bool, device=device),
            classes=(self.images[0].class_name,) * len(rows),
            known=tuple(range(len(rows))),
        )
        task = self.task.to(device)
        for _ in range(2):  # the first run also allocates
            begin = time.perf_counter()
            image, local = task.losses(batch)
            (image + local).backward()  # type: ignore[no-untyped-call]
            taken = time.perf_counter() - begin
        return taken


def open_session(
    root: str | os.PathLike[str], spec: DetectorSpec, settings: TrainingSettings, *, on_error: OnUnreadable
) -> Session:
    """Load the backbone, list the images and check which features are already cached.

    Parameters
    ----------
    root : path-like
        Folder of the data set.
    spec : DetectorSpec
        Method, backbone, image size, layers, range, device, precision and what else the method's training uses.
    settings : TrainingSettings
    on_error : callable
        Called with an image that cannot be read and the error.

    Raises
    ------
    AnomalyCLIPError
        An option cannot be used.

    Warns
    -----
    AnomalyCLIPWarning
        Cached features are damaged, now or later; they are then made again.
    """
    check_spec(spec)
    samples = load_samples(root, settings.dataset, settings.phase)
    spec = measured(spec)
    backbone = load_backbone(spec.backbone, activation=spec.activation)
    prepared = prepare(spec, settings, backbone)
    for name in dict.fromkeys(sample.class_name for sample in samples):
        prepared.classes(name)  # one that cannot be named is refused before anything is encoded
    scorer = prepared.scorer
    store = FeatureStore(
        settings.cache or cache_folder() / "features",
        scorer,
        weights=backbone.fingerprint(),
        dtype=settings.feature_dtype,
        value_range=spec.value_range,
        activation=spec.activation,
        on_damage=lambda message: warnings.warn(message, AnomalyCLIPWarning, stacklevel=2),
    )
    images = identify(samples, on_error=on_error)
    session = Session(samples.root, spec, settings, samples.name, scorer, prepared.task, store, images)
    session.remarks += [
        f"class {name}: none of its {count} images exists" for name, count in samples.empty_classes.items()
    ]
    _hold_out(session, on_error)
    if prepared.needs_masks and images and not session.data().local:
        raise AnomalyCLIPError(
            f"{root}: no anomalous image has a mask, and method {spec.method!r} learns from masks alone"
        )
    with torch.no_grad():
        session.before = prepared.task.summary()
    return session


def _hold_out(session: Session, on_error: OnUnreadable) -> None:
    settings = session.settings
    if settings.val_root is not None:
        if settings.val_fraction is not None:
            raise AnomalyCLIPError("--val-fraction and --val-root cannot be combined: give only one of them")
        samples = load_samples(settings.val_root, settings.val_dataset, settings.phase)
        session.held_out = identify(samples, on_error=on_error)
        info = session._info()
        warning = same_data(info, name=samples.name, digests=[image.digest for image in session.held_out])
        session.remarks += [warning] if warning else []
    elif settings.val_fraction is not None:
        session.images, session.held_out = split(session.images, settings.val_fraction, seed=settings.seed)
