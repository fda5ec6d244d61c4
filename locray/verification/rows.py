"""Whether rows of the predictions table agree with themselves. Called by `check_table`, batch by batch."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from locray import boxes, schema
from locray.errors import ErrorCode
from locray.verification.findings import Check

Mask = NDArray[np.bool_]

_CODES = pa.array([str(code) for code in ErrorCode])
_NEVER_NULL = [
    field.name
    for field in schema.PREDICTIONS_SCHEMA
    if not field.nullable and field.name not in schema.PARTITION_COLUMNS
]


def faulty_rows(rows: pa.RecordBatch) -> Mapping[Check, Mask]:
    """Which rows (columns of the predictions table but those of the partition) have which fault, as (num_rows,)."""
    ok, failed = (_mask(pc.equal(rows[schema.STATUS], status)) for status in (schema.STATUS_OK, schema.STATUS_FAILED))
    tells_error = _is_valid(rows, schema.ERROR_CODE) | _is_valid(rows, schema.ERROR_MESSAGE)
    is_known = _mask(pc.is_in(rows[schema.ERROR_CODE], value_set=_CODES))
    has_frame = _is_valid(rows, schema.FORMAT)
    for side in (schema.WIDTH, schema.HEIGHT):
        has_frame &= _mask(pc.greater(rows[side], 0))
    has_list = _is_valid(rows, schema.DETECTIONS)
    return {
        Check.NULL: ~np.logical_and.reduce([_is_valid(rows, name) for name in _NEVER_NULL]),
        Check.STATUS: ~(ok | failed),
        Check.ERROR: (ok & tells_error) | (failed & ~is_known),
        Check.FRAME: ok & ~has_frame,
        Check.DETECTIONS: (ok & ~has_list) | (failed & has_list),
        **_faulty_detections(rows),
    }


def _faulty_detections(rows: pa.RecordBatch) -> Mapping[Check, Mask]:
    """The rows of which a detection has a fault."""
    lists = rows[schema.DETECTIONS]
    owner = pc.list_parent_indices(lists).to_numpy()
    found = pc.list_flatten(lists)
    corners = np.stack([_floats(pc.struct_field(found, name)) for name in schema.CORNERS], axis=1)
    # The largest corner is the image's side rounded to float32, which may be more than the side.
    sides = np.stack(
        [_floats(rows[name].fill_null(0)).astype(np.float32)[owner] for name in (schema.WIDTH, schema.HEIGHT)], axis=1
    )
    inside = (corners[:, :2] >= 0).all(axis=1) & (corners[:, 2:] <= sides).all(axis=1)
    scores = _floats(pc.struct_field(found, schema.SCORE))
    orderly = (scores >= 0) & (scores <= 1)
    orderly[1:] &= (owner[1:] != owner[:-1]) | (scores[1:] <= scores[:-1])
    named = _mask(pc.is_valid(pc.struct_field(found, schema.LABEL)))
    named &= _mask(pc.greater_equal(pc.struct_field(found, schema.LABEL_ID), 0))
    sound = {Check.BOX: boxes.is_valid(corners) & inside, Check.SCORE: orderly, Check.LABEL: named}
    return {check: _owners_of(owner[~is_sound], len(rows)) for check, is_sound in sound.items()}


def _owners_of(owners: NDArray[np.int64], num_rows: int) -> Mask:
    mask = np.zeros(num_rows, dtype=bool)
    mask[owners] = True
    return mask


def _is_valid(rows: pa.RecordBatch, name: str) -> Mask:
    return _mask(pc.is_valid(rows[name]))


def _mask(values: pa.BooleanArray) -> Mask:
    """Null counts as no."""
    return np.asarray(pc.fill_null(values, False).to_numpy(zero_copy_only=False), dtype=bool)


def _floats(values: pa.Array) -> NDArray[np.float64]:
    """Null becomes NaN, which is no number that a check takes."""
    return np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False))
