"""The bitmap of seen ordinals against a set."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from locray.labelling.committer import Bitmap


@given(st.lists(st.lists(st.integers(0, 99), max_size=30), max_size=10))
def test_bitmap_agrees_with_a_set(batches: list[list[int]]) -> None:
    bitmap, seen = Bitmap(100), set()
    for batch in batches:
        expected = []
        for ordinal in batch:
            expected.append(ordinal not in seen)
            seen.add(ordinal)
        assert bitmap.add(np.array(batch, dtype=np.int64)).tolist() == expected
    assert bitmap.count() == len(seen)


def test_bitmap_takes_one_bit_an_image() -> None:
    assert Bitmap(1_000_001).num_bytes == 125_001
