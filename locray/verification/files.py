"""The files of a predictions table beside what its log says of them. Called by `check_table`."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import accumulate, groupby

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable

from locray import schema, storage
from locray.errors import StoreAccessError
from locray.table.data_files import FILE_SCHEMA, LoggedFile, removed_files
from locray.table.open import RECORDS
from locray.verification.findings import Check, Findings

BATCH_ROWS = 65_536
_NULLABLE = pa.schema([field.with_nullable(True) for field in FILE_SCHEMA])
"""A damaged file may hold null where none may be: that is for the checks of rows to tell."""
_LOG = "_delta_log"


def check_folder(table: DeltaTable, uri: str, files: Sequence[LoggedFile], findings: Findings) -> set[str]:
    """Looks for files that are missing from the table's folder, and for such that the table doesn't consist of.

    Returns:
        The URIs of the missing ones.
    """
    here = set(storage.list_uris(uri))
    logged = {file.uri for file in files}
    beside = tuple(f"{storage.join(uri, folder)}/" for folder in (_LOG, RECORDS))
    once_logged = removed_files(table, uri, 0)
    others = sorted(name for name in here - logged if not name.startswith(beside))
    missing = sorted(logged - here)
    findings.add(Check.FILE_MISSING, len(missing), missing)
    for check, names in (
        (Check.FILE_REMOVED, [name for name in others if name in once_logged]),
        (Check.FILE_UNREFERENCED, [name for name in others if name not in once_logged]),
    ):
        findings.add(check, len(names), names)
    return set(missing)


def read_file(file: LoggedFile, findings: Findings) -> Iterator[pa.RecordBatch]:
    """The rows of a file as batches of `FILE_SCHEMA`, as far as they can be read.

    Raises:
        StoreError: the store does not answer, retries exhausted.
    """
    try:
        with closing(storage.open_file(file.uri)) as handle:
            size_bytes = handle.size()
            if size_bytes != file.size_bytes:
                told = f"{file.uri}: {size_bytes:,} bytes, the log says {file.size_bytes:,}"
                findings.add(Check.FILE_SIZE, 1, [told])
            parquet = pq.ParquetFile(handle, pre_buffer=True, page_checksum_verification=True)
            num_rows = parquet.metadata.num_rows
            if file.num_rows not in (None, num_rows):
                told = f"{file.uri}: {num_rows:,} rows, the log says {file.num_rows:,}"
                findings.add(Check.FILE_ROWS, 1, [told])
            wrong = wrong_columns(parquet.schema_arrow, FILE_SCHEMA)
            if wrong:
                findings.add(Check.SCHEMA, 1, [f"{file.uri}: {wrong}"])
                return
            yield from _checked_batches(parquet, file, findings)
    except (StoreAccessError, pa.ArrowException, OSError) as error:
        findings.add(Check.FILE_UNREADABLE, 1, [f"{file.uri}: {' '.join(str(error).split())}"])


def _checked_batches(parquet: pq.ParquetFile, file: LoggedFile, findings: Findings) -> Iterator[pa.RecordBatch]:
    """One row group after the other: what is buffered is never more than one."""
    for group in range(parquet.num_row_groups):
        for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[group]):
            batch.validate(full=True)
            rows = _as(batch, _NULLABLE)
            uris = rows[schema.IMAGE_URI]
            outside = [pc.less(uris, file.first_uri)] if file.first_uri is not None else []
            outside += [pc.greater(uris, file.last_uri)] if file.last_uri is not None else []
            for mask in outside:
                strays = uris.filter(mask)
                findings.add(Check.FILE_BOUNDS, len(strays), (uri.as_py() for uri in strays.slice(0, 5)))
            yield rows


def _as(batch: pa.RecordBatch, fields: pa.Schema) -> pa.RecordBatch:
    """The columns in the layout of our own files, which other writers of Parquet don't keep."""
    columns = [batch[field.name] for field in fields]
    arrays = [
        column if column.type == field.type else column.cast(field.type)
        for column, field in zip(columns, fields, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=fields)


def rows_at(files: Sequence[LoggedFile], places: Sequence[tuple[int, int]], columns: Sequence[str]) -> pa.Table:
    """Rows by the index of their file and their number in it, sorted by both. Each row group is read once."""
    fields = pa.schema([field for field in _NULLABLE if field.name in columns])
    parts = [fields.empty_table()]
    for index, of_file in groupby(sorted(places), key=lambda place: place[0]):
        with closing(storage.open_file(files[index].uri)) as handle:
            parquet = pq.ParquetFile(handle, pre_buffer=True)
            groups = range(parquet.num_row_groups)
            starts = [0, *accumulate(parquet.metadata.row_group(group).num_rows for group in groups)]
            rows = [row for _, row in of_file]
            for group, in_group in groupby(rows, key=lambda row: bisect_right(starts, row) - 1):
                batches = parquet.read_row_group(group, columns=fields.names).to_batches()
                found = pa.Table.from_batches([_as(batch, fields) for batch in batches])
                parts.append(found.take([row - starts[group] for row in in_group]))
    return pa.concat_tables(parts)


def wrong_columns(found: pa.Schema, expected: pa.Schema) -> str | None:
    """What a schema has too little, too much or in another type, or None. The order is free."""
    have = {field.name: _plain(field.type) for field in found}
    want = {field.name: _plain(field.type) for field in expected}
    told = [f"no column {name}" for name in want if name not in have]
    told += [f"a column {name} that is none of a predictions table" for name in have if name not in want]
    told += [
        f"{name} is {have[name]}, expected {want[name]}" for name in want if name in have and have[name] != want[name]
    ]
    return "; ".join(told) or None


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type without its layout in memory, in which writers differ."""
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _plain(field.type)) for field in kind])
    return kind
