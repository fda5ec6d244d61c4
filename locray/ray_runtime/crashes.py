"""Counts the processes that died over a piece of work. Ray itself retries indefinitely."""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from locray.ray_runtime.start import start_local_actor

_log = logging.getLogger(__name__)


class CrashCounter:
    """Counts attempts that were begun and never finished, in an actor on the driver's node.

    Made by the driver; pickled along with tasks. The counts are lost if the actor is, and start again at 0.
    """

    def __init__(self) -> None:
        self._attempts = start_local_actor(_Attempts)

    @contextmanager
    def attempt(self, work: str) -> Iterator[int]:
        """One attempt at a piece of work. Yields the number of earlier ones that did not finish."""
        import ray
        from ray.exceptions import RayError

        crashes = 0
        with suppress(RayError):
            crashes = ray.get(self._attempts.begin.remote(work))
        yield crashes
        self._attempts.finish.remote(work)

    def warn(self, message: str) -> None:
        """Keeps a message of a worker for the driver's log."""
        self._attempts.warn.remote(message)

    def log_warnings(self) -> None:
        """Logs the messages of workers, each once. For the driver."""
        import ray
        from ray.exceptions import RayError

        with suppress(RayError):
            for message in ray.get(self._attempts.new_warnings.remote()):
                _log.warning(message)

    @contextmanager
    def task_attempt(self, work: str) -> Iterator[int]:
        """The same for a task of Ray Data: Ray counts its attempts, but has no public way to ask.

        Without the private name this counts as for an actor, and asking suspends the task: Ray may start another one
        in its CPU slot.
        """
        crashes = _attempt_number()
        if crashes is None:
            with self.attempt(work) as crashes:
                yield crashes
        else:
            yield crashes


def _attempt_number() -> int | None:
    """Number of earlier attempts at the current task, from Ray's private count; None without it."""
    try:
        from ray._private.worker import global_worker

        return int(global_worker.core_worker.get_current_task_attempt_number())  # type: ignore[attr-defined]
    except (ImportError, AttributeError):
        return None


class _Attempts:
    """The counts, in the actor's process."""

    def __init__(self) -> None:
        self._unfinished: Counter[str] = Counter()
        self._warnings: dict[str, bool] = {}
        """Whether each one is new."""

    def begin(self, work: str) -> int:
        self._unfinished[work] += 1
        return self._unfinished[work] - 1

    def finish(self, work: str) -> None:
        del self._unfinished[work]

    def warn(self, message: str) -> None:
        self._warnings.setdefault(message, True)

    def new_warnings(self) -> list[str]:
        found = [message for message, is_new in self._warnings.items() if is_new]
        self._warnings = dict.fromkeys(self._warnings, False)
        return found
