"""Generated images: determined by their numbers, exact masks, pairs; and the data set that ``synth`` writes."""

import filecmp
import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

from anomalyclip.data.synthetic import (
    CLASSES,
    DEFECTS,
    HELD_OUT_DEFECTS,
    HELD_OUT_OBJECTS,
    HELD_OUT_SURFACES,
    LEAST_SIZE,
    TRAINING_DEFECTS,
    TRAINING_OBJECTS,
    TRAINING_SURFACES,
    generate,
)
from anomalyclip.data.synthetic.writer import write_dataset
from anomalyclip.errors import AnomalyCLIPError


def files_of(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_there_are_enough_families_and_none_is_both_trained_on_and_held_out():
    assert len(TRAINING_SURFACES) >= 24
    assert len(HELD_OUT_SURFACES) >= 9
    assert len(TRAINING_DEFECTS) + len(HELD_OUT_DEFECTS) >= 12
    assert len(HELD_OUT_DEFECTS) == 2
    assert not set(TRAINING_SURFACES) & set(HELD_OUT_SURFACES)
    assert not set(TRAINING_OBJECTS) & set(HELD_OUT_OBJECTS)
    assert not set(TRAINING_DEFECTS) & set(HELD_OUT_DEFECTS)


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_draws_a_lively_image_of_the_size_asked_for(name):
    sample = generate(name, seed=5, index=1, size=96)
    assert sample.image.shape == (96, 96, 3)
    assert sample.image.dtype == np.uint8
    assert not sample.mask.any()
    assert 10 < sample.image.mean() < 245
    assert sample.image.std() > 2


def test_an_image_is_determined_by_its_seed_and_number_alone():
    first = generate("leather", seed=4, index=9, defect="crack")
    for other in (0, 3):
        generate("wood", seed=other, index=other)
    again = generate("leather", seed=4, index=9, defect="crack")
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.mask, again.mask)
    for seed, index in ((5, 9), (4, 10)):
        assert not np.array_equal(
            first.image, generate("leather", seed=seed, index=index, defect="crack").image
        )


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("name", ["leather", "mesh", "gear"])
def test_a_defect_changes_its_mask_visibly_and_nothing_far_from_it(name, defect):
    sample = generate(name, seed=2, index=3, defect=defect)
    change = np.abs(sample.image.astype(int) - sample.normal).max(axis=2)
    assert sample.mask.sum() >= 12
    assert change[sample.mask].mean() > 0.03 * 255
    # Shadows, lips and soft edges reach a little beyond the mask; nothing else differs.
    assert change[~binary_dilation(sample.mask, iterations=20)].max(initial=0) == 0


def test_the_flawless_twin_is_the_image_without_its_defect():
    damaged = generate("marble", seed=6, index=2, defect="hole")
    flawless = generate("marble", seed=6, index=2)
    assert np.array_equal(damaged.normal, flawless.image)
    assert not np.array_equal(damaged.image, flawless.image)


def test_images_of_one_style_look_alike_and_styles_differ():
    def colour(index: int, style: int) -> np.ndarray:
        return generate("felt", seed=1, index=index, style=style, size=64).image.mean((0, 1))

    styles = [np.stack([colour(index, style) for index in range(3)]) for style in range(6)]
    within = np.mean([images.std(0).mean() for images in styles])
    between = np.stack([images.mean(0) for images in styles]).std(0).mean()
    assert between > 4 * within


def test_a_defect_of_an_object_lies_on_the_object():
    """A washer is a ring around the middle: its bore and the ground outside are never stained."""
    y, x = np.indices((192, 192)) - 95.5
    off = (np.hypot(x, y) < 10) | (np.hypot(x, y) > 90)
    for index in range(20):
        assert not generate("washer", seed=8, index=index, defect="stain").mask[off].any()


@pytest.mark.parametrize("name", ["gear", "bracket", "washer"])
def test_what_is_pulled_beyond_the_outline_of_an_object_is_in_the_mask(name):
    """A bent tooth is where no object was before."""
    for index in range(6):
        sample = generate(name, seed=5, index=index, defect="distortion")
        change = np.abs(sample.image.astype(int) - sample.normal).max(axis=2)
        beyond = change[~binary_dilation(sample.mask, iterations=4)]
        assert (beyond > 25).sum() <= 0.02 * sample.mask.sum()


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_that_was_asked_for_is_there_even_in_the_smallest_image(defect):
    for name in CLASSES:
        assert generate(name, seed=4, index=1, defect=defect, size=LEAST_SIZE).mask.any(), name


def test_what_is_seen_scales_with_the_image():
    """Four times the side, sixteen times the area of a defect, its shadow included."""
    for defect in ("contamination", "thread"):
        areas = []
        for size in (96, 384):
            samples = [generate("felt", seed=3, index=i, defect=defect, size=size) for i in range(8)]
            changed = [np.abs(s.image.astype(int) - s.normal).max(axis=2) > 12 for s in samples]
            areas.append(np.mean([change.mean() for change in changed]))
        assert areas[0] == pytest.approx(areas[1], rel=0.35)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": -1}, "seed -1: expected 0 or more"),
        ({"index": -2}, "index -2: expected 0 or more"),
        ({"style": -3}, "style -3: expected 0 or more"),
        ({"size": 31}, "size 31: expected at least 32 pixels"),
    ],
)
def test_a_number_out_of_range_is_named(given, message):
    with pytest.raises(AnomalyCLIPError, match=message):
        generate("felt", **({"seed": 0, "index": 0} | given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workers": 0}, "workers 0: expected 1 or more"),
        ({"defects": []}, "defects 0: expected 1 or more"),
        ({"classes": []}, "classes 0: expected 1 or more"),
        ({"size": 8}, "size 8: expected 32 or more"),
        ({"normal": 0, "anomalous": 0}, "0 normal and 0 anomalous images: expected at least 1 image"),
    ],
)
def test_a_data_set_of_nothing_is_refused_before_a_folder_is_made(given, message, tmp_path):
    wanted = {"classes": ["felt"], "normal": 1, "anomalous": 1, "seed": 0} | given
    with pytest.raises(AnomalyCLIPError, match=message):
        write_dataset(tmp_path / "set", wanted.pop("classes"), **wanted)
    assert not list(tmp_path.iterdir())


