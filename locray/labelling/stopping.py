"""Somebody's wish that a run end before its time: SIGTERM or Ctrl-C. Used by labelling/run.py."""

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")


class _AskedToStop(BaseException):
    """Ends the wait for the next item; not an `Exception`, for libraries to let it pass."""


class StopRequest:
    """Hears the wish at once while the run waits, and after what it is doing otherwise: no commit is cut off."""

    def __init__(self) -> None:
        self.asked_by: str | None = None
        """The signal's name, once it has come."""
        self._waiting = False

    def hear(self, number: int) -> None:
        """Takes note of a signal; to be called by its handler.

        Raises:
            BaseException: into the wait of `until_asked`, which knows it.
        """
        self.asked_by = signal.Signals(number).name
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
    """Until the block ends, the first SIGTERM or Ctrl-C is a wish; the second is what it always was.

    In another thread than the main one, where Python allows no handlers, nobody can wish. A signal that is ignored,
    as Ctrl-C is by what a shell has started in its background, stays ignored.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def hear(number: int, _: object) -> None:
        restore()
        request.hear(number)

    for number in before:
        signal.signal(number, hear)
    try:
        yield request
    finally:
        restore()
