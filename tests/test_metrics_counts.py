"""Values counted by rank: bins that rise with the value, ranges that hold few enough, thresholds of a share."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from anomalyclip.metrics.counts import BITS, Counts, bins, lowest

floats = st.floats(-2, 2, width=32, allow_subnormal=False)


@given(arrays(np.float32, 50, elements=floats))
def test_bins_rise_with_the_value_and_begin_at_their_lowest(values):
    values = np.sort(values)
    found = bins(values)
    assert (np.diff(found.astype(np.int64)) >= 0).all()
    for index, value in zip(found, values, strict=True):
        assert lowest(int(index)) <= value
        assert int(index) + 1 == 1 << BITS or value < lowest(int(index) + 1)


@given(arrays(np.float32, 300, elements=floats), st.integers(1, 400))
def test_ranges_cover_every_value_once_and_hold_what_they_may(values, capacity):
    counts = Counts()
    counts.add(values)
    held = [values[(values >= low) & (values < high)] for low, high in counts.ranges(capacity)]
    np.testing.assert_array_equal(np.sort(np.concatenate(held)), np.sort(values))
    for part in held:
        assert part.size <= capacity or len(np.unique(bins(part))) == 1


@given(arrays(np.float32, 200, elements=st.floats(0, 1, width=32)), st.floats(0.001, 0.5))
def test_a_threshold_marks_at_most_the_share_and_is_one_bin_wide(values, share):
    counts = Counts()
    counts.add(values)
    edge = counts.threshold(share)
    assert (values >= edge).sum() <= share * values.size
    assert counts.at_or_above(edge) == (values >= edge).sum()
    below = lowest(int(bins(np.array([edge]))[0]) - 1)
    assert (values >= below).sum() > share * values.size
