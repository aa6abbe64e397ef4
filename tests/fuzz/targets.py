"""Who reads foreign files. A reader that is not listed here is not tested: add one line to `TARGETS`."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socketserver import StreamRequestHandler, TCPServer
from threading import Thread
from typing import Any

import numpy as np
import torch

from anomalyclip import Detector, DetectorSpec, Threshold
from anomalyclip.backbones.rotary import form_of
from anomalyclip.backbones.weights import ViTWeights, read_any
from anomalyclip.clip.download import DownloadError, RemoteFile, fetch
from anomalyclip.clip.model import CLIP
from anomalyclip.clip.tokenizer import Tokenizer
from anomalyclip.clip.weights import fingerprint, read_weights
from anomalyclip.data.listing import load_samples
from anomalyclip.engines.card import ModelCard
from anomalyclip.errors import AnomalyCLIPError, InputError
from anomalyclip.evaluation.maps import FolderSource, read_map
from anomalyclip.evaluation.results import ClassResult, DatasetResult, to_json
from anomalyclip.images import read_mask
from anomalyclip.inputs import find_images, read_list_file
from anomalyclip.linear_layers import load_linear_layers
from anomalyclip.merging import merge
from anomalyclip.predicting import refresh
from anomalyclip.prompts import load_prompts
from anomalyclip.readers import open_image, size_of
from anomalyclip.reference_pictures import decoded
from anomalyclip.references import Memory
from anomalyclip.runs import RunFolder
from anomalyclip.scorer import Description
from anomalyclip.visualize import overlay
from anomalyclip.words import templates_named, words_of
from anomalyclip.writers import PredictionWriter
from tests.fuzz import corpus
from tests.fuzz.target import Target
from tests.fuzz.trained import trained, trainer_in, with_features


class Gray:
    """Calls dark pixels anomalous: a method that costs nothing."""

    image_size = 28

    def __call__(self, pixels: Any) -> tuple[Any, Any]:
        maps = 1 - pixels.mean(axis=3, dtype=np.float32) / 255
        return maps.max(axis=(1, 2)), maps

    def identity(self) -> dict[str, Any]:
        return {"method": "gray"}

    def describe(self) -> Description:
        return Description("gray")


def score_image(path: Path) -> None:
    """As `predict --save map heatmap mask --threshold 0.5` would."""
    detector = Detector(Gray(), threshold=Threshold(score=0.5, pixel=0.5))
    for prediction in detector.stream([path]):
        image = open_image(str(prediction.image_path), value_range=prediction.value_range)
        overlay(image, prediction)
        json.dumps(prediction.to_dict(), allow_nan=False)
        assert prediction.mask_at() is not None
        assert image.size == prediction.image_size
    assert size_of(path)


def score_video(path: Path) -> None:
    """As an image, but the first frame alone is drawn: damage may make thousands."""
    detector = Detector(Gray(), threshold=Threshold(score=0.5, pixel=0.5))
    for number, prediction in enumerate(detector.stream([path])):
        assert prediction.time is not None
        json.dumps(prediction.to_dict(), allow_nan=False)
        if number == 0:
            image = open_image(str(prediction.image_path), value_range=prediction.value_range)
            overlay(image, prediction)
            assert image.size == prediction.image_size
    assert size_of(path)


def score_archive(path: Path) -> None:
    for image in find_images([path]):
        score_image(Path(image.path))


def use_mask(path: Path) -> None:
    read_mask(path)
    assert read_mask(path, 56).shape == (56, 56)


def use_threshold(path: Path) -> None:
    threshold = Threshold.from_file(path)
    threshold.to_file(path.with_name("again.json"))
    assert Threshold.from_file(path.with_name("again.json")) == threshold


def list_samples(folder: Path) -> None:
    for phase in ("test", "train"):
        samples = load_samples(folder, phase=phase)
        assert all((samples.root / sample.image).is_file() for sample in samples)


def use_prompts(path: Path) -> None:
    prompts = load_prompts(path)
    try:
        prompts.text_features(corpus.small_clip())
    except AnomalyCLIPError as error:  # about the backbone: it was chosen with the file
        raise AnomalyCLIPError(f"{path}: {error}") from error
    json.dumps(dict(prompts.info), allow_nan=False)
    assert prompts.digest()


def use_weights(path: Path) -> None:
    weights = read_weights(path)
    clip = CLIP.frozen(weights.config, weights.state_dict)
    assert fingerprint(weights.config, weights.state_dict)
    with torch.inference_mode():
        clip.encode_text(clip.token_embedding(torch.zeros(1, 4, dtype=torch.int64)), torch.tensor([3]))


def use_vision_only(path: Path) -> None:
    weights = read_any(path)
    assert isinstance(weights, ViTWeights)
    tower = form_of(weights.config).frozen(weights.config, weights.state_dict)
    with torch.inference_mode():
        patch = tower.patch_size
        tower.run(
            tower.embed(torch.zeros(1, 3, 2 * patch, 3 * patch)), positions=tower.positions(2, 3), plain=[1]
        )


def use_card(path: Path) -> None:
    card = ModelCard.from_json(path.read_text(errors="replace"), name=path)
    assert card.labels
    assert (card.limits, card.tiling) is not None
    card.to_json()


def score_exported(path: Path) -> None:
    detector = DetectorSpec(model=path, threads=1).load()
    prediction = detector.predict(np.zeros((20, 30, 3), np.uint8))
    json.dumps({**detector.identity(), **prediction.to_dict()}, allow_nan=False)
    assert detector.describe().title


def resume_settings(folder: Path) -> None:
    settings = {"sigma": 4.0, "layers": [1, 2], "threshold": {"score": 0.5}}
    with RunFolder("predict", folder, resume=True, results="predictions.jsonl").begin(settings):
        pass


def resume_predictions(folder: Path) -> None:
    """Three ways to come upon a run's lines: its maps are evaluated, it goes on, it is overwritten."""
    try:
        FolderSource(folder)
        with PredictionWriter(folder, save=["map"], resume=True) as writer:
            for prediction in corpus.predictions():
                if prediction.image_path not in writer.done:
                    writer.write(prediction)
    finally:
        PredictionWriter(folder, overwrite=True).close()


