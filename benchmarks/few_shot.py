"""What decided how few-shot works, what it gains, and what it costs.

Run from the repository's root:

    python -m benchmarks.few_shot decide [--root DIR]   # variants, on generated classes of the training families
    python -m benchmarks.few_shot report                # held-out families, with the rule as it is: the final figures
    python -m benchmarks.few_shot trouble               # references of another product, one with a defect, a coreset
    python -m benchmarks.few_shot copies [--root DIR]   # what tells copies of one reference from different ones
    python -m benchmarks.few_shot many [--count 10000]  # time and memory of many small references
    python -m benchmarks.few_shot cost [--threads N]    # time and memory of ViT-L/14@336 with random weights

Figures are image AUROC / pixel AUROC in percent, means over classes and draws, of the embedded micro backbone. --root
adds a data set in MVTec AD's layout, of which each class is a class here. Held-out families decide nothing: `decide`
never draws them.
"""

import argparse
import io
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from anomalyclip.anomaly import enlarge, highest
from anomalyclip.benchmark import ARCHITECTURES
from anomalyclip.clip.model import CLIP
from anomalyclip.clip.taps import Taps, run
from anomalyclip.clip_core import TextCore
from anomalyclip.data.listing import load_samples
from anomalyclip.data.synthetic import (
    DEFECTS,
    HELD_OUT_OBJECTS,
    HELD_OUT_SURFACES,
    TRAINING_DEFECTS,
    TRAINING_OBJECTS,
    TRAINING_SURFACES,
    generate,
)
from anomalyclip.detector import Detector
from anomalyclip.engines.torch import TorchScorer
from anomalyclip.evaluation.drawing import draw
from anomalyclip.fitting import fit
from anomalyclip.images import read_mask, squash
from anomalyclip.memory import (
    PART,
    coreset,
    distance,
    flattened,
    scale_of,
    unknown_share,
    with_neighbours,
    within,
    without,
)
from anomalyclip.metrics import auroc
from anomalyclip.readers import open_image
from anomalyclip.references import views
from anomalyclip.remembering import remember

SIZE, SIGMA, STEP = 180, 4.0, 3  # of micro; every third pixel of a map is enough for its AUROC
BLOCKS, LOCAL = (1, 2, 3, 4, 5, 6), (3, 4, 5, 6)
REFERENCES, NORMAL, ANOMALOUS, SEED = 16, 12, 18, 5150


@dataclass(frozen=True)
class Product:
    """Pixels of one class: references, test images, masks and labels."""

    group: str
    name: str
    references: list[NDArray[np.uint8]]
    images: list[NDArray[np.uint8]]
    masks: NDArray[np.bool_]
    labels: NDArray[np.bool_]


def generated(group: str, families: Sequence[str], kinds: Sequence[str]) -> Iterator[Product]:
    """Draw a product of each family: references and test images that do not overlap."""
    for name in families:
        normal = [generate(name, seed=SEED, index=i, style=SEED) for i in range(REFERENCES + NORMAL)]
        defects = [
            generate(name, seed=SEED, index=1000 + i, style=SEED, defect=kinds[i % len(kinds)])
            for i in range(ANOMALOUS)
        ]
        pixels = [squash(Image.fromarray(sample.image), SIZE) for sample in normal + defects]
        masks = [
            np.asarray(Image.fromarray(s.mask).resize((SIZE, SIZE), Image.Resampling.NEAREST))
            for s in normal[REFERENCES:] + defects
        ]
        labels = np.arange(NORMAL + ANOMALOUS) >= NORMAL
        yield Product(group, name, pixels[:REFERENCES], pixels[REFERENCES:], np.stack(masks), labels)