def test_an_unknown_class_or_defect_is_answered_with_what_there_is():
    with pytest.raises(AnomalyCLIPError, match="unknown class 'lether'.*leather"):
        generate("lether", seed=0, index=0)
    with pytest.raises(AnomalyCLIPError, match="unknown defect 'scrach'.*scratch"):
        generate("leather", seed=0, index=0, defect="scrach")


def test_a_data_set_has_the_layout_of_mvtec_and_masks_are_paired_by_name(tmp_path):
    output = tmp_path / "set"
    count = write_dataset(
        output, ["cork", "nut"], normal=2, anomalous=3, seed=3, defects=["hole", "stain"], size=64
    )
    expected = [
        "ground_truth/hole/000_mask.png",
        "ground_truth/hole/001_mask.png",
        "ground_truth/stain/000_mask.png",
    ]
    expected += ["test/good/000.png", "test/good/001.png", "test/hole/000.png", "test/hole/001.png"]
    expected += ["test/stain/000.png", "train/good/000.png", "train/good/001.png"]
    assert files_of(output) == [f"{name}/{file}" for name in ("cork", "nut") for file in expected]
    assert count == 14
    mask = np.asarray(Image.open(output / "cork/ground_truth/hole/001_mask.png"))
    assert mask.shape == (64, 64)
    assert set(np.unique(mask)) == {0, 255}
    images = [
        Image.open(output / "cork" / file).tobytes() for file in expected if not file.startswith("ground")
    ]
    assert len(set(images)) == len(images), "no scene occurs twice"


def test_the_pixels_do_not_depend_on_the_number_of_workers(tmp_path):
    for workers in (1, 2):
        write_dataset(
            tmp_path / str(workers), ["wood"], normal=5, anomalous=7, seed=3, size=48, workers=workers
        )
    names = files_of(tmp_path / "1")
    assert names == files_of(tmp_path / "2")
    same, different, _ = filecmp.cmpfiles(tmp_path / "1", tmp_path / "2", names, shallow=False)
    assert len(same) == 5 + 5 + 7 + 7
    assert not different


def test_a_data_set_appears_whole_or_not_at_all(tmp_path):
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "set", ["wood"], normal=1, anomalous=0, seed=0, size=48, on_image=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_is_killed_leaves_nothing_and_one_message(tmp_path):
    """Killed for real, as the system does when memory runs out."""

    def kill() -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(AnomalyCLIPError, match="killed, perhaps because memory ran out; .*fewer --workers"):
        write_dataset(
            tmp_path / "set", ["wood"], normal=60, anomalous=0, seed=0, size=32, workers=2, on_image=kill
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_second_ctrl_c_while_processes_are_ended_changes_nothing(tmp_path, monkeypatch, error):
    """It used to leave the processes waiting for work, and the program for them."""
    shutdown, signals = ProcessPoolExecutor.shutdown, [signal.SIGINT]

    def interrupted(pool, wait=True, *, cancel_futures=False):
        while signals:
            os.kill(os.getpid(), signals.pop())
        shutdown(pool, wait=wait, cancel_futures=cancel_futures)

    def stop():
        raise error

    monkeypatch.setattr(ProcessPoolExecutor, "shutdown", interrupted)
    with pytest.raises((KeyboardInterrupt, AnomalyCLIPError)):
        write_dataset(
            tmp_path / "set", ["wood"], normal=60, anomalous=0, seed=0, size=32, workers=2, on_image=stop
        )
    assert not signals
    assert multiprocessing.active_children() == []
    assert list(tmp_path.iterdir()) == []


def test_the_folder_that_one_stands_in_is_refused_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AnomalyCLIPError, match="the current folder; choose a new folder"):
        write_dataset(Path("."), ["wood"], normal=1, anomalous=0, seed=0, size=48)


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(AnomalyCLIPError, match="exists and is not empty"):
        write_dataset(tmp_path, ["wood"], normal=1, anomalous=0, seed=0, size=48)
    assert files_of(tmp_path) == ["mine.txt"]


def test_the_command_writes_a_data_set_and_names_the_classes_on_a_wrong_one(tmp_path):
    command = [sys.executable, "-m", "anomalyclip", "synth", str(tmp_path / "set")]
    options = ["--normal", "1", "--anomalous", "1", "--size", "48", "--workers", "1"]
    done = subprocess.run([*command, "--classes", "cork", *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(files_of(tmp_path / "set" / "cork")) == 4
    wrong = subprocess.run(
        [*command[:-1], str(tmp_path / "no"), "--classes", "cor"], capture_output=True, text=True
    )
    assert wrong.returncode == 2
    assert "unknown class 'cor'" in wrong.stderr
    assert "corduroy" in wrong.stderr
    assert not (tmp_path / "no").exists()
