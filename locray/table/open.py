"""Opens and creates the predictions table."""

import re

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import CommitFailedError, TableNotFoundError

from locray import schema, storage
from locray.errors import StoreAccessError, StoreError, UsageError
from locray.storage.uris import split_s3
from locray.table.errors import one_line, translate_errors

WORK_FOLDER = "_locray"
"""Folder below the table for files that are not part of it. Readers of Delta and Hive tables ignore such names."""
RECORDS = f"{WORK_FOLDER}/nights"
"""Folder of the records of nightly runs. It can't be the work folder of a model: model ids contain an @."""
_WRITABLE_FEATURES = {"appendOnly", "changeDataFeed", "checkConstraints", "invariants", "timestampNtz"}
"""Features of Delta tables that commits of locray respect."""
_FEATURES_OF_VERSION = {4: {"generatedColumns"}, 5: {"columnMapping"}, 6: {"identityColumns"}}
"""What the writer versions before named features stand for, as far as it is not writable."""
_FEATURES_BY_SETTING = {
    "columnMapping": ("delta.columnMapping.mode", "none"),
    "deletionVectors": ("delta.enableDeletionVectors", "false"),
}
"""Property that switches a feature on, and its value where the feature is off."""
_CONSTRAINT = "delta.constraints."
_UNSAFE = re.compile(r"[\x00-\x1f\x7f#?%\[\]|^\\]")
"""Characters in the name of a table's folder for which deltalake uses another folder, or finds no history."""
FILE_PREFIXES = ("_delta_log/", f"{WORK_FOLDER}/", f"{schema.MODEL_ID}=")
"""Prefixes, relative to the table, of the names of all files that are written for it."""


def open_table(uri: str) -> DeltaTable | None:
    """Opens the predictions table at the normalised URI; None if nothing is there yet.

    Raises:
        UsageError: something else is there, or a table that locray can't read and write; or a table can't be there.
        StoreAccessError: the folder or bucket can't be reached, or the table can't be read.
    """
    _check_name(uri)
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
    check_definition(table, uri)
    return table


def _check_name(uri: str) -> None:
    path = "/".join(split_s3(uri)) if storage.is_remote(uri) else uri
    unsafe = _UNSAFE.search(path) or (re.search(":", path) if storage.is_remote(uri) else None)
    if unsafe:
        raise UsageError(
            f"{uri!r} can't be the folder of a table: the library that writes tables mishandles {unsafe[0]!r} in its "
            "name. Give it another name, of letters, digits, spaces and -_.=@+"
        )


def check_definition(table: DeltaTable, uri: str) -> None:
    """Checks that locray can read and write the table.

    Raises:
        UsageError: it has other columns or partitions, or features of Delta that locray's commits don't respect.
    """
    columns = pa.schema(table.schema().to_arrow()).names
    missing = [name for name in schema.PREDICTIONS_SCHEMA.names if name not in columns]
    if missing:
        raise UsageError(f"{uri} is a Delta table, but no predictions table: it has no column {', '.join(missing)}")
    metadata = table.metadata()
    if metadata.partition_columns != schema.PARTITION_COLUMNS:
        found = ", ".join(metadata.partition_columns) or "nothing"
        raise UsageError(
            f"{uri} is partitioned by {found}; expected {', '.join(schema.PARTITION_COLUMNS)}. Give another --table"
        )
    features = _unwritable_features(table)
    if features:
        raise UsageError(
            f"{uri} uses {', '.join(features)}, which locray can't write. Drop it (in Spark: ALTER TABLE ... DROP "
            "FEATURE), or give another --table"
        )
    constraints = [name.removeprefix(_CONSTRAINT) for name in metadata.configuration if name.startswith(_CONSTRAINT)]
    if constraints:
        raise UsageError(
            f"{uri} has the constraint {', '.join(sorted(constraints))}, which locray doesn't check when it writes. "
            "Drop it (ALTER TABLE ... DROP CONSTRAINT), or give another --table"
        )


def _unwritable_features(table: DeltaTable) -> list[str]:
    """Names of the table's features that locray's commits would not respect."""
    protocol, settings = table.protocol(), table.metadata().configuration
    features = {*(protocol.writer_features or ()), *(protocol.reader_features or ())}
    if protocol.writer_features is None:
        versions = range(1, protocol.min_writer_version + 1)
        features |= {name for version in versions for name in _FEATURES_OF_VERSION.get(version, ())}
        has_generated = any("delta.generationExpression" in field.metadata for field in table.schema().fields)
        features -= set() if has_generated else {"generatedColumns"}
    for name, (setting, off) in _FEATURES_BY_SETTING.items():
        if settings.get(setting, off) != off:
            features.add(name)
        elif protocol.writer_features is None:
            features.discard(name)
    return sorted(features - _WRITABLE_FEATURES)


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
    return table is not None and table.get_add_actions().num_rows > 0


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
