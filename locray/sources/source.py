"""The interface of a source of images, and what sources share: batches of a listing, and listing in parallel."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Protocol, Self

import pyarrow as pa

from locray.schema import LAST_MODIFIED, LISTING_SCHEMA, TIMESTAMP

BATCH_ROWS = 10_000


class Source(Protocol):
    """Lists images."""

    def check(self, *, may_be_empty: bool = False) -> None:
        """Checks, before any work starts, that the source can be listed.

        Args:
            may_be_empty: Whether finding nothing is fine, since something was found before. A folder or table that
                exists is fine in any case.

        Raises:
            UsageError: the user named something that is not such a source.
            StoreAccessError: it is missing, denied or does not answer.
        """

    def lists(self, uri: str) -> bool:
        """Whether the listing would include a file at this normalised URI. Accesses neither disk nor store."""

    def listing(self) -> Iterator[pa.RecordBatch]:
        """All images, as batches of `LISTING_SCHEMA` of at most `BATCH_ROWS` rows, in no particular order.

        An image may come twice, as a table may name it twice: the worklist takes it once.

        Raises:
            UsageError: a row names no image.
            StoreError: a part can't be listed. A listing is complete or it fails.
        """


class NamedSource(Source, Protocol):
    """A source that `--images` may name, listed in `SOURCES`."""

    @classmethod
    def from_uri(cls, images: str, uri_column: str | None) -> Self | None:
        """The source for a normalised `--images`, or None if it is not of this kind.

        Looks at the name and at local files, and makes no request.
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
    """The same rows in batches of `BATCH_ROWS`, the last one smaller."""
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


@dataclass(frozen=True, slots=True)
class StepResult:
    """Rows that a step of a listing found, and the steps to follow: another page, the folders below."""

    batches: list[pa.RecordBatch] = field(default_factory=list)
    steps: list["Step"] = field(default_factory=list)


Step = Callable[[], StepResult]


def run_steps(steps: Iterable[Step], num_threads: int) -> Iterator[pa.RecordBatch]:
    """Runs steps, and those that they lead to, in parallel, and yields their batches as they come.

    At most `num_threads` steps are running or waiting for the consumer, so a slow consumer slows the listing down. The
    newest step runs first, as in a depth-first search, so that few are waiting at any time. The first error ends it.
    """
    waiting = list(steps)
    running: set[Future[StepResult]] = set()
    with ThreadPoolExecutor(num_threads, thread_name_prefix="listing") as threads:
        try:
            while waiting or running:
                while waiting and len(running) < num_threads:
                    running.add(threads.submit(waiting.pop()))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    result = future.result()
                    waiting += result.steps
                    yield from result.batches
        finally:
            threads.shutdown(wait=True, cancel_futures=True)
