"""The first stage: from a unit of the worklist to square uint8 images. Run by the pipeline's tasks, and by `plan`.

A plain callable that knows nothing of Ray. One image never raises: it gets pixels, an error code, or is deferred.
An image that is the end of its process costs its unit one more run, in which a child does the decoding.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from locray import schema
from locray.boxes import Letterbox
from locray.errors import DeferralCause, StoreAccessError, StoreError
from locray.images.decode import (
    DecodedImage,
    DecodeLimits,
    ImageFailure,
    decode_image,
)
from locray.images.fetch import Deferred, Fetched, FetchRequest, fetch_images
from locray.images.isolated import IsolatedDecoder, decode_with_deadline
from locray.images.letterbox import Resizer, decoded_side_px, letterbox_image
from locray.labelling.crashes import MAX_CRASHES
from locray.labelling.worklist import Worklist

_PIXELS_THAT_REPAY_TORCH = 1500 * 224**2
"""Of network inputs, in one process: the import takes 1.5 s of a core, and saves a millisecond at 224 x 224 pixels."""

Decode = Callable[[bytes], DecodedImage | ImageFailure]


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """How images become the network's input."""

    input_size_px: int
    limits: DecodeLimits
    concurrent_gets: int
    timeout_s: float
    """For the decoding of one image."""
    resizer: Resizer = "torch"

    @property
    def decoded_side_px(self) -> int:
        """What a decoder keeps at least of an image's longer side."""
        return decoded_side_px(self.input_size_px)

    def for_run(self, num_images: int, num_processes: int) -> "DecodeSettings":
        """The same for a run that so many processes share: those with little to do needn't import torch."""
        is_repaid = num_images * self.input_size_px**2 > _PIXELS_THAT_REPAY_TORCH * num_processes
        return self if is_repaid else replace(self, resizer="pillow")


@dataclass(frozen=True, slots=True)
class FetchDecode:
    """Fetches and decodes one unit of a worklist."""

    worklist: Worklist
    settings: DecodeSettings

    def __call__(self, unit: int, crashes: int = 0) -> pa.Table:
        """The unit's images as a table of `schema.decoded_schema`, in the worklist's order.

        Args:
            unit: Its number.
            crashes: How many processes have died over it. At 0, a decoder that crashes or hangs is this one's end.
        """
        limits, timeout_s, side_px = self.settings.limits, self.settings.timeout_s, self.settings.decoded_side_px
        try:
            rows = self.worklist.read_unit(unit)
        except StoreAccessError:
            raise  # neither will any other unit be read
        except StoreError as error:
            return _defer(_unnamed_rows(self.worklist, unit), self.settings, DeferralCause.STORE, str(error))
        if crashes == 0:
            return decode_rows(rows, self.settings, lambda data: decode_with_deadline(data, limits, timeout_s, side_px))
        if crashes < MAX_CRASHES:
            with IsolatedDecoder(limits, timeout_s, side_px) as decode:
                return decode_rows(rows, self.settings, decode)
        reason = f"{crashes} processes died over it: too little memory, or a node that fails"
        return _defer(rows, self.settings, DeferralCause.WORKER, reason)


@dataclass(slots=True)
class _Outcome:
    """What became of one image: the columns that this stage fills in. Where it is deferred, the code is the cause."""

    status: str = schema.STATUS_DEFERRED
    etag: str | None = None
    size_bytes: int | None = None
    last_modified: datetime | None = None
    width: int | None = None
    height: int | None = None
    format: str | None = None
    error_code: str | None = None
    error_message: str | None = None


def decode_rows(rows: pa.Table, settings: DecodeSettings, decode: Decode | None = None) -> pa.Table:
    """Fetches and decodes the images of a table of `schema.WORKLIST_SCHEMA`; decoding overlaps with fetching.

    Args:
        rows: The images.
        settings: How they are fetched, and the size that they become.
        decode: From bytes to image; may raise OSError, which defers the image. Default: `decode_image`.

    Returns:
        `schema.decoded_schema`.
    """
    limits, side_px = settings.limits, settings.decoded_side_px
    decode = decode or (lambda data: decode_image(data, limits, min_longer_side_px=side_px))
    outcomes, images = _untried(rows, settings)
    names = (schema.IMAGE_URI, schema.ETAG, schema.SIZE_BYTES)
    requests = [FetchRequest(*listed) for listed in zip(*(rows[name].to_pylist() for name in names), strict=True)]
    for index, fetched in fetch_images(requests, max_bytes=limits.max_bytes, concurrency=settings.concurrent_gets):
        _settle(outcomes[index], fetched, images[index], decode, settings.resizer)
    return _as_table(rows, outcomes, images, settings)


