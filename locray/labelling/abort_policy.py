"""Whether a run should end before its worklist does. Called by labelling/run.py.

It should when no further image will change what is wrong: rows of 10^8 images would say nothing of them.
"""

from dataclasses import dataclass

from locray.errors import DeferralCause, ErrorCode
from locray.labelling.committer import Committer

MIN_IMAGES_BEFORE_ABORT = 200
"""Images to try before a run is given up because not one of them can be labelled."""
PROBATION_UNITS = 2
"""They come from so many units at least: one may be deferred whole, for what says nothing of its images."""

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
class AbortPolicy:
    """Watches a run."""

    outage_s: float = OUTAGE_S
    _units: int = 0
    _settled: int = 0
    _deferred_then: int = 0
    _settled_at_s: float | None = None

    def abort_reason(self, committer: Committer, now_s: float) -> str | None:
        """Why the run should end; None while it should go on. To be asked after each unit.

        Args:
            committer: What came of the images so far.
            now_s: On a clock that does not jump.
        """
        self._units += 1
        reason = self._reason(committer, now_s)
        return None if reason is None else f"the run was given up, since {reason}"

    def _reason(self, committer: Committer, now_s: float) -> str | None:
        if isinstance(committer.quarantine, ErrorCode):
            advice = _ADVICE.get(committer.quarantine, "")
            return f"images that were fetched before can't be any more ({committer.quarantine}). {advice}"
        if committer.ok == 0 and committer.answered >= MIN_IMAGES_BEFORE_ABORT and self._units >= PROBATION_UNITS:
            return why_none(committer)
        settled = committer.ok + committer.failed
        if settled > self._settled or self._settled_at_s is None:
            self._settled, self._deferred_then, self._settled_at_s = settled, committer.deferred, now_s
        num_deferred = committer.deferred - self._deferred_then
        if num_deferred >= MIN_IMAGES_BEFORE_ABORT and now_s - self._settled_at_s >= self.outage_s:
            return f"the last {num_deferred:,} images were all deferred, for {self.outage_s:.0f} s"
        return None


def why_none(committer: Committer) -> str:
    """What became of the images of a run that has labelled none of them, and what to do."""
    codes = committer.errors + committer.deferred_causes
    told = ", ".join(f"{code} {count:,}" for code, count in codes.most_common())
    advice = _ADVICE.get(codes.most_common(1)[0][0])
    reason = f"none of the first {committer.answered:,} images could be labelled ({told})"
    return f"{reason}. {advice}" if advice else reason
