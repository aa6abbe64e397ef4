"""A set of names: exact for millions of names, in few bytes for each."""

import os
import pickle

from hypothesis import given
from hypothesis import strategies as some

from anomalyclip.inputs import ImageFile, Listed
from anomalyclip.names import Names

TEXTS = some.binary(max_size=8).map(os.fsdecode)  # whatever a file may be called


@given(some.lists(TEXTS), some.lists(TEXTS))
def test_names_are_a_set(added, asked):
    names, expected = Names(), set()
    for name in added:
        assert names.add(name) == (name not in expected)
        expected.add(name)
    assert len(names) == len(expected)
    for name in asked:
        assert (name in names) == (name in expected)


def test_a_text_that_no_file_can_be_called_is_a_name_too():
    """A damaged line of a run may hold half a surrogate pair."""
    names = Names()
    assert names.add("a\ud800.png")
    assert "a\ud800.png" in names
    assert "a\ud801.png" not in names


def test_many_names_take_24_bytes_each_at_most_and_none_is_lost_or_made_up():
    names = Names()
    for number in range(50_000):
        assert names.add(f"line/{number}.png")
    assert len(names) == 50_000
    assert 16 <= len(names._slots) / len(names) <= 24
    assert all(f"line/{number}.png" in names for number in range(50_000))
    assert not any(f"line/{number}.png" in names for number in range(50_000, 60_000))


def test_names_that_were_sent_to_another_process_share_their_buffer():
    names = Names()
    for number in range(1000):
        names.add(f"{number}.png")
    buffers = []
    sent = pickle.dumps(names, protocol=5, buffer_callback=buffers.append)
    assert len(sent) < 200
    there = pickle.loads(sent, buffers=buffers)
    assert ("7.png" in there, "7.jpg" in there, len(there)) == (True, False, 1000)
    assert there.add("7.jpg")
    assert ("7.jpg" in there, "7.jpg" in names) == (True, False)
    assert pickle.loads(pickle.dumps(names)).add("7.png") is False


def test_a_long_listing_is_counted_and_read_again_and_again():
    listed = Listed(ImageFile(f"/data/{'x' * 100}/{number}.png", f"{number}.png") for number in range(12_000))
    assert len(listed) == 12_000
    assert listed._file._rolled  # on disk
    first, second = iter(listed), iter(listed)
    assert [next(first).name, next(first).name, next(second).name] == ["0.png", "1.png", "0.png"]
    assert sum(1 for _ in listed) == 12_000
