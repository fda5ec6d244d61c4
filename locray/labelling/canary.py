"""Images fetched when a run began: if they no longer can be, failures are not the images' fault. Called by run.py."""

from dataclasses import dataclass

from locray import schema
from locray.errors import DeferralCause, ErrorCode
from locray.images.fetch import Deferred, Fetched, FetchRequest, fetch_images
from locray.labelling.worklist import Worklist
from locray.storage.s3 import CHECK_RETRIES

CONTROL_IMAGES = 5


@dataclass(frozen=True, slots=True)
class CanaryImages:
    """Some small images of the run, which the driver has fetched itself; none if it could not."""

    images: list[FetchRequest]
    max_bytes: int

    @classmethod
    def of(cls, worklist: Worklist, max_bytes: int) -> "CanaryImages":
        """Takes the smallest images of the first unit, which `Difference.write` has drawn from everywhere.

        To be called before the workers begin: what is lost later was there then. A driver without rights of its own
        on the images can't tell anything, and has none.
        """
        if not worklist.num_images:
            return cls([], max_bytes)
        first = worklist.read_unit(0).sort_by(schema.SIZE_BYTES).slice(0, CONTROL_IMAGES)
        names = (schema.IMAGE_URI, schema.ETAG, schema.SIZE_BYTES)
        images = [FetchRequest(*image) for image in zip(*(first[name].to_pylist() for name in names), strict=True)]
        outcomes = fetch_images(images, max_bytes=max_bytes, retries=CHECK_RETRIES)
        return cls([images[index] for index, outcome in outcomes if isinstance(outcome, Fetched)], max_bytes)

    def lost(self) -> ErrorCode | DeferralCause | None:
        """Why none of them can be fetched any more; None where one can, and where there are none."""
        outcomes = [
            outcome for _, outcome in fetch_images(self.images, max_bytes=self.max_bytes, retries=CHECK_RETRIES)
        ]
        if not outcomes or any(isinstance(outcome, Fetched) for outcome in outcomes):
            return None
        deferred = [outcome.cause for outcome in outcomes if isinstance(outcome, Deferred)]
        return deferred[0] if deferred else next(o.code for o in outcomes if not isinstance(o, Fetched | Deferred))
