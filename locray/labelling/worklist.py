"""The worklist: what a listing holds and the table doesn't, in units of work. Called by the runs and the pipeline.

It is written as Parquet, one row group a unit, few units a file: a task reads the footer and its own row group of one
small file.
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

UNITS_PER_FILE = 64
DRAWN_IMAGES = 256
"""How many images, drawn at random, a worklist begins with."""
_VERSION_KNOWN = f"{schema.ETAG} IS NOT NULL"
_VERSION_UNKNOWN = f"{schema.ETAG} IS NULL"
_SAME_VERSION = (
    f"to_do.{schema.IMAGE_URI} = retried.{schema.IMAGE_URI} AND "
    f"coalesce(to_do.{schema.ETAG} = retried.{schema.ETAG}, true)"
)
"""A version that is not known is the same as any."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What a listing holds, seen against the table."""

    listed: int
    already_labelled: int
    changed: int
    """Images that the table holds in another version only."""
    retried: int
    """Images that failed, and are to be labelled again."""

    @property
    def to_do(self) -> int:
        """Images without a row that stays."""
        return self.listed - self.already_labelled

    @property
    def new(self) -> int:
        """Images that the table has never seen."""
        return self.to_do - self.changed - self.retried


class Worklist(Protocol):
    """Images in units of work. Small or cheap to pickle: tasks carry it."""

    @property
    def num_images(self) -> int:
        """How many images are to be labelled; their ordinals are below it."""
        ...

    @property
    def unit_size(self) -> int:
        """Images of each unit but the last."""
        ...

    def read_unit(self, unit: int) -> pa.Table:
        """The images of a unit as a table of `schema.WORKLIST_SCHEMA`."""
        ...


