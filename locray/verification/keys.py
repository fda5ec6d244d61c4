"""The keys of a table's rows, compared with each other and with a listing.

Keys are MD5 hashes, 16 bytes each, in a DuckDB database on disk: memory is bounded, whatever the number of rows.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from locray import schema
from locray.progress import Report, ignore, with_progress
from locray.storage.temporary_database import temporary_database
from locray.table.key import PredictionKey
from locray.verification.findings import MAX_EXAMPLES, Check, Findings

RowPosition = tuple[int, int]
"""Index of a file, and of a row in it."""

_ROWS_PER_INSERT = 131_072
_ROW_BITS = 32
_URI, _ETAG = schema.IMAGE_URI, schema.ETAG


def _image_hash(uri: str) -> str:
    return f"md5_number({uri})"


def _version_hash(uri: str, etag: str) -> str:
    """SQL for a hash of URI and etag that no other pair of texts has; a null etag is a version of its own."""
    return f"md5_number(concat(length({uri}), ':', {uri}, ':' || {etag}))"


class KeyDatabase:
    """The keys of all rows of a table, and of a listing."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self._key_ids: dict[PredictionKey, int] = {}

    @classmethod
    @contextmanager
    def open(cls) -> Iterator["KeyDatabase"]:
        """An empty database in a temporary folder, which is deleted afterwards."""
        with temporary_database() as connection:
            connection.execute(
                "CREATE TABLE labelled (image UHUGEINT, version UHUGEINT, key_id INTEGER, ok BOOLEAN, position BIGINT)"
            )
            yield cls(connection)

    def add(self, rows: pa.RecordBatch, model_id: str, first: RowPosition) -> None:
        """Adds consecutive rows of a file, all of one model; `first` is the position of the first one."""
        hashes = rows[schema.CONFIG_HASH].fill_null("")
        unique = hashes.unique()
        keys = [PredictionKey(model_id, config_hash) for config_hash in unique.to_pylist()]
        ids = [self._key_ids.setdefault(key, len(self._key_ids)) for key in keys]
        start = (first[0] << _ROW_BITS) + first[1]
        batch = {
            _URI: rows[_URI],
            _ETAG: rows[_ETAG],
            "key_id": pa.array(ids, pa.int32()).take(pc.index_in(hashes, value_set=unique)),
            "ok": pc.equal(rows[schema.STATUS], schema.STATUS_OK),
            "position": pa.array(range(start, start + len(rows)), pa.int64()),
        }
        columns = f"{_image_hash(_URI)}, {_version_hash(_URI, _ETAG)}, key_id, ok, position"
        self._insert("labelled", pa.table(batch), columns)

    def num_rows(self) -> dict[PredictionKey, int]:
        """Number of rows per model and configuration."""
        counts = dict(self._connection.execute("SELECT key_id, count(*) FROM labelled GROUP BY ALL").fetchall())
        return {key: counts.get(key_id, 0) for key, key_id in self._key_ids.items()}

    def duplicates(self) -> tuple[int, list[RowPosition]]:
        """Number of keys with several rows, and the first positions of such rows."""
        return self._positions(
            "SELECT min(position) AS position FROM labelled GROUP BY version, key_id HAVING count(*) > 1"
        )

    def add_listing(self, listing: Iterable[pa.RecordBatch], report: Report = ignore) -> int:
        """Reads a listing to its end. Returns the number of images; one that is listed twice counts once."""
        self._connection.execute(f"CREATE TABLE stream (image UHUGEINT, {_URI} VARCHAR, {_ETAG} VARCHAR)")
        for rows in _in_larger_batches(with_progress(listing, report)):
            self._insert("stream", rows, f"{_image_hash(_URI)}, {_URI}, {_ETAG}")
        self._connection.execute(
            f"""
            CREATE TABLE listed AS
            SELECT image, max({_URI}) AS {_URI}, {_version_hash(f"max({_URI})", f"max({_ETAG})")} AS version,
                   max({_ETAG}) IS NOT NULL AS has_version
            FROM stream GROUP BY image
            """
        )
        self._connection.execute("DROP TABLE stream")
        ((count,),) = self._connection.execute("SELECT count(*) FROM listed").fetchall()
        return int(count)

    def find_missing_rows(self, key: PredictionKey | None, findings: Findings) -> None:
        """Looks for listed images without a row of this key.

        As in a labelling run, if the listing doesn't give an image's version, a row of any version will do.
        """
        rows = f"(SELECT image, version FROM labelled WHERE key_id = {self._key_id(key)})"
        versioned = "(SELECT * FROM listed WHERE has_version)"
        for check, query in (
            (Check.IMAGE_WITHOUT_ROW, f"listed ANTI JOIN {rows} USING (image)"),
            (Check.IMAGE_CHANGED, f"{versioned} SEMI JOIN {rows} USING (image) ANTI JOIN {rows} USING (version)"),
        ):
            count, uris = self._first(f"SELECT {_URI} FROM {query}", _URI)
            findings.add(check, count, map(str, uris))

    def not_listed(self, key: PredictionKey | None) -> tuple[int, list[RowPosition]]:
        """Number of images with rows of this key that are not listed, and the first positions of such rows."""
        rows = f"(SELECT image, position FROM labelled WHERE key_id = {self._key_id(key)})"
        return self._positions(
            f"SELECT min(position) AS position FROM (SELECT * FROM {rows} ANTI JOIN listed USING (image)) "
            "GROUP BY image"
        )

    def sample(self, key: PredictionKey | None, num_rows: int, seed: int, *, listed: bool) -> list[RowPosition]:
        """Draws ok rows of this key at random; if `listed`, only rows in the version that is listed."""
        versioned = "version IN (SELECT version FROM listed WHERE has_version)"
        unversioned = "image IN (SELECT image FROM listed WHERE NOT has_version)"
        is_current = f"AND ({versioned} OR {unversioned})" if listed else ""
        rows = f"FROM labelled WHERE key_id = {self._key_id(key)} AND ok {is_current}"
        # Ordered by a hash rather than drawn by SAMPLE, which depends on the scheduling of threads.
        query = f"SELECT position {rows} ORDER BY hash(version, {seed}) LIMIT ?"
        return [_position(number) for (number,) in self._connection.execute(query, [num_rows]).fetchall()]

    def _key_id(self, key: PredictionKey | None) -> int:
        return -1 if key is None else self._key_ids.get(key, -1)

    def _insert(self, table: str, rows: pa.Table, columns: str) -> None:
        self._connection.register("batch", rows)
        self._connection.execute(f"INSERT INTO {table} SELECT {columns} FROM batch")
        self._connection.unregister("batch")

    def _first(self, query: str, column: str) -> tuple[int, list[Any]]:
        """Number of rows of a query, and the smallest values of a column."""
        self._connection.execute(f"CREATE TEMP TABLE found AS {query}")
        ((count,),) = self._connection.execute("SELECT count(*) FROM found").fetchall()
        rows = self._connection.execute(f"SELECT {column} FROM found ORDER BY 1 LIMIT {MAX_EXAMPLES}").fetchall()
        self._connection.execute("DROP TABLE found")
        return int(count), [value for (value,) in rows]

    def _positions(self, query: str) -> tuple[int, list[RowPosition]]:
        count, numbers = self._first(query, "position")
        return count, [_position(number) for number in numbers]


def _in_larger_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows in larger batches: every insertion is written to disk."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= _ROWS_PER_INSERT:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)


def _position(number: int) -> RowPosition:
    return number >> _ROW_BITS, number & ((1 << _ROW_BITS) - 1)
