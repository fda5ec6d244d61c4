"""A source that is listed once and read several times, each time the same. Used by the nightly run."""

import os
from collections.abc import Iterator
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from locray.schema import LISTING_SCHEMA
from locray.sources import Source
from locray.sources.source import BATCH_ROWS


class KeptSource:
    """Another source whose listing is written down on this machine while it is read for the first time.

    What is labelled is then verified against the same images, and a store of 10^8 is asked once a night.

    Args:
        source: lists the images.
        folder: a local one for the listing.
    """

    def __init__(self, source: Source, folder: str) -> None:
        self._source = source
        self._file = os.path.join(folder, "listing")
        self._is_whole = False

    @classmethod
    def from_uri(cls, images: str, uri_column: str | None) -> Self | None:  # noqa: ARG003
        """Nothing: no user names it."""
        return None

    def check(self, *, may_be_empty: bool = False) -> None:
        """As of the other source; a listing that was kept can be had."""
        if not self._is_whole:
            self._source.check(may_be_empty=may_be_empty)

    def lists(self, uri: str) -> bool:
        """As of the other source."""
        return self._source.lists(uri)

    def listing(self) -> Iterator[pa.RecordBatch]:
        """The listing of the first time, once that was read to its end; raises as the other source does until then."""
        return self._kept() if self._is_whole else self._keeping()

    def _keeping(self) -> Iterator[pa.RecordBatch]:
        with pq.ParquetWriter(self._file, LISTING_SCHEMA, compression="zstd") as file:
            for batch in self._source.listing():
                file.write_batch(batch)
                yield batch
        self._is_whole = True

    def _kept(self) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(self._file) as file:
            yield from (batch.cast(LISTING_SCHEMA) for batch in file.iter_batches(BATCH_ROWS))
