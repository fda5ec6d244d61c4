"""First stage: from a unit of the worklist to square uint8 images.

Plain callables, independent of Ray. An image never raises: it is decoded, failed with an error code, or deferred.
An image that crashes its process costs the unit a second attempt, in which a child process does the decoding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from locray import schema
from locray.boxes import Letterbox
from locray.errors import DeferralCause, StoreAccessError, StoreError
from locray.images.decode import DecodedImage, DecodeLimits, ImageFailure, decode_image
from locray.images.fetch import Deferred, Fetched, FetchRequest, fetch_images
from locray.images.isolated import IsolatedDecoder, decode_with_deadline
from locray.images.letterbox import decoded_side_px, letterbox_image
from locray.labelling.model import ModelSpec
from locray.labelling.worklist import Worklist

MAX_CRASHES = 5
"""Processes that may die over a unit before its images are deferred."""

Decode = Callable[[bytes], DecodedImage | ImageFailure]


@dataclass(frozen=True, slots=True)
class FetchDecode:
    """Fetches and decodes the units of a worklist."""

    worklist: Worklist
    model: ModelSpec

    def __call__(self, unit: int, crashes: int = 0) -> pa.Table:
        """Returns the unit's images as a table of `schema.decoded_schema`, in the worklist's order.

        Args:
            unit: Number of the unit.
            crashes: Number of processes that died over it. If 0, a decoder that crashes or hangs ends this process.

        Raises:
            StoreAccessError: the worklist is absent or denied.
        """
        try:
            rows = self.worklist.read_unit(unit)
        except StoreAccessError:
            raise  # no other unit can be read either
        except StoreError as error:
            return self._deferred(_rows_without_uris(self.worklist, unit), DeferralCause.STORE, str(error))
        if crashes >= MAX_CRASHES:
            reason = f"{crashes} processes died over its unit: too little memory, or a failing node"
            return self._deferred(rows, DeferralCause.WORKER, reason)
        if crashes:
            return decode_in_child(rows, self.model)
        limits, timeout_s = DecodeLimits.of(self.model.options), self.model.options.decode_timeout_s
        side_px = decoded_side_px(self.model.input_size_px)
        decode: Decode = lambda data: decode_with_deadline(data, limits, timeout_s, side_px)  # noqa: E731
        return decode_rows(rows, self.model, decode)

    def _deferred(self, rows: pa.Table, cause: DeferralCause, reason: str) -> pa.Table:
        outcomes = _initial_outcomes(rows)
        for outcome in outcomes:
            outcome.error_code, outcome.error_message = cause, reason
        return _as_table(rows, outcomes, _blank_images(len(rows), self.model.input_size_px))


@dataclass(slots=True)
class _Outcome:
    """What this stage fills in for an image. The error code of a deferred image is the cause of deferral."""

    etag: str | None
    size_bytes: int | None
    last_modified: datetime | None
    status: str = schema.STATUS_DEFERRED
    width: int | None = None
    height: int | None = None
    format: str | None = None
    error_code: str | None = None
    error_message: str | None = None


def decode_rows(rows: pa.Table, model: ModelSpec, decode: Decode | None = None) -> pa.Table:
    """Fetches and decodes the images of a table of `schema.WORKLIST_SCHEMA`; decoding overlaps with fetching.

    Args:
        rows: The images.
        model: Its input size, and the options: limits of an image and requests in flight.
        decode: From bytes to image; may raise OSError, which defers the image. Default: `decode_image`.

    Returns:
        Table of `schema.decoded_schema`.
    """
    limits, side_px = DecodeLimits.of(model.options), decoded_side_px(model.input_size_px)
    decode = decode or (lambda data: decode_image(data, limits, min_longer_side_px=side_px))
    outcomes, images = _initial_outcomes(rows), _blank_images(len(rows), model.input_size_px)
    names = (schema.IMAGE_URI, schema.ETAG, schema.SIZE_BYTES)
    requests = [FetchRequest(*listed) for listed in zip(*(rows[name].to_pylist() for name in names), strict=True)]
    num_gets = model.options.concurrent_gets
    for index, fetched in fetch_images(requests, max_bytes=limits.max_bytes, concurrency=num_gets):
        _record_outcome(outcomes[index], fetched, images[index], decode)
    return _as_table(rows, outcomes, images)


def decode_in_child(rows: pa.Table, model: ModelSpec) -> pa.Table:
    """`decode_rows` with the decoder in a child process, which an image may crash."""
    limits, side_px = DecodeLimits.of(model.options), decoded_side_px(model.input_size_px)
    with IsolatedDecoder(limits, model.options.decode_timeout_s, side_px) as decode:
        return decode_rows(rows, model, decode)


def defer_decoded(decoded: pa.Table, crashes: int) -> pa.Table:
    """Defers the images of a decoded unit that the model would see, after `crashes` model workers died over it."""
    reason = (
        f"{crashes} model workers died over its unit: too little memory (a smaller --batch-size takes less), a crash "
        "of the network, or a failing node"
    )
    is_ok = pc.equal(decoded[schema.STATUS], schema.STATUS_OK)
    changed = {
        schema.STATUS: schema.STATUS_DEFERRED,
        schema.ERROR_CODE: str(DeferralCause.WORKER),
        schema.ERROR_MESSAGE: reason,
    }
    for name, value in changed.items():
        column = pc.if_else(is_ok, pa.scalar(value), decoded[name])
        decoded = decoded.set_column(decoded.schema.get_field_index(name), decoded.schema.field(name), column)
    return decoded


def _rows_without_uris(worklist: Worklist, unit: int) -> pa.Table:
    """The rows of a unit whose file could not be read: their ordinals alone."""
    first = unit * worklist.unit_size
    ordinals = range(first, min(first + worklist.unit_size, worklist.num_images))
    rows = [{schema.ORDINAL: ordinal, schema.IMAGE_URI: ""} for ordinal in ordinals]
    return pa.Table.from_pylist(rows, schema=schema.WORKLIST_SCHEMA)


def _initial_outcomes(rows: pa.Table) -> list[_Outcome]:
    """Outcomes with the values known from the listing."""
    names = (schema.ETAG, schema.SIZE_BYTES, schema.LAST_MODIFIED)
    return [_Outcome(*listed) for listed in zip(*(rows[name].to_pylist() for name in names), strict=True)]


def _blank_images(num_images: int, input_size_px: int) -> NDArray[np.uint8]:
    return np.zeros((num_images, input_size_px, input_size_px, 3), dtype=np.uint8)


def _record_outcome(
    outcome: _Outcome,
    fetched: Fetched | ImageFailure | Deferred,
    image: NDArray[np.uint8],
    decode: Decode,
) -> None:
    """Decodes a fetched image into `image` (S, S, 3), and fills in its outcome."""
    if isinstance(fetched, Deferred):
        outcome.error_code, outcome.error_message = fetched.cause, fetched.reason
        return
    if isinstance(fetched, Fetched):
        # The listing's etag: the next listing is compared with it, and not every store gives the same one with a GET.
        outcome.etag, outcome.size_bytes = outcome.etag or fetched.etag, fetched.size_bytes
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
        letterbox_image(decoded.image_hwc_u8, letterbox, image)
    else:
        outcome.status = schema.STATUS_FAILED
        outcome.error_code, outcome.error_message = decoded.code.value, decoded.message


def _as_table(rows: pa.Table, outcomes: list[_Outcome], images: NDArray[np.uint8]) -> pa.Table:
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
    input_size_px = images.shape[1]
    target = schema.decoded_schema(input_size_px)
    columns[schema.IMAGE] = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), input_size_px**2 * 3)
    return pa.table([_column(columns[field.name], field.type) for field in target], schema=target)


def _column(values: pa.Array | pa.ChunkedArray | list[object], kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    return pa.array(values, kind) if isinstance(values, list) else values.cast(kind)
