"""Images that a run has fetched: if they no longer can be, failures are not the images' fault. Called by run.py."""

import pyarrow as pa
import pyarrow.compute as pc

from locray import schema
from locray.errors import DeferralCause, ErrorCode
from locray.images.fetch import Deferred, Fetched, FetchRequest, fetch_images

CONTROL_IMAGES = 3


class Control:
    """Some small images of the run, which the driver itself has fetched once.

    Args:
        max_bytes: As images are fetched with.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._images: list[FetchRequest] | None = None

    def note(self, rows: pa.Table) -> None:
        """Takes the smallest images of the first rows (`schema.PREDICTED_SCHEMA`) that are ok."""
        if self._images is not None:
            return
        ok = rows.filter(pc.equal(rows[schema.STATUS], schema.STATUS_OK)).sort_by(schema.SIZE_BYTES)
        if len(ok):
            names = (schema.IMAGE_URI, schema.ETAG, schema.SIZE_BYTES)
            columns = (ok[name].slice(0, CONTROL_IMAGES).to_pylist() for name in names)
            chosen = [FetchRequest(*image) for image in zip(*columns, strict=True)]
            # A driver without rights of its own on the images can't tell anything.
            fetched = fetch_images(chosen, max_bytes=self._max_bytes)
            self._images = [chosen[index] for index, outcome in fetched if isinstance(outcome, Fetched)]

    def lost(self) -> ErrorCode | DeferralCause | None:
        """Why none of them can be fetched any more; None where one can, and where there are none."""
        outcomes = [outcome for _, outcome in fetch_images(self._images or [], max_bytes=self._max_bytes)]
        if not outcomes or any(isinstance(outcome, Fetched) for outcome in outcomes):
            return None
        deferred = [outcome.cause for outcome in outcomes if isinstance(outcome, Deferred)]
        return deferred[0] if deferred else next(o.code for o in outcomes if not isinstance(o, Fetched | Deferred))
