"""A listing that is read once from its source."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from locray import schema
from locray.errors import StoreError
from locray.sources import open_source
from locray.sources.wrappers import CachedSource
from tests.helpers.rows import predicted


class Failing:
    """A source that fails in mid-listing the first time."""

    def __init__(self) -> None:
        self.listings = 0

    def listing(self) -> Iterator[pa.RecordBatch]:
        self.listings += 1
        yield from batches(0, 1)
        if self.listings == 1:
            raise StoreError("gone")
        yield from batches(2)


def batches(*numbers: int) -> list[pa.RecordBatch]:
    rows = predicted(list(numbers)).select(schema.LISTING_SCHEMA.names).cast(schema.LISTING_SCHEMA)
    return list(rows.to_batches())


def test_what_changes_later_is_not_in_it(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.jpg", "b#ü.jpg"):
        (images / name).write_bytes(b"x")
    source = CachedSource(open_source(str(images)), str(tmp_path))
    source.check()
    first = pa.Table.from_batches(source.listing(), schema.LISTING_SCHEMA)
    (images / "c.jpg").write_bytes(b"x")
    (images / "a.jpg").unlink()
    for _ in range(2):
        assert pa.Table.from_batches(source.listing(), schema.LISTING_SCHEMA) == first
    assert source.lists(f"{images}/d.jpg")
    assert not source.lists(f"{tmp_path}/d.jpg")
    (images / "b#ü.jpg").unlink()
    (images / "c.jpg").unlink()
    images.rmdir()
    source.check()


def test_nothing_at_all(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    source = CachedSource(open_source(str(tmp_path / "images")), str(tmp_path))
    assert [list(source.listing()) for _ in range(2)] == [[], []]


def test_half_a_listing_is_not_kept(tmp_path: Path) -> None:
    failing = Failing()
    source = CachedSource(failing, str(tmp_path))  # type: ignore[arg-type]
    with pytest.raises(StoreError):
        list(source.listing())
    for _ in range(2):
        assert pa.Table.from_batches(source.listing()).num_rows == 3
    assert failing.listings == 2
