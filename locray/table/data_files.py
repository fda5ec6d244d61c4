"""The Parquet files of the predictions table: listed from its log, scanned, written, and rewritten to replace rows."""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.transaction import AddAction, RemoveAction

from locray import schema, storage
from locray.errors import StoreAccessError, StoreError
from locray.storage.errors import request_failed, store_error
from locray.table.errors import translate_errors

ROWS_PER_GROUP = 65_536
FILE_SCHEMA = pa.schema([field for field in schema.PREDICTIONS_SCHEMA if field.name not in schema.PARTITION_COLUMNS])
_KEY_SCHEMA = pa.schema(
    [FILE_SCHEMA.field(name) for name in (schema.IMAGE_URI, schema.ETAG, schema.CONFIG_HASH, schema.STATUS)]
)


@dataclass(frozen=True, slots=True)
class LoggedFile:
    """A data file as described by the log. Values missing in the log are None."""

    uri: str
    path: str
    """As in the log: relative to the table, percent-encoded."""
    size_bytes: int
    num_rows: int | None
    model_id: str
    run_date: str
    first_uri: str | None
    """Lower bound of the image URIs in the file."""
    last_uri: str | None
    """Upper bound of the image URIs in the file."""
    first_status: str | None


def logged_files(table: DeltaTable, uri: str) -> list[LoggedFile]:
    """The files of the table at the URI, sorted by name."""
    actions = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    files = [
        LoggedFile(
            uri=_file_uri(uri, action["path"]),
            path=action["path"],
            size_bytes=action[schema.SIZE_BYTES],  # deltalake's own column, which has the same name
            num_rows=action.get("num_records"),
            model_id=action[f"partition.{schema.MODEL_ID}"],
            run_date=str(action[f"partition.{schema.RUN_DATE}"]),
            first_uri=action.get(f"min.{schema.IMAGE_URI}"),
            last_uri=action.get(f"max.{schema.IMAGE_URI}"),
            first_status=action.get(f"min.{schema.STATUS}"),
        )
        for action in actions
    ]
    return sorted(files, key=lambda file: file.uri)


def _file_uri(table_uri: str, path: str) -> str:
    """Paths in the log are percent-encoded and relative to the table; those of a shallow clone are whole URIs."""
    return unquote(path) if "://" in path else storage.join(table_uri, unquote(path))


def removed_files(table: DeltaTable, uri: str, hours: int) -> set[str]:
    """Files that commits removed at least `hours` ago, as far as the log remembers. Some may be deleted already.

    Raises:
        StoreError: the store failed.
    """
    with translate_errors(uri):  # a dry run deletes nothing and, unless it is a full one, lists nothing
        paths = table.vacuum(hours, dry_run=True, enforce_retention_duration=False)
    return {storage.join(uri, path) for path in paths}


def row_dataset(table: DeltaTable, uri: str) -> ds.Dataset:
    """The rows of the table at the normalised URI, as a dataset that is read lazily."""
    if not table.get_add_actions().num_rows:
        return ds.dataset(schema.PREDICTIONS_SCHEMA.empty_table())
    return table.to_pyarrow_dataset(filesystem=storage.arrow_filesystem(uri))


def scan_strings(
    table: DeltaTable, uri: str, columns: Sequence[str], row_filter: ds.Expression
) -> Iterator[pa.RecordBatch]:
    """Reads string columns of the rows that pass the filter, batch by batch.

    Raises:
        StoreError: the store failed.
        StoreAccessError: a file of the table is damaged or missing, or access is denied.
    """
    fields = pa.schema([(name, pa.string()) for name in columns])
    try:
        reader = row_dataset(table, uri).scanner(columns=list(columns), filter=row_filter).to_reader()
        yield from (batch.cast(fields) for batch in reader)
    except (pa.ArrowException, OSError) as error:
        if storage.is_remote(uri) and request_failed(error):
            raise store_error(uri, error) from error
        raise StoreAccessError(
            f"can't read rows of the table at {uri}: {str(error).splitlines()[0]}. Run `locray verify` to find the "
            "damaged or missing files, and restore them"
        ) from error


def write_file(
    table_uri: str, rows: pa.Table, model_id: str, run_date: str, name: str, *, changes_data: bool
) -> AddAction:
    """Writes rows as one file, sorted by image URI, and returns the action that adds it in a commit.

    Args:
        table_uri: the table, normalised.
        rows: the columns of `FILE_SCHEMA`, and those that users have added.
        model_id: the partition.
        run_date: the partition, as YYYY-MM-DD.
        name: of the file, without the suffix.
        changes_data: False where the commit removes files with the same rows.

    Raises:
        StoreError: the store failed.
        StoreAccessError: access is denied.
    """
    added = [field for field in rows.schema if field.name not in FILE_SCHEMA.names]
    fields = pa.schema([*FILE_SCHEMA, *added])
    rows = rows.select(fields.names).cast(fields).sort_by(schema.IMAGE_URI)
    path = f"{schema.MODEL_ID}={model_id}/{schema.RUN_DATE}={run_date}/{name}.parquet"
    buffer = pa.BufferOutputStream()
    pq.write_table(rows, buffer, compression="zstd", row_group_size=ROWS_PER_GROUP, write_page_checksum=True)
    data = buffer.getvalue().to_pybytes()
    storage.write_bytes(storage.join(table_uri, path), data)
    return AddAction(
        path=path,
        size=len(data),
        partition_values={schema.MODEL_ID: model_id, schema.RUN_DATE: run_date},
        modification_time=_now_ms(),
        data_change=changes_data,
        stats=json.dumps({"numRecords": len(rows)} if added else _statistics(rows)),
    )


