"""What a user points at becomes image files, and names for their results."""

import pytest

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.inputs import find_images, read_list


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in ("a/1.png", "a/deep/2.JPG", "b/1.png", "b/notes.txt", "a/.hidden.png", "a/.cache/3.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*paths):
    return [image.name for image in find_images(paths)]


def test_a_folder_is_searched_recursively_and_results_are_named_below_it(tree):
    assert names("a") == ["1.png", "deep/2.JPG"]


def test_several_folders_keep_their_names_so_that_results_do_not_collide(tree):
    assert names("a", "b") == ["a/1.png", "a/deep/2.JPG", "b/1.png"]


def test_a_file_is_named_by_itself(tree):
    assert names(tree / "b" / "1.png") == ["1.png"]
    assert names("a/1.png", "b/1.png") == ["a/1.png", "b/1.png"]


def test_a_named_file_is_taken_whatever_its_ending(tree):
    assert names("b/notes.txt") == ["notes.txt"]


def test_what_is_pointed_at_twice_is_listed_once(tree):
    assert names("a", "a/1.png", "a") == ["1.png", "deep/2.JPG"]


def test_a_pattern_matches_files_and_folders(tree):
    assert names("*/1.png") == ["a/1.png", "b/1.png"]
    assert names("**/*.JPG") == ["2.JPG"]


def test_a_name_with_brackets_that_exists_is_no_pattern(tree):
    (tree / "b" / "part[1].png").touch()
    assert names("b/part[1].png") == ["part[1].png"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nowhere", "no such file or folder"),
        ("*.png", "nothing matches this pattern"),
        ("empty", "no images in this folder"),
    ],
)
def test_what_is_not_there_is_said(path, says, tree):
    (tree / "empty").mkdir()
    with pytest.raises(AnomalyCLIPError, match=says):
        names(path)


def test_a_list_is_read_as_it_comes():
    endless = (f"part {i}.png\n" for i in iter(int, 1))
    images = read_list(endless)
    assert next(images).path == "part 0.png"


def test_lists_keep_odd_names_and_skip_empty_lines(tree):
    images = list(read_list([" leading.png\n", "\r\n", "../up.png\r\n", f"{tree}/a/1.png"]))
    assert [image.path for image in images] == [" leading.png", "../up.png", f"{tree}/a/1.png"]
    assert [image.name for image in images] == [" leading.png", "../up.png", "a/1.png"]


def test_a_link_that_leads_back_is_followed_once(tree):
    (tree / "a" / "up").symlink_to("..", target_is_directory=True)
    (tree / "a" / "self").symlink_to(".", target_is_directory=True)
    listed = [image.path for image in find_images(["a"])]
    assert listed.count("a/1.png") == 1
    assert len(listed) <= 4


def test_results_of_earlier_runs_are_no_input(tree):
    results = tree / "a" / "results" / "heatmaps"
    results.mkdir(parents=True)
    (results.parent / "predictions.jsonl").touch()
    (results / "1.png").touch()
    assert names("a") == ["1.png", "deep/2.JPG"]
    assert names("a/results/heatmaps") == ["1.png"]


def test_a_folder_that_cannot_be_read_is_an_error_and_not_an_empty_one(tree):
    images = find_images(["a"])
    assert next(images).name == "1.png"
    (tree / "a" / "deep" / "2.JPG").unlink()
    (tree / "a" / "deep").rmdir()  # gone between the listing of "a" and its own
    with pytest.raises(AnomalyCLIPError, match="deep: cannot read this folder"):
        list(images)
