"""Time and memory of a compaction of many rows into one file. For docs/nightly.md.

Run from the project's root: `python -m benchmarks.scripts.compaction_scale 2000000`.
"""

import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, date, datetime

import numpy as np
import pyarrow as pa

from locray import schema
from locray.nightly.maintenance import compact
from locray.progress import ignore
from locray.table.writer import TableWriter
from tests.helpers.rows import predicted

MODEL_ID = "net@0123456789ab"
ROWS_PER_FILE = 20_000


def varied(rows: pa.Table, start: int) -> pa.Table:
    """Rows with URIs of a bucket, and with versions, scores and corners that compress no better than real ones."""
    random = np.random.default_rng(start)
    count = len(rows)
    found = rows[schema.DETECTIONS].combine_chunks()
    fields = dict(zip(schema.DETECTION.names, found.values.flatten(), strict=True))
    for name in (schema.SCORE, *schema.CORNERS):
        fields[name] = pa.array(random.random(count, dtype=np.float32))
    objects = pa.StructArray.from_arrays(list(fields.values()), fields=list(schema.DETECTION))
    columns = {
        schema.IMAGE_URI: pa.array([f"s3://bucket/photos/2026/{start + n:012d}.jpg" for n in range(count)]),
        schema.ETAG: pa.array([random.bytes(16).hex() for _ in range(count)]),
        schema.SIZE_BYTES: pa.array(random.integers(10**5, 10**6, count)),
        schema.DETECTIONS: pa.ListArray.from_arrays(found.offsets, objects),
    }
    for name, column in columns.items():
        rows = rows.set_column(rows.column_names.index(name), name, column)
    return rows


def write(uri: str, num_rows: int) -> None:
    """Writes the table. Runs in its own process, so that its memory is not counted as the compaction's."""
    rows = predicted([0]).take([0] * ROWS_PER_FILE).drop_columns([schema.ORDINAL])
    now = pa.scalar(datetime.now(UTC), schema.TIMESTAMP)
    stamp = {schema.CONFIG_HASH: "0123456789ab", schema.RUN_ID: "run", schema.LABELLED_AT: now}
    for name, value in stamp.items():
        rows = rows.append_column(name, pa.repeat(value, ROWS_PER_FILE))
    writer = TableWriter.claim(uri, MODEL_ID)
    for start in range(0, num_rows, ROWS_PER_FILE):
        writer.append(varied(rows, start), date(2026, 1, 2))


def main(num_rows: int) -> None:
    """Writes, compacts and prints a line."""
    with tempfile.TemporaryDirectory() as uri:
        subprocess.run([sys.executable, "-m", "benchmarks.scripts.compaction_scale", str(num_rows), uri], check=True)
        writer = TableWriter.claim(uri, MODEL_ID)
        size_bytes = sum(pa.table(writer.table.get_add_actions())[schema.SIZE_BYTES].to_pylist())
        before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        started = time.perf_counter()
        done = compact(writer, 2**40, ignore)
        wall_s = time.perf_counter() - started
        used = resource.getrusage(resource.RUSAGE_SELF)
    assert (done.files_before, done.files_after, done.rows_rewritten) == (num_rows // ROWS_PER_FILE, 1, num_rows)
    print(
        f"{num_rows:,} rows, {size_bytes / num_rows:.0f} bytes each: {wall_s:.1f} s, "
        f"{used.ru_utime + used.ru_stime:.1f} s of processor time, peak {used.ru_maxrss / 1024:.0f} MiB, "
        f"{before_mib:.0f} before"
    )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        write(sys.argv[2], int(sys.argv[1]))
    else:
        main(int(sys.argv[1]))
