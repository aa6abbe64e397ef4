"""Samples to tensors: pixels and masks by the published rule, batches, seeds, errors."""

import numpy as np
import pytest
import torch
from PIL import Image

from anomalyclip.data.dataset import SampleDataset, batches
from anomalyclip.data.meta import Sample, SampleList
from anomalyclip.errors import InputError
from anomalyclip.images import open_image, to_pixels
from tests.conftest import GOLDEN
from tests.data_trees import paint

SIZE = 14


@pytest.fixture
def samples(tmp_path):
    """Eight samples: even ones normal, odd ones anomalous with the left half defect; the last lost its mask."""
    mask = np.zeros((20, 28), dtype=np.uint8)
    mask[:, :14] = 1  # one is enough: every pixel above zero is defect
    Image.fromarray(mask).save(tmp_path / "mask.png")
    listed = []
    for number in range(8):
        paint(tmp_path / f"{number}.png", size=(28, 20), color=number * 30)
        anomaly = bool(number % 2)
        path = "mask.png" if anomaly and number < 7 else None
        listed.append(Sample(f"{number}.png", path, "nut", "bent" if anomaly else "good", anomaly))
    return SampleList(tmp_path, tuple(listed))


def test_an_item_holds_pixels_mask_label_class_and_path(samples):
    item = SampleDataset(samples, SIZE)[1]
    np.testing.assert_array_equal(item.pixels, to_pixels(open_image(samples.root / "1.png"), SIZE))
    assert item.pixels.dtype == torch.float32
    expected = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    expected[:, :7] = True
    assert item.mask.dtype == torch.bool
    assert torch.equal(item.mask, expected)
    assert (item.label, item.has_mask, item.class_name, item.path) == (1, True, "nut", "1.png")


def test_the_mask_is_the_published_one():
    published = np.load(GOLDEN / "preprocess.npz")
    sample = Sample("pre_rgb.png", "pre_mask.png", "x", "", True)
    item = SampleDataset(SampleList(GOLDEN, (sample,)), 518)[0]
    np.testing.assert_array_equal(item.mask.numpy().astype(np.float32), np.squeeze(published["mask"]))


def test_a_normal_image_has_an_empty_mask_that_counts_and_a_lost_mask_is_flagged(samples):
    dataset = SampleDataset(samples, SIZE)
    assert [(dataset[i].mask.any().item(), dataset[i].has_mask) for i in (0, 1, 7)] == [
        (False, True),
        (True, True),
        (False, False),
    ]


def test_batches_have_the_same_fields(samples):
    batch = list(batches(SampleDataset(samples, SIZE), batch_size=3))[2]
    assert batch.pixels.shape == (2, 3, SIZE, SIZE)
    assert batch.mask.shape == (2, SIZE, SIZE)
    assert batch.label.tolist() == [0, 1]
    assert batch.has_mask.tolist() == [True, False]
    assert list(batch.path) == ["6.png", "7.png"]


def test_the_seed_decides_the_order_with_and_without_workers(samples):
    dataset = SampleDataset(samples, SIZE)

    def order(seed, workers=0):
        loader = batches(dataset, batch_size=2, shuffle=True, seed=seed, workers=workers)
        return [[path for batch in loader for path in batch.path] for _ in range(2)]

    first = order(1)
    assert order(1) == order(1, workers=2) == first
    assert order(2) != first
    assert first[0] != first[1]
    assert sorted(first[0]) == [sample.image for sample in samples]


class Dice(SampleDataset):
    """Throws every generator's dice instead of reading."""

    def __getitem__(self, index):
        import random

        return random.random(), np.random.rand(), torch.rand(()).item()


def test_chance_in_workers_is_decided_by_the_seed_and_differs_between_them(samples):
    def thrown(seed):
        loader = batches(Dice(samples, SIZE), batch_size=4, seed=seed, workers=2)
        return [tuple(map(torch.Tensor.tolist, batch)) for batch in loader]

    first = thrown(1)
    assert thrown(1) == first
    assert thrown(2) != first
    assert all(first[0][generator] != first[1][generator] for generator in range(3))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_is_one_message_that_names_it(workers, samples):
    (samples.root / "3.png").write_bytes(b"no image")
    with pytest.raises(InputError) as error:
        list(batches(SampleDataset(samples, SIZE), batch_size=2, workers=workers))
    assert str(error.value).startswith(f"{samples.root}/3.png: not an image")
    assert "Traceback" not in str(error.value)
