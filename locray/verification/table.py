"""The invariants of a predictions table, checked in one function."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from locray import boxes, schema
from locray.errors import ErrorCode
from locray.progress import Progress, Report, ignore
from locray.table.data_files import LoggedFile, logged_files
from locray.table.key import KeySelector, PredictionKey, choose_key
from locray.table.open import open_existing_table
from locray.verification.files import check_folder, read_file, rows_at, schema_differences
from locray.verification.findings import MAX_EXAMPLES, Check, Findings
from locray.verification.keys import KeyDatabase, RowPosition

if TYPE_CHECKING:
    from deltalake import DeltaTable

Mask = NDArray[np.bool_]

_SAMPLE_COLUMNS = (*schema.LISTING_SCHEMA.names, schema.WIDTH, schema.HEIGHT, schema.DETECTIONS)
_CODES = pa.array([str(code) for code in ErrorCode])
_NOT_NULL = [
    field.name
    for field in schema.PREDICTIONS_SCHEMA
    if not field.nullable and field.name not in schema.PARTITION_COLUMNS
]


@dataclass(frozen=True, slots=True)
class TableCheck:
    """Content of a table, and the findings in it."""

    version: int
    num_files: int
    num_rows: int
    """Rows that could be read."""
    num_listed: int | None
    key: PredictionKey | None
    """The rows that were compared with the listing and sampled; None if there are none, or neither was asked for."""
    sample: pa.Table
    """Some ok rows of the key: columns of the listing, size in pixels and detections."""
    findings: Findings


def check_table(
    uri: str,
    listing: Iterable[pa.RecordBatch] | None = None,
    *,
    rows_of: KeySelector | None = None,
    sample: int = 0,
    seed: int = 0,
    may_lack_rows: bool = False,
    report: Report = ignore,
) -> TableCheck:
    """Checks a table's files against its log, its rows, and optionally its keys against a listing.

    Reads each row once, batch by batch; compares keys on disk. Writes nothing to the table.

    Args:
        uri: the table, normalised.
        listing: batches of `LISTING_SCHEMA`: images that should have one row each.
        rows_of: the rows to compare and to sample. Not needed if the table holds one model and configuration.
        sample: how many of their ok rows to draw; with a listing, of those whose version is listed.
        seed: the same seed draws the same rows.
        may_lack_rows: accept a table without such rows; otherwise that is taken for a mistake of the user.
        report: progress callback.

    Raises:
        UsageError: there is no predictions table, or `rows_of` matches no rows, or those of several keys.
        StoreError: the store does not answer.
    """
    report(Progress("reading the log"))
    table = open_existing_table(uri)
    findings = Findings()
    _check_definition(table, findings)
    files = logged_files(table, uri)
    missing = check_folder(table, uri, files, findings)
    with KeyDatabase.open() as keys:
        num_rows = _read_rows(files, missing, keys, findings, report)
        report(Progress("comparing keys"))
        count, positions = keys.duplicates()
        findings.add(Check.DUPLICATE, count, _uris_at(files, positions))
        key = None
        if listing is not None or sample:
            num_rows_per_key = keys.num_rows()
            # A damaged or missing file may have held the only rows of a key.
            may_be_absent = may_lack_rows or not num_rows_per_key or bool(findings.faults)
            key = choose_key(num_rows_per_key, rows_of, uri, may_be_absent=may_be_absent)
        num_listed = None
        if listing is not None:
            report(Progress("listing"))
            num_listed = keys.add_listing(listing, report)
            keys.find_missing_rows(key, findings)
            count, positions = keys.not_listed(key)
            findings.add(Check.IMAGE_GONE, count, _uris_at(files, positions))
        drawn = keys.sample(key, sample, seed, listed=listing is not None) if sample else []
    rows = rows_at(files, drawn, _SAMPLE_COLUMNS)
    return TableCheck(table.version(), len(files), num_rows, num_listed, key, rows, findings)


def _check_definition(table: "DeltaTable", findings: Findings) -> None:
    """Checks the types of the table's columns; `open_existing_table` has checked the rest."""
    differences = schema_differences(pa.schema(table.schema().to_arrow()), schema.PREDICTIONS_SCHEMA)
    findings.add(Check.SCHEMA, int(differences is not None), [f"the table: {differences}"])


