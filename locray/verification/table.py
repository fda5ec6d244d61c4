"""The invariants of a predictions table, in one function. Called by `verify`, by the nightly job and by fault tests."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from locray import schema
from locray.errors import UsageError
from locray.progress import Progress, Report, ignore
from locray.table.data_files import LoggedFile, logged_files
from locray.table.open import open_table
from locray.verification.files import check_folder, read_file, rows_at, wrong_columns
from locray.verification.findings import NAMED, Check, Findings
from locray.verification.keys import Keys, Place
from locray.verification.rows import faulty_rows

if TYPE_CHECKING:
    from deltalake import DeltaTable

_SAMPLE_COLUMNS = (*schema.LISTING_SCHEMA.names, schema.WIDTH, schema.HEIGHT, schema.DETECTIONS)
_NOBODY = -1


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose rows are meant: a model, and one configuration of it or, where None, its only one."""

    model_id: str
    config_hash: str | None = None

    def __str__(self) -> str:
        return self.model_id if self.config_hash is None else f"{self.model_id}/{self.config_hash}"


@dataclass(frozen=True, slots=True)
class TableCheck:
    """What a table holds, and what was found in it."""

    version: int
    num_files: int
    num_rows: int
    """Rows that could be read."""
    num_listed: int | None
    owner: Owner | None
    """Whose rows were held against the listing and drawn for the sample; None where there are none, or no need."""
    sample: pa.Table
    """Some of the owner's ok rows: columns of the listing, size in pixels and detections."""
    findings: Findings


def check_table(
    uri: str,
    listing: Iterable[pa.RecordBatch] | None = None,
    *,
    owner: Owner | None = None,
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
        owner: whose rows. Not needed where the table holds those of one model and configuration.
        sample: how many of the owner's ok rows to draw; with a listing, of such whose version is listed.
        seed: draws the same ones again.
        may_lack_rows: whether the owner may have no rows beside those of others, rather than be a mistake.
        report: is told how many rows are read, and how many images are listed.

    Raises:
        UsageError: there is no predictions table, or it is not clear or not so whose rows are meant.
        StoreError: the store does not answer.
    """
    report(Progress("reading the log"))
    table = open_table(uri)
    if table is None:
        raise UsageError(f"there is no predictions table at {uri}; `locray label --table {uri} ...` makes one")
    findings = Findings()
    _check_definition(table, findings)
    files = logged_files(table, uri)
    missing = check_folder(table, uri, files, findings)
    with Keys.open() as keys:
        num_rows = _read_rows(files, missing, keys, findings, report)
        report(Progress("comparing keys"))
        count, places = keys.duplicates()
        findings.add(Check.DUPLICATE, count, _names_at(files, places))
        chosen, number = None, _NOBODY
        if listing is not None or sample:
            chosen, number = _choose(keys.owners(), owner, uri, may_lack_rows or bool(findings.faults))
        num_listed = None
        if listing is not None:
            report(Progress("listing"))
            num_listed = keys.add_listing(listing, report)
            keys.find_lacking(number, findings)
            count, places = keys.gone(number)
            findings.add(Check.IMAGE_GONE, count, _names_at(files, places))
        drawn = keys.draw(number, sample, seed, listed=listing is not None) if sample else []
    rows = rows_at(files, drawn, _SAMPLE_COLUMNS)
    return TableCheck(table.version(), len(files), num_rows, num_listed, chosen, rows, findings)


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


def _choose(
    held: dict[tuple[str, str], tuple[int, int]], wanted: Owner | None, uri: str, may_lack_rows: bool
) -> tuple[Owner | None, int]:
    """Whose rows are meant, and their number among the keys.

    In a table without rows it is nobody, and so it is where the rows may have been in a file that is damaged.
    """
    fitting = [
        names
        for names in held
        if wanted is None or (wanted.model_id == names[0] and wanted.config_hash in (None, names[1]))
    ]
    if len(fitting) == 1:
        return Owner(*fitting[0]), held[fitting[0]][0]
    told = "; ".join(f"{Owner(*names)} ({count:,} rows)" for names, (_, count) in held.items())
    if fitting:
        raise UsageError(
            f"{uri} holds rows of several models or configurations: {told}. Say which with --model: an artifact, or "
            "ID/CONFIGURATION"
        )
    if held and not may_lack_rows:
        raise UsageError(
            f"{uri} holds no rows of {wanted}. It holds: {told}. Expected the model and the options that the table was "
            "labelled with, or --model ID/CONFIGURATION"
        )
    return wanted, _NOBODY
