"""Whether a run should end before its worklist does. Called by labelling/run.py.

It should when somebody asks, and when no further image will change what is wrong: rows of 10^8 images would say
nothing of them.
"""

import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

from locray.errors import DeferralCause, ErrorCode
from locray.labelling.committer import Committer

PROBATION_IMAGES = 200
"""Images to try before a run is given up because not one of them can be labelled."""

OUTAGE_S = 300.0
"""How long a store that gives nothing any more is waited for."""

_ADVICE: dict[str, str] = {
    ErrorCode.ACCESS_DENIED: "The credentials in use need s3:GetObject on the images; files, permission to read them",
    ErrorCode.NOT_FOUND: "Images are listed that are not there: give a newer list, or run where they are",
    ErrorCode.CHANGED: "Images are listed that were replaced since: give a newer list",
    ErrorCode.MODEL_ERROR: "The model has no answer to any image: look at the machines that run it",
    ErrorCode.NON_FINITE: "The model's answers are not finite: train it again, or look at the machines that run it",
    DeferralCause.CREDENTIALS: "There are no valid AWS credentials; `aws sts get-caller-identity` shows what is found",
}


@dataclass
class Judge:
    """Watches a run."""

    outage_s: float = OUTAGE_S
    _settled: int = 0
    _deferred_then: int = 0
    _settled_at_s: float | None = None

    def verdict(self, committer: Committer, now_s: float) -> str | None:
        """Why the run should end; None while it should go on.

        Args:
            committer: What came of the images so far.
            now_s: On a clock that does not jump.
        """
        reason = self._reason(committer, now_s)
        return None if reason is None else f"the run was given up, since {reason}"

    def _reason(self, committer: Committer, now_s: float) -> str | None:
        if isinstance(committer.doubt, ErrorCode):
            advice = _ADVICE.get(committer.doubt, "")
            return f"images that were fetched before can't be any more ({committer.doubt}). {advice}"
        if committer.ok == 0 and committer.answered >= PROBATION_IMAGES:
            return why_none(committer)
        settled = committer.ok + committer.failed
        if settled > self._settled or self._settled_at_s is None:
            self._settled, self._deferred_then, self._settled_at_s = settled, committer.deferred, now_s
        num_deferred = committer.deferred - self._deferred_then
        if num_deferred >= PROBATION_IMAGES and now_s - self._settled_at_s >= self.outage_s:
            return f"the last {num_deferred:,} images were all deferred, for {self.outage_s:.0f} s"
        return None


def why_none(committer: Committer) -> str:
    """What became of the images of a run that has labelled none of them, and what to do."""
    codes = committer.errors + committer.deferred_causes
    told = ", ".join(f"{code} {count:,}" for code, count in codes.most_common())
    advice = _ADVICE.get(codes.most_common(1)[0][0])
    reason = f"none of the first {committer.answered:,} images could be labelled ({told})"
    return f"{reason}. {advice}" if advice else reason


T = TypeVar("T")


class _Asked(BaseException):  # of no kind that a library would catch
    pass


class StopRequest:
    """SIGTERM and Ctrl-C, as a wish: what is under way is finished. The second one is what it always was."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._is_waiting = False

    def until(self, items: Iterator[T]) -> Iterator[T]:
        """Passes the items on until a signal comes, which ends the waiting for one at once.

        Without effect outside of the main thread, which is the only one that gets signals.
        """
        before = {}
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def ask(number: int, _frame: FrameType | None) -> None:
            self.signal_name = signal.Signals(number).name
            for each, handler in before.items():
                signal.signal(each, handler)
            if self._is_waiting:
                raise _Asked

        for number in before:
            signal.signal(number, ask)
        try:
            while self.signal_name is None:
                self._is_waiting = True
                item = next(items)
                self._is_waiting = False
                yield item
        except (StopIteration, _Asked):
            return
        finally:
            self._is_waiting = False
            if self.signal_name is None:
                for number, handler in before.items():
                    signal.signal(number, handler)