def from_folder(root: Path) -> Iterator[Product]:
    """Read a data set with normal training images and masks."""
    training, test = load_samples(root, phase="train"), load_samples(root)
    for name in test.classes:
        mine = [sample for sample in test if sample.class_name == name]
        empty = np.zeros((SIZE, SIZE), np.bool_)
        yield Product(
            "photographs",
            name,
            [
                squash(open_image(training.root / s.image), SIZE)
                for s in training
                if s.class_name == name and not s.anomaly
            ],
            [squash(open_image(test.root / sample.image), SIZE) for sample in mine],
            np.stack([read_mask(test.root / s.mask, SIZE) if s.mask else empty for s in mine]),
            np.array([sample.anomaly for sample in mine]),
        )


class Features:
    """Everything that the variants need of a product's images, from one pass of each."""

    def __init__(self, scorer: TorchScorer, images: Sequence[NDArray[np.uint8]]) -> None:
        core = scorer.core
        assert isinstance(core, TextCore)
        taps = Taps(plain=BLOCKS, local=LOCAL, path=core.path)
        kept: dict[str, list[Tensor]] = {}
        texts = []
        with torch.inference_mode():
            for start in range(0, len(images), 8):
                batch = scorer.normalised(np.stack(images[start : start + 8]))
                found = run(core.visual, batch, core.positions, taps | core.taps)
                texts.append(core.compare(found))
                for block in BLOCKS:
                    kept.setdefault(f"{block}", []).append(found.plain[block][:, 1:])
                for block in LOCAL:
                    kept.setdefault(f"local {block}", []).append(found.local[block][:, 1:])
                kept.setdefault("projected", []).append(core.project(found.local[LOCAL[-1]])[:, 1:])
        self.tokens = {name: torch.cat(parts) for name, parts in kept.items()}
        self.scores, self.maps = (torch.cat(parts) for parts in zip(*texts, strict=True))


