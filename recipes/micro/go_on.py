"""Train the shipped backbone on with photographs: its image tower towards the shipped prompts, words for what is new.

    python -m recipes.micro.data CACHE --photographs FOLDER
    python -m recipes.micro.go_on CACHE RUN [--root DIR]

``log.jsonl`` and ``checkpoint.pt`` are written to RUN; after an interruption the same command resumes from them. With
``--root``, a data set with masks is also measured at every checkpoint.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from recipes.micro import ASSETS, on_photographs, photographs, read_config, run
from recipes.micro.album import load_album
from recipes.micro.captions import write_tokenizer
from recipes.micro.data import ALBUM, draw_pair, resized_mask
from recipes.micro.evaluate import Product, from_folder
from recipes.micro.train import USED_SIZE, Scenes, Texts, Training, run_parser, train
from recipes.micro.views import CATEGORY_OF
from torch import Tensor

from anomalyclip.clip.backbone import load_clip
from anomalyclip.clip.model import CLIP
from anomalyclip.clip.tokenizer import Tokenizer
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import replacing
from anomalyclip.images import normalise, squash
from anomalyclip.metrics import auroc
from anomalyclip.prompts import load_prompts


class MixedScenes(Scenes):
    """Scenes whose steps of nearly whole images come at any time, since the backbone knows both."""

    def framing(self, step: int, patch: int, rng: np.random.Generator) -> tuple[int, int]:
        """Draw the side of a step's crops, and the side that they are shown at."""
        if rng.random() < self.settings["near_full"]:
            return int(rng.integers(172, 193)), USED_SIZE
        return int(rng.integers(128, 193)), patch * int(rng.integers(8, 12))


class GoingOn(Training):
    """Training that starts from the shipped backbone."""

    def __init__(
        self, config: dict[str, Any], settings: dict[str, Any], tokenizer: Path, digest: str
    ) -> None:
        ids = vocabulary(tokenizer)
        super().__init__(config, settings, len(ids), digest)
        shipped = load_clip("micro")
        with torch.inference_mode():
            features = load_prompts(ASSETS / "prompts.safetensors").text_features(shipped)
        self.prompts = features.clone()
        weights = {name: tensor.float() for name, tensor in shipped.state_dict().items()}
        known = vocabulary(ASSETS / "tokenizer.json")
        weights["token_embedding.weight"] = grown(weights["token_embedding.weight"], known, ids)
        self.clip.load_state_dict(weights)
        self.average = {name: tensor.clone() for name, tensor in self.clip.state_dict().items()}


def vocabulary(tokenizer: Path) -> dict[str, int]:
    """Return the tokens of a tokenizer and their numbers."""
    tokens: dict[str, int] = json.loads(tokenizer.read_text())["model"]["vocab"]
    return tokens


def grown(table: Tensor, known: dict[str, int], tokens: dict[str, int]) -> Tensor:
    """Return a table with a row for each token: the known ones', and for new ones random rows of the same spread."""
    generator = torch.Generator().manual_seed(0)
    rows = table.mean(0) + table.std(0) * torch.randn(len(tokens), table.shape[1], generator=generator)
    for token, number in tokens.items():
        if token in known:
            rows[number] = table[known[token]]
    return rows


class PromptValidation:
    """New pairs of surfaces and photographs, and data sets of photographs, scored with the shipped prompts."""

    def __init__(self, settings: dict[str, Any], album: Path, prompts: Tensor, root: Path | None) -> None:
        self.prompts, seed, count = prompts, settings["validation_seed"], settings["validation"]
        pictures = load_album(album)
        surfaces = [draw_pair(seed, index, 0.0)[:2] for index in range(count)]
        pairs = [photographs.draw(pictures, seed, index) for index in range(count)]
        self.products = {
            "surfaces": _product(surfaces),
            "photographs": _product([(np.stack([p.normal, p.image]), p.mask) for p in pairs]),
        }
        for product in from_folder(root, USED_SIZE) if root else ():
            self.products[product.name] = product

    @torch.no_grad()
    def measure(self, clip: CLIP, dpam_layers: int) -> dict[str, float]:
        """Return the AUROC of images, of the highest patch and of patches."""
        figures: dict[str, float] = {}
        last, change = clip.config.vision_layers, self.prompts[1] - self.prompts[0]
        for name, product in self.products.items():
            scores, maps = [], []
            for at in range(0, len(product.images), 40):
                pixels = np.stack([normalise(image) for image in product.images[at : at + 40]])
                found = clip.encode_image(torch.from_numpy(pixels), layers=[last], dpam_layers=dpam_layers)
                scores.append(F.normalize(found.image, dim=-1) @ change)
                maps.append(F.normalize(found.patches[last][:, 1:], dim=-1) @ change)
            image, patches = torch.cat(scores), torch.cat(maps)
            masks = torch.from_numpy(product.masks).float()[:, None]
            grid = F.adaptive_avg_pool2d(masks, USED_SIZE // clip.visual.patch_size).flatten().numpy() > 0.5
            figures |= {
                f"{name}_image": auroc(product.labels, image.numpy()),
                f"{name}_highest": auroc(product.labels, patches.amax(1).numpy()),
                f"{name}_patch": auroc(grid.astype(np.int64), patches.flatten().numpy()),
            }
        return {name: round(float(value), 4) for name, value in figures.items()}


def _product(pairs: Sequence[tuple[NDArray[np.uint8], NDArray[np.bool_]]]) -> Product:
    images = [squash(Image.fromarray(image), USED_SIZE) for both, _ in pairs for image in both]
    empty = np.zeros((USED_SIZE, USED_SIZE), np.bool_)
    masks = [part for _, mask in pairs for part in (empty, resized_mask(mask, USED_SIZE))]
    return Product("", "", np.stack(images), np.stack(masks), np.tile([0, 1], len(pairs)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train on, or resume from the last checkpoint."""
    parser = run_parser(__doc__)
    parser.add_argument(
        "--root", type=Path, help="a data set with masks that is measured at every checkpoint"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    config = read_config()
    settings = on_photographs(config)
    scenes = MixedScenes(options.cache, settings)
    if not (options.cache / ALBUM).is_dir():
        raise AnomalyCLIPError(
            f"{options.cache} has no photographs; make it with: "
            f"python -m recipes.micro.data {options.cache} --photographs FOLDER"
        )
    categories = sorted({*load_album(options.cache / ALBUM).categories, *CATEGORY_OF.values()})
    options.run.mkdir(parents=True, exist_ok=True)
    tokenizer = options.run / "tokenizer.json"
    with replacing(tokenizer) as temporary:
        write_tokenizer(temporary, categories)
    texts = Texts(Tokenizer(tokenizer, context_length=config["model"]["context_length"]), categories)
    training = GoingOn(config, settings, tokenizer, scenes.digest)
    training.restore(options.run / "checkpoint.pt")
    assert training.prompts is not None
    validation = PromptValidation(
        config["photographs"], options.cache / ALBUM, training.prompts, options.root
    )
    print(len(texts.row), "captions,", len(scenes.labels), "scenes", flush=True)
    if not training.steps_done:
        print(
            "shipped backbone:",
            json.dumps(validation.measure(training.clip, training.dpam_layers)),
            flush=True,
        )
    train(training, scenes, texts, config["model"]["patch_size"], options.run, validation)


if __name__ == "__main__":
    run(main)
