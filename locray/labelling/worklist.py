"""The worklist: images that are listed and not yet in the table, in units of work.

Stored as Parquet files with one row group per unit and few units per file, so that a task reads only the footer and its
own row group of a small file.
"""

import io
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake import DeltaTable

from locray import schema, storage
from locray.errors import ErrorCode
from locray.progress import Report, ignore, with_progress
from locray.sources import Source
from locray.storage.temporary_database import create_from_batches, temporary_database
from locray.table.data_files import scan_strings
from locray.table.key import PredictionKey

MAX_UNIT_SIZE = 256
"""Default number of images per unit of a long run."""
_MIN_UNIT_SIZE = 32
_MIN_UNITS = 32
UNITS_PER_FILE = 64
SAMPLED_IMAGES = 256
"""A worklist begins with this many images, sampled at random."""
_SAME_VERSION = (
    f"pending.{schema.IMAGE_URI} = retried.{schema.IMAGE_URI} AND "
    f"coalesce(pending.{schema.ETAG} = retried.{schema.ETAG}, true)"
)
"""An unknown version equals any."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of listed images, compared with the table."""

    listed: int
    already_labelled: int
    changed: int
    """Images that the table has in other versions only."""
    retried: int
    """Images that failed and will be labelled again."""

    @property
    def pending(self) -> int:
        """Images to label."""
        return self.listed - self.already_labelled

    @property
    def new(self) -> int:
        """Images that the table has in no version."""
        return self.pending - self.changed - self.retried


class Worklist(Protocol):
    """Images in units of work. Small or cheap to pickle, since tasks carry it."""

    @property
    def num_images(self) -> int:
        """Number of images. Their ordinals are 0 to `num_images - 1`."""
        ...

    @property
    def unit_size(self) -> int:
        """Images per unit. The last unit may have fewer."""
        ...

    def read_unit(self, unit: int) -> pa.Table:
        """The images of a unit as a table of `schema.WORKLIST_SCHEMA`."""
        ...


