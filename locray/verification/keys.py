"""The keys of a table's rows beside each other and beside a listing. Called by `check_table`.

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
from locray.verification.findings import NAMED, Check, Findings

Place = tuple[int, int]
"""The index of a file, and the number of a row in it."""

_ROWS_AN_INSERT = 131_072
_ROW_BITS = 32
_URI, _ETAG = schema.IMAGE_URI, schema.ETAG


def _image_key(uri: str) -> str:
    return f"md5_number({uri})"


def _version_key(uri: str, etag: str) -> str:
    """SQL of a key that no other pair of texts has; an etag that is null counts as a version of its own."""
    return f"md5_number(concat(length({uri}), ':', {uri}, ':' || {etag}))"


class Keys:
    """The keys of all rows of a table, and of a listing. `owner` numbers the models and configurations."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self._owners: dict[PredictionKey, int] = {}

    @classmethod
    @contextmanager
    def open(cls) -> Iterator["Keys"]:
        """Empty, in a folder of its own that is deleted afterwards."""
        with temporary_database() as connection:
            connection.execute(
                "CREATE TABLE held (image UHUGEINT, version UHUGEINT, owner INTEGER, ok BOOLEAN, place BIGINT)"
            )
            yield cls(connection)

    def add(self, rows: pa.RecordBatch, model_id: str, first: Place) -> None:
        """Takes rows of one model that stand one after the other in a file."""
        hashes = rows[schema.CONFIG_HASH].fill_null("")
        values = hashes.unique()
        owners = [
            self._owners.setdefault(PredictionKey(model_id, value), len(self._owners)) for value in values.to_pylist()
        ]
        start = (first[0] << _ROW_BITS) + first[1]
        batch = {
            _URI: rows[_URI],
            _ETAG: rows[_ETAG],
            "owner": pa.array(owners, pa.int32()).take(pc.index_in(hashes, value_set=values)),
            "ok": pc.equal(rows[schema.STATUS], schema.STATUS_OK),
            "place": pa.array(range(start, start + len(rows)), pa.int64()),
        }
        self._insert("held", pa.table(batch), f"{_image_key(_URI)}, {_version_key(_URI, _ETAG)}, owner, ok, place")

    def num_rows(self) -> dict[PredictionKey, int]:
        """Number of rows per model and configuration."""
        counts = dict(self._connection.execute("SELECT owner, count(*) FROM held GROUP BY ALL").fetchall())
        return {key: counts.get(owner, 0) for key, owner in self._owners.items()}

    def duplicates(self) -> tuple[int, list[Place]]:
        """How many keys have several rows, and where the first of some of them are."""
        return self._places("SELECT min(place) AS place FROM held GROUP BY version, owner HAVING count(*) > 1")

    def add_listing(self, listing: Iterable[pa.RecordBatch], report: Report = ignore) -> int:
        """Takes a listing to its end; an image that is listed twice counts once. Returns how many images there are."""
        self._connection.execute(f"CREATE TABLE stream (image UHUGEINT, {_URI} VARCHAR, {_ETAG} VARCHAR)")
        for rows in _gathered(with_progress(listing, report)):
            self._insert("stream", rows, f"{_image_key(_URI)}, {_URI}, {_ETAG}")
        self._connection.execute(
            f"""
            CREATE TABLE listed AS
            SELECT image, max({_URI}) AS {_URI}, {_version_key(f"max({_URI})", f"max({_ETAG})")} AS version,
                   max({_ETAG}) IS NOT NULL AS is_known
            FROM stream GROUP BY image
            """
        )
        self._connection.execute("DROP TABLE stream")
        ((count,),) = self._connection.execute("SELECT count(*) FROM listed").fetchall()
        return int(count)

    def find_lacking(self, key: PredictionKey | None, findings: Findings) -> None:
        """Looks for listed images without a row of this key.

        As for a labelling run, an image of which the listing doesn't know the version has its row in any version.
        """
        mine = f"(SELECT image, version FROM held WHERE owner = {self._owner(key)})"
        known = "(SELECT * FROM listed WHERE is_known)"
        for check, query in (
            (Check.IMAGE_WITHOUT_ROW, f"listed ANTI JOIN {mine} USING (image)"),
            (Check.IMAGE_CHANGED, f"{known} SEMI JOIN {mine} USING (image) ANTI JOIN {mine} USING (version)"),
        ):
            count, names = self._first(f"SELECT {_URI} FROM {query}", _URI)
            findings.add(check, count, map(str, names))

    def gone(self, key: PredictionKey | None) -> tuple[int, list[Place]]:
        """Number of images that have rows of this key and are not listed, and the place of a row of the first ones."""
        mine = f"(SELECT image, place FROM held WHERE owner = {self._owner(key)})"
        return self._places(
            f"SELECT min(place) AS place FROM (SELECT * FROM {mine} ANTI JOIN listed USING (image)) GROUP BY image"
        )

    def draw(self, key: PredictionKey | None, num_rows: int, seed: int, *, listed: bool) -> list[Place]:
        """Some ok rows of this key, at random; of a listing, rows in the version that is listed."""
        known = "version IN (SELECT version FROM listed WHERE is_known)"
        unknown = "image IN (SELECT image FROM listed WHERE NOT is_known)"
        current = f"AND ({known} OR {unknown})" if listed else ""
        # By a hash rather than by SAMPLE, which would depend on the order in which threads come to the rows.
        rows = f"FROM held WHERE owner = {self._owner(key)} AND ok {current}"
        query = f"SELECT place {rows} ORDER BY hash(version, {seed}) LIMIT ?"
        return [_place(place) for (place,) in self._connection.execute(query, [num_rows]).fetchall()]

    def _owner(self, key: PredictionKey | None) -> int:
        return -1 if key is None else self._owners.get(key, -1)

    def _insert(self, table: str, rows: pa.Table, columns: str) -> None:
        self._connection.register("batch", rows)
        self._connection.execute(f"INSERT INTO {table} SELECT {columns} FROM batch")
        self._connection.unregister("batch")

    def _first(self, query: str, column: str) -> tuple[int, list[Any]]:
        """How many rows a query has, and the first of them by a column."""
        self._connection.execute(f"CREATE TEMP TABLE found AS {query}")
        ((count,),) = self._connection.execute("SELECT count(*) FROM found").fetchall()
        rows = self._connection.execute(f"SELECT {column} FROM found ORDER BY 1 LIMIT {NAMED}").fetchall()
        self._connection.execute("DROP TABLE found")
        return int(count), [value for (value,) in rows]

    def _places(self, query: str) -> tuple[int, list[Place]]:
        count, places = self._first(query, "place")
        return count, [_place(place) for place in places]


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows in larger pieces: each insertion is written to the disk."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= _ROWS_AN_INSERT:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)


def _place(number: int) -> Place:
    return number >> _ROW_BITS, number & ((1 << _ROW_BITS) - 1)
