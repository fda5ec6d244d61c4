"""A database on disk for joins that memory does not hold. Used by the worklist, the verification and the nights."""

import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from locray.errors import StoreError
from locray.storage import temporary_folder

_MEMORY_LIMIT = "1GB"
_IS_FULL = re.compile("No space left|quota exceeded|max_temp_directory_size")
"""What the system says when a disk is full, and what DuckDB says before it is."""


@contextmanager
def temporary_database() -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty DuckDB database in a folder of its own, which is deleted afterwards. What memory can't hold is spilled.

    Raises:
        StoreError: the folder for temporary files has no space for it, also while it is in use.
    """
    try:
        with (
            temporary_folder() as folder,
            duckdb.connect(f"{folder}/scratch.duckdb") as connection,
        ):
            connection.execute(f"SET memory_limit = '{_MEMORY_LIMIT}'")
            connection.execute(f"SET temp_directory = '{folder}/spill'")
            connection.execute("SET preserve_insertion_order = false")
            yield connection
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        # Of several types: what fails may be a write, a commit or a spill.
        if not _IS_FULL.search(str(error)):
            raise
        raise StoreError(
            f"the keys of the images don't fit into {tempfile.gettempdir()}: {str(error).splitlines()[0]}. Free some "
            "space there, or name a folder on a larger disk in TMPDIR"
        ) from error


def create_from_batches(
    connection: duckdb.DuckDBPyConnection, statement: str, fields: pa.Schema, batches: Iterable[pa.RecordBatch]
) -> None:
    """Executes a statement that reads the batches as `stream`. What they raise is raised as it is: DuckDB wraps it."""
    stopped_by: list[Exception] = []

    def watched() -> Iterator[pa.RecordBatch]:
        try:
            yield from batches
        except Exception as error:
            stopped_by.append(error)
            raise

    connection.register("stream", pa.RecordBatchReader.from_batches(fields, watched()))
    try:
        connection.execute(statement)
    except duckdb.Error:
        if stopped_by:
            raise stopped_by[0] from None
        raise
    connection.unregister("stream")
