"""Somebody's wish that a run end before its time: SIGTERM or Ctrl-C. Used by labelling/run.py."""

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from locray.signals import on_first_signal

Item = TypeVar("Item")


class _AskedToStop(BaseException):
    """Ends the wait for the next item; not an `Exception`, for libraries to let it pass."""


class StopRequest:
    """Hears the wish at once while the run waits, and after what it is doing otherwise: no commit is cut off."""

    def __init__(self) -> None:
        self.asked_by: str | None = None
        """The signal's name, once it has come."""
        self._waiting = False

    def hear(self, number: signal.Signals) -> None:
        """Takes note of a signal; to be called by its handler.

        Raises:
            BaseException: into the wait of `until_asked`, which knows it.
        """
        self.asked_by = number.name
        if self._waiting:
            raise _AskedToStop

    def until_asked(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, until the run is asked to stop; the one that it waits for then is given up."""
        iterator = iter(items)
        while True:
            try:
                self._waiting = True
                if self.asked_by is not None:
                    return
                item = next(iterator)
            except (StopIteration, _AskedToStop):
                return
            finally:
                self._waiting = False
            yield item


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Until the block ends, the first SIGTERM or Ctrl-C is a wish; see `signals.on_first_signal`."""
    request = StopRequest()
    with on_first_signal(request.hear):
        yield request
