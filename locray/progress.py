"""Progress reports of a command, and its speed."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from typing import TypeVar

Batch = TypeVar("Batch", bound=Sized)


@dataclass(frozen=True, slots=True)
class Progress:
    """The current stage with `done` of `planned` items, and further facts to show."""

    stage: str
    done: int = 0
    planned: int = 0
    facts: Mapping[str, int | float | str] = field(default_factory=dict)


Report = Callable[[Progress], None]
"""Progress callback. May be called any number of times."""


def ignore(_: Progress) -> None:
    """Progress callback that does nothing."""


def with_progress(listing: Iterable[Batch], report: Report) -> Iterator[Batch]:
    """Yields the batches unchanged, and reports the number of images listed so far with each."""
    listed = 0
    for batch in listing:
        listed += len(batch)
        report(Progress("listing", listed, facts={"listed": listed}))
        yield batch


MIN_STEADY_S = 1.0
"""Minimum duration of a steady state: in a shorter one, results that were waiting for the first ones distort it."""


class Clock:
    """Times a run. Start-up ends with the first results; the steady state is what follows."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._last: tuple[float, int] | None = None

    def tick(self, num_done: int) -> None:
        """Records that `num_done` images are done now."""
        self._last = (time.monotonic(), num_done)
        self._first = self._first or self._last

    @property
    def wall_s(self) -> float:
        """Seconds since the run started."""
        return time.monotonic() - self._started

    @property
    def startup_s(self) -> float:
        """Seconds until the first results; 0 without any."""
        return self._first[0] - self._started if self._first else 0.0

    @property
    def images_per_s_steady(self) -> float | None:
        """Images per second after the first results; None while that is too short to measure."""
        if self._first is None or self._last is None:
            return None
        seconds = self._last[0] - self._first[0]
        return (self._last[1] - self._first[1]) / seconds if seconds >= MIN_STEADY_S else None

    def speed(self) -> dict[str, float]:
        """The steady state as a fact to report, if there is one."""
        steady = self.images_per_s_steady
        return {} if steady is None else {"images/s": steady}