def _statistics(rows: pa.Table) -> dict[str, Any]:
    """Delta's statistics of a file, by which readers skip files: of every column but the nested one.

    All columns or none, as in files with added columns: if the bounds of one are missing, deltalake's pyarrow dataset
    takes them for null and skips the file under any filter on that column.
    """
    names = [name for name in rows.column_names if name != schema.DETECTIONS]
    bounds = {name: pc.min_max(rows[name]).as_py() for name in names if rows[name].null_count < len(rows)}
    return {
        "numRecords": len(rows),
        "minValues": {name: _json_value(value["min"]) for name, value in bounds.items()},
        "maxValues": {name: _json_value(value["max"]) for name, value in bounds.items()},
        "nullCount": {name: rows[name].null_count for name in names},
    }


def _json_value(value: Any) -> Any:
    return value.strftime("%Y-%m-%dT%H:%M:%S.%fZ") if isinstance(value, datetime) else value


def can_be_removed(file: LoggedFile) -> bool:
    """Whether a `RemoveAction` can name the file exactly as the log does.

    deltalake encodes percent signs in the path of a `RemoveAction`; other encoded characters might come out different.
    Delta does not check that a removed path exists: the file would stay, and its rows would be in the table twice.
    """
    return file.path.count("%") == file.path.count("%25")


def remove_file(file: LoggedFile, *, changes_data: bool = True) -> RemoveAction:
    """The action that removes a file from the table in a commit. A later vacuum deletes the file itself.

    Raises:
        StoreError: the file can't be removed because of its name in the log.
    """
    if not can_be_removed(file):
        raise StoreError(
            f"can't remove {file.uri} from the table: it was not written by locray, and a commit can't express its "
            f"name in the log, {file.path}. Rewrite it with the program that wrote it"
        )
    return RemoveAction(
        path=unquote(file.path),  # deltalake encodes it again, unlike the path of an AddAction
        data_change=changes_data,
        deletion_timestamp=_now_ms(),
        size=file.size_bytes,
        partition_values={schema.MODEL_ID: file.model_id, schema.RUN_DATE: file.run_date},
    )


def files_to_replace(files: list[LoggedFile], rows: pa.Table) -> Iterator[tuple[LoggedFile, pa.Table]]:
    """Finds the files whose failed rows are replaced by new rows.

    Reads only files that may hold such rows, and only their key columns until one is found. One file is in memory at
    a time.

    Args:
        files: of one model.
        rows: the new rows.

    Yields:
        Each file with its rows that stay, including columns that users have added.

    Raises:
        StoreError: a file can't be read. Page checksums are verified, so that damage is not copied.
    """
    bounds = pc.min_max(rows[schema.IMAGE_URI]).as_py()
    for file in files:
        if _may_have_failed_rows(file, bounds["min"], bounds["max"]):
            replaced = _is_replaced(_read(file, _KEY_SCHEMA), rows)
            if pc.any(replaced).as_py():
                yield file, _read(file, None).filter(pc.invert(replaced))


def _may_have_failed_rows(file: LoggedFile, first_uri: str, last_uri: str) -> bool:
    """Whether the file may hold failed rows of images between the two URIs."""
    return not (
        (file.first_status is not None and file.first_status > schema.STATUS_FAILED)
        or (file.first_uri is not None and file.first_uri > last_uri)
        or (file.last_uri is not None and file.last_uri < first_uri)
    )


def _is_replaced(old: pa.Table, new: pa.Table) -> pa.ChunkedArray:
    """Mask of the old rows that failed and have a new row of the same image, version and configuration.

    A failed row without a version (the image could not be fetched) counts as the same version.
    """
    index = pc.index_in(old[schema.IMAGE_URI], value_set=new[schema.IMAGE_URI])
    same_config = pc.equal(old[schema.CONFIG_HASH], new[schema.CONFIG_HASH].take(index))
    same_version = pc.or_kleene(pc.is_null(old[schema.ETAG]), pc.equal(old[schema.ETAG], new[schema.ETAG].take(index)))
    failed = pc.equal(old[schema.STATUS], schema.STATUS_FAILED)
    replaced = pc.and_kleene(pc.and_kleene(failed, same_config), same_version)
    return pc.fill_null(replaced, False)


def has_added_columns(file: LoggedFile) -> bool:
    """Whether the file has columns that users have added. Reads its footer.

    Raises:
        StoreError: the file can't be read.
    """
    with _opened(file) as parquet:
        return not set(parquet.schema_arrow.names) <= set(FILE_SCHEMA.names)


def _read(file: LoggedFile, fields: pa.Schema | None) -> pa.Table:
    """Reads columns; None reads all, also those that users have added."""
    with _opened(file) as parquet:
        if fields is None:
            added = [_filterable(field) for field in parquet.schema_arrow if field.name not in FILE_SCHEMA.names]
            fields = pa.schema([*FILE_SCHEMA, *added])
        return parquet.read(columns=fields.names).select(fields.names).cast(fields)


def _filterable(field: pa.Field) -> pa.Field:
    """The field with a type that pyarrow can filter, which it can't for views, as deltalake writes them."""
    types = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    return field.with_type(types.get(field.type, field.type))


@contextmanager
def _opened(file: LoggedFile) -> Iterator[pq.ParquetFile]:
    try:
        with closing(storage.open_file(file.uri)) as handle:
            yield pq.ParquetFile(handle, pre_buffer=True, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(
            f"can't read {file.uri}, a file of the table: {' '.join(str(error).split())}. Run `locray verify` to find "
            "all damaged files"
        ) from error


def _now_ms() -> int:
    return int(datetime.now(UTC).timestamp() * 1000)
