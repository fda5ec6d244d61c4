"""Outcomes of images: the bitmap is compared with a set, the causes with a dictionary."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from locray.errors import DeferralCause, ErrorCode
from locray.labelling.outcomes import Bitmap, ImageOutcomes

CAUSES = [*map(str, DeferralCause), *map(str, ErrorCode)]


@given(st.lists(st.lists(st.integers(0, 99), max_size=30), max_size=10))
def test_bitmap_agrees_with_a_set(batches: list[list[int]]) -> None:
    bitmap, seen = Bitmap(100), set()
    for batch in batches:
        expected = []
        for ordinal in batch:
            expected.append(ordinal not in seen)
            seen.add(ordinal)
        assert bitmap.add(np.array(batch, dtype=np.int64)).tolist() == expected


def test_bitmap_takes_one_bit_an_image() -> None:
    assert Bitmap(1_000_001)._bits.nbytes == 125_001


@given(st.dictionaries(st.integers(0, 99), st.none() | st.sampled_from(CAUSES)))
def test_an_image_is_deferred_for_its_cause_or_as_it_was_not_tried(seen: dict[int, str | None]) -> None:
    outcomes = ImageOutcomes(100)
    outcomes.add(np.array(list(seen), dtype=np.int64))
    deferred = {ordinal: cause for ordinal, cause in seen.items() if cause is not None}
    outcomes.defer(np.array(list(deferred), dtype=np.int64), list(deferred.values()))
    expected = [seen.get(ordinal, str(DeferralCause.NOT_TRIED)) for ordinal in range(100)]
    assert outcomes.causes(np.arange(100)).to_pylist() == expected
