"""Where nights are written down, below the table: readers of Delta and Hive tables ignore what begins with `_`.

A night leaves a record (JSON) and a page; beside them lies the list of deleted images. No name ends in .parquet, so
that a pattern over the table's files misses them. Used by the nightly run, its page and `status`.
"""

import json
from collections.abc import Sequence
from typing import Any

from locray import storage
from locray.errors import StoreError
from locray.table.key import PredictionKey
from locray.table.open import RECORDS

_RECORD = ".json"
_PAGE = ".html"
_DELETED = "deleted"


def records_uri(table_uri: str, key: PredictionKey) -> str:
    """The folder of the records of one model and configuration."""
    return storage.join(table_uri, RECORDS, key.model_id, key.config_hash)


def page_uri(records: str, run_id: str) -> str:
    """The page of a night."""
    return storage.join(records, run_id + _PAGE)


def deleted_uri(records: str) -> str:
    """The list of deleted images."""
    return storage.join(records, _DELETED)


def write_record(records: str, run_id: str, facts: dict[str, Any]) -> None:
    """Writes a night down: plain values.

    Raises:
        StoreError: the store failed.
    """
    storage.write_bytes(storage.join(records, run_id + _RECORD), json.dumps(facts, ensure_ascii=False).encode())


def read_records(records: str, most: int) -> list[dict[str, Any]]:
    """The last nights, the latest one last: ids of runs begin with their time.

    Raises:
        StoreError: the store failed, or a record is damaged.
    """
    names = [uri for uri in storage.list_uris(records) if uri.endswith(_RECORD)]
    return [_parsed(uri, data) for uri, data in _contents(sorted(names)[-most:])]


def last_records(table_uri: str) -> list[dict[str, Any]]:
    """The last night of each model and configuration.

    Raises:
        StoreError: the store failed, or a record is damaged.
    """
    last: dict[str, str] = {}
    for uri in storage.list_uris(storage.join(table_uri, RECORDS)):
        if uri.endswith(_RECORD):
            last[uri.rpartition("/")[0]] = uri  # sorted: later ones come later
    return [_parsed(uri, data) for uri, data in _contents(list(last.values()))]


def _contents(uris: Sequence[str]) -> list[tuple[str, bytes]]:
    return list(zip(uris, storage.read_all(uris), strict=True))


def _parsed(uri: str, data: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(data)
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise StoreError(f"{uri} is no record of a night: delete it")
    return facts
