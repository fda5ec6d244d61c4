"""A database on disk, for joins that don't fit into memory."""

import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from locray.errors import StoreError
from locray.storage.temporary_folder import temporary_folder

_MEMORY_LIMIT = "1GB"
_IS_FULL = re.compile("No space left|quota exceeded|max_temp_directory_size")
"""Messages of the system when a disk is full, and of DuckDB before it is."""


@contextmanager
def temporary_database() -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty DuckDB database in a temporary folder, deleted afterwards. It spills to disk beyond 1 GB of memory.

    Raises:
        StoreError: the disk of the folder is full, also while the database is in use.
    """
    try:
        with (
            temporary_folder() as folder,
            duckdb.connect(f"{folder}/temporary.duckdb") as connection,
        ):
            connection.execute(f"SET memory_limit = '{_MEMORY_LIMIT}'")
            connection.execute(f"SET temp_directory = '{folder}/spill'")
            connection.execute("SET preserve_insertion_order = false")
            yield connection
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        # A write, a commit or a spill may fail, each with a type of its own.
        if not _IS_FULL.search(str(error)):
            raise
        raise StoreError(
            f"the keys of the images don't fit into {tempfile.gettempdir()}: {str(error).splitlines()[0]}. Free some "
            "space there, or name a folder on a larger disk in TMPDIR"
        ) from error


def create_from_batches(
    connection: duckdb.DuckDBPyConnection, statement: str, fields: pa.Schema, batches: Iterable[pa.RecordBatch]
) -> None:
    """Executes a statement that reads the batches as `stream`. Raises their own errors, which DuckDB wraps."""
    raised: list[Exception] = []

    def watched() -> Iterator[pa.RecordBatch]:
        try:
            yield from batches
        except Exception as error:
            raised.append(error)
            raise

    connection.register("stream", pa.RecordBatchReader.from_batches(fields, watched()))
    try:
        connection.execute(statement)
    except duckdb.Error:
        if raised:
            raise raised[0] from None
        raise
    connection.unregister("stream")
