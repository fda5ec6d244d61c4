"""What a source of images is, and what sources share. Used by the sources, and by whatever lists images."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, Self

import pyarrow as pa

from locray.schema import LAST_MODIFIED, LISTING_SCHEMA, TIMESTAMP

BATCH_ROWS = 10_000


class Source(Protocol):
    """Lists images."""

    def check(self, *, may_be_empty: bool = False) -> None:
        """Makes sure, before any work starts, that the listing can be had.

        Args:
            may_be_empty: Whether a name that nothing is found under is right, since something was there before. A
                folder or table that is there is right in any case.

        Raises:
            UsageError: what the user named is not what it should be.
            StoreAccessError: it is missing, denied or does not answer.
        """

    def lists(self, uri: str) -> bool:
        """Whether the listing takes up a file at this normalised URI, were there one: asks neither disk nor store."""

    def listing(self) -> Iterator[pa.RecordBatch]:
        """All images, as batches of `LISTING_SCHEMA` of at most `BATCH_ROWS` rows, in no particular order.

        An image may come twice (a table may name it twice): the worklist takes it once.

        Raises:
            UsageError: a row names no image.
            StoreError: a part can't be listed. A listing is whole or it fails: it leaves out nothing silently.
        """


class NamedSource(Source, Protocol):
    """A source that `--images` names: one class per kind of place, in its own module, listed in `SOURCES`."""

    @classmethod
    def from_uri(cls, images: str, uri_column: str | None) -> Self | None:
        """The source that a normalised `--images` names, or None where it names none of this kind.

        Looks at the name and at local files, and never asks a store.
        """


def listing_batch(
    uris: Sequence[str],
    etags: Sequence[str | None],
    sizes_bytes: Sequence[int | None],
    modified_us: Sequence[int | None],
) -> pa.RecordBatch:
    """Columns as a batch of `LISTING_SCHEMA`; `modified_us` in microseconds since 1970."""
    modified = pa.array(modified_us, pa.int64()).cast(TIMESTAMP)
    types = [field.type for field in LISTING_SCHEMA if field.name != LAST_MODIFIED]
    columns = [pa.array(values, type_) for values, type_ in zip((uris, etags, sizes_bytes), types, strict=True)]
    return pa.RecordBatch.from_arrays([*columns, modified], schema=LISTING_SCHEMA)


def rebatch(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of `BATCH_ROWS`, the last one smaller: listings arrive in crumbs and in lumps."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= BATCH_ROWS:
            rows = pa.concat_batches(waiting)
            whole = len(rows) - len(rows) % BATCH_ROWS
            yield from (rows.slice(start, BATCH_ROWS) for start in range(0, whole, BATCH_ROWS))
            waiting = [rows.slice(whole)]
    if any(map(len, waiting)):
        yield pa.concat_batches(waiting)