def refresh_wholes(folder: Path) -> None:
    refresh(folder, ["csv"])


def merge_shards(folder: Path) -> None:
    merged = merge([folder], folder / "merged", save=["csv"])
    assert merged.run.scored == 4


def use_layers(path: Path) -> None:
    layers = load_linear_layers(path)
    layers.check_fits(corpus.SMALL, "quick-gelu", path)
    assert layers.digest()
    layers.save(path.with_name("again.safetensors"))


def resume_results(path: Path) -> None:
    result = DatasetResult("nuts", "nuts", (ClassResult.load(path),))
    json.dumps(to_json(result), allow_nan=False)


def resume_training(folder: Path) -> None:
    run = trainer_in(folder, trained() / "features")
    assert run.resume()
    run.run()


def use_features(path: Path) -> None:
    data = with_features(trained() / "features", path)
    for batch in data.batches([[0, 1]]):
        assert batch.images.isfinite().all()


def read_list(path: Path) -> None:
    for _ in read_list_file(path):
        pass


def read_spec(path: Path) -> None:
    spec = DetectorSpec.from_json(path.read_text(errors="replace"))
    assert DetectorSpec.from_json(spec.to_json()) == spec


def use_memory(path: Path) -> None:
    memory = Memory.load(path)
    assert memory.digest()
    json.dumps([dict(memory.identity), dict(memory.settings), dict(memory.spec)], allow_nan=False)
    assert len(memory) >= 1
    assert memory.is_reduced in (True, False)
    for row in range(memory.patches):
        number, _ = memory.place(row)
        decoded(memory.picture(number))


def read_templates(path: Path) -> None:
    assert all("{}" in sentence for sentence in templates_named(str(path)))


def use_own_words(path: Path) -> None:
    spec = DetectorSpec("micro", method="words")
    words = words_of(spec, path.parent, words="winclip", templates="winclip")
    assert all(isinstance(text, str) for side in words.phrases("nut") for text in side)
    assert words.digest()


def download(path: Path) -> None:
    """Go on with a download from a server that sends the bytes of a file, whatever it is asked."""
    with answering(path.read_bytes()) as url:
        wanted = RemoteFile(f"{url}/weights.pt", f"sha256:{hashlib.sha256(corpus.DOWNLOAD).hexdigest()}")
        (path.parent / f"{wanted.name}.part").write_bytes(corpus.DOWNLOAD[:20])
        try:
            whole = fetch(wanted, path.parent, attempts=2, pause=0)
        except DownloadError as error:
            raise AnomalyCLIPError(f"{path}: {error}" if url in str(error) else str(error)) from None
        assert whole.read_bytes() == corpus.DOWNLOAD


