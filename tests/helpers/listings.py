"""Listings of sources as plain Python."""

from typing import Any

import pyarrow as pa

from locray.schema import IMAGE_URI, LISTING_SCHEMA
from locray.sources import Source
from locray.sources.source import BATCH_ROWS


def listed(source: Source) -> list[dict[str, Any]]:
    """Returns all rows sorted by URI. Checks the schema of every batch."""
    source.check()
    batches = list(source.listing())
    for batch in batches:
        batch.validate(full=True)
        assert batch.schema == LISTING_SCHEMA
        assert 0 < len(batch) <= BATCH_ROWS
    rows = pa.Table.from_batches(batches, LISTING_SCHEMA).to_pylist()
    return sorted(rows, key=lambda row: row[IMAGE_URI])


def uris(source: Source) -> list[str]:
    return [row[IMAGE_URI] for row in listed(source)]
