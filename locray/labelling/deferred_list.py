"""Lists of images as Parquet files: of the deferred ones, and of those that are not listed any more."""

import io
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from locray import schema, storage
from locray.errors import UsageError
from locray.labelling.outcomes import ImageOutcomes
from locray.labelling.worklist import UNITS_PER_FILE, StoredWorklist
from locray.sources import Source


def write_list(uri: str, fields: pa.Schema, rows: Iterable[pa.RecordBatch]) -> int:
    """Writes a list in the place of the one before, in bounded memory but for the file itself. Returns its length.

    Raises:
        StoreError: the store failed.
    """
    buffer, count = io.BytesIO(), 0
    with pq.ParquetWriter(buffer, fields, compression="zstd", write_page_checksum=True) as file:
        for batch in rows:
            file.write_batch(batch.cast(fields))
            count += len(batch)
    storage.write_bytes(uri, buffer.getvalue())
    return count


def begin_deferred(uri: str, source: Source, table_uri: str) -> None:
    """Writes an empty list of deferred images: a place that takes none shows now, and an older list is gone.

    Raises:
        UsageError: the place is among the images, or in the table's folder.
        StoreError: nothing may be written there.
    """
    uri = storage.normalise(uri)
    if source.lists(uri) or uri.startswith(storage.join(table_uri, "")):
        raise UsageError(
            f"--deferred-list {uri} lies among the images or the files of the table. Give it a place outside of both"
        )
    write_list(uri, schema.DEFERRED_SCHEMA, ())


def write_deferred(uri: str, worklist: StoredWorklist, outcomes: ImageOutcomes, run_id: str) -> None:
    """Writes the list of the deferred images of a worklist, with the cause of each.

    Raises:
        StoreError: the store failed.
    """
    write_list(storage.normalise(uri), schema.DEFERRED_SCHEMA, _deferred(worklist, outcomes, run_id))


def _deferred(worklist: StoredWorklist, outcomes: ImageOutcomes, run_id: str) -> Iterator[pa.RecordBatch]:
    images_per_file = worklist.unit_size * UNITS_PER_FILE
    for index, first in enumerate(range(0, worklist.num_images, images_per_file)):
        ordinals = np.arange(first, min(first + images_per_file, worklist.num_images))
        causes = outcomes.causes(ordinals)
        if causes.null_count == len(causes):
            continue
        images = storage.open_parquet(worklist.file_uri(index)).read([schema.IMAGE_URI, schema.ETAG])
        rows = images.append_column(schema.ERROR_CODE, causes)
        rows = rows.append_column(schema.RUN_ID, pa.repeat(pa.scalar(run_id), len(rows)))
        yield from rows.filter(causes.is_valid()).to_batches()