@contextmanager
def answering(content: bytes) -> Iterator[str]:
    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():  # what is asked
                pass
            with suppress(OSError):  # whoever has heard enough hangs up
                self.wfile.write(content)

    with TCPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def use_tokenizer(path: Path) -> None:
    tokenizer = Tokenizer(path, context_length=16)
    tokenizer(["a flawless object"])
    tokenizer.prompt_tokens()


WEIGHTS = ("*.pt", "*.pth", "*.safetensors", "*.bin", "*.json")


def answer_request(path: Path) -> None:
    """As the service reads the body of a request, up to the pixels."""
    from anomalyclip.serve import bodies, label_studio, oip
    from anomalyclip.serve.settings import ServeSettings
    from anomalyclip.serve.uploads import images_of
    from anomalyclip.serve.wanted import Wanted

    settings, body = ServeSettings(), path.read_bytes()
    kind = path.name.partition(".")[0]
    if kind == "form":
        parser = bodies.FormParser(corpus.BOUNDARY, settings.max_files)
        for start in range(0, len(body), 1000):
            parser.feed(body[start : start + 1000])
        form = parser.finish()
        files, _ = form.files, Wanted.of(form.fields)
    elif kind == "images":
        form = bodies.form_of_json(bodies.as_object(body), settings.max_files)
        files, _ = form.files, Wanted.of(form.fields)
    elif kind == "tasks":
        content = bodies.as_object(body)
        controls = label_studio.controls_of(content.get("label_config"))
        files = [label_studio.picture_of(task, controls, settings) for task in label_studio.tasks_of(content)]
    else:
        asked = oip.Asked.of(body, None if kind == "infer" else str(body.find(b"]}") + 2))
        files = asked.files(settings)
        assert asked.outputs(True)
    for file in files:
        for found in images_of(file, unpacked=settings.unpacked_bytes):
            assert found.image.size


TARGETS = [
    Target("image", 1600, corpus.images, score_image, error=InputError, memory=400),
    Target("dicom", 300, corpus.dicom_files, score_image, error=InputError, memory=500),
    Target("nifti", 300, corpus.nifti_files, score_image, error=InputError, memory=400),
    Target("video", 300, corpus.videos, score_video, error=InputError, memory=500),
    Target("archive", 200, corpus.archives, score_archive, memory=400),
    Target("mask", 400, corpus.masks, use_mask, error=InputError, memory=400),
    Target("threshold", 700, corpus.thresholds, use_threshold),
    Target("meta", 700, corpus.metas, list_samples, ".", ("meta.json",)),
    Target("table", 300, corpus.tables, list_samples, ".", ("split_csv/1cls.csv",)),
    Target("prompts", 1000, corpus.prompts, use_prompts),
    Target("weights", 700, corpus.weight_files, use_weights, damaged=WEIGHTS, memory=400),
    Target("weights-folder", 500, corpus.weight_folders, use_weights, ".", WEIGHTS, memory=400),
    Target("vision-only", 300, corpus.vision_only_files, use_vision_only, ".", WEIGHTS, memory=400),
    Target("card", 600, corpus.cards, use_card),
    Target("onnx", 100, corpus.onnx_files, score_exported, memory=500),
    Target("openvino", 100, corpus.openvino_files, score_exported, "*.xml", memory=500),
    Target("map", 500, corpus.maps, read_map, error=InputError),
    Target("settings", 300, corpus.runs, resume_settings, ".", ("settings.json",)),
    Target("predictions", 300, corpus.runs, resume_predictions, ".", ("predictions.jsonl",)),
    Target("wholes", 200, corpus.wholes, refresh_wholes, ".", ("volumes.jsonl", "videos.jsonl")),
    Target("shards", 200, corpus.shards, merge_shards, ".", ("*shard.jsonl", "*predictions.jsonl")),
    Target("layers", 200, corpus.layers, use_layers, damaged=WEIGHTS, memory=400),
    Target("result", 200, corpus.results, resume_results),
    Target("spec", 300, corpus.specs, read_spec, named=False),
    Target("list", 100, corpus.lists, read_list),
    Target("checkpoint", 150, corpus.checkpoints, resume_training, "."),
    Target("features", 50, corpus.features, use_features),
    Target("memory", 200, corpus.memories, use_memory),
    Target("templates", 100, corpus.templates, read_templates),
    Target("tokenizer", 100, corpus.tokenizers, use_tokenizer),
    Target("words", 100, corpus.own_words, use_own_words),
    Target("request", 300, corpus.requests, answer_request, memory=400, named=False),
    Target("answer", 200, corpus.answers, download),
]
