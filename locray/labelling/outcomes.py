"""Outcome of each image of a worklist, and the list of the deferred ones."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from locray import schema, storage
from locray.errors import DeferralCause, ErrorCode, UsageError
from locray.labelling.worklist import UNITS_PER_FILE, StoredWorklist
from locray.sources import Source

_CAUSES = pa.array([None, *dict.fromkeys([*map(str, DeferralCause), *map(str, ErrorCode)])], pa.string())
"""Cause of deferral by its number; 0: not deferred."""
_NUMBERS = {cause: number for number, cause in enumerate(_CAUSES.to_pylist())}


class Bitmap:
    """Set of ordinals in one bit per image."""

    def __init__(self, num_images: int) -> None:
        self._bits = np.zeros(-(-num_images // 8), dtype=np.uint8)

    def add(self, ordinals: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Adds ordinals. Returns which of them are new, counting a repetition within the array as old."""
        first_here = np.zeros(len(ordinals), dtype=bool)
        first_here[np.unique(ordinals, return_index=True)[1]] = True
        is_new = first_here & ~self.contains(ordinals)
        np.bitwise_or.at(self._bits, ordinals >> 3, _bit(ordinals))
        return np.asarray(is_new)

    def contains(self, ordinals: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each ordinal was added."""
        return np.asarray((self._bits[ordinals >> 3] & _bit(ordinals)) != 0)


def _bit(ordinals: NDArray[np.int64]) -> NDArray[np.uint8]:
    return (1 << (ordinals & 7)).astype(np.uint8)


class ImageOutcomes:
    """Whether each image is done, and why it was deferred. Takes nine bits per image."""

    def __init__(self, num_images: int) -> None:
        self._done = Bitmap(num_images)
        self._causes = np.zeros(num_images, dtype=np.uint8)
        """The system allocates only pages in which an image is deferred."""

    def add(self, ordinals: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Marks images as done. Returns which of them were not, counting a repetition within the array as done."""
        return self._done.add(ordinals)

    def defer(self, ordinals: NDArray[np.int64], causes: list[str]) -> None:
        """Records why images are deferred: a `DeferralCause`, or the `ErrorCode` of a failure not blamed on them."""
        self._causes[ordinals] = [_NUMBERS[cause] for cause in causes]

    def causes(self, ordinals: NDArray[np.int64]) -> pa.StringArray:
        """Why each image is deferred: `not_tried` if it is not done; null if it is not deferred."""
        not_tried = np.uint8(_NUMBERS[DeferralCause.NOT_TRIED])
        numbers = np.where(self._done.contains(ordinals), self._causes[ordinals], not_tried)
        return _CAUSES.take(pa.array(numbers))


def create_deferred_list(uri: str, source: Source, table_uri: str) -> None:
    """Writes an empty list, which shows early that the file can be written, and removes an earlier run's.

    Raises:
        UsageError: the file is among the images, or in the table's folder.
        StoreError: nothing can be written there.
    """
    uri = storage.normalise(uri)
    if source.lists(uri) or uri.startswith(storage.join(table_uri, "")):
        raise UsageError(
            f"--deferred-list {uri} is among the images or the files of the table. Expected a path outside of both"
        )
    storage.write_parquet(uri, schema.DEFERRED_SCHEMA, ())


def write_deferred_list(uri: str, worklist: StoredWorklist, outcomes: ImageOutcomes, run_id: str) -> None:
    """Writes the deferred images of a worklist as a Parquet file of `schema.DEFERRED_SCHEMA`.

    Raises:
        StoreError: the store failed.
    """
    storage.write_parquet(storage.normalise(uri), schema.DEFERRED_SCHEMA, _deferred(worklist, outcomes, run_id))


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