def unit_size_for(num_images: int, chosen: int | None) -> int:
    """Images per unit: as chosen, or by default a power of two with 32 units or more, from 32 to 256.

    Rows and progress come per unit, and units of a short run must keep all workers busy.
    """
    if chosen is not None:
        return chosen
    largest = 1 << max(0, (num_images // _MIN_UNITS).bit_length() - 1)
    return min(max(largest, _MIN_UNIT_SIZE), MAX_UNIT_SIZE)


def num_units(worklist: Worklist) -> int:
    """Number of units."""
    return -(-worklist.num_images // worklist.unit_size)


@dataclass(frozen=True)
class StoredWorklist:
    """A worklist in a store that every node can read."""

    uri: str
    num_images: int
    unit_size: int

    def read_unit(self, unit: int) -> pa.Table:
        """The images of a unit as a table of `schema.WORKLIST_SCHEMA`."""
        file = storage.open_parquet(self.file_uri(unit // UNITS_PER_FILE))
        return file.read_row_group(unit % UNITS_PER_FILE)

    def file_uri(self, index: int) -> str:
        """File of the units from `index * UNITS_PER_FILE`. No .parquet ending: globs over the table must not match."""
        return storage.join(self.uri, f"worklist-{index:06d}")


@dataclass(frozen=True)
class InlineWorklist:
    """A worklist that is pickled with the tasks: for thousands of images, not for millions."""

    rows: pa.Table
    num_images: int
    unit_size: int

    @classmethod
    def of(cls, rows: pa.Table, unit_size: int) -> "InlineWorklist":
        """Images of `schema.LISTING_SCHEMA`, in their order."""
        return cls(_with_ordinals(rows, 0), len(rows), unit_size)

    @classmethod
    def of_uris(cls, uris: Sequence[str], unit_size: int) -> "InlineWorklist":
        """Images of which only the URIs are known."""
        unknown = [pa.nulls(len(uris), field.type) for field in list(schema.LISTING_SCHEMA)[1:]]
        return cls.of(pa.table([pa.array(uris, pa.string()), *unknown], schema=schema.LISTING_SCHEMA), unit_size)

    def read_unit(self, unit: int) -> pa.Table:
        """The images of a unit as a table of `schema.WORKLIST_SCHEMA`."""
        return self.rows.slice(unit * self.unit_size, self.unit_size)


class PendingImages:
    """Images of a listing that have no row of a model and configuration. DuckDB joins them, and spills to disk.

    A listed image has a row if the table has one for the same version of it or, if the listing does not know the
    version, for any.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    @classmethod
    @contextmanager
    def find(
        cls,
        source: Source,
        table: DeltaTable | None,
        table_uri: str,
        key: PredictionKey,
        *,
        retry: Collection[ErrorCode] = (),
        report: Report = ignore,
    ) -> Iterator["PendingImages"]:
        """Reads the rows of the table, then the whole listing, which may outlast the table's credentials.

        Args:
            source: Lists the images.
            table: The predictions table, or None if there is none yet.
            table_uri: Its normalised URI.
            key: Model and configuration whose rows count.
            retry: Rows with these error codes don't count.
            report: Progress callback.
        """
        with temporary_database() as connection:
            is_retried = ds.field(schema.ERROR_CODE).isin(pa.array(map(str, retry), pa.string()))
            _load_rows(connection, "labelled", table, table_uri, key.row_filter & ~is_retried)
            _load_rows(connection, "retried", table if retry else None, table_uri, key.row_filter & is_retried)
            _load_listing(connection, source, report)
            _join(connection)
            yield cls(connection)

    def counts(self) -> Counts:
        """Number of images that are listed, already labelled, changed and retried."""
        listed = self._count("SELECT count(*) FROM listing")
        pending = self._count("SELECT count(*) FROM pending")
        retried = self._count(f"SELECT count(*) FROM pending SEMI JOIN retried ON {_SAME_VERSION}")
        changed = self._count(
            f"SELECT count(*) FROM (SELECT * FROM pending ANTI JOIN retried ON {_SAME_VERSION}) "
            f"SEMI JOIN (FROM labelled UNION ALL FROM retried) USING ({schema.IMAGE_URI})"
        )
        return Counts(listed, listed - pending, changed, retried)

    def batches(self, limit: int | None, batch_size: int) -> Iterator[pa.RecordBatch]:
        """The images as batches of `LISTING_SCHEMA`: a random sample first, then the others, by URI.

        The first images are therefore representative of all, not of one folder.
        """
        columns = ", ".join(schema.LISTING_SCHEMA.names)
        limited = "pending" if limit is None else f"(SELECT * FROM pending ORDER BY {schema.IMAGE_URI} LIMIT {limit})"
        sample = f"SELECT {schema.IMAGE_URI} FROM {limited} USING SAMPLE {SAMPLED_IMAGES} ROWS (reservoir, 0)"
        query = f"""
            SELECT {columns} FROM {limited}
            ORDER BY {schema.IMAGE_URI} IN ({sample}) DESC, {schema.IMAGE_URI}
        """
        yield from self._connection.sql(query).to_arrow_reader(batch_size)

    def sample(self, num_images: int) -> pa.Table:
        """A random sample of the images as a table of `LISTING_SCHEMA`."""
        columns = ", ".join(schema.LISTING_SCHEMA.names)
        query = f"SELECT {columns} FROM (SELECT * FROM pending USING SAMPLE {num_images} ROWS (reservoir, 0))"
        return self._connection.sql(query).to_arrow_table().cast(schema.LISTING_SCHEMA)

    def write(self, uri: str, unit_size: int, limit: int | None = None) -> StoredWorklist:
        """Writes the worklist to the folder `uri`, one file in memory at a time."""
        num_images = 0
        worklist = StoredWorklist(uri, 0, unit_size)
        buffered: list[pa.RecordBatch] = []
        rows_per_file = unit_size * UNITS_PER_FILE
        for batch in self.batches(limit, rows_per_file):
            buffered.append(batch)
            while sum(map(len, buffered)) >= rows_per_file:
                rows = pa.Table.from_batches(buffered)
                _write_file(worklist, rows.slice(0, rows_per_file), num_images)
                buffered = rows.slice(rows_per_file).to_batches()
                num_images += rows_per_file
        if buffered:
            rows = pa.Table.from_batches(buffered)
            _write_file(worklist, rows, num_images)
            num_images += len(rows)
        return StoredWorklist(uri, num_images, unit_size)

    def _count(self, query: str) -> int:
        ((count,),) = self._connection.execute(query).fetchall()
        return int(count)


def _load_listing(connection: duckdb.DuckDBPyConnection, source: Source, report: Report) -> None:
    """Loads the listing. An image that is listed twice is taken once, with its version if that is known."""
    columns = ", ".join(f"max({name}) AS {name}" for name in schema.LISTING_SCHEMA.names if name != schema.IMAGE_URI)
    statement = f"CREATE TABLE listing AS SELECT {schema.IMAGE_URI}, {columns} FROM stream GROUP BY {schema.IMAGE_URI}"
    create_from_batches(connection, statement, schema.LISTING_SCHEMA, with_progress(source.listing(), report))


def _load_rows(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    table: DeltaTable | None,
    table_uri: str,
    row_filter: ds.Expression,
) -> None:
    """Loads URI and version of the filtered rows as a table of this name."""
    columns = (schema.IMAGE_URI, schema.ETAG)
    fields = pa.schema([(column, pa.string()) for column in columns])
    batches = scan_strings(table, table_uri, columns, row_filter) if table else ()
    create_from_batches(connection, f"CREATE TABLE {name} AS SELECT * FROM stream", fields, batches)


def _join(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute(
        f"""
        CREATE TABLE pending AS
        SELECT * FROM listing ANTI JOIN labelled USING ({schema.IMAGE_URI}, {schema.ETAG})
        WHERE {schema.ETAG} IS NOT NULL
        UNION ALL
        SELECT * FROM listing ANTI JOIN labelled USING ({schema.IMAGE_URI})
        WHERE {schema.ETAG} IS NULL
        """
    )


def _with_ordinals(rows: pa.Table, first_ordinal: int) -> pa.Table:
    """Rows of `LISTING_SCHEMA` as rows of `WORKLIST_SCHEMA`."""
    ordinals = pa.array(range(first_ordinal, first_ordinal + len(rows)), pa.int64())
    return rows.add_column(0, schema.ORDINAL, ordinals).cast(schema.WORKLIST_SCHEMA)


def _write_file(worklist: StoredWorklist, rows: pa.Table, first_ordinal: int) -> None:
    buffer = io.BytesIO()
    pq.write_table(_with_ordinals(rows, first_ordinal), buffer, row_group_size=worklist.unit_size, compression="zstd")
    index = first_ordinal // (worklist.unit_size * UNITS_PER_FILE)
    storage.write_bytes(worklist.file_uri(index), buffer.getvalue())
