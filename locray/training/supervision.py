"""The driver while the workers train: passes on what they say, and a wish to stop to them. Called by the loop."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from locray.progress import Progress, Report
from locray.training.board import Notes

_POLL_S = 0.5


def supervise(
    work: Callable[[], object], *, read: Callable[[], Notes], ask_to_stop: Callable[[], object], report: Report
) -> Notes:
    """Runs `work` in a thread and reports what is read until it ends; the last notes. Raises what `work` raises.

    Ray Train, in the main thread, would take Ctrl-C for itself and end the process as if all were well.
    """
    report(Progress("starting workers"))
    with ThreadPoolExecutor(1, thread_name_prefix="ray-train") as threads, _signals_ask(ask_to_stop, report):
        running: Future[object] = threads.submit(work)
        shown: Progress | None = None
        while True:
            ended = _wait(running)
            notes = read()
            if notes.progress is not None and notes.progress != shown:
                report(notes.progress)
                shown = notes.progress
            if ended:
                running.result()
                return notes


def _wait(running: Future[object]) -> bool:
    """Whether it has ended, after at most the time between two polls. Sleeps, so that signals are heard."""
    deadline = time.monotonic() + _POLL_S
    while not running.done() and time.monotonic() < deadline:
        time.sleep(_POLL_S / 10)
    return running.done()


@contextmanager
def _signals_ask(ask_to_stop: Callable[[], object], report: Report) -> Iterator[None]:
    """The first SIGTERM or Ctrl-C asks the workers to save and end; the second is what it always was."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}

    def ask(*_: object) -> None:
        for number, handler in before.items():
            signal.signal(number, handler)
        report(Progress("saving and stopping"))
        ask_to_stop()

    for number in before:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
