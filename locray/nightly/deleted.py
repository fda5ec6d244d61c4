"""The images that have rows and are not listed any more. Called by the nightly run.

Their rows stay: what a model once saw is history, and an image may come back. The list is made anew every night from
the table and the listing, so it is right whatever came before; of the list before it only the dates are taken over.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import duckdb
import pyarrow as pa

from locray import schema, storage
from locray.errors import StoreError
from locray.labelling.deferred_list import write_list
from locray.storage.temporary_database import create_from_batches, temporary_database
from locray.table.data_files import scan_strings
from locray.table.key import PredictionKey
from locray.table.open import open_table

_BATCH_ROWS = 131_072
_URI, _SINCE = schema.IMAGE_URI, schema.MISSING_SINCE


@dataclass(frozen=True, slots=True)
class Deleted:
    """What became of images that had been labelled."""

    images: int
    """Deleted ones that have rows."""
    since_last_night: int
    """Of those, what the list before this one had not."""
    returned: int
    """What that list had and is there again."""
    list_uri: str
    """The list: a Parquet file of `DELETED_SCHEMA`, by image URI."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def list_deleted(
    table_uri: str, key: PredictionKey, listing: Iterable[pa.RecordBatch], list_uri: str, night: date
) -> Deleted:
    """Replaces the list of images that have rows of this key and are not listed any more.

    Args:
        table_uri: the predictions table, normalised.
        key: the model and configuration.
        listing: batches of `LISTING_SCHEMA`.
        list_uri: where the list is, or will be.
        night: the date that newly missing images get.

    Raises:
        StoreError: the store failed, or what is at `list_uri` is no such list.
    """
    with temporary_database() as connection:
        before = _list_before(list_uri).to_batches()
        for name, fields, batches in (
            ("held", pa.schema([(_URI, pa.string())]), _held(table_uri, key)),
            ("listed", schema.LISTING_SCHEMA, listing),
            ("before", schema.DELETED_SCHEMA, before),
        ):
            columns = f"{_URI}, any_value({_SINCE}) AS {_SINCE}" if name == "before" else _URI
            statement = f"CREATE TABLE {name} AS SELECT {columns} FROM stream GROUP BY {_URI}"
            create_from_batches(connection, statement, fields, batches)
        missing = f"(SELECT * FROM held ANTI JOIN listed USING ({_URI}))"
        query = (
            f"SELECT {_URI}, coalesce({_SINCE}, DATE '{night}') AS {_SINCE} "
            f"FROM {missing} LEFT JOIN before USING ({_URI}) ORDER BY {_URI}"
        )
        images = write_list(list_uri, schema.DELETED_SCHEMA, connection.sql(query).to_arrow_reader(_BATCH_ROWS))
        known = _count(connection, f"{missing} SEMI JOIN before USING ({_URI})")
        returned = _count(connection, f"before SEMI JOIN listed USING ({_URI})")
    return Deleted(images, images - known, returned, list_uri)


def _held(table_uri: str, key: PredictionKey) -> Iterable[pa.RecordBatch]:
    table = open_table(table_uri)
    return scan_strings(table, [_URI], key.row_filter) if table else ()


def _list_before(list_uri: str) -> pa.Table:
    if not storage.exists(list_uri):
        return schema.DELETED_SCHEMA.empty_table()
    try:
        return storage.open_parquet(list_uri).read(schema.DELETED_SCHEMA.names).cast(schema.DELETED_SCHEMA)
    except (pa.ArrowException, ValueError) as error:
        raise StoreError(
            f"{list_uri} is no list of deleted images ({error}): delete it, and the dates begin anew"
        ) from error


def _count(connection: duckdb.DuckDBPyConnection, rows: str) -> int:
    ((count,),) = connection.execute(f"SELECT count(*) FROM {rows}").fetchall()
    return int(count)
