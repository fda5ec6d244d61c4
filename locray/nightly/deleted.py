"""The list of deleted images: they have rows, but are no longer listed.

Their rows stay: predictions are history, and an image may come back. Every nightly run makes the list anew from the
table and the listing, so an earlier mistake does not last; only the dates are taken from the previous list.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import duckdb
import pyarrow as pa

from locray import schema, storage
from locray.errors import StoreError
from locray.storage.temporary_database import create_from_batches, temporary_database
from locray.table.data_files import scan_strings
from locray.table.key import PredictionKey
from locray.table.open import open_table

_BATCH_ROWS = 131_072
_URI, _SINCE = schema.IMAGE_URI, schema.MISSING_SINCE


@dataclass(frozen=True, slots=True)
class DeletedImages:
    """Number of deleted images, and where they are listed."""

    images: int
    """Images that have rows and are not listed."""
    since_last_night: int
    """Those of them that the previous list did not have."""
    returned: int
    """Images of the previous list that are listed again."""
    list_uri: str
    """A Parquet file of `DELETED_SCHEMA`, sorted by image URI."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def list_deleted(
    table_uri: str, key: PredictionKey, listing: Iterable[pa.RecordBatch], list_uri: str, run_date: date
) -> DeletedImages:
    """Replaces the list of deleted images. Only the list itself is held in memory.

    Args:
        table_uri: the predictions table, normalised.
        key: the model and configuration whose rows count.
        listing: batches of `LISTING_SCHEMA`.
        list_uri: the list; it need not exist yet.
        run_date: the date for newly missing images.

    Raises:
        StoreError: the store failed, or another file is at `list_uri`.
    """
    with temporary_database() as connection:
        previous = _read_list(list_uri).to_batches()
        for name, fields, batches in (
            ("labelled", pa.schema([(_URI, pa.string())]), _labelled_uris(table_uri, key)),
            ("listed", schema.LISTING_SCHEMA, listing),
            ("previous", schema.DELETED_SCHEMA, previous),
        ):
            columns = f"{_URI}, any_value({_SINCE}) AS {_SINCE}" if name == "previous" else _URI
            statement = f"CREATE TABLE {name} AS SELECT {columns} FROM stream GROUP BY {_URI}"
            create_from_batches(connection, statement, fields, batches)
        deleted = f"(SELECT * FROM labelled ANTI JOIN listed USING ({_URI}))"
        query = (
            f"SELECT {_URI}, coalesce({_SINCE}, DATE '{run_date}') AS {_SINCE} "
            f"FROM {deleted} LEFT JOIN previous USING ({_URI}) ORDER BY {_URI}"
        )
        batches = connection.sql(query).to_arrow_reader(_BATCH_ROWS)
        images = storage.write_parquet(list_uri, schema.DELETED_SCHEMA, batches)
        known = _count(connection, f"{deleted} SEMI JOIN previous USING ({_URI})")
        returned = _count(connection, f"previous SEMI JOIN listed USING ({_URI})")
    return DeletedImages(images, images - known, returned, list_uri)


def _labelled_uris(table_uri: str, key: PredictionKey) -> Iterable[pa.RecordBatch]:
    table = open_table(table_uri)
    return scan_strings(table, table_uri, [_URI], key.row_filter) if table else ()


def _read_list(list_uri: str) -> pa.Table:
    if not storage.exists(list_uri):
        return schema.DELETED_SCHEMA.empty_table()
    try:
        return storage.open_parquet(list_uri).read(schema.DELETED_SCHEMA.names).cast(schema.DELETED_SCHEMA)
    except (pa.ArrowException, ValueError) as error:
        raise StoreError(
            f"{list_uri} is not a list of deleted images ({error}). Delete it; the next run writes a new list, with "
            "new dates"
        ) from error


def _count(connection: duckdb.DuckDBPyConnection, rows: str) -> int:
    ((count,),) = connection.execute(f"SELECT count(*) FROM {rows}").fetchall()
    return int(count)
