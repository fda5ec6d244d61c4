"""The invariants of a predictions table, in one function. Called by `verify`, by the nightly job and by fault tests."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from locray import schema
from locray.progress import Progress, Report, ignore
from locray.table.data_files import LoggedFile, logged_files
from locray.table.key import KeySelector, PredictionKey, choose_key
from locray.table.open import open_existing_table
from locray.verification.files import check_folder, read_file, rows_at, wrong_columns
from locray.verification.findings import NAMED, Check, Findings
from locray.verification.keys import Keys, Place
from locray.verification.rows import faulty_rows

if TYPE_CHECKING:
    from deltalake import DeltaTable

_SAMPLE_COLUMNS = (*schema.LISTING_SCHEMA.names, schema.WIDTH, schema.HEIGHT, schema.DETECTIONS)


@dataclass(frozen=True, slots=True)
class TableCheck:
    """What a table holds, and what was found in it."""

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
    """Checks a table against its log, its files and itself and, where there is one, against a listing.

    Each row is read once, batch by batch; keys are compared on disk. Nothing is written to the table.

    Args:
        uri: the table, normalised.
        listing: batches of `LISTING_SCHEMA`: the images that should have a row each.
        rows_of: the rows to compare and to sample. Not needed where the table holds one model and configuration.
        sample: how many of their ok rows to draw; with a listing, of those whose version is listed.
        seed: draws the same ones again.
        may_lack_rows: whether a table without such rows is accepted; otherwise it is taken for a mistake.
        report: is told how many rows are read, and how many images are listed.

    Raises:
        UsageError: there is no predictions table, or it is not clear or not so whose rows are meant.
        StoreError: the store does not answer.
    """
    report(Progress("reading the log"))
    table = open_existing_table(uri)
    findings = Findings()
    _check_definition(table, findings)
    files = logged_files(table, uri)
    missing = check_folder(table, uri, files, findings)
    with Keys.open() as keys:
        num_rows = _read_rows(files, missing, keys, findings, report)
        report(Progress("comparing keys"))
        count, places = keys.duplicates()
        findings.add(Check.DUPLICATE, count, _names_at(files, places))
        key = None
        if listing is not None or sample:
            num_rows_of = keys.num_rows()
            may_be_absent = not num_rows_of or may_lack_rows or bool(findings.faults)
            key = choose_key(num_rows_of, rows_of, uri, may_be_absent=may_be_absent)
        num_listed = None
        if listing is not None:
            report(Progress("listing"))
            num_listed = keys.add_listing(listing, report)
            keys.find_lacking(key, findings)
            count, places = keys.gone(key)
            findings.add(Check.IMAGE_GONE, count, _names_at(files, places))
        drawn = keys.draw(key, sample, seed, listed=listing is not None) if sample else []
    rows = rows_at(files, drawn, _SAMPLE_COLUMNS)
    return TableCheck(table.version(), len(files), num_rows, num_listed, key, rows, findings)


def _check_definition(table: "DeltaTable", findings: Findings) -> None:
    wrong = wrong_columns(pa.schema(table.schema().to_arrow()), schema.PREDICTIONS_SCHEMA)
    partition = table.metadata().partition_columns
    if partition != schema.PARTITION_COLUMNS:
        wrong = f"partitioned by {', '.join(partition)}, expected {', '.join(schema.PARTITION_COLUMNS)}"
    features = table.protocol().reader_features
    if features:
        wrong = f"readers need {', '.join(map(str, features))}, which locray writes no table with"
    findings.add(Check.SCHEMA, int(wrong is not None), [f"the table: {wrong}"])


def _read_rows(files: list[LoggedFile], missing: set[str], keys: Keys, findings: Findings, report: Report) -> int:
    """Checks each row and passes its key on; says how many rows there are."""
    num_rows, planned = 0, sum(file.num_rows or 0 for file in files)
    for index, file in enumerate(files):
        row = 0
        for batch in read_file(file, findings) if file.uri not in missing else ():
            for check, mask in faulty_rows(batch).items():
                names = batch[schema.IMAGE_URI].take(pa.array(np.flatnonzero(mask)[:NAMED]))
                findings.add(check, int(mask.sum()), map(str, names.to_pylist()))
            keys.add(batch, file.model_id, (index, row))
            row += len(batch)
            report(Progress("reading", num_rows + row, planned))
        num_rows += row
    return num_rows


def _names_at(files: list[LoggedFile], places: list[Place]) -> list[str]:
    return [str(uri) for uri in rows_at(files, places, [schema.IMAGE_URI])[schema.IMAGE_URI].to_pylist()]
