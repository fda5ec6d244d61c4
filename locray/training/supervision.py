"""The driver while the workers train: shows their progress, and passes on a request to stop.

Ray Train runs its callbacks in a process of its own, from where they can't report to the driver. An actor lies in
between. This module does not import torch, so that its process starts quickly.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from signal import Signals

from locray.progress import Progress, Report
from locray.signals import on_first_signal

_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """Latest status of the workers.

    Attributes:
        progress: None until the first worker has reported.
        failure: Why the run ended, where starting the workers again would only end it again.
    """

    progress: Progress | None = None
    failure: str | None = None


class ProgressActor:
    """Ray actor that holds the workers' progress and failure, and the request to stop."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._failure: str | None = None
        self._stop_requested = False

    def post(self, progress: Progress) -> None:
        """Replaces the progress."""
        self._progress = progress

    def fail(self, message: str) -> None:
        """Sets the reason why the run ends; the first one stays."""
        self._failure = self._failure or message

    def status(self) -> WorkerStatus:
        """Returns the latest status."""
        return WorkerStatus(self._progress, self._failure)

    def request_stop(self) -> None:
        """Asks the workers to save and end."""
        self._stop_requested = True

    def stop_requested(self) -> bool:
        """Whether the workers were asked to save and end."""
        return self._stop_requested


def supervise(
    work: Callable[[], object],
    *,
    read_status: Callable[[], WorkerStatus],
    request_stop: Callable[[], object],
    report: Report,
) -> WorkerStatus:
    """Runs `work` in a thread and reports progress until it ends.

    In the main thread Ray Train would handle Ctrl-C itself and end the process with exit code 0. Here the first
    SIGTERM or Ctrl-C asks the workers to save and end.

    Args:
        work: Blocks until the run is over.
        read_status: Returns the workers' latest status.
        request_stop: Asks the workers to save and end.
        report: Progress callback.

    Returns:
        The last status.

    Raises:
        Exception: any error of `work`.
    """

    def stop(_: Signals) -> None:
        report(Progress("saving and stopping"))
        request_stop()

    report(Progress("starting workers"))
    with ThreadPoolExecutor(1, thread_name_prefix="ray-train") as threads, on_first_signal(stop):
        running: Future[object] = threads.submit(work)
        shown: Progress | None = None
        while True:
            ended = _wait(running)
            status = read_status()
            if status.progress is not None and status.progress != shown:
                report(status.progress)
                shown = status.progress
            if ended:
                running.result()
                return status


def _wait(running: Future[object]) -> bool:
    """Waits for one poll interval or until the work has ended; whether it has. Sleeps, so that signals are handled."""
    deadline = time.monotonic() + _POLL_S
    while not running.done() and time.monotonic() < deadline:
        time.sleep(_POLL_S / 10)
    return running.done()
