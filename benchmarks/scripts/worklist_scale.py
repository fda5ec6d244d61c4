"""Time and memory of a worklist, with nine tenths of the listing labelled already. For docs/scale.md.

Run from the project's root: `python -m benchmarks.scripts.worklist_scale 1000000`.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa

from locray import schema
from locray.labelling.worklist import PendingImages
from locray.table.key import PredictionKey
from locray.table.open import open_table
from locray.table.writer import TableWriter
from tests.helpers.rows import predicted

ROWS_PER_FILE = 90_000
ROWS_PER_BATCH = 10_000
MODEL_ID, CONFIG_HASH = "net@0123456789ab", "0123456789ab"


def versions(numbers: list[int]) -> list[pa.Array]:
    """URIs and etags, as long as those of a bucket."""
    uris = [f"s3://bucket/photos/2026/{n // 100_000:04d}/{n % 100_000:08d}.jpg" for n in numbers]
    return [pa.array(uris), pa.array([f"{n:032x}" for n in numbers])]


def write_table(uri: str, num_images: int) -> None:
    """Writes the rows of all images except every tenth."""
    rows = predicted([0]).take([0] * ROWS_PER_FILE).drop_columns([schema.ORDINAL])
    now = pa.scalar(datetime.now(UTC), schema.TIMESTAMP)
    for name, value in {schema.CONFIG_HASH: CONFIG_HASH, schema.RUN_ID: "run", schema.LABELLED_AT: now}.items():
        rows = rows.append_column(name, pa.repeat(value, ROWS_PER_FILE))
    writer = TableWriter.claim(uri, MODEL_ID)
    for start in range(0, num_images, 100_000):
        done = [n for n in range(start, start + 100_000) if n % 10]
        for name, column in zip((schema.IMAGE_URI, schema.ETAG), versions(done), strict=True):
            rows = rows.set_column(rows.column_names.index(name), name, column)
        writer.append(rows, date(2026, 1, 2))


class Listing:
    """All images."""

    def __init__(self, num_images: int) -> None:
        self._num_images = num_images

    def listing(self) -> Iterator[pa.RecordBatch]:
        for start in range(0, self._num_images, ROWS_PER_BATCH):
            unknown = [pa.nulls(ROWS_PER_BATCH, kind) for kind in (pa.int64(), schema.TIMESTAMP)]
            columns = [*versions(list(range(start, start + ROWS_PER_BATCH))), *unknown]
            yield pa.RecordBatch.from_arrays(columns, schema=schema.LISTING_SCHEMA)


def main(num_images: int) -> None:
    """Writes the table in another process, makes the worklist and prints a line."""
    with tempfile.TemporaryDirectory() as folder:
        uri = os.path.join(folder, "table")
        subprocess.run([sys.executable, "-m", "benchmarks.scripts.worklist_scale", str(num_images), uri], check=True)
        source: Any = Listing(num_images)
        started = time.perf_counter()
        with PendingImages.find(source, open_table(uri), PredictionKey(MODEL_ID, CONFIG_HASH)) as pending:
            counts = pending.counts()
            worklist = pending.write(os.path.join(folder, "worklist"), unit_size=256)
        wall_s = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_SELF)
    assert (counts.listed, counts.already_labelled, worklist.num_images) == (
        num_images,
        num_images - num_images // 10,
        num_images // 10,
    )
    cpu_s = used.ru_utime + used.ru_stime
    print(f"{num_images:,} images: {wall_s:.1f} s, {cpu_s:.1f} s of processor time, {used.ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        write_table(sys.argv[2], int(sys.argv[1]))
    else:
        main(int(sys.argv[1]))
