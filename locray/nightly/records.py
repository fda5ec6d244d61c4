"""Records of nightly runs, kept in the table's work folder, which readers of Delta and Hive tables ignore.

A run leaves a record (JSON) and a page (HTML) beside the list of deleted images. No name ends in .parquet, so that a
pattern over the table's files does not match.
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
    """The folder for the records of a model and configuration."""
    return storage.join(table_uri, RECORDS, key.model_id, key.config_hash)


def page_uri(records: str, run_id: str) -> str:
    """The page of a run."""
    return storage.join(records, run_id + _PAGE)


def deleted_uri(records: str) -> str:
    """The list of deleted images."""
    return storage.join(records, _DELETED)


def write_record(records: str, run_id: str, facts: dict[str, Any]) -> None:
    """Writes the record of a run, given as plain values.

    Raises:
        StoreError: the store failed.
    """
    storage.write_bytes(storage.join(records, run_id + _RECORD), json.dumps(facts, ensure_ascii=False).encode())


def read_records(records: str, max_records: int) -> list[dict[str, Any]]:
    """The records of the last runs, the latest one last: run ids begin with the time.

    Raises:
        StoreError: the store failed, or a record is damaged.
    """
    return _read(sorted(uri for uri in storage.list_uris(records) if uri.endswith(_RECORD))[-max_records:])


def last_records(table_uri: str) -> list[dict[str, Any]]:
    """The record of the last run of each model and configuration.

    Raises:
        StoreError: the store failed, or a record is damaged.
    """
    last: dict[str, str] = {}
    for uri in storage.list_uris(storage.join(table_uri, RECORDS)):
        if uri.endswith(_RECORD):
            last[uri.rpartition("/")[0]] = uri  # the listing is sorted: the last one wins
    return _read(list(last.values()))


def _read(uris: Sequence[str]) -> list[dict[str, Any]]:
    return [_parse(uri, data) for uri, data in zip(uris, storage.read_all(uris), strict=True)]


def _parse(uri: str, data: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(data)
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise StoreError(f"{uri} is not the record of a nightly run: delete it")
    return facts