def _read_rows(
    files: list[LoggedFile], missing: set[str], keys: KeyDatabase, findings: Findings, report: Report
) -> int:
    """Checks every row and adds its key to the database. Returns the number of rows."""
    num_rows, planned = 0, sum(file.num_rows or 0 for file in files)
    for index, file in enumerate(files):
        row = 0
        for batch in read_file(file, findings) if file.uri not in missing else ():
            for check, mask in faulty_rows(batch).items():
                uris = batch[schema.IMAGE_URI].take(pa.array(np.flatnonzero(mask)[:MAX_EXAMPLES]))
                findings.add(check, int(mask.sum()), map(str, uris.to_pylist()))
            keys.add(batch, file.model_id, (index, row))
            row += len(batch)
            report(Progress("reading", num_rows + row, planned))
        num_rows += row
    return num_rows


def _uris_at(files: list[LoggedFile], positions: list[RowPosition]) -> list[str]:
    return [str(uri) for uri in rows_at(files, positions, [schema.IMAGE_URI])[schema.IMAGE_URI].to_pylist()]


def faulty_rows(rows: pa.RecordBatch) -> Mapping[Check, Mask]:
    """Masks of shape (num_rows,) of the rows that fail a check.

    Args:
        rows: the columns of `FILE_SCHEMA`.
    """
    ok, failed = (_mask(pc.equal(rows[schema.STATUS], status)) for status in (schema.STATUS_OK, schema.STATUS_FAILED))
    has_error = _is_valid(rows, schema.ERROR_CODE) | _is_valid(rows, schema.ERROR_MESSAGE)
    has_known_code = _mask(pc.is_in(rows[schema.ERROR_CODE], value_set=_CODES))
    has_frame = _is_valid(rows, schema.FORMAT)
    for side in (schema.WIDTH, schema.HEIGHT):
        has_frame &= _mask(pc.greater(rows[side], 0))
    has_list = _is_valid(rows, schema.DETECTIONS)
    return {
        Check.NULL: ~np.logical_and.reduce([_is_valid(rows, name) for name in _NOT_NULL]),
        Check.STATUS: ~(ok | failed),
        Check.ERROR: (ok & has_error) | (failed & ~has_known_code),
        Check.FRAME: ok & ~has_frame,
        Check.DETECTIONS: (ok & ~has_list) | (failed & has_list),
        **_rows_with_faulty_detections(rows),
    }


def _rows_with_faulty_detections(rows: pa.RecordBatch) -> Mapping[Check, Mask]:
    lists = rows[schema.DETECTIONS]
    row_of = pc.list_parent_indices(lists).to_numpy()
    detections = pc.list_flatten(lists)
    boxes_xyxy_px = np.stack([_floats(pc.struct_field(detections, name)) for name in schema.CORNERS], axis=1)
    # The largest corner is the image's side rounded to float32, which may be more than the side.
    sides = [_floats(rows[name].fill_null(0)).astype(np.float32)[row_of] for name in (schema.WIDTH, schema.HEIGHT)]
    is_inside = (boxes_xyxy_px[:, :2] >= 0).all(axis=1) & (boxes_xyxy_px[:, 2:] <= np.stack(sides, axis=1)).all(axis=1)
    scores = _floats(pc.struct_field(detections, schema.SCORE))
    is_ordered = (scores >= 0) & (scores <= 1)
    is_ordered[1:] &= (row_of[1:] != row_of[:-1]) | (scores[1:] <= scores[:-1])
    has_label = _mask(pc.is_valid(pc.struct_field(detections, schema.LABEL)))
    has_label &= _mask(pc.greater_equal(pc.struct_field(detections, schema.LABEL_ID), 0))
    correct = {Check.BOX: boxes.is_valid(boxes_xyxy_px) & is_inside, Check.SCORE: is_ordered, Check.LABEL: has_label}
    faulty = {check: np.zeros(len(rows), dtype=bool) for check in correct}
    for check, is_correct in correct.items():
        faulty[check][row_of[~is_correct]] = True
    return faulty


def _is_valid(rows: pa.RecordBatch, name: str) -> Mask:
    return _mask(pc.is_valid(rows[name]))


def _mask(values: pa.BooleanArray) -> Mask:
    """Null counts as False."""
    return np.asarray(pc.fill_null(values, False).to_numpy(zero_copy_only=False), dtype=bool)


def _floats(values: pa.Array) -> NDArray[np.float64]:
    """Null becomes NaN, which fails every comparison."""
    return np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False))
