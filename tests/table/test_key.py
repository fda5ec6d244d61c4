"""Writing, reading and choosing keys of predictions."""

import pytest

from locray.errors import UsageError
from locray.table.key import KeySelector, PredictionKey, choose_key

A, B = PredictionKey("net@0123456789ab", "ba9876543210"), PredictionKey("net@0123456789ab", "000000000000")


def test_selectors_are_read_as_keys_are_written() -> None:
    selector = KeySelector.parse(str(A))
    assert selector is not None
    assert (selector.key, str(selector)) == (A, str(A))
    assert KeySelector.parse(A.model_id) == KeySelector(A.model_id)


@pytest.mark.parametrize("text", ["/models/net", "net@0123456789ab/", "net@0123456789AB", f"{A}/", "s3://b/net@0123"])
def test_other_texts_are_no_selectors(text: str) -> None:
    assert KeySelector.parse(text) is None


def test_the_only_matching_key_is_chosen() -> None:
    assert choose_key({A: 1}, None, "t") == A
    assert choose_key({A: 1, B: 2}, KeySelector(B.model_id, B.config_hash), "t") == B


def test_several_matching_keys_are_refused() -> None:
    with pytest.raises(UsageError, match=rf"several models or configurations: {A} \(1,000 rows\); {B} \(2 rows\)"):
        choose_key({A: 1000, B: 2}, KeySelector(A.model_id), "t")


def test_a_key_without_rows_is_refused_unless_it_may_be_absent() -> None:
    other = KeySelector("other@000000000000", "c" * 12)
    with pytest.raises(UsageError, match=f"t holds no rows of {other}. Found: {A}"):
        choose_key({A: 1}, other, "t")
    assert choose_key({A: 1}, other, "t", may_be_absent=True) == other.key
    assert choose_key({}, KeySelector("other@000000000000"), "t", may_be_absent=True) is None
