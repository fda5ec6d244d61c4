"""Sources made of another source: without some files, or listed once and read several times."""

import os
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from locray.schema import IMAGE_URI, LISTING_SCHEMA
from locray.sources.source import BATCH_ROWS, Source


class ExcludePrefixes:
    """Another source without the URIs that start with one of the prefixes.

    Args:
        source: lists the images.
        prefixes: of normalised URIs.
    """

    def __init__(self, source: Source, prefixes: Sequence[str]) -> None:
        self._source = source
        self._prefixes = prefixes

    def check(self, *, may_be_empty: bool = False) -> None:
        """Checks the other source."""
        self._source.check(may_be_empty=may_be_empty)

    def lists(self, uri: str) -> bool:
        """Whether the other source lists the URI."""
        return self._source.lists(uri)

    def listing(self) -> Iterator[pa.RecordBatch]:
        """The listing of the other source without the excluded URIs."""
        for batch in self._source.listing():
            is_image = pa.repeat(pa.scalar(True), len(batch))
            for prefix in self._prefixes:
                is_image = pc.and_not(is_image, pc.starts_with(batch[IMAGE_URI], prefix))
            yield batch.filter(is_image)


class CachedSource:
    """Another source whose listing is written to this machine's disk while it is read for the first time.

    A nightly run verifies against the same images that it labelled, and a store of 10^8 objects is listed once.

    Args:
        source: lists the images.
        folder: a local folder for the listing.
    """

    def __init__(self, source: Source, folder: str) -> None:
        self._source = source
        self._path = os.path.join(folder, "listing")
        self._is_complete = False

    def check(self, *, may_be_empty: bool = False) -> None:
        """Checks the other source, unless its listing is cached."""
        if not self._is_complete:
            self._source.check(may_be_empty=may_be_empty)

    def lists(self, uri: str) -> bool:
        """Whether the other source lists the URI."""
        return self._source.lists(uri)

    def listing(self) -> Iterator[pa.RecordBatch]:
        """The listing of the other source; from the cache once that was read to its end."""
        return self._read() if self._is_complete else self._list_and_write()

    def _list_and_write(self) -> Iterator[pa.RecordBatch]:
        with pq.ParquetWriter(self._path, LISTING_SCHEMA, compression="zstd") as file:
            for batch in self._source.listing():
                file.write_batch(batch)
                yield batch
        self._is_complete = True

    def _read(self) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(self._path) as file:
            yield from (batch.cast(LISTING_SCHEMA) for batch in file.iter_batches(BATCH_ROWS))
