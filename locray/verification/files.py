"""The files of a predictions table, compared with its log."""

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
from locray.verification.findings import MAX_EXAMPLES, Check, Findings
from locray.verification.keys import RowPosition

BATCH_ROWS = 65_536
_NULLABLE = pa.schema([field.with_nullable(True) for field in FILE_SCHEMA])
"""A damaged file may hold null where it must not; the checks of rows report that."""
_LOG = "_delta_log"


def check_folder(table: DeltaTable, uri: str, files: Sequence[LoggedFile], findings: Findings) -> set[str]:
    """Looks for files of the table that are missing from its folder, and for other files in the folder.

    Returns:
        The URIs of the missing files.
    """
    present = set(storage.list_uris(uri))
    logged = {file.uri for file in files}
    ignored = tuple(f"{storage.join(uri, folder)}/" for folder in (_LOG, RECORDS))
    removed = removed_files(table, uri, 0)
    others = sorted(name for name in present - logged if not name.startswith(ignored))
    missing = sorted(logged - present)
    for check, names in (
        (Check.FILE_MISSING, missing),
        (Check.FILE_REMOVED, [name for name in others if name in removed]),
        (Check.FILE_UNREFERENCED, [name for name in others if name not in removed]),
    ):
        findings.add(check, len(names), names)
    return set(missing)


def read_file(file: LoggedFile, findings: Findings) -> Iterator[pa.RecordBatch]:
    """Reads the rows of a file, as batches of `FILE_SCHEMA`, up to the first damaged page.

    Raises:
        StoreError: the store does not answer, retries exhausted.
    """
    try:
        with closing(storage.open_file(file.uri)) as handle:
            size_bytes = handle.size()
            if size_bytes != file.size_bytes:
                example = f"{file.uri}: {size_bytes:,} bytes, the log says {file.size_bytes:,}"
                findings.add(Check.FILE_SIZE, 1, [example])
            parquet = pq.ParquetFile(handle, pre_buffer=True, page_checksum_verification=True)
            num_rows = parquet.metadata.num_rows
            if file.num_rows not in (None, num_rows):
                example = f"{file.uri}: {num_rows:,} rows, the log says {file.num_rows:,}"
                findings.add(Check.FILE_ROWS, 1, [example])
            differences = schema_differences(parquet.schema_arrow, FILE_SCHEMA)
            if differences:
                findings.add(Check.SCHEMA, 1, [f"{file.uri}: {differences}"])
                return
            yield from _checked_batches(parquet, file, findings)
    except (StoreAccessError, pa.ArrowException, OSError) as error:
        findings.add(Check.FILE_UNREADABLE, 1, [f"{file.uri}: {' '.join(str(error).split())}"])


def _checked_batches(parquet: pq.ParquetFile, file: LoggedFile, findings: Findings) -> Iterator[pa.RecordBatch]:
    """Reads one row group after the other, so that no more than one is buffered."""
    for group in range(parquet.num_row_groups):
        for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=_NULLABLE.names):
            batch.validate(full=True)
            rows = _as(batch, _NULLABLE)
            uris = rows[schema.IMAGE_URI]
            is_outside = [pc.less(uris, file.first_uri)] if file.first_uri is not None else []
            is_outside += [pc.greater(uris, file.last_uri)] if file.last_uri is not None else []
            for mask in is_outside:
                outside = uris.filter(mask)
                examples = outside.slice(0, MAX_EXAMPLES).to_pylist()
                findings.add(Check.FILE_BOUNDS, len(outside), map(str, examples))
            yield rows


def _as(batch: pa.RecordBatch, fields: pa.Schema) -> pa.RecordBatch:
    """The columns in the types that locray writes; other writers of Parquet use different layouts."""
    columns = [batch[field.name] for field in fields]
    arrays = [
        column if column.type == field.type else column.cast(field.type)
        for column, field in zip(columns, fields, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=fields)


def rows_at(files: Sequence[LoggedFile], positions: Sequence[RowPosition], columns: Sequence[str]) -> pa.Table:
    """Reads rows by position, sorted by it. Each row group is read once."""
    fields = pa.schema([field for field in _NULLABLE if field.name in columns])
    parts = [fields.empty_table()]
    for index, in_file in groupby(sorted(positions), key=lambda position: position[0]):
        with closing(storage.open_file(files[index].uri)) as handle:
            parquet = pq.ParquetFile(handle, pre_buffer=True)
            groups = range(parquet.num_row_groups)
            starts = [0, *accumulate(parquet.metadata.row_group(group).num_rows for group in groups)]
            rows = [row for _, row in in_file]
            for group, in_group in groupby(rows, key=lambda row: bisect_right(starts, row) - 1):
                batches = parquet.read_row_group(group, columns=fields.names).to_batches()
                found = pa.Table.from_batches([_as(batch, fields) for batch in batches])
                parts.append(found.take([row - starts[group] for row in in_group]))
    return pa.concat_tables(parts)


def schema_differences(found: pa.Schema, expected: pa.Schema) -> str | None:
    """Describes missing and differently typed columns, or None. Users may add columns of their own."""
    have = {field.name: _logical_type(field.type) for field in found}
    want = {field.name: _logical_type(field.type) for field in expected}
    differences = [f"no column {name}" for name in want if name not in have]
    differences += [
        f"{name} is {have[name]}, expected {want[name]}" for name in want if name in have and have[name] != want[name]
    ]
    return "; ".join(differences) or None


def _logical_type(kind: pa.DataType) -> pa.DataType:
    """The type without its memory layout, in which writers differ."""
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_logical_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _logical_type(field.type)) for field in kind])
    return kind
