"""The Parquet files that the predictions table consists of: in its log, written, and read again to replace rows.

Called by table/writer.py and by the verification.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.transaction import AddAction, RemoveAction

from locray import schema, storage
from locray.errors import StoreAccessError, StoreError
from locray.storage.s3_errors import store_error
from locray.table.errors import explained
from locray.table.statistics import file_statistics

ROWS_PER_GROUP = 65_536
FILE_SCHEMA = pa.schema([field for field in schema.PREDICTIONS_SCHEMA if field.name not in schema.PARTITION_COLUMNS])
_KEY_SCHEMA = pa.schema(
    [FILE_SCHEMA.field(name) for name in (schema.IMAGE_URI, schema.ETAG, schema.CONFIG_HASH, schema.STATUS)]
)


@dataclass(frozen=True, slots=True)
class LoggedFile:
    """A data file as the log knows it. What the log says nothing of is None."""

    uri: str
    path: str
    """As the log has it: relative to the table, percent-encoded."""
    size_bytes: int
    num_rows: int | None
    model_id: str
    run_date: str
    first_uri: str | None
    """No image URI in it comes before this one."""
    last_uri: str | None
    """Nor any after this one."""
    first_status: str | None


def logged_files(table: DeltaTable, uri: str) -> list[LoggedFile]:
    """The files that the table at the URI consists of, by name."""
    actions = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    files = [
        LoggedFile(
            uri=_file_uri(uri, action["path"]),
            path=action["path"],
            size_bytes=action[schema.SIZE_BYTES],  # deltalake has the same name for it
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
    """Paths in the log are relative to the table and percent-encoded; such of shared files are whole URIs."""
    return unquote(path) if "://" in path else storage.join(table_uri, unquote(path))


def removed_files(table: DeltaTable, uri: str, hours: int) -> set[str]:
    """What commits have removed longer ago, as far as the log remembers; it names also what is long gone.

    Raises:
        StoreError: the store failed.
    """
    with explained(uri):  # a dry run deletes nothing and, unless it is a full one, lists nothing
        paths = table.vacuum(hours, dry_run=True, enforce_retention_duration=False)
    return {storage.join(uri, path) for path in paths}


def scan_texts(table: DeltaTable, columns: Sequence[str], wanted: ds.Expression) -> Iterator[pa.RecordBatch]:
    """Columns of strings of the wanted rows, batch by batch.

    Raises:
        StoreError: the store failed.
        StoreAccessError: a file of the table is damaged, missing or denied.
    """
    fields = pa.schema([(name, pa.string()) for name in columns])
    try:
        if table.file_uris():
            reader = table.to_pyarrow_dataset().scanner(columns=list(columns), filter=wanted).to_reader()
            yield from (batch.cast(fields) for batch in reader)
    except (pa.ArrowException, OSError) as error:
        uri = table.table_uri.rstrip("/")
        if storage.is_remote(uri) and isinstance(error, OSError) and "://" in str(error):  # a request that failed
            raise store_error(uri, error) from error
        raise StoreAccessError(
            f"rows of the table at {uri} can't be read: {str(error).splitlines()[0]}. `locray verify` tells which "
            "files are damaged or missing: restore them"
        ) from error


def write_file(
    table_uri: str, rows: pa.Table, model_id: str, run_date: str, name: str, *, changes_data: bool
) -> AddAction:
    """Writes rows (at least the columns of `FILE_SCHEMA`) by image URI as one file; what a commit says to add it.

    Raises:
        StoreError: the store failed, or nothing may be written there.
    """
    rows = rows.select(FILE_SCHEMA.names).cast(FILE_SCHEMA).sort_by(schema.IMAGE_URI)
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
        stats=json.dumps(file_statistics(rows)),
    )


def can_be_removed(file: LoggedFile) -> bool:
    """Whether a `RemoveAction` can name the file as the log does: it encodes percent signs; of others nothing is known.

    Nobody looks whether it names a file of the table: one that is named otherwise stays, and its rows are there twice.
    """
    return file.path.count("%") == file.path.count("%25")


def remove_file(file: LoggedFile, *, changes_data: bool = True) -> RemoveAction:
    """What a commit says so that the table doesn't consist of the file any more; a vacuum deletes it in its time.

    Raises:
        StoreError: it can't be removed, for its name in the log.
    """
    if not can_be_removed(file):
        raise StoreError(
            f"{file.uri} was not written by locray, and its name in the log, {file.path}, can't be given to remove it. "
            "Let the program that wrote it write it anew"
        )
    return RemoveAction(
        path=unquote(file.path),  # which deltalake encodes again, unlike that of an AddAction
        data_change=changes_data,
        deletion_timestamp=_now_ms(),
        size=file.size_bytes,
        partition_values={schema.MODEL_ID: file.model_id, schema.RUN_DATE: file.run_date},
    )


def files_to_replace(files: list[LoggedFile], rows: pa.Table) -> Iterator[tuple[LoggedFile, pa.Table]]:
    """The files of one model that hold failed rows in whose place the new rows come, each with all of its other rows.

    Only files that may hold such rows are read, and of them only the keys before it is certain. Memory holds one file.

    Raises:
        StoreError: a file can't be read; pages are read with their checksums, so that no damage is written on.
    """
    bounds = pc.min_max(rows[schema.IMAGE_URI]).as_py()
    for file in files:
        if _may_hold(file, bounds["min"], bounds["max"]):
            replaced = _is_replaced(_read(file, _KEY_SCHEMA), rows)
            if pc.any(replaced).as_py():
                yield file, _read(file, FILE_SCHEMA).filter(pc.invert(replaced))


def _may_hold(file: LoggedFile, first_uri: str, last_uri: str) -> bool:
    return not (
        (file.first_status is not None and file.first_status > schema.STATUS_FAILED)
        or (file.first_uri is not None and file.first_uri > last_uri)
        or (file.last_uri is not None and file.last_uri < first_uri)
    )


def _is_replaced(old: pa.Table, new: pa.Table) -> pa.ChunkedArray:
    """Which of the old rows failed, and have a new one of the same image, version and configuration.

    A failed row without a version (the image could not be fetched) is taken for the same version.
    """
    place = pc.index_in(old[schema.IMAGE_URI], value_set=new[schema.IMAGE_URI])
    same_config = pc.equal(old[schema.CONFIG_HASH], new[schema.CONFIG_HASH].take(place))
    same_version = pc.or_kleene(pc.is_null(old[schema.ETAG]), pc.equal(old[schema.ETAG], new[schema.ETAG].take(place)))
    failed = pc.equal(old[schema.STATUS], schema.STATUS_FAILED)
    replaced = pc.and_kleene(pc.and_kleene(failed, same_config), same_version)
    return pc.fill_null(replaced, False)


def _read(file: LoggedFile, fields: pa.Schema) -> pa.Table:
    try:
        with closing(storage.open_file(file.uri)) as handle:
            parquet = pq.ParquetFile(handle, pre_buffer=True, page_checksum_verification=True)
            return parquet.read(columns=fields.names).select(fields.names).cast(fields)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(
            f"{file.uri}, a file of the table, can't be read: {' '.join(str(error).split())}. "
            "`locray verify` tells which files are damaged"
        ) from error


def _now_ms() -> int:
    return int(datetime.now(UTC).timestamp() * 1000)
