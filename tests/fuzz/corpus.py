"""Real files of every kind that is read: each function writes its cases into a folder, one folder per case."""

import base64
import io
import json
import shutil
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from anomalyclip import DetectorSpec, Threshold, export, fit, predict
from anomalyclip.clip.model import CLIP, CLIPConfig
from anomalyclip.engines.card import ModelCard
from anomalyclip.evaluation.results import Case, ClassResult, ImageResult
from anomalyclip.linear_layers import LinearLayers
from anomalyclip.prediction import Prediction
from anomalyclip.prompts import Prompts
from anomalyclip.runs import begin
from anomalyclip.sharding import Shard
from anomalyclip.training.start import prompt_ids, prompt_tokens
from anomalyclip.writers import PredictionWriter
from tests import clip_forms, vit_forms
from tests.conftest import GOLDEN, TINY
from tests.videos import write_video

SMALL = CLIPConfig(32, 56, 14, 64, 2, 1, 64, 3, 1, 77, 49408)
"""The golden CLIP with two vision blocks and three text blocks."""


@cache
def small_state() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "tiny_clip.npz") as arrays:
        state = {name: torch.from_numpy(arrays[name]) for name in arrays}
    kept = {"visual.transformer": SMALL.vision_layers, "transformer": SMALL.text_layers}
    return {
        name: tensor
        for name, tensor in state.items()
        if not any(
            name.startswith(f"{tower}.resblocks.{n}.") for tower, m in kept.items() for n in range(m, 24)
        )
    }


@cache
def small_clip() -> CLIP:
    return CLIP.frozen(SMALL, small_state())


@cache
def small_prompts() -> Prompts:
    ids = prompt_ids(prompt_tokens(small_clip(), "none"), length=4, context_length=TINY.context_length)
    drawn = Prompts.initial(
        ids, width=64, length=4, depth=3, deep_length=2, generator=torch.Generator().manual_seed(0)
    )
    return Prompts(drawn.normal, drawn.abnormal, drawn.deep_tokens, ids, {"trained_on": "nuts", "seed": "0"})


def small_spec(folder: Path) -> DetectorSpec:
    """Write the small backbone and its prompts, and return what loads them."""
    torch.save(small_state(), folder / "small.pt")
    small_prompts().save(folder / "prompts.safetensors")
    return DetectorSpec(
        folder / "small.pt", prompts=folder / "prompts.safetensors", image_size=56, layers=[1, 2]
    )


def case(folder: Path, name: str) -> Path:
    (folder / name).mkdir(parents=True)
    return folder / name


