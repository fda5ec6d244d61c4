"""The predictions table in its folder: found, made, and kept apart from the images. Called by whatever touches it."""

from collections.abc import Iterator
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import CommitFailedError, TableNotFoundError

from locray import schema, storage
from locray.errors import StoreAccessError, StoreError, UsageError
from locray.sources import Source
from locray.table.errors import explained, in_one_line

WORK_FOLDER = "_locray"
"""What lies below the table and is none of it. Readers of Delta and Hive tables ignore such names."""
RECORDS = f"{WORK_FOLDER}/nights"
"""Where nightly runs keep their records. No model's scratch has this name: ids of models hold an @."""

_OWN_NAMES = ("_delta_log/", f"{WORK_FOLDER}/", f"{schema.MODEL_ID}=")
"""What the names below a table begin with, of all that was written for it."""


def open_table(uri: str) -> DeltaTable | None:
    """The predictions table at the URI, or None where nothing lies yet.

    Raises:
        UsageError: something else lies there.
        StoreAccessError: the folder or bucket can't be reached, or the table can't be read.
    """
    if storage.is_remote(uri) or storage.exists(uri):
        storage.check_readable_folder(uri)
    table = _delta_table(uri)
    if table is None:
        if not storage.list_uris(uri):
            return None
        table = _delta_table(uri)  # what lies there may be a table that another run has made since
    if table is None:
        raise UsageError(
            f"{uri} holds files that are no predictions table. "
            "Give the table a folder of its own; it is made when it is not there."
        )
    found = pa.schema(table.schema().to_arrow())
    missing = [name for name in schema.PREDICTIONS_SCHEMA.names if name not in found.names]
    if missing:
        raise UsageError(f"{uri} is a Delta table, but no predictions table: it has no column {', '.join(missing)}.")
    return table


def open_existing_table(uri: str) -> DeltaTable:
    """The predictions table at the URI.

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
        with explained(uri):
            return DeltaTable(uri, storage_options=storage.delta_storage_options(uri))
    except TableNotFoundError:
        return None


def check_apart(source: Source, uri: str) -> None:
    """Makes sure that no listing of the images takes up files of the table at the (normalised) URI.

    Raises:
        UsageError: it would, and every run would label the files that the one before it has written.
    """
    files = ("_delta_log/00000000000000000000.json", f"{schema.MODEL_ID}=m/{schema.RUN_DATE}=2000-01-01/part-0.parquet")
    if any(source.lists(storage.join(uri, file)) for file in files):
        raise UsageError(
            f"the table {uri} lies among the images: its own files would be listed with them in the next run. "
            "Give --table a place outside of --images"
        )


class ExcludeTableFiles:
    """A source without the files of a table: a list of a whole bucket names them, too, and can't say so beforehand.

    Args:
        source: lists the images.
        table_uri: the table, a normalised URI.
    """

    def __init__(self, source: Source, table_uri: str) -> None:
        self._source = source
        self._files_of_the_table = [storage.join(table_uri, name) for name in _OWN_NAMES]

    @classmethod
    def from_uri(cls, images: str, uri_column: str | None) -> Self | None:  # noqa: ARG003
        """Nothing: no user names it."""
        return None

    def check(self, *, may_be_empty: bool = False) -> None:
        """As of the other source."""
        self._source.check(may_be_empty=may_be_empty)

    def lists(self, uri: str) -> bool:
        """As of the other source: `check_apart` is to find out."""
        return self._source.lists(uri)

    def listing(self) -> Iterator[pa.RecordBatch]:
        """That of the other source, without the table's files."""
        for batch in self._source.listing():
            uris = batch[schema.IMAGE_URI]
            is_image = pa.repeat(pa.scalar(True), len(batch))
            for beginning in self._files_of_the_table:
                is_image = pc.and_not(is_image, pc.starts_with(uris, beginning))
            yield batch.filter(is_image)


def holds_rows(table: DeltaTable | None) -> bool:
    """Whether anything was labelled into the table before."""
    return table is not None and bool(table.file_uris())


def create_table(uri: str) -> DeltaTable:
    """An empty predictions table at the URI, or the one that another run has made in the meantime.

    Raises:
        StoreAccessError: nothing may be written there.
    """
    try:
        with explained(uri):
            return DeltaTable.create(
                uri,
                schema=schema.PREDICTIONS_SCHEMA,
                partition_by=schema.PARTITION_COLUMNS,
                name="predictions",
                storage_options=storage.delta_storage_options(uri),
                # A second attempt would make the table anew in the midst of the log of another run.
                commit_properties=CommitProperties(max_commit_retries=0),
            )
    except (CommitFailedError, TableNotFoundError, StoreError) as error:
        table = open_table(uri)  # another run's, or this one's whose answer was lost
        if table is None:
            raise StoreAccessError(f"no table can be made at {uri}: {in_one_line(error)}") from error
        return table
