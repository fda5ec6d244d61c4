"""SIGTERM and Ctrl-C as a wish that a run end before its time. Used by the runs."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_first_signal(hear: Callable[[signal.Signals], object]) -> Iterator[None]:
    """Until the block ends, the first SIGTERM or Ctrl-C goes to `hear`; the second is what it always was.

    In another thread than the main one, where Python allows no handlers, nothing is heard. A signal that is ignored,
    as Ctrl-C is by what a shell has started in its background, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, _: object) -> None:
        restore()
        hear(signal.Signals(number))

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
