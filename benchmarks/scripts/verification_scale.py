"""Time and memory of a verification of a table against a listing of as many images. For docs/verify.md.

Run from the project's root: `python -m benchmarks.scripts.verification_scale 1000000`.
"""

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime

import pyarrow as pa

from locray import schema
from locray.table.writer import TableWriter
from locray.verification.table import check_table
from tests.helpers.rows import predicted

ROWS_PER_FILE = 100_000
ROWS_PER_BATCH = 10_000


def versions(start: int, count: int) -> list[pa.Array]:
    """URIs and etags, as long as those of a bucket."""
    numbers = range(start, start + count)
    uris = [f"s3://bucket/photos/2026/{n // ROWS_PER_FILE:04d}/{n % ROWS_PER_FILE:08d}.jpg" for n in numbers]
    return [pa.array(uris), pa.array([f"{n:032x}" for n in numbers])]


def write(uri: str, num_rows: int) -> None:
    """Writes the table. Runs in its own process, so that its memory is not counted as the verification's."""
    rows = predicted([0]).take([0] * ROWS_PER_FILE).drop_columns([schema.ORDINAL])
    now = pa.scalar(datetime.now(UTC), schema.TIMESTAMP)
    stamp = {schema.CONFIG_HASH: "0123456789ab", schema.RUN_ID: "run", schema.LABELLED_AT: now}
    for name, value in stamp.items():
        rows = rows.append_column(name, pa.repeat(value, ROWS_PER_FILE))
    writer = TableWriter.claim(uri, "net@0123456789ab")
    for start in range(0, num_rows, ROWS_PER_FILE):
        for name, column in zip((schema.IMAGE_URI, schema.ETAG), versions(start, ROWS_PER_FILE), strict=True):
            rows = rows.set_column(rows.column_names.index(name), name, column)
        writer.append(rows, date(2026, 1, 2))


def listing(num_images: int) -> Iterator[pa.RecordBatch]:
    """The images that the table holds."""
    for start in range(0, num_images, ROWS_PER_BATCH):
        unknown = [pa.nulls(ROWS_PER_BATCH, kind) for kind in (pa.int64(), schema.TIMESTAMP)]
        yield pa.RecordBatch.from_arrays([*versions(start, ROWS_PER_BATCH), *unknown], schema=schema.LISTING_SCHEMA)


def main(num_rows: int) -> None:
    """Writes, verifies and prints a line."""
    with tempfile.TemporaryDirectory() as uri:
        subprocess.run([sys.executable, "-m", "benchmarks.scripts.verification_scale", str(num_rows), uri], check=True)
        started = time.perf_counter()
        check = check_table(uri, listing(num_rows), sample=32)
        wall_s = time.perf_counter() - started
        used = resource.getrusage(resource.RUSAGE_SELF)
    assert (check.num_rows, check.num_listed, len(check.sample)) == (num_rows, num_rows, 32)
    assert not check.findings.faults
    assert not check.findings.pending
    cpu_s = used.ru_utime + used.ru_stime
    print(f"{num_rows:,} rows: {wall_s:.1f} s, {cpu_s:.1f} s of processor time, {used.ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        write(sys.argv[2], int(sys.argv[1]))
    else:
        main(int(sys.argv[1]))
