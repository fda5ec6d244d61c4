"""SIGTERM and Ctrl-C as a request to stop, which lets a run save its work."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")


@contextmanager
def on_first_signal(handle: Callable[[signal.Signals], object]) -> Iterator[None]:
    """Calls `handle` for the first SIGTERM or Ctrl-C within the block; the second has its usual effect.

    Does nothing outside the main thread, where Python allows no handlers. A signal that is ignored stays ignored, as
    Ctrl-C is in background jobs of a shell.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def restore_and_handle(number: int, _: object) -> None:
        restore()
        handle(signal.Signals(number))

    for number in before:
        signal.signal(number, restore_and_handle)
    try:
        yield
    finally:
        restore()


class _StopRequestedError(BaseException):
    """Interrupts the wait for the next item. Not an `Exception`, so that libraries don't catch it."""


class StopRequest:
    """Stops an iteration: at once while it waits for the next item, otherwise after the current one."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        """Set once the signal has arrived."""
        self._is_waiting = False

    def handle(self, number: signal.Signals) -> None:
        """Signal handler.

        Raises:
            BaseException: into the wait of `until_requested`, which catches it.
        """
        self.signal_name = number.name
        if self._is_waiting:
            raise _StopRequestedError

    def until_requested(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, until a stop is requested."""
        iterator = iter(items)
        while True:
            try:
                self._is_waiting = True
                if self.signal_name is not None:
                    return
                item = next(iterator)
            except (StopIteration, _StopRequestedError):
                return
            finally:
                self._is_waiting = False
            yield item


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Makes the first SIGTERM or Ctrl-C within the block a request to stop; see `on_first_signal`."""
    request = StopRequest()
    with on_first_signal(request.handle):
        yield request