def num_units(worklist: Worklist) -> int:
    """Units of work, each of `unit_size` images but for the last."""
    return -(-worklist.num_images // worklist.unit_size)


@dataclass(frozen=True)
class StoredWorklist:
    """A worklist in a store that every node reaches."""

    uri: str
    num_images: int
    unit_size: int

    def read_unit(self, unit: int) -> pa.Table:
        """The images of a unit as a table of `schema.WORKLIST_SCHEMA`."""
        file = storage.open_parquet(self.file_uri(unit // UNITS_PER_FILE))
        return file.read_row_group(unit % UNITS_PER_FILE)

    def file_uri(self, index: int) -> str:
        """The file of units `index * UNITS_PER_FILE` and on. No .parquet ending: globs over the table miss it."""
        return storage.join(self.uri, f"worklist-{index:06d}")


@dataclass(frozen=True)
class InlineWorklist:
    """A worklist that travels with the tasks: for thousands of images, not for millions."""

    rows: pa.Table
    num_images: int
    unit_size: int

    @classmethod
    def of(cls, rows: pa.Table, unit_size: int) -> "InlineWorklist":
        """Images of `schema.LISTING_SCHEMA`, numbered in their order."""
        ordinals = pa.array(range(len(rows)), pa.int64())
        return cls(rows.add_column(0, schema.ORDINAL, ordinals).cast(schema.WORKLIST_SCHEMA), len(rows), unit_size)

    @classmethod
    def of_uris(cls, uris: Sequence[str], unit_size: int) -> "InlineWorklist":
        """Images of which nothing is known but where they are."""
        unknown = [pa.nulls(len(uris), field.type) for field in list(schema.LISTING_SCHEMA)[1:]]
        return cls.of(pa.table([pa.array(uris, pa.string()), *unknown], schema=schema.LISTING_SCHEMA), unit_size)

    def read_unit(self, unit: int) -> pa.Table:
        """The images of a unit as a table of `schema.WORKLIST_SCHEMA`."""
        return self.rows.slice(unit * self.unit_size, self.unit_size)


class Difference:
    """A listing without what the table holds for one model and configuration; DuckDB does the join and spills to disk.

    A listed image counts as labelled if the table has a row for the same version of it; where the listing doesn't know
    the version, if it has a row for any version.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    @classmethod
    @contextmanager
    def open(
        cls,
        source: Source,
        table: DeltaTable | None,
        model_id: str,
        config_hash: str,
        *,
        retry: Collection[ErrorCode] = (),
        report: Report = ignore,
    ) -> Iterator["Difference"]:
        """Reads the table's keys, then the listing to its end: that may outlast the credentials of the table.

        Args:
            source: Lists the images.
            table: The predictions, or None where there is no table yet.
            model_id: Of the model whose rows count.
            config_hash: Of the configuration whose rows count.
            retry: Rows that failed with one of these codes don't count.
            report: Is told how far the listing is.
        """
        with temporary_database() as connection:
            mine = (ds.field(schema.MODEL_ID) == model_id) & (ds.field(schema.CONFIG_HASH) == config_hash)
            again = ds.field(schema.ERROR_CODE).isin(pa.array(map(str, retry), pa.string()))
            _load_keys(connection, "done", table, mine & ~again)
            _load_keys(connection, "retried", table if retry else None, mine & again)
            _load_listing(connection, source, report)
            _join(connection)
            yield cls(connection)

    def counts(self) -> Counts:
        """How many images are listed, labelled already, labelled in another version only, and tried again."""
        listed = self._count("SELECT count(*) FROM listing")
        to_do = self._count("SELECT count(*) FROM to_do")
        retried = self._count(f"SELECT count(*) FROM to_do SEMI JOIN retried ON {_SAME_VERSION}")
        changed = self._count(
            f"SELECT count(*) FROM (SELECT * FROM to_do ANTI JOIN retried ON {_SAME_VERSION}) "
            f"SEMI JOIN (FROM done UNION ALL FROM retried) USING ({schema.IMAGE_URI})"
        )
        return Counts(listed, listed - to_do, changed, retried)

    def batches(self, limit: int | None, batch_size: int) -> Iterator[pa.RecordBatch]:
        """What is to be done as batches of `LISTING_SCHEMA`: some images drawn at random, then the others, by URI.

        So whether none of the first images can be labelled says something of all of them, not of one folder.
        """
        columns = ", ".join(schema.LISTING_SCHEMA.names)
        wanted = "to_do" if limit is None else f"(SELECT * FROM to_do ORDER BY {schema.IMAGE_URI} LIMIT {limit})"
        drawn = f"SELECT {schema.IMAGE_URI} FROM {wanted} USING SAMPLE {DRAWN_IMAGES} ROWS (reservoir, 0)"
        query = f"""
            SELECT {columns} FROM {wanted}
            ORDER BY {schema.IMAGE_URI} IN ({drawn}) DESC, {schema.IMAGE_URI}
        """
        yield from self._connection.sql(query).to_arrow_reader(batch_size)

    def sample(self, num_images: int) -> pa.Table:
        """Some of what is to be done, drawn at random, as a table of `LISTING_SCHEMA`."""
        columns = ", ".join(schema.LISTING_SCHEMA.names)
        query = f"SELECT {columns} FROM (SELECT * FROM to_do USING SAMPLE {num_images} ROWS (reservoir, 0))"
        return self._connection.sql(query).to_arrow_table().cast(schema.LISTING_SCHEMA)

    def write(self, uri: str, unit_size: int, limit: int | None = None) -> StoredWorklist:
        """Writes the worklist under the URI, in bounded memory."""
        num_images = 0
        worklist = StoredWorklist(uri, 0, unit_size)
        pending: list[pa.RecordBatch] = []
        rows_per_file = unit_size * UNITS_PER_FILE
        for batch in self.batches(limit, rows_per_file):
            pending.append(batch)
            while sum(map(len, pending)) >= rows_per_file:
                rows = pa.Table.from_batches(pending)
                _write_file(worklist, rows.slice(0, rows_per_file), num_images)
                pending = rows.slice(rows_per_file).to_batches()
                num_images += rows_per_file
        if pending:
            rows = pa.Table.from_batches(pending)
            _write_file(worklist, rows, num_images)
            num_images += len(rows)
        return StoredWorklist(uri, num_images, unit_size)

    def _count(self, query: str) -> int:
        ((count,),) = self._connection.execute(query).fetchall()
        return int(count)


def _load_listing(connection: duckdb.DuckDBPyConnection, source: Source, report: Report) -> None:
    """The listing as a table; an image that is listed twice is taken once, with its version if that is known."""
    columns = ", ".join(f"max({name}) AS {name}" for name in schema.LISTING_SCHEMA.names if name != schema.IMAGE_URI)
    statement = f"CREATE TABLE listing AS SELECT {schema.IMAGE_URI}, {columns} FROM stream GROUP BY {schema.IMAGE_URI}"
    create_from_batches(connection, statement, schema.LISTING_SCHEMA, with_progress(source.listing(), report))


def _load_keys(
    connection: duckdb.DuckDBPyConnection, name: str, table: DeltaTable | None, wanted: ds.Expression
) -> None:
    """The keys of the wanted rows as a table of this name."""
    key = (schema.IMAGE_URI, schema.ETAG)
    fields = pa.schema([(name, pa.string()) for name in key])
    batches = scan_strings(table, key, wanted) if table else ()
    create_from_batches(connection, f"CREATE TABLE {name} AS SELECT * FROM stream", fields, batches)


def _join(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute(
        f"""
        CREATE TABLE to_do AS
        SELECT * FROM listing ANTI JOIN done USING ({schema.IMAGE_URI}, {schema.ETAG}) WHERE {_VERSION_KNOWN}
        UNION ALL
        SELECT * FROM listing ANTI JOIN done USING ({schema.IMAGE_URI}) WHERE {_VERSION_UNKNOWN}
        """
    )


def _write_file(worklist: StoredWorklist, rows: pa.Table, first_ordinal: int) -> None:
    ordinals = pa.array(range(first_ordinal, first_ordinal + len(rows)), pa.int64())
    rows = rows.add_column(0, schema.ORDINAL, ordinals).cast(schema.WORKLIST_SCHEMA)
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, row_group_size=worklist.unit_size, compression="zstd")
    index = first_ordinal // (worklist.unit_size * UNITS_PER_FILE)
    storage.write_bytes(worklist.file_uri(index), buffer.getvalue())
