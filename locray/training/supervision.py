"""The driver while the workers train: passes on what they say, and a wish to stop to them. Called by the loop."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from signal import Signals

from locray.progress import Progress, Report
from locray.signals import on_first_signal
from locray.training.board import Notes

_POLL_S = 0.5


def supervise(
    work: Callable[[], object], *, read: Callable[[], Notes], ask_to_stop: Callable[[], object], report: Report
) -> Notes:
    """Runs `work` in a thread and reports what is read until it ends; the last notes. Raises what `work` raises.

    Ray Train, in the main thread, would take Ctrl-C for itself and end the process as if all were well. The first
    SIGTERM or Ctrl-C asks the workers to save and end.
    """

    def stop(_: Signals) -> None:
        report(Progress("saving and stopping"))
        ask_to_stop()

    report(Progress("starting workers"))
    with ThreadPoolExecutor(1, thread_name_prefix="ray-train") as threads, on_first_signal(stop):
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