def picture(mode: str = "RGB", size: tuple[int, int] = (24, 18)) -> Image.Image:
    """A picture with some structure, in any of Pillow's modes."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    rgb = np.stack([x * 9 % 256, y * 11 % 256, (x * y) % 256], axis=-1).astype(np.uint8)
    image = Image.fromarray(rgb)
    if mode in ("I", "F", "I;16"):
        gray = x.astype(np.float64) * 1000 + y
        dtype = {"I": np.int32, "F": np.float32, "I;16": np.uint16}[mode]
        return Image.fromarray((gray / 65535 if mode == "F" else gray).astype(dtype))
    if mode == "La":
        return image.convert("LA").convert("La")
    return image.convert(mode)


def images(folder: Path) -> None:
    """Every format that is documented, in the modes that it has."""
    exif = Image.Exif()
    exif[0x0112] = 6
    saved = {
        "rgb.png": ("RGB", {}),
        "gray.png": ("L", {}),
        "alpha.png": ("RGBA", {}),
        "gray_alpha.png": ("LA", {}),
        "palette.png": ("P", {"transparency": 3}),
        "bilevel.png": ("1", {}),
        "deep.png": ("I;16", {}),
        "rgb.jpg": ("RGB", {"exif": exif}),
        "gray.jpeg": ("L", {"progressive": True}),
        "cmyk.jpe": ("CMYK", {}),
        "rgb.bmp": ("RGB", {}),
        "palette.bmp": ("P", {}),
        "bilevel.bmp": ("1", {}),
        "raw.tif": ("RGB", {}),
        "lzw.tif": ("RGBA", {"compression": "tiff_lzw"}),
        "deflate.tiff": ("L", {"compression": "tiff_adobe_deflate"}),
        "packbits.tif": ("CMYK", {"compression": "packbits"}),
        "jpeg.tif": ("RGB", {"compression": "jpeg"}),
        "group4.tif": ("1", {"compression": "group4"}),
        "deep.tif": ("I;16", {}),
        "float.tif": ("F", {}),
        "int.tif": ("I", {}),
        "lab.tif": ("LAB", {}),
        "gray_alpha.tif": ("LA", {}),
        "pages.tif": ("RGB", {"save_all": True, "append_images": [picture(size=(9, 9))]}),
        "lossy.webp": ("RGB", {}),
        "lossless.webp": ("RGBA", {"lossless": True}),
        "moving.webp": ("RGB", {"save_all": True, "append_images": [picture("L")]}),
        "still.gif": ("P", {"transparency": 2}),
        "moving.gif": ("RGB", {"save_all": True, "append_images": [picture("L")], "disposal": 2}),
        "rgb.ppm": ("RGB", {}),
        "gray.pgm": ("L", {}),
        "deep.pgm": ("I;16", {}),
    }
    for name, (mode, options) in saved.items():
        picture(mode).save(case(folder, name.replace(".", "_")) / name, **options)
    import imagecodecs  # here, for they are extras: what was read wrongly once is read again without them too
    import tifffile

    color = np.asarray(picture(), np.uint16) * 257
    (case(folder, "deep_rgb_png") / "deep_rgb.png").write_bytes(imagecodecs.png_encode(color))
    tifffile.imwrite(case(folder, "deep_rgb_tif") / "deep_rgb.tif", color, compression="zlib")
    tifffile.imwrite(
        case(folder, "float_rgb_tif") / "float_rgb.tif", color.astype(np.float32), photometric="rgb"
    )
    (case(folder, "deep_ppm") / "deep.ppm").write_bytes(b"P6 24 18 65535 " + color.astype(">u2").tobytes())


def archives(folder: Path) -> None:
    """Two pictures in a zip, and in a tar."""
    file = io.BytesIO()
    picture().save(file, "png")
    names = ("a.png", "line 1/b.png")
    with zipfile.ZipFile(case(folder, "zip") / "photos.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in names:
            packed.writestr(name, file.getvalue())
    with tarfile.open(case(folder, "tar") / "photos.tar", "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(file.getvalue())
            tar.addfile(info, io.BytesIO(file.getvalue()))


def dicom_files(folder: Path) -> None:
    """Of pydicom's own files one for each way of compression, and one with colour."""
    import pydicom

    files = Path(pydicom.__file__).parent / "data" / "test_files"
    names = ["MR_small", "MR_small_RLE", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless"]
    names += ["SC_rgb_jpeg_gdcm", "SC_rgb_jpeg_dcmtk", "SC_rgb_small_odd", "liver_1frame"]
    for name in names:
        shutil.copy(files / f"{name}.dcm", case(folder, name) / f"{name}.dcm")


def nifti_files(folder: Path) -> None:
    """Volumes of both versions, compressed and not, with colour, and with time."""
    import nibabel

    values = np.arange(6 * 5 * 3, dtype=np.int16).reshape(6, 5, 3)
    colors = np.zeros((6, 5, 3), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    oblique = np.array([[0, -2, 0.1, 5], [1, 0, 0, 3], [0, 0.1, 3, 9], [0, 0, 0, 1]])
    for name, image in (
        ("plain.nii", nibabel.Nifti1Image(values, oblique)),
        ("packed.nii.gz", nibabel.Nifti1Image(values.astype(np.float32), np.eye(4))),
        ("second.nii", nibabel.Nifti2Image(values, oblique)),
        ("color.nii", nibabel.Nifti1Image(colors, np.eye(4))),
        ("times.nii.gz", nibabel.Nifti1Image(np.stack([values, values + 9], -1), np.diag([1, 1, 3, 1]))),
    ):
        nibabel.save(image, case(folder, name.replace(".", "_")) / name)


def videos(folder: Path) -> None:
    """Every kind of file, with the codecs of cameras, a turn, and 16 bits."""
    shots = [(n / 5, np.asarray(picture().rotate(9 * n))) for n in range(4)]
    for name, options in (
        ("turned.mp4", {"rotation": 90}),
        ("fast.mp4", {"codec": "libx264", "options": {"movflags": "faststart"}}),
        ("motion.mov", {"codec": "mjpeg", "layout": "yuvj420p"}),
        ("plain.avi", {}),
        ("open.webm", {"codec": "libvpx-vp9"}),
        ("hevc.mkv", {"codec": "libx265"}),
        ("broadcast.m2ts", {}),
    ):
        write_video(case(folder, name.replace(".", "_")) / name, shots, **options)
    deep = [(seconds, shot[..., 0].astype(np.uint16) * 99) for seconds, shot in shots]
    write_video(case(folder, "deep_mkv") / "deep.mkv", deep, codec="ffv1", layout="gray16le")


def masks(folder: Path) -> None:
    for name, mode in (
        ("mask.png", "L"),
        ("bilevel.png", "1"),
        ("deep.png", "I;16"),
        ("mask.tif", "F"),
        ("mask.bmp", "P"),
    ):
        picture(mode).save(case(folder, name.replace(".", "_")) / name)


def thresholds(folder: Path) -> None:
    info = {
        "method": "quantile",
        "false_alarm_rate": 0.1,
        "images": 20,
        "interval": [0.01, 0.3],
        "spec": {"sigma": 4.0},
    }
    Threshold(score=0.6, pixel=0.4, info=info).to_file(case(folder, "full") / "threshold.json")
    Threshold(score=0.6).to_file(case(folder, "score") / "threshold.json")


def metas(folder: Path) -> None:
    here = case(folder, "nuts")
    entries = []
    for name, anomaly in (("good", 0), ("spot", 1)):
        picture("L", (4, 4)).save(here / f"{name}.png")
        entries.append(
            {
                "img_path": f"{name}.png",
                "mask_path": "spot.png" if anomaly else "",
                "cls_name": "nut",
                "specie_name": name,
                "anomaly": anomaly,
            }
        )
    (here / "meta.json").write_text(json.dumps({"train": {"nut": entries[:1]}, "test": {"nut": entries}}))


def tables(folder: Path) -> None:
    """VisA's list of images."""
    here = case(folder, "visa")
    (here / "split_csv").mkdir()
    rows = ["object,split,label,image,mask"]
    for kind, mask in (("normal", ""), ("anomaly", "candle/mask.png")):
        (here / "candle").mkdir(exist_ok=True)
        picture("L", (4, 4)).save(here / "candle" / f"{kind}.png")
        rows.append(f"candle,test,{kind},candle/{kind}.png,{mask}")
    picture("L", (4, 4)).save(here / "candle" / "mask.png")
    (here / "split_csv" / "1cls.csv").write_text("\n".join(rows) + "\n")


def prompts(folder: Path) -> None:
    """Learned prompts in both forms, and the published one as PyTorch wrote it before 1.6."""
    small_prompts().save(case(folder, "own") / "prompts.safetensors")
    small_prompts().save_published(case(folder, "published") / "prompts.pth", small_clip())
    content = torch.load(folder / "published" / "prompts.pth", weights_only=True)
    torch.save(content, case(folder, "old") / "prompts.pth", _use_new_zipfile_serialization=False)


def weight_files(folder: Path) -> None:
    state = clip_forms.tiny()
    for form in (
        clip_forms.archive,
        clip_forms.state_dict,
        clip_forms.old_state_dict,
        clip_forms.training_checkpoint,
        clip_forms.open_clip_file,
        clip_forms.own_file,
    ):
        form(state, case(folder, form.__name__))


def vision_only_files(folder: Path) -> None:
    """timm's folders, and Meta's weights in a folder of transformers' name."""
    for form in ("plain", "dinov2 registers"):
        vit_forms.timm_folder(form, case(folder, form.replace(" ", "_")))
    vit_forms.timm_dinov3("gated", case(folder, "timm_dinov3"))
    here = case(folder, "original")
    vit_forms.original_dinov2(here).rename(here / "pytorch_model.bin")


def weight_folders(folder: Path) -> None:
    state = clip_forms.tiny()
    for form in (
        clip_forms.open_clip_folder,
        clip_forms.transformers_folder,
        clip_forms.sharded_transformers_folder,
        clip_forms.transformers_bin_folder,
    ):
        form(state, case(folder, form.__name__))
    here = case(folder, "own_folder")
    made = clip_forms.own_folder(state, here)
    for file in made.iterdir():
        file.rename(here / file.name)
    made.rmdir()


def cards(folder: Path) -> None:
    limits = {"score": 0.5, "pixel": 0.4, "info": {"images": 20}}
    card = ModelCard(
        image_size=56,
        precision="fp32",
        identity={"method": "anomalyclip", "sigma": 4.0, "layers": [1, 2]},
        title="small, prompts nuts",
        facts={"backbone": "small.pt", "trained_on": "nuts"},
        training={"trained_on": "nuts"},
        tile=56,
        overlap=0.25,
        threshold=limits,
        made_with={"anomalyclip": "0.1.0"},
    )
    (case(folder, "present") / "card.json").write_text(card.to_json())
    first = {
        "version": 1,
        "image_size": 56,
        "precision": "fp32",
        "threshold": limits,
        "labels": ["normal", "anomalous"],
        "made_with": {},
        "settings": {"sigma": 4.0},
        "backbone": {"name": "small", "sha256": "00"},
        "prompts": {"name": "nuts", "trained_on": "nuts"},
        "text_features": "00",
    }
    (case(folder, "first") / "card.json").write_text(json.dumps(first))


def onnx_files(folder: Path) -> None:
    source = case(folder, "source")
    export(small_spec(source), case(folder, "onnx") / "model.onnx", threshold=0.5)
    shutil.rmtree(source)


def openvino_files(folder: Path) -> None:
    source = case(folder, "source")
    export(small_spec(source), case(folder, "openvino") / "model.xml", format="openvino", threshold=0.5)
    shutil.rmtree(source)


def maps(folder: Path) -> None:
    values = np.linspace(0, 1, 56 * 42, dtype=np.float32).reshape(56, 42)
    for dtype in ("float32", "float16", "uint8"):
        np.save(case(folder, dtype) / "map.npy", values.astype(dtype))


def runs(folder: Path) -> None:
    """A folder of `predict`: its settings and its lines, two images done."""
    here = case(folder, "predict")
    begin(
        here,
        "predict",
        {"sigma": 4.0, "layers": [1, 2], "threshold": {"score": 0.5}},
        resume=False,
        about={"a": 1},
    )
    with PredictionWriter(here, save=["map"]) as writer:
        for prediction in predictions():
            writer.write(prediction)


def wholes(folder: Path) -> None:
    """A run with the listings of a volume and of a video."""
    runs(folder)
    line = {"pred_score": 0.5, "pred_label": True, "threshold": 0.5, "most_anomalous": "a.nii#2"}
    for name, path, file in (
        ("volumes.jsonl", "a.nii", {"nifti": "volumes/a_map.nii.gz"}),
        ("videos.jsonl", "a.mp4", {"video": "videos/a.webm"}),
    ):
        content = {"image_path": path, **line, "files": file}
        (folder / "predict" / name).write_text(json.dumps(content) + "\n")


def shards(folder: Path) -> None:
    """A run of four images in two shards."""
    here = case(folder, "two")
    with tempfile.TemporaryDirectory() as place:
        spec, pictures = small_spec(Path(place)), case(Path(place), "images")
        for number in range(4):
            picture().save(pictures / f"{number}.png")
        for index in (1, 2):
            predict(spec, pictures, here, shard=Shard(index, 2))


def layers(folder: Path) -> None:
    """Linear layers as they are trained here, and as they are published."""
    drawn = LinearLayers.initial(SMALL, (1, 2), seed=0)
    drawn.save(case(folder, "own") / "layers.safetensors")
    state = {}
    for index in range(2):
        state |= {f"fc.{index}.weight": drawn.weight[index], f"fc.{index}.bias": drawn.bias[index]}
    torch.save({"trainable_linearlayer": state}, case(folder, "published") / "visa.pth")


def predictions() -> Iterator[Prediction]:
    values = np.zeros((8, 8), np.float32)
    values[2:4, 2:4] = 0.75
    for name in ("a.png", "line 1/b.png"):
        yield Prediction(
            pred_score=0.5, anomaly_map=values, image_size=(16, 16), image_path=name
        ).with_threshold(0.5)


def results(folder: Path) -> None:
    rows = tuple(ImageResult(f"{n}.png", "spot", bool(n % 2), n / 4, True) for n in range(4))
    shown = (Case("clearest defect", "3.png", 0.75, {"image": "cases/3.png"}),)
    one = ClassResult(
        "nut", rows, {"5.png": "damaged"}, {"image_auroc": 0.5, "pixel_ap": None}, {"image_f1": 0.4},
        {"image_roc": ([0.0, 1.0], [0.0, 1.0])}, shown, {"encode": 1.0, "metrics": 0.1},
    )  # fmt: skip
    one.save(case(folder, "class") / "nut.json")


def specs(folder: Path) -> None:
    spec = DetectorSpec("micro", image_size=112, layers=[3, 6], sigma=2.0, tile=112)
    (case(folder, "micro") / "spec.json").write_text(spec.to_json())
    exported = DetectorSpec(model="model.onnx", provider=["cpu"], threads=1)
    (case(folder, "model") / "spec.json").write_text(exported.to_json())


def lists(folder: Path) -> None:
    (case(folder, "list") / "images.txt").write_text("a.png\nparts/b c.png\n\n")


def checkpoints(folder: Path) -> None:
    """The state of a run of two steps, after the first epoch."""
    from tests.fuzz.trained import trained

    shutil.copytree(trained() / "checkpoints", case(folder, "state") / "checkpoints")


def features(folder: Path) -> None:
    from tests.fuzz.trained import trained

    found = next(iter(sorted((trained() / "features").rglob("*.npy"))))
    shutil.copyfile(found, case(folder, "features") / "features.npy")


def memories(folder: Path) -> None:
    """References of one product, as `fit` writes them."""
    source = case(folder, "source")
    fit(small_spec(source), [np.asarray(picture()), np.asarray(picture("L"))]).save(
        case(folder, "memory") / "nut.memory"
    )
    shutil.rmtree(source)


def templates(folder: Path) -> None:
    (case(folder, "lines") / "templates.txt").write_text("a photo of a {}.\na close-up of a {}.\n")


def own_words(folder: Path) -> None:
    """The vocabulary of a backbone, in the file beside it."""
    sides = {
        "normal": ["flawless {}"],
        "abnormal": ["damaged {}", "{} with a crack"],
        "templates": ["{}", "a {}."],
    }
    (case(folder, "one") / "words.json").write_text(json.dumps(sides))
    (case(folder, "each") / "words.json").write_text(json.dumps({"winclip": sides, "april-gan": sides}))


DOWNLOAD = b"the weights" * 20


BOUNDARY = b"8c1f0e"


def requests(folder: Path) -> None:
    """Bodies of requests to the service, in every form that it takes."""
    file = io.BytesIO()
    picture().save(file, "PNG")
    content, text = file.getvalue(), base64.b64encode(file.getvalue()).decode()
    head = b"--" + BOUNDARY + b"\r\nContent-Disposition: form-data; name="
    form = head + b'"map"\r\n\r\npng\r\n' + head + b'"files"; filename="a.png"\r\n\r\n' + content
    interface = (
        '<View><Image name="i" value="$image"/><BrushLabels name="b" toName="i"><Label value="Defect"/>'
        "</BrushLabels></View>"
    )
    tasks = {"tasks": [{"data": {"image": f"data:image/png;base64,{text}"}}], "label_config": interface}
    given = {"name": "image", "datatype": "BYTES", "shape": [1]}
    binary = {**given, "parameters": {"binary_data_size": 4 + len(content)}}
    pixels = {
        "name": "pixels",
        "datatype": "UINT8",
        "shape": [1, 2, 1, 3],
        "data": [[[[1, 2, 3]], [[4, 5, 6]]]],
    }
    for name, body in (
        ("form.bin", form + b"\r\n--" + BOUNDARY + b"--\r\n"),
        ("images.json", {"images": [{"name": "a.png", "data": text}], "threshold": 0.5}),
        ("tasks.json", tasks),
        ("infer.json", {"inputs": [{**given, "data": [text]}], "outputs": [{"name": "score"}]}),
        ("infer.pixels.json", {"inputs": [pixels]}),
        ("tensor.bin", json.dumps({"inputs": [binary]}).encode() + struct.pack("<I", len(content)) + content),
    ):
        written = body if isinstance(body, bytes) else json.dumps(body).encode()
        (case(folder, name.replace(".", "_")) / name).write_bytes(written)


def answers(folder: Path) -> None:
    """What a server sends for a file of which 20 bytes are there already: head and body."""
    size, rest = len(DOWNLOAD), DOWNLOAD[20:]
    about = b'ETag: "1"\r\nContent-Type: application/octet-stream\r\n'
    for name, head, body in (
        ("whole", b"200 OK\r\nContent-Length: %d\r\n" % size, DOWNLOAD),
        ("unknown", b"200 OK\r\n", DOWNLOAD),
        ("rest", b"206 Partial Content\r\nContent-Range: bytes 20-%d/%d\r\n" % (size - 1, size), rest),
        ("chunks", b"200 OK\r\nTransfer-Encoding: chunked\r\n", b"%x\r\n%s\r\n0\r\n\r\n" % (size, DOWNLOAD)),
        ("elsewhere", b"302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n", b""),
        ("busy", b"503 Busy\r\nRetry-After: 1\r\nContent-Length: 4\r\n", b"busy"),
    ):
        (case(folder, name) / "answer.http").write_bytes(b"HTTP/1.1 " + head + about + b"\r\n" + body)


def tokenizers(folder: Path) -> None:
    from anomalyclip.clip.registry import ASSETS

    shutil.copyfile(ASSETS / "micro" / "tokenizer.json", case(folder, "micro") / "tokenizer.json")
