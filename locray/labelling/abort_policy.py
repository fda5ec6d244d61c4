"""When to end a run before its worklist: no remaining image could be labelled either.

If all images fail, the cause is the store, the model or the credentials, and not any of the images.
"""

from dataclasses import dataclass

from locray import schema
from locray.errors import DeferralCause, ErrorCode
from locray.images.fetch import Deferred, Fetched, FetchRequest, fetch_images
from locray.labelling.committer import Committer
from locray.labelling.worklist import Worklist
from locray.storage.retries import CHECK_RETRIES

MIN_IMAGES_BEFORE_ABORT = 200
"""Images to try before a run ends because none of them could be labelled."""
MIN_UNITS_BEFORE_ABORT = 2
"""Units that these come from: a single one may be deferred for a reason that affects no other."""
MAX_OUTAGE_S = 300.0
"""How long a run continues while all images are deferred."""
MAX_CANARY_IMAGES = 5

_ADVICE: dict[str, str] = {
    ErrorCode.ACCESS_DENIED: "The credentials in use need s3:GetObject on the images; files, permission to read them",
    ErrorCode.NOT_FOUND: "The list names images that do not exist: use a newer list, or run where the images are",
    ErrorCode.CHANGED: "The list names images that were replaced since: use a newer list",
    ErrorCode.MODEL_ERROR: "The model fails on every image: check the machines that run it",
    ErrorCode.NON_FINITE: "The model's outputs are not finite: train it again, or check the machines that run it",
    DeferralCause.CREDENTIALS: "There are no valid AWS credentials; `aws sts get-caller-identity` shows what is found",
}


@dataclass(frozen=True, slots=True)
class CanaryImages:
    """A few small images that the driver could fetch when the run began. Empty if it has no access to them."""

    images: list[FetchRequest]
    max_bytes: int

    @classmethod
    def fetch(cls, worklist: Worklist, max_bytes: int) -> "CanaryImages":
        """Fetches the smallest images of the first unit, which holds a random sample of the worklist.

        Call it before the workers start, so that later failures are known to be new.
        """
        if not worklist.num_images:
            return cls([], max_bytes)
        smallest = worklist.read_unit(0).sort_by(schema.SIZE_BYTES).slice(0, MAX_CANARY_IMAGES)
        columns = [smallest[name].to_pylist() for name in (schema.IMAGE_URI, schema.ETAG, schema.SIZE_BYTES)]
        images = [FetchRequest(*image) for image in zip(*columns, strict=True)]
        outcomes = fetch_images(images, max_bytes=max_bytes, retries=CHECK_RETRIES)
        return cls([images[index] for index, outcome in outcomes if isinstance(outcome, Fetched)], max_bytes)

    def failure(self) -> ErrorCode | DeferralCause | None:
        """Fetches them again. Returns why all of them fail; None if one succeeds or there are none."""
        deferred: list[DeferralCause] = []
        failed: list[ErrorCode] = []
        for _, outcome in fetch_images(self.images, max_bytes=self.max_bytes, retries=CHECK_RETRIES):
            if isinstance(outcome, Fetched):
                return None
            if isinstance(outcome, Deferred):
                deferred.append(outcome.cause)
            else:
                failed.append(outcome.code)
        if deferred:
            return deferred[0]
        return failed[0] if failed else None


@dataclass
class AbortPolicy:
    """Decides after each unit whether the run continues."""

    max_outage_s: float = MAX_OUTAGE_S
    _num_units: int = 0
    _num_with_row: int = 0
    _num_deferred_before_outage: int = 0
    _last_row_at_s: float | None = None

    def abort_reason(self, committer: Committer, now_s: float) -> str | None:
        """Returns why the run should end, or None if it should continue. Call it once per unit.

        Args:
            committer: Counts the outcomes of the images.
            now_s: Seconds of a monotonic clock.
        """
        self._num_units += 1
        reason = self._reason(committer, now_s)
        return None if reason is None else f"the run was aborted: {reason}"

    def _reason(self, committer: Committer, now_s: float) -> str | None:
        if isinstance(committer.store_failure, ErrorCode):
            advice = _ADVICE.get(committer.store_failure, "")
            return f"images that could be fetched at its start no longer can ({committer.store_failure}). {advice}"
        has_tried_enough = committer.done >= MIN_IMAGES_BEFORE_ABORT and self._num_units >= MIN_UNITS_BEFORE_ABORT
        if committer.ok == 0 and has_tried_enough:
            return why_none_is_labelled(committer)
        num_with_row = committer.ok + committer.failed
        if num_with_row > self._num_with_row or self._last_row_at_s is None:
            self._num_with_row, self._last_row_at_s = num_with_row, now_s
            self._num_deferred_before_outage = committer.deferred
        num_deferred = committer.deferred - self._num_deferred_before_outage
        if num_deferred >= MIN_IMAGES_BEFORE_ABORT and now_s - self._last_row_at_s >= self.max_outage_s:
            return f"the last {num_deferred:,} images were all deferred, for {self.max_outage_s:.0f} s"
        return None


def why_none_is_labelled(committer: Committer) -> str:
    """The causes in a run that has labelled no image, and what to do about the most frequent one."""
    counts = (committer.errors + committer.deferred_causes).most_common()
    causes = ", ".join(f"{cause} {count:,}" for cause, count in counts)
    advice = _ADVICE.get(counts[0][0])
    reason = f"none of the first {committer.done:,} images could be labelled ({causes})"
    return f"{reason}. {advice}" if advice else reason
