"""Retries of requests to an object store: their number, the waits, and the errors that are retried.

Listings, tables and artifacts are few requests. They are retried by the library that makes them (obstore, boto3,
deltalake), which gets its settings here.

Images are many: while a store is down, each of them would take a full series of retries. They are fetched without the
libraries' retries, by `call_with_retries`: exponential backoff with full jitter
(https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), within a budget of retries that all images
of a process share.
"""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from locray.storage.errors import S3_ERRORS, ErrorKind, error_kind

if TYPE_CHECKING:
    from obstore.store import RetryConfig

BUDGET_CAPACITY = 1024
"""Retries in a full budget: enough for the images that a task has in flight to survive an outage of 30 seconds."""

REFILL_PER_RESPONSE = 0.2
"""Retries that each response of the store gives back, as in the standard mode of AWS's clients."""

_RETRYABLE = (ErrorKind.THROTTLED, ErrorKind.TIMED_OUT, ErrorKind.UNREACHABLE, ErrorKind.SERVER_ERROR)
_ABOUT_THE_OBJECT = (ErrorKind.NO_OBJECT, ErrorKind.NO_BUCKET, ErrorKind.DENIED, ErrorKind.CHANGED)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long a request is tried again on throttling, 5xx, time-outs and broken connections (with jitter)."""

    max_retries: int = 12
    first_backoff_s: float = 0.1
    max_backoff_s: float = 15.0
    total_s: float = 120.0

    def for_boto3(self) -> dict[str, Any]:
        """The `retries` of a botocore configuration."""
        return {"mode": "standard", "total_max_attempts": 1 + self.max_retries}

    def for_obstore(self) -> "RetryConfig":
        """The `retry_config` of an obstore store."""
        return {
            "max_retries": self._object_store_retries,
            "retry_timeout": timedelta(seconds=self.total_s),
            "backoff": {
                "init_backoff": timedelta(seconds=self.first_backoff_s),
                "max_backoff": timedelta(seconds=self.max_backoff_s),
                "base": 2,
            },
        }

    def for_deltalake(self) -> dict[str, str]:
        """Storage options of deltalake."""
        return {"max_retries": str(self._object_store_retries), "retry_timeout": f"{self.total_s:.0f}s"}

    @property
    def _object_store_retries(self) -> int:
        """Retries of obstore and deltalake that take as long as ours.

        Their waits are drawn from between the first one and twice the previous one, so they hardly grow: eight take two
        seconds.
        """
        return 16 * self.max_retries


DEFAULT_RETRIES = RetryPolicy()
CHECK_RETRIES = RetryPolicy(max_retries=2, total_s=15.0)
"""Retries of the checks before a run, where a wrong endpoint should be reported soon."""

FETCH_RETRIES = RetryPolicy(max_retries=16)
"""Retries for one image."""

NO_RETRIES = RetryPolicy(max_retries=0)


class RetryBudget:
    """The retries that the images of a process share, for each kind of error. Safe in many threads."""

    def __init__(self, capacity: float = BUDGET_CAPACITY) -> None:
        self._capacity = capacity
        self._left = dict.fromkeys(_RETRYABLE, capacity)
        self._lock = threading.Lock()
        self.is_exhausted = False
        """Whether a retry was refused and the store has not responded since."""

    def take(self, kind: ErrorKind) -> bool:
        """Takes a retry, if one is left for errors of this kind and they are retried at all."""
        with self._lock:
            if kind not in self._left:
                return False
            if self._left[kind] < 1:
                self.is_exhausted = True
                return False
            self._left[kind] -= 1
            return True

    def refill(self) -> None:
        """Records a response of the store."""
        with self._lock:
            self.is_exhausted = False
            for kind, left in self._left.items():
                self._left[kind] = min(self._capacity, left + REFILL_PER_RESPONSE)


PROCESS_BUDGET = RetryBudget()


def call_with_retries(request: Callable[[], T], retries: RetryPolicy, budget: RetryBudget) -> T:
    """The result of a request, which is made again while the policy and the budget allow.

    While the budget is exhausted, the request is made once and after a wait, so that a store that is down is probed
    slowly.

    Raises:
        What the last attempt raised.
    """
    started = time.monotonic()
    if budget.is_exhausted:
        time.sleep(_jittered(retries.max_backoff_s))
    for attempt in range(retries.max_retries + 1):
        try:
            result = request()
        except S3_ERRORS as error:
            kind = error_kind(error)
            if kind in _ABOUT_THE_OBJECT:
                budget.refill()
                raise
            wait_s = _jittered(min(retries.max_backoff_s, retries.first_backoff_s * 2**attempt))
            is_last = attempt == retries.max_retries or time.monotonic() - started + wait_s > retries.total_s
            if is_last or not budget.take(kind):
                raise
            time.sleep(wait_s)
        else:
            budget.refill()
            return result
    raise AssertionError("the last attempt has returned or raised")


def _jittered(max_wait_s: float) -> float:
    return random.uniform(0, max_wait_s)  # noqa: S311 (nothing secret)