def _unnamed_rows(worklist: Worklist, unit: int) -> pa.Table:
    """The rows of a unit as far as they are known without its file: by their ordinals."""
    first = unit * worklist.unit_size
    ordinals = range(first, min(first + worklist.unit_size, worklist.num_images))
    rows = [{schema.ORDINAL: ordinal, schema.IMAGE_URI: ""} for ordinal in ordinals]
    return pa.Table.from_pylist(rows, schema=schema.WORKLIST_SCHEMA)


def _defer(rows: pa.Table, settings: DecodeSettings, cause: DeferralCause, reason: str) -> pa.Table:
    outcomes, images = _untried(rows, settings)
    for outcome in outcomes:
        outcome.error_code, outcome.error_message = cause, reason
    return _as_table(rows, outcomes, images, settings)


def _untried(rows: pa.Table, settings: DecodeSettings) -> tuple[list[_Outcome], NDArray[np.uint8]]:
    """What the listing knows of each image, and room for its pixels."""
    names = (schema.ETAG, schema.SIZE_BYTES, schema.LAST_MODIFIED)
    listed = zip(*(rows[name].to_pylist() for name in names), strict=True)
    outcomes = [
        _Outcome(etag=etag, size_bytes=size_bytes, last_modified=last_modified)
        for etag, size_bytes, last_modified in listed
    ]
    return outcomes, np.zeros((len(rows), settings.input_size_px, settings.input_size_px, 3), dtype=np.uint8)


def _settle(
    outcome: _Outcome,
    fetched: Fetched | ImageFailure | Deferred,
    image: NDArray[np.uint8],
    decode: Decode,
    resizer: Resizer,
) -> None:
    if isinstance(fetched, Deferred):
        outcome.error_code, outcome.error_message = fetched.cause, fetched.reason
        return
    if isinstance(fetched, Fetched):
        outcome.etag, outcome.size_bytes = fetched.etag, fetched.size_bytes
        outcome.last_modified = fetched.last_modified
        try:
            decoded = decode(fetched.data)
        except OSError as error:
            outcome.error_code, outcome.error_message = DeferralCause.WORKER, f"no process to decode it in: {error}"
            return
    else:
        decoded = fetched
    outcome.width, outcome.height, outcome.format = decoded.width_px, decoded.height_px, decoded.format
    if isinstance(decoded, DecodedImage):
        outcome.status = schema.STATUS_OK
        letterbox = Letterbox.fit(decoded.width_px, decoded.height_px, image.shape[0])
        letterbox_image(decoded.image_hwc_u8, letterbox, image, resizer)
    else:
        outcome.status = schema.STATUS_FAILED
        outcome.error_code, outcome.error_message = decoded.code.value, decoded.message


def _as_table(
    rows: pa.Table, outcomes: list[_Outcome], images: NDArray[np.uint8], settings: DecodeSettings
) -> pa.Table:
    columns = {
        schema.ORDINAL: rows[schema.ORDINAL],
        schema.IMAGE_URI: rows[schema.IMAGE_URI],
        schema.LAST_MODIFIED: [outcome.last_modified for outcome in outcomes],
        schema.ETAG: [outcome.etag for outcome in outcomes],
        schema.SIZE_BYTES: [outcome.size_bytes for outcome in outcomes],
        schema.WIDTH: [outcome.width for outcome in outcomes],
        schema.HEIGHT: [outcome.height for outcome in outcomes],
        schema.FORMAT: [outcome.format for outcome in outcomes],
        schema.STATUS: [outcome.status for outcome in outcomes],
        schema.ERROR_CODE: [outcome.error_code for outcome in outcomes],
        schema.ERROR_MESSAGE: [outcome.error_message for outcome in outcomes],
    }
    target = schema.decoded_schema(settings.input_size_px)
    pixels = pa.array(images.reshape(-1))
    columns[schema.IMAGE] = pa.FixedSizeListArray.from_arrays(pixels, images[0].size if len(images) else 1)
    return pa.table([_column(columns[field.name], field.type) for field in target], schema=target)


def _column(values: pa.Array | pa.ChunkedArray | list[object], kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    return pa.array(values, kind) if isinstance(values, list) else values.cast(kind)