@dataclass(frozen=True)
class Way:
    """One variant of the rule: which tokens, what of their neighbours, and how maps and scores are fused."""

    name: str
    tokens: tuple[str, ...] = ("4", "5")
    neighbours: str = "half"
    fusion: str = "mean"
    share: float = 0.01
    sharp: int = 1

    def features(
        self, tokens: dict[str, Tensor], rows: Sequence[int] | slice = slice(None)
    ) -> dict[str, Tensor]:
        """Return normalised features of some images."""
        kinds: dict[str, Callable[[Tensor], Tensor]] = {
            "none": lambda x: F.normalize(x, dim=-1),
            "half": with_neighbours,
            "mean": lambda x: F.normalize(2 * _mean(x), dim=-1),
        }
        return {name: kinds[self.neighbours](tokens[name][rows]) for name in self.tokens}

    def fused(self, text: Tensor, maps: Tensor, distances: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Return scores and maps."""
        ratio = (distances / scale) ** self.sharp
        memory = (ratio / (1 + ratio)).view(maps.shape)
        if self.fusion == "gated":
            memory = flattened(memory.flatten(1), unknown_share(distances, scale)).view(maps.shape)
        top = highest(enlarge(memory, SIZE, sigma=SIGMA), self.share)
        return {
            "text": (text, maps),
            "memory": (top, memory),
            "mean": ((text + top) / 2, (maps + memory) / 2),
            "gated": ((text + top) / 2, (maps + memory) / 2),
            "3 to 1": ((text + 3 * top) / 4, (maps + 3 * memory) / 4),
            "product": ((text * top).sqrt(), (maps * memory).sqrt()),
            "map's top": (
                (text + highest(enlarge((maps + memory) / 2, SIZE, sigma=SIGMA), self.share)) / 2,
                (maps + memory) / 2,
            ),
        }[self.fusion]


def _mean(tokens: Tensor) -> Tensor:
    side = round(tokens.shape[1] ** 0.5)
    grid = F.normalize(tokens, dim=-1).transpose(1, 2).reshape(len(tokens), -1, side, side)
    return F.avg_pool2d(grid, 3, 1, 1, count_include_pad=False).flatten(2).transpose(1, 2)


def scale_for(way: Way, of: Features, rows: Sequence[int], turned: Features) -> float:
    """Return the fixed scale: the other references, or the turned views of a single one."""
    banks = {name: part.flatten(0, 1) for name, part in way.features(of.tokens, rows).items()}
    if len(rows) == 1:
        first = 7 * rows[0]
        return scale_of(distance(way.features(turned.tokens, slice(first, first + 7)), banks))
    owner = torch.arange(len(rows)).repeat_interleave(of.maps[0].numel())
    single = [
        distance(way.features(of.tokens, [row]), without(banks, dict.fromkeys(banks, owner), number))
        for number, row in enumerate(rows)
    ]
    return scale_of(torch.cat(single))


def figures(product: Product, score: Tensor, grids: Tensor) -> tuple[float, float]:
    """Return image and pixel AUROC."""
    maps = enlarge(grids, SIZE, sigma=SIGMA)[:, ::STEP, ::STEP]
    pixels = np.round(maps.numpy() * 4095).astype(np.float32)  # ties are cheaper to sort
    return auroc(product.labels, score.numpy()), auroc(
        product.masks[:, ::STEP, ::STEP].ravel(), pixels.ravel()
    )


Encoded = tuple[Product, Features, Features, Features]


def encode(scorer: TorchScorer, product: Product) -> Encoded:
    """Return a product with the features of its references, of their turned views, and of its test images."""
    turned = [view for reference in product.references for view in views(reference)[1:]]
    return (
        product,
        Features(scorer, product.references),
        Features(scorer, turned),
        Features(scorer, product.images),
    )


def measure(way: Way, encoded: Encoded, shots: int, seed: int) -> tuple[float, float]:
    """Return image and pixel AUROC of a variant with one draw of references."""
    product, references, turned, test = encoded
    order = [str(number).zfill(3) for number in range(len(product.references))]
    rows = [int(name) for name in draw(order, shots, seed=seed, name=product.name)]
    scale = scale_for(way, references, rows, turned)
    banks = {name: part.flatten(0, 1) for name, part in way.features(references.tokens, rows).items()}
    distances = distance(way.features(test.tokens), banks)
    return figures(product, *way.fused(test.scores, test.maps, distances, scale))


def table(
    title: str, ways: Sequence[Way], products: Sequence[Encoded], shots: Sequence[int], seeds: int
) -> None:
    """Print a line for each variant, and a column for each group and number of references."""
    groups = list(dict.fromkeys(encoded[0].group for encoded in products))
    heads = [f"{group}, {count}" for group in groups for count in shots]
    print(f"\n{title}\n\n| variant | {' | '.join(heads)} |\n|{' --- |' * (len(heads) + 1)}")
    for way in ways:
        cells = []
        for group in groups:
            mine = [encoded for encoded in products if encoded[0].group == group]
            for count in shots:
                found = [measure(way, one, count, seed) for one in mine for seed in range(seeds)]
                image, pixel = (100 * statistics.fmean(values) for values in zip(*found, strict=True))
                cells.append(f"{image:.1f} / {pixel:.1f}")
        print(f"| {way.name} | {' | '.join(cells)} |", flush=True)


def decide(scorer: TorchScorer, root: Path | None) -> None:
    """Print all variants that were tried."""
    kinds, surfaces = list(TRAINING_DEFECTS), list(TRAINING_SURFACES)[::4]
    products = [*generated("surfaces", surfaces, kinds), *generated("objects", list(TRAINING_OBJECTS), kinds)]
    products += [] if root is None else from_folder(root)
    encoded = [encode(scorer, product) for product in products]
    single = [(name,) for name in ("2", "3", "4", "5", "6", "local 4", "local 6", "projected")]
    several = [("2", "4", "6"), ("3", "4", "5", "6"), ("4", "6"), ("4", "5")]
    tokens = [Way(", ".join(names), names, "none", "memory") for names in (*single, *several)]
    table("Tokens (plain path unless local; memory alone, no neighbours)", tokens, encoded, (1, 4), 2)
    about = {"none": "each patch alone", "half": "patch + mean of 3 x 3", "mean": "mean of 3 x 3"}
    ways = [Way(words, neighbours=kind, fusion="memory") for kind, words in about.items()]
    table("Neighbours (blocks 4, 5; memory alone)", ways, encoded, (1, 4), 2)
    ways = [
        Way(f"{100 * share:g} %", fusion="memory", share=share) for share in (0.0, 0.003, 0.01, 0.03, 0.1)
    ]
    table("Share of the memory's map in the image score (0: maximum)", ways, encoded, (1, 4), 2)
    ways = [
        Way(name, fusion=name)
        for name in ("text", "memory", "mean", "3 to 1", "product", "map's top", "gated")
    ]
    table("Fusion of text and memory", ways, encoded, (1, 4), 2)
    ways = [Way(f"(d/s)^{sharp}", sharp=sharp) for sharp in (1, 2, 4)]
    table("Sharpness of the scale, x / (1 + x)", ways, encoded, (1, 4), 2)
    table("The rule as it is", [Way("frozen", fusion="gated")], encoded, (1, 2, 4, 8, 16), 3)


def report(scorer: TorchScorer) -> None:
    """Print the rule as it is on families that decided nothing."""
    kinds = list(DEFECTS)
    groups = {"unseen surfaces": HELD_OUT_SURFACES, "unseen objects": HELD_OUT_OBJECTS}
    products = [
        product for group, names in groups.items() for product in generated(group, list(names), kinds)
    ]
    encoded = [encode(scorer, product) for product in products]
    ways = [Way("without references", fusion="text"), Way("with references", fusion="gated")]
    table("Held-out families", ways, encoded, (1, 4, 16), 3)


def trouble(scorer: TorchScorer) -> None:
    """Print what bad references do."""
    names = [*list(TRAINING_SURFACES)[::6], *list(TRAINING_OBJECTS)[:4]]
    products = list(generated("classes", names, list(TRAINING_DEFECTS)))
    encoded = [encode(scorer, product) for product in products]
    way, detector = Way("frozen", fusion="gated"), Detector(scorer)
    text = [figures(p, test.scores, test.maps) for p, _, _, test in encoded]
    right = [measure(way, one, 4, 0) for one in encoded]
    wrong, lowest, highest_right = [], [], []
    for number, (product, *_) in enumerate(encoded):
        other = remember(
            detector, fit(detector, list(map(Image.fromarray, products[number - 1].references[:4])))
        )
        own = remember(detector, fit(detector, list(map(Image.fromarray, product.references[:4]))))
        found = other.predict(product.images)
        maps = torch.stack([torch.from_numpy(item.anomaly_map) for item in found])[:, ::STEP, ::STEP]
        scores = np.array([item.pred_score for item in found])
        truth = product.masks[:, ::STEP, ::STEP].ravel()
        wrong.append((auroc(product.labels, scores), auroc(truth, maps.numpy().ravel())))
        lowest.append(scores.min())
        highest_right.append(max(item.pred_score for item in own.predict(product.images[:NORMAL])))
    for name, values in (
        ("without references", text),
        ("4 references", right),
        ("4 of another product", wrong),
    ):
        image, pixel = (100 * statistics.fmean(part) for part in zip(*values, strict=True))
        print(f"{name}: {image:.1f} / {pixel:.1f}")
    print(f"lowest score with references of another product: {min(lowest):.2f}")
    print(f"highest score of a normal image with its own references: {max(highest_right):.2f}")
    _one_with_a_defect(encoded, way)
    _reduced(encoded, way)


def _one_with_a_defect(encoded: Sequence[Encoded], way: Way) -> None:
    clean, spoilt, ratios, others = [], [], [], []
    for product, references, _, test in encoded:
        defect = int(np.flatnonzero(product.labels)[0])
        features = way.features(references.tokens)
        bad = way.features(test.tokens, [defect])
        mixed = {name: torch.cat([part[:-1], bad[name]]) for name, part in features.items()}
        for banks, found in ((features, clean), (mixed, spoilt)):
            flat = {name: part.flatten(0, 1) for name, part in banks.items()}
            owner = torch.arange(REFERENCES).repeat_interleave(test.maps[0].numel())
            out = torch.cat(
                [
                    distance(
                        {k: v[[i]] for k, v in banks.items()}, without(flat, dict.fromkeys(flat, owner), i)
                    )
                    for i in range(REFERENCES)
                ]
            )
            keep = [i for i in range(len(product.labels)) if i != defect]
            distances = distance(way.features(test.tokens, keep), flat)
            part = Product("", "", [], [], product.masks[keep], product.labels[keep])
            found.append(
                figures(part, *way.fused(test.scores[keep], test.maps[keep], distances, scale_of(out)))
            )
        tops = out.topk(2, dim=1).values.mean(dim=1)
        ratios.append(float(tops[-1] / tops[:-1].median()))
        others.append(float(tops[:-1].max() / tops[:-1].median()))
    for name, values in (("16 normal references", clean), ("one of 16 with a defect", spoilt)):
        image, pixel = (100 * statistics.fmean(part) for part in zip(*values, strict=True))
        print(f"{name}: {image:.1f} / {pixel:.1f}")
    print(
        f"farthest patches, of the median: with a defect {np.round(ratios, 1)}, normal {np.round(others, 1)}"
    )


def _reduced(encoded: Sequence[Encoded], way: Way) -> None:
    for share, part in (
        (1.0, PART),
        (0.5, PART),
        (0.25, PART),
        (0.1, PART),
        (0.03, PART),
        (0.1, 450),
        (0.03, 450),
    ):
        found = []
        for product, references, turned, test in encoded:
            banks = {name: bank.flatten(0, 1) for name, bank in way.features(references.tokens).items()}
            rows = coreset(banks, round(share * len(next(iter(banks.values())))), part=part)
            distances = distance(
                way.features(test.tokens), {name: bank[rows] for name, bank in banks.items()}
            )
            scale = scale_for(way, references, range(REFERENCES), turned)
            found.append(figures(product, *way.fused(test.scores, test.maps, distances, scale)))
        image, pixel = (100 * statistics.fmean(values) for values in zip(*found, strict=True))
        apart = f" in parts of {part}" if part < PART else ""
        print(f"16 references, coreset of {100 * share:g} %{apart}: {image:.1f} / {pixel:.1f}")


def copies(scorer: TorchScorer, root: Path | None) -> None:
    """Print the scale of different references and of copies of one, as shares of the distances within each of them."""
    kinds, surfaces = list(TRAINING_DEFECTS), list(TRAINING_SURFACES)[::4]
    products = [*generated("surfaces", surfaces, kinds), *generated("objects", list(TRAINING_OBJECTS), kinds)]
    products += [] if root is None else from_folder(root)
    heads = "4 different | 16 different | noise of 1 level | of 3 levels | JPEG of 95 to 75 | moved by 1 or 2 pixels"
    print(f"| product | {heads} |\n|{' --- |' * 7}")
    way = Way("frozen")
    for product in products:
        first, chance = product.references[0], np.random.default_rng(0)
        noisy = {
            level: [
                np.clip(first + chance.normal(0, level, first.shape), 0, 255).astype(np.uint8)
                for _ in range(3)
            ]
            for level in (1, 3)
        }
        moved = [np.roll(first, *by) for by in ((1, 0), (1, 1), (2, 1))]
        groups = (
            product.references[:4],
            product.references[:16],
            [first, *noisy[1]],
            [first, *noisy[3]],
            [first, *(_as_jpeg(first, quality) for quality in (95, 85, 75))],
            [first, *moved],
        )
        cells = []
        for images in groups:
            of = Features(scorer, images)
            inside = within(way.features(of.tokens))
            assert inside is not None
            cells.append(f"{scale_for(way, of, range(len(images)), of) / scale_of(inside):.3f}")
        print(f"| {product.name} | {' | '.join(cells)} |", flush=True)


def _as_jpeg(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=quality)
    return np.asarray(Image.open(content).convert("RGB"))


def many(scorer: TorchScorer, count: int) -> None:
    """Print what many small references cost."""

    def references() -> Iterator[NDArray[np.uint8]]:
        chance = np.random.default_rng(0)
        drawn = [generate("tablet", seed=1, index=i, style=1).image for i in range(60)]
        small = [np.asarray(Image.fromarray(image).resize((96, 96))) for image in drawn]
        for number in range(count):
            moved = np.roll(small[number % len(small)], chance.integers(-6, 7, 2), (0, 1)).astype(np.float64)
            yield np.clip(moved + chance.normal(chance.integers(-8, 9), 2, moved.shape), 0, 255).astype(
                np.uint8
            )

    start = time.process_time()
    memory = fit(Detector(scorer), references())
    print(
        f"{count} references: {time.process_time() - start:.0f} s of processor time; "
        f"{memory.settings['patches']} patches, of which {memory.patches} are kept; peak memory "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB"
    )


def cost(threads: int) -> None:
    """Print time with and without references, alternating in one process, and the size of a memory."""
    torch.set_num_threads(threads)
    config = ARCHITECTURES["ViT-L-14-336"]
    with torch.inference_mode():
        clip = CLIP(config).eval()
    texts = F.normalize(torch.randn(2, config.embed_dim), dim=-1)
    from anomalyclip.clip.model import LocalPath
    from anomalyclip.memory_core import MemoryCore, PatchMemory
    from anomalyclip.references import Memory

    core = TextCore(clip.visual, config, lambda: texts, path=LocalPath(19))
    core.pack()  # as a detector does
    side, results = core.patch_grid, {}
    for count, blocks in ((4, 2), (4, 4), (16, 2), (16, 4)):
        rows = count * side**2
        numbers = (16, 20) if blocks == 2 else (8, 12, 16, 20)  # the last runs for CLS alone
        banks = {
            f"block {n}": F.normalize(torch.randn(rows, config.vision_width), dim=-1).half() for n in numbers
        }
        piece = torch.arange(count).repeat_interleave(side**2).int()
        memory = Memory(
            banks,
            piece,
            torch.arange(side**2).repeat(count).int(),
            torch.arange(count).int(),
            torch.rand(count, side, side),
            torch.rand(count),
            torch.rand(count, side, side),
            tuple("abcdefghijklmnop"[:count]),
            tuple("abcdefghijklmnop"[:count]),
            {},
            {"patches": rows},
        )
        held = PatchMemory(core, numbers)
        results[count, blocks] = MemoryCore(core, memory, held=held)
    image = torch.randint(0, 256, (1, core.image_size, core.image_size, 3), dtype=torch.uint8)
    times: dict[tuple[int, int], list[float]] = {key: [] for key in [(0, 0), *results]}
    with torch.inference_mode():
        for _ in range(7):
            for key in times:
                start = time.perf_counter()
                (core if key == (0, 0) else results[key])(image)
                times[key].append(time.perf_counter() - start)
    without = min(times[0, 0][1:])
    print(f"without references: {without:.2f} s per image, {threads} threads")
    for (count, blocks), few in results.items():
        ratio = min(times[count, blocks][1:]) / without
        print(
            f"{count} references, {blocks} blocks: {ratio:.3f} times that; memory {few.memory.size / 1e6:.0f} MB"
        )
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["decide", "report", "trouble", "copies", "many", "cost"])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.part == "cost":
        cost(options.threads)
        return
    torch.set_num_threads(options.threads)
    scorer = Detector.from_pretrained("micro", device="cpu").scorer
    assert isinstance(scorer, TorchScorer)
    parts = {"decide": lambda: decide(scorer, options.root), "report": lambda: report(scorer)}
    parts |= {"trouble": lambda: trouble(scorer), "copies": lambda: copies(scorer, options.root)}
    parts["many"] = lambda: many(scorer, options.count)
    parts[options.part]()


if __name__ == "__main__":
    main()
