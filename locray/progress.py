"""How a run tells how far it is. Reported by the runs, rendered by the console."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from typing import TypeVar

Batch = TypeVar("Batch", bound=Sized)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: `done` of `planned`, and what else is worth with_progress."""

    stage: str
    done: int = 0
    planned: int = 0
    facts: Mapping[str, int | float | str] = field(default_factory=dict)


Report = Callable[[Progress], None]
"""What the runs call, as often as they like."""


def ignore(_: Progress) -> None:
    """A report that goes nowhere."""


def with_progress(listing: Iterable[Batch], report: Report) -> Iterator[Batch]:
    """The same batches; with each, how many images are listed so far is told."""
    listed = 0
    for batch in listing:
        listed += len(batch)
        report(Progress("listing", listed, facts={"listed": listed}))
        yield batch
