"""`DetectorSpec`: everything that determines a score, in one value.

Settings, threshold files, servers and workers store it, and the command line's model options are made from it: each
option is declared here, once.
"""

import glob
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from anomalyclip.addresses import Address, as_address, require_here
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.settings import Settings, option, options_of

if TYPE_CHECKING:
    from anomalyclip.detector import Detector
    from anomalyclip.prediction import Threshold
    from anomalyclip.tiling import Tiling

DEFAULT_BACKBONE = "ViT-L-14-336"
DEFAULT_METHOD = "anomalyclip"

IMAGE_SCORES = {
    "text": "probability from the texts for the whole image, as published",
    "max": "mean of it and the map's maximum",
    "top1": "mean of it and the average of the map's highest 1 %",
    "mean": "mean of it and the map's average",
    "faprompt": "mean of it and the map's maximum before smoothing, as in FAPrompt",
    "mrad": "0.7 times it plus 0.3 times the average of the map's highest 1 %, as in MRAD",
}
"""How the score of an image is computed; see `anomalyclip.anomaly.image_score`."""

WINDOW_RULES = {
    "abnormal": "harmonic mean of how anomalous the windows are, as published",
    "normal": "harmonic mean of how normal they are",
}
"""How WinCLIP's windows are combined; see `anomalyclip.methods.winclip`."""

ACTIVATIONS = ("quick-gelu", "gelu")
"""Between the linear layers of CLIP's blocks: x sigmoid(1.702 x) (OpenAI's weights), or the exact GELU."""

TEMPLATES = ("winclip", "winclip-22", "april-gan", "imagenet", "none")
"""Known sets of sentences around words; see `anomalyclip.words`."""

PRECISIONS = ("fp32", "bf16", "fp16", "auto")

ENGINES = ("auto", "torch", "onnx", "openvino")
"""What computes the scores: PyTorch, or an exported file that is made once and kept."""

MAX_PATCHES = 50_000
"""Patches that a memory of references holds at most: those of 36 images of ViT-L/14 at 518 x 518."""

MODEL, REFERENCES, METHODS, WORDS = "Model", "References", "Methods", "Words"
EXPORTED, LARGE, DEEP = "Exported model", "Large images", "More than 8 bits"
"""Groups of options in ``--help``."""


def _option(
    default: Any,
    help: str,
    *,
    group: str = MODEL,
    fixed_by_model: bool = False,
    single: bool = False,
    **about: Any,
) -> Any:
    """Return a field that is an option of the model.

    `fixed_by_model` marks options that an exported file fixes, so they cannot be given together with one.
    """
    return option(default, help, group=group, fixed_by_model=fixed_by_model, single=single, **about)


