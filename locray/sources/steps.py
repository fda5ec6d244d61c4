"""Listing in parallel: work that finds more work, in a few threads. Used by the folder and object store sources."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Found:
    """What a step gave: rows, and the steps that follow from it (another page, the folders below)."""

    batches: list[pa.RecordBatch] = field(default_factory=list)
    steps: list["Step"] = field(default_factory=list)


Step = Callable[[], Found]


def run_steps(steps: Iterable[Step], num_threads: int) -> Iterator[pa.RecordBatch]:
    """Runs steps, and those that they lead to, and yields their batches as they come.

    At most `num_threads` steps are under way or wait for the consumer, so that a slow consumer slows the listing down.
    The newest step goes first: few are waiting at any time, as in a search in depth. The first error ends it all.
    """
    waiting = list(steps)
    under_way: set[Future[Found]] = set()
    with ThreadPoolExecutor(num_threads, thread_name_prefix="listing") as threads:
        try:
            while waiting or under_way:
                while waiting and len(under_way) < num_threads:
                    under_way.add(threads.submit(waiting.pop()))
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                for future in done:
                    found = future.result()
                    waiting += found.steps
                    yield from found.batches
        finally:
            threads.shutdown(wait=True, cancel_futures=True)
