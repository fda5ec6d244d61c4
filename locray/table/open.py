"""Opens and creates the predictions table."""

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import CommitFailedError, TableNotFoundError

from locray import schema, storage
from locray.errors import StoreAccessError, StoreError, UsageError
from locray.table.errors import one_line, translate_errors

WORK_FOLDER = "_locray"
"""Folder below the table for files that are not part of it. Readers of Delta and Hive tables ignore such names."""
RECORDS = f"{WORK_FOLDER}/nights"
"""Folder of the records of nightly runs. It can't be the work folder of a model: model ids contain an @."""
FILE_PREFIXES = ("_delta_log/", f"{WORK_FOLDER}/", f"{schema.MODEL_ID}=")
"""Prefixes, relative to the table, of the names of all files that are written for it."""


def open_table(uri: str) -> DeltaTable | None:
    """Opens the predictions table at the normalised URI; None if nothing is there yet.

    Raises:
        UsageError: something else is there.
        StoreAccessError: the folder or bucket can't be reached, or the table can't be read.
    """
    if storage.is_remote(uri) or storage.exists(uri):
        storage.check_readable_folder(uri)
    table = _delta_table(uri)
    if table is None:
        if not storage.list_uris(uri):
            return None
        table = _delta_table(uri)  # another run may have created the table since
    if table is None:
        raise UsageError(
            f"{uri} holds files, but no predictions table. Give the table a folder of its own; it need not exist yet"
        )
    columns = pa.schema(table.schema().to_arrow()).names
    missing = [name for name in schema.PREDICTIONS_SCHEMA.names if name not in columns]
    if missing:
        raise UsageError(f"{uri} is a Delta table, but no predictions table: it has no column {', '.join(missing)}")
    return table


def open_existing_table(uri: str) -> DeltaTable:
    """Opens the predictions table at the normalised URI.

    Raises:
        UsageError: there is none.
        StoreAccessError: the folder or bucket can't be reached, or the table can't be read.
    """
    table = open_table(uri)
    if table is None:
        raise UsageError(f"there is no predictions table at {uri}. Create one with `locray label --table {uri} ...`")
    return table


def _delta_table(uri: str) -> DeltaTable | None:
    try:
        with translate_errors(uri):
            return DeltaTable(uri, storage_options=storage.delta_storage_options(uri))
    except TableNotFoundError:
        return None


def holds_rows(table: DeltaTable | None) -> bool:
    """Whether the table has any rows."""
    return table is not None and bool(table.file_uris())


def create_table(uri: str) -> DeltaTable:
    """Creates an empty predictions table; if another run has created it in the meantime, opens that one.

    Raises:
        StoreAccessError: the table can't be created there.
    """
    try:
        with translate_errors(uri):
            return DeltaTable.create(
                uri,
                schema=schema.PREDICTIONS_SCHEMA,
                partition_by=schema.PARTITION_COLUMNS,
                name="predictions",
                storage_options=storage.delta_storage_options(uri),
                # A retry would create the table again on top of another run's log.
                commit_properties=CommitProperties(max_commit_retries=0),
            )
    except (CommitFailedError, TableNotFoundError, StoreError) as error:
        table = open_table(uri)  # created by another run, or by this one if only the response was lost
        if table is None:
            raise StoreAccessError(f"can't create a table at {uri}: {one_line(error)}") from error
        return table
