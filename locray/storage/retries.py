"""Whether, and when, an object store that failed is asked again. Called by images/fetch.py.

Each image has retries of its own, with exponential backoff and full jitter
(https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/). Beside that, the images of a process share
a budget of retries for each cause: a store that is down altogether, or that throttles us, is not asked many times over
for every image.
"""

import random
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import TypeVar

from locray.errors import DeferralCause
from locray.storage.s3 import RetryPolicy
from locray.storage.s3_errors import S3_ERRORS, ErrorKind, error_kind, http_status, response_code

CAPACITY = 1024
"""Retries in a full budget: what the images that a task has in flight may need to sit out 30 seconds of outage."""

REFILL_PER_RESPONSE = 0.2
"""Retries that each response of the store gives back, as in the standard mode of AWS's clients."""

FETCH_RETRIES = RetryPolicy(max_retries=16)
NO_RETRIES = RetryPolicy(max_retries=0)

_RETRYABLE = (
    DeferralCause.THROTTLED,
    DeferralCause.TIMED_OUT,
    DeferralCause.DISCONNECTED,
    DeferralCause.SERVER_ERROR,
)
_THROTTLING_CODES = {
    "RequestLimitExceeded",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "TooManyRequestsException",
}
_THROTTLING_STATUSES = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}

T = TypeVar("T")


def deferral_cause(error: Exception) -> DeferralCause | None:
    """Why nothing is known of an image; None where the store's answer is about the image itself."""
    trouble = error_kind(error)
    if trouble is ErrorKind.CREDENTIALS:
        return DeferralCause.CREDENTIALS
    if trouble is ErrorKind.UNREACHABLE:
        timed_out = "Timeout" in type(error).__name__ or "timed out" in str(error)
        return DeferralCause.TIMED_OUT if timed_out else DeferralCause.DISCONNECTED
    return _cause_of_failure(response_code(error), http_status(error)) if trouble is ErrorKind.UNAVAILABLE else None


def _cause_of_failure(code: str | None, status: int | None) -> DeferralCause:
    if code == "RequestTimeout" or status == HTTPStatus.REQUEST_TIMEOUT:
        return DeferralCause.TIMED_OUT
    if code in _THROTTLING_CODES or status in _THROTTLING_STATUSES:
        return DeferralCause.THROTTLED
    if status is not None and status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return DeferralCause.SERVER_ERROR
    return DeferralCause.STORE


class RetryBudget:
    """The retries that the images of a process share, by cause. Safe in many threads at once."""

    def __init__(self, capacity: float = CAPACITY) -> None:
        self._capacity = capacity
        self._left = dict.fromkeys(_RETRYABLE, capacity)
        self._lock = threading.Lock()
        self.is_exhausted = False
        """Whether a retry was refused and nothing has been heard of the store since."""

    def take(self, cause: DeferralCause) -> bool:
        """Takes a retry, if the cause is one that may pass and there is one left."""
        with self._lock:
            if cause not in self._left:
                return False
            if self._left[cause] < 1:
                self.is_exhausted = True
                return False
            self._left[cause] -= 1
            return True

    def refill(self) -> None:
        """Notes that the store has answered."""
        with self._lock:
            self.is_exhausted = False
            for cause, left in self._left.items():
                self._left[cause] = min(self._capacity, left + REFILL_PER_RESPONSE)


PROCESS_BUDGET = RetryBudget()


def call_with_retries(request: Callable[[], T], retries: RetryPolicy, budget: RetryBudget) -> T:
    """What the store answers to a request, which is made again while image and process have retries left.

    While the budget is spent, a request is made once, and not at once: the store is asked slowly until it answers.

    Raises:
        What the request raises at last. Of `S3_ERRORS`, those that `deferral_cause` knows no cause of are answers, too.
    """
    started = time.monotonic()
    if budget.is_exhausted:
        time.sleep(_jittered(retries.max_backoff_s))
    for attempt in range(retries.max_retries + 1):
        try:
            answer = request()
        except S3_ERRORS as error:
            cause = deferral_cause(error)
            if cause is None:
                budget.refill()
                raise
            wait_s = _jittered(min(retries.max_backoff_s, retries.first_backoff_s * 2**attempt))
            is_last = attempt == retries.max_retries or time.monotonic() - started + wait_s > retries.total_s
            if is_last or not budget.take(cause):
                raise
            time.sleep(wait_s)
        else:
            budget.refill()
            return answer
    raise AssertionError("the last attempt has returned or raised")


def _jittered(longest_s: float) -> float:
    return random.uniform(0, longest_s)  # noqa: S311 (nothing secret)