@dataclass(frozen=True)
class DetectorSpec(Settings):
    """Everything that determines a score, as one value: immutable, comparable, picklable, to and from JSON.

    Parameters
    ----------
    backbone : str or path
        A name (``ViT-L-14-336``, ``micro``, ...) or a file or folder in any published form of CLIP weights.
    method : str
        A name in `anomalyclip.methods.METHODS`.
    prompts : str or path, optional
        ``mvtec``, ``visa`` (named after what they were trained on) or a checkpoint. None: the backbone's default.
    image_size : int, optional
        Side S in pixels to which images are squashed, a multiple of the patch size. None: the backbone's default, 518
        for ViT-L/14@336.
    layers : sequence of int, optional
        Blocks, counted from 1, whose patch features make the map. None: the last.
    dpam_layers : int, optional
        Number of final blocks with the local path. None: 19 of 24, in proportion for other depths.
    sigma : float, optional
        Gaussian smoothing of the map in pixels at S x S; 0 disables it. None: as published, which is 0 for winclip and
        april-gan and 4 for all other methods.
    image_score : {"text", "max", "top1", "mean", "faprompt", "mrad"}, optional
        How the score of an image is computed; see `anomalyclip.anomaly.image_score`. None: text; with
        references top1, where the map is that of the references alone.
    references : path or sequence of paths, optional
        Flawless images of the product (few-shot): a file that `anomalyclip.fit` saved, or files, folders and patterns.
    augment : bool
        Also store the references flipped and rotated by 90, 180 and 270 degrees.
    max_patches : int
        Maximum number of stored patches; if the references have more, a coreset of this size is kept.
    trained : str or path, optional
        The trained part of a method that has one in addition to prompts: a file written by `anomalyclip.train`.
    ln_post : bool, optional
        Whether the image feature passes CLIP's final norm. None: as the method was published.
    local_attention : str, optional
        Projections of the local path that attend to themselves, some of q, k and v. None: v.
    foreground : bool
        For anomalydino with DINOv2: whether only patches that show the object are compared.
    feature_surgery : bool
        Whether patches are compared by CLIP Surgery's rule.
    windows : sequence of int, optional
        Sides of WinCLIP's windows in patches. None: 13 % and 20 % of the grid, as published.
    window_stride : int, optional
        Patches from one window to the next. None: 1, as published.
    window_rule : {"abnormal", "normal"}, optional
        How windows are combined; None: abnormal, as published.
    activation : {"quick-gelu", "gelu"}, optional
        Activation of the backbone's blocks. None: the one its weights were trained with.
    normal : sequence of str, optional
        Your own words for normal images; ``{}`` in them is the class name. None: the method's.
    abnormal : sequence of str, optional
        The same for anomalous images; given together.
    templates : str or path, optional
        Sentences around the words: ``winclip``, ``winclip-22``, ``april-gan``, ``imagenet``, ``none``, or a text file
        with one on each line. None: the method's; none for your own words.
    class_name : str, optional
        What the images show, for methods that name it. None: "object" for ``words``; in an evaluation the class of
        the data set.
    tile : int, optional
        Side in pixels of the tiles into which larger images are cut. None: images are squashed whole.
    overlap : float
        Minimum overlap of neighbouring tiles as a fraction of the tile, from 0 to 0.9.
    value_range : (float, float), optional
        The values that become black and white in images of more than 8 bits. None: what each file says, otherwise one
        range for a run, assumed from its first image.
    range_from : str or path, optional
        Measure `value_range` on the normal images in this folder; see `anomalyclip.depth.ranges.measure_range`.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``, ``xpu``.
    precision : {"fp32", "bf16", "fp16", "auto"}
        Precision of the image encoder's matrix products.
    compiled : bool
        Whether to compile the image encoder (`torch.compile`): slow to start, faster for many images.
    engine : {"auto", "torch", "onnx", "openvino"}
        What runs the detector on a CPU in float32: PyTorch, or ONNX Runtime or OpenVINO with an exported file that is
        made once and kept in the cache folder (`anomalyclip.engines.kept`). auto: such a file if there is one,
        otherwise PyTorch. Scores differ by at most 1e-5.
    model : str or path, optional
        A file written by `anomalyclip.export`. It fixes backbone, method, prompts and everything up to `image_score`,
        as well as precision. It needs no PyTorch.
    provider : sequence of str, optional
        Where an exported file runs: ONNX Runtime's execution providers (cpu, cuda, tensorrt, openvino) in order of
        preference, or one OpenVINO device. None: cpu.
    threads : int, optional
        Number of CPU threads for an exported file. None: the runtime decides.

    Raises
    ------
    AnomalyCLIPError
        A value has the wrong type or cannot be combined with `model`. Values that depend on the weights are checked by
        `load`.

    Examples
    --------
    >>> spec = DetectorSpec("micro", sigma=2.0)
    >>> DetectorSpec.from_json(spec.to_json()) == spec
    True
    >>> spec.load().predict(b"no image")
    Traceback (most recent call last):
    anomalyclip.errors.UnknownKindError: bytes...
    """

    backbone: str = _option(
        DEFAULT_BACKBONE,
        "Weights: a name (ViT-L-14-336, micro, ...; `anomalyclip models` lists them) or a file or folder.",
        fixed_by_model=True,
    )
    method: str = _option(
        DEFAULT_METHOD,
        "How images are scored: anomalyclip, clip, clip-ac, words, winclip, april-gan, anomalydino, coop, or a "
        "method that another package brings.",
        fixed_by_model=True,
    )
    prompts: str | None = _option(
        None,
        "Learned prompts: mvtec, visa (what they were trained on) or a file. Default: mvtec for ViT-L-14-336, micro's "
        "own for micro; other backbones need a file. To test on MVTec AD itself, use visa.",
        fixed_by_model=True,
    )
    image_size: int | None = _option(
        None,
        "Side in pixels of the square to which images are resized; for anomalydino their short side. Default: the "
        "backbone's own, 518 for ViT-L-14-336, 448 for vision-only ones.",
        fixed_by_model=True,
    )
    layers: tuple[int, ...] | None = _option(
        None,
        "Block whose patch features make the map, counted from 1; repeat for several. Default: the last.",
        fixed_by_model=True,
    )
    dpam_layers: int | None = _option(
        None,
        "Number of final blocks with the local path (DPAM). Default: 19 of 24, in proportion.",
        fixed_by_model=True,
    )
    sigma: float | None = _option(
        None,
        "Standard deviation of the map's Gaussian smoothing, in pixels at the image size; 0: no smoothing. Default: "
        "as published, 4 (winclip and april-gan: 0).",
        fixed_by_model=True,
    )
    image_score: str | None = _option(
        None,
        "How the image score is computed: text (the image compared with the texts, as published); max, top1 or mean "
        "(average of text and the map's maximum, highest 1 % or mean); faprompt or mrad (the rules of these papers). "
        "Default: text; with references top1, using the map of the references alone.",
        choices=tuple(IMAGE_SCORES),
        fixed_by_model=True,
    )
    references: tuple[str, ...] | None = _option(
        None,
        "Normal images of the product to compare with: a file written by `anomalyclip fit`, or files, folders and "
        "patterns; repeat for several.",
        group=REFERENCES,
        single=True,
        fixed_by_model=True,
    )
    augment: bool = _option(
        False,
        "Also store the references flipped and rotated by 90, 180 and 270 degrees, for products without a fixed "
        "orientation.",
        group=REFERENCES,
        flag="--augment",
        fixed_by_model=True,
    )
    max_patches: int = _option(
        MAX_PATCHES,
        "Maximum number of stored patches; if the references have more, a coreset of this size is kept.",
        group=REFERENCES,
        minimum=1,
        fixed_by_model=True,
    )
    trained: str | None = _option(
        None,
        "Trained part of april-gan or coop: a file written by `anomalyclip train --method`.",
        group=METHODS,
        fixed_by_model=True,
    )
    ln_post: bool | None = _option(
        None,
        "Whether CLIP's final layer norm is applied to the image feature, for clip, clip-ac, words and coop. Default: "
        "no, as in AnomalyCLIP's code.",
        group=METHODS,
        fixed_by_model=True,
    )
    local_attention: str | None = _option(
        None,
        "Projections that attend to themselves on the local path, for anomalyclip and words: v (as published), or "
        "several of q, k and v, whose results are added (qkv, as in Crane).",
        group=METHODS,
        fixed_by_model=True,
    )
    foreground: bool = _option(
        False,
        "Compare only the patches that show the object, found by their first principal component; for anomalydino "
        "with DINOv2.",
        group=METHODS,
        flag="--foreground",
        fixed_by_model=True,
    )
    feature_surgery: bool = _option(
        False,
        "Compare patches by the rule of CLIP Surgery, which weights the texts by how well they fit the image; for "
        "words.",
        group=METHODS,
        flag="--feature-surgery",
        fixed_by_model=True,
    )
    windows: tuple[int, ...] | None = _option(
        None,
        "Side of winclip's windows in patches; repeat for several. Default: 13 % and 20 % of the grid, as published.",
        group=METHODS,
        flag="--window",
        minimum=1,
        fixed_by_model=True,
    )
    window_stride: int | None = _option(
        None,
        "Step from one of winclip's windows to the next, in patches. Default: 1, as published; 2 is about 4 times "
        "faster, and coarser.",
        group=METHODS,
        minimum=1,
        fixed_by_model=True,
    )
    window_rule: str | None = _option(
        None,
        "How winclip combines windows: by the harmonic mean of their abnormal probabilities (as published) or of their "
        "normal ones.",
        group=METHODS,
        choices=tuple(WINDOW_RULES),
        fixed_by_model=True,
    )
    activation: str | None = _option(
        None,
        "Activation function of the backbone. Default: the one that its weights were trained with. april-gan was "
        "published with gelu on weights trained with quick-gelu.",
        group=METHODS,
        choices=ACTIVATIONS,
        fixed_by_model=True,
    )
    normal: tuple[str, ...] | None = _option(
        None,
        "Your own words for a normal image, such as 'a flawless {}'; repeat for several. {} is the class name. Needs "
        "--abnormal too.",
        group=WORDS,
        fixed_by_model=True,
    )
    abnormal: tuple[str, ...] | None = _option(
        None,
        "Your own words for an anomalous image, such as 'a {} with a crack'; repeat for several.",
        group=WORDS,
        fixed_by_model=True,
    )
    templates: str | None = _option(
        None,
        "Sentences around the words: winclip, winclip-22, april-gan, imagenet, none, or a text file with one sentence "
        "per line. Default: the method's; none for your own words.",
        group=WORDS,
        fixed_by_model=True,
    )
    class_name: str | None = _option(
        None,
        "What the images show, for methods whose texts name it. Default: object for words; for a data set, its class "
        "names.",
        group=WORDS,
        fixed_by_model=True,
    )
    value_range: tuple[float, float] | None = _option(
        None,
        "Values that become black and white in images of more than 8 bits, such as 0 4095. Default: what each file "
        "says, otherwise one range for all images, assumed from the first.",
        group=DEEP,
        flag="--range",
        metavar="LOW HIGH",
    )
    range_from: str | None = _option(
        None,
        "Folder of normal images from which the range is measured instead (0.1 % and 99.9 % quantiles).",
        group=DEEP,
    )
    device: str = _option(
        "auto",
        "Where PyTorch computes: auto (CUDA, else Apple's GPU, else the CPU), cpu, cuda, cuda:1, mps or xpu.",
    )
    precision: str = _option(
        "fp32",
        "Precision of the image encoder: fp32, bf16, fp16, or auto (bf16 or fp16 where that is faster and accurate "
        "enough).",
        fixed_by_model=True,
    )
    compiled: bool = _option(
        False,
        "Compile the image encoder first (torch.compile). This takes a minute or more and pays off for many images.",
        flag="--compile",
        fixed_by_model=True,
    )
    engine: str = _option(
        "auto",
        "What runs the detector on a CPU: torch, or onnx or openvino with an exported file that is made once and kept "
        "in the cache folder. auto: such a file if there is one, else torch; predict and test make the file for 500 "
        "images or more.",
        choices=ENGINES,
    )
    model: str | None = _option(
        None,
        "A file written by `anomalyclip export`, instead of backbone and prompts; needs no PyTorch.",
        group=EXPORTED,
    )
    provider: tuple[str, ...] | None = _option(
        None,
        "Where the file runs. ONNX: cpu, cuda, tensorrt, openvino; repeat, first choice first. OpenVINO: one of cpu, "
        "gpu, npu, auto. Default: cpu.",
        group=EXPORTED,
    )
    threads: int | None = _option(
        None, "CPU threads. Default: the runtime's own choice.", group=EXPORTED, minimum=1
    )
    tile: int | None = _option(
        None,
        "Side in pixels of the tiles into which larger images are cut. Default: no tiles; the whole image is resized.",
        group=LARGE,
    )
    overlap: float = _option(
        0.25, "Overlap of neighbouring tiles, as a share of a tile, 0 to 0.9.", group=LARGE
    )

    def __post_init__(self) -> None:
        given = [name for name in ("normal", "abnormal") if getattr(self, name) is not None]
        super().__post_init__()
        if empty := [name for name in given if getattr(self, name) is None]:
            raise AnomalyCLIPError(
                f"{' and '.join(empty)}: no text; give at least one, or None for the method's own words"
            )
        self._follow_addresses()
        self._check_words()
        self._check_references()
        self._check_range()
        if self.tiling is None and self.overlap != _default("overlap"):
            raise AnomalyCLIPError(f"overlap {self.overlap} is only for tiles: give the tile size too")
        self._check_model()

    def _follow_addresses(self) -> None:
        """Refuse models at addresses; of other addresses, what is secret is neither shown nor written from here on."""
        for name in ("backbone", "prompts", "templates", "trained", "model"):
            require_here(getattr(self, name), f"{name}: the files of a model")
        if self.range_from is not None:
            object.__setattr__(self, "range_from", as_address(self.range_from) or self.range_from)
        if self.references is not None:
            followed = tuple(as_address(path) or path for path in self.references)
            object.__setattr__(self, "references", followed)

    def _check_words(self) -> None:
        if (self.normal is None) != (self.abnormal is None):
            raise AnomalyCLIPError(
                "own words need both sides: give normal and abnormal (--normal TEXT --abnormal TEXT)"
            )
        texts = {"normal": self.normal, "abnormal": self.abnormal, "class name": (self.class_name,)}
        for name, several in texts.items():
            if any(text is not None and not text.strip() for text in several or ()):
                raise AnomalyCLIPError(f"{name}: a text is empty; write what the image shows")

    def _check_references(self) -> None:
        of_pictures = [name for name in ("augment", "max_patches") if getattr(self, name) != _default(name)]
        if of_pictures and self.references is None:
            raise AnomalyCLIPError(f"{' and '.join(of_pictures)}: only for references; give references too")
        if any(not path.strip() for path in self.references or ()):
            raise AnomalyCLIPError("references: a path is empty; expected paths of images, or of a memory")
        files = [path for path in self.references or () if path.lower().endswith(".memory")]
        if files and len(self.references or ()) > 1:
            raise AnomalyCLIPError(
                f"{files[0]}: a memory cannot be combined with other references; add images to it with "
                "`anomalyclip fit --add`"
            )
        if files and of_pictures:
            raise AnomalyCLIPError(
                f"{' and '.join(of_pictures)} cannot be changed: fixed by {files[0]}; fit it again"
            )

    def _check_range(self) -> None:
        from anomalyclip.depth import require_range  # it imports numpy, which --help does not wait for

        if self.value_range is None:
            return
        object.__setattr__(self, "value_range", require_range(self.value_range))
        if self.range_from is not None:
            raise AnomalyCLIPError("range and range from cannot be combined: choose one of them")

    def _check_model(self) -> None:
        if self.model is None:
            needless = [name for name in ("provider", "threads") if getattr(self, name) is not None]
            if needless:
                raise AnomalyCLIPError(f"{' and '.join(needless)}: only for exported files; give model too")
            return
        changed = [name for name in self.changed() if name in FIXED_BY_MODEL]
        if changed:
            raise AnomalyCLIPError(
                f"{', '.join(changed)} cannot be changed: fixed by {self.model}; export another file instead"
            )
        if self.engine != _default("engine"):
            raise AnomalyCLIPError(
                f"engine {self.engine!r}: {self.model} is an exported file, which has its own; leave it out"
            )
        if self.device != _default("device"):
            raise AnomalyCLIPError(
                f"device {self.device!r} is only for PyTorch: for {self.model} give provider instead"
            )

    @property
    def tiling(self) -> "Tiling | None":
        """How images are cut into tiles; None: they are not."""
        if self.tile is None:
            return None
        from anomalyclip.tiling import Tiling

        return Tiling(self.tile, overlap=self.overlap)

    def changed(self) -> list[str]:
        """Return the names of the fields that differ from their default.

        Examples
        --------
        >>> DetectorSpec("micro", sigma=2.0).changed()
        ['backbone', 'sigma']
        """
        return [one.name for one in fields(self) if getattr(self, one.name) != one.default]

    def load(self, *, threshold: "float | Threshold | str | os.PathLike[str] | None" = None) -> "Detector":
        """Return the detector.

        Parameters
        ----------
        threshold : float, Threshold or path, optional
            One number for both scores and pixels, or a file written by ``anomalyclip calibrate``. None: the exported
            file's threshold, if it has one.

        Returns
        -------
        Detector

        Raises
        ------
        AnomalyCLIPError
            Weights, prompts or an option cannot be used; the message says which, and what to use instead.
        """
        from anomalyclip.loading import load

        return load(self, threshold=threshold)

    def located(self) -> "DetectorSpec":
        """Return a copy with absolute paths, so that it works from another working folder.

        Known names are kept, even if a file or folder has the same name. Paths that do not exist are kept too.
        """
        from anomalyclip.backbones.table import KNOWN
        from anomalyclip.clip.registry import PROMPTS

        names: dict[str, Collection[str]] = {
            "backbone": KNOWN,
            "prompts": PROMPTS,
            "templates": TEMPLATES,
            "trained": (),
            "range_from": (),
            "model": (),
        }
        paths = {field: getattr(self, field) for field in names}
        references = self.references and tuple(
            path
            if isinstance(path, Address) or not (os.path.exists(path) or glob.has_magic(path))
            else os.path.abspath(path)
            for path in self.references
        )
        return replace(
            self,
            references=references,
            **{
                field: os.path.abspath(path)
                for field, path in paths.items()
                if path and path not in names[field] and os.path.exists(path)
            },
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as a JSON-ready dictionary; addresses without user, password and query string."""
        return {key: _plain(value) for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "DetectorSpec":
        """Return the spec of a dictionary as `to_dict` returns it; missing fields get their defaults.

        Raises
        ------
        AnomalyCLIPError
            A field is unknown, or a value cannot be used.

        Examples
        --------
        >>> DetectorSpec.from_dict({"backbone": "micro", "layers": [3, 6]}).layers
        (3, 6)
        """
        known = {one.name for one in fields(cls)}
        if unknown := [name for name in content if name not in known]:
            raise AnomalyCLIPError(
                f"{', '.join(map(str, unknown))}: unknown detector option; expected one of {', '.join(sorted(known))}"
            )
        return cls(**content)

    def to_json(self) -> str:
        """Return all fields as a JSON object."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> "DetectorSpec":
        """Return the spec of a JSON object as `to_json` returns it; see `from_dict`."""
        from anomalyclip.files import parse_json

        try:
            content = parse_json(text)
        except ValueError as error:
            raise AnomalyCLIPError(f"a detector's specification is not JSON ({error})") from None
        if not isinstance(content, dict):
            raise AnomalyCLIPError("a detector's specification must be a JSON object")
        return cls.from_dict(content)


def _default(name: str) -> Any:
    return next(one.default for one in fields(DetectorSpec) if one.name == name)


OPTIONS = options_of(DetectorSpec)
"""The fields by name; their metadata describes them for the command line."""

FIXED_BY_MODEL = tuple(name for name, one in OPTIONS.items() if one.metadata["fixed_by_model"])
"""Fields that are fixed by an exported file."""


def _plain(value: Any) -> Any:
    """Return a field's value as JSON has it."""
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Address) else value


def is_memory_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a path names a memory rather than images: its name ends in ``.memory``."""
    return os.path.splitext(path)[1].lower() == ".memory"
