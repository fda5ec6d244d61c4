"""Memory and speed of the driver, with made-up rows. For docs/scale.md.

Run from the project's root: `python -m benchmarks.scripts.driver_memory 1000000`.
"""

import os
import sys
import tempfile
import time
from datetime import date

import pyarrow as pa

from locray import schema
from locray.labelling.abort_policy import AbortPolicy
from locray.labelling.committer import Committer
from locray.table.writer import TableWriter
from tests.helpers.rows import predicted

UNIT_SIZE = 250
COMMIT_ROWS = 100_000


def unit(first: int, template: pa.Table) -> pa.Table:
    """Rows like those of the pipeline."""
    numbers = range(first, first + UNIT_SIZE)
    columns = {
        schema.ORDINAL: pa.array(numbers, pa.int64()),
        schema.IMAGE_URI: pa.array(
            [f"s3://bucket/photos/2026/{n // 100_000:04d}/{n % 100_000:08d}.jpg" for n in numbers]
        ),
    }
    for name, column in columns.items():
        template = template.set_column(template.column_names.index(name), template.schema.field(name), column)
    return template


def resident_mib() -> float:
    """Resident memory of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main(num_images: int) -> None:
    """Prints the memory after each commit."""
    template = predicted([0]).take([0] * UNIT_SIZE)
    with tempfile.TemporaryDirectory() as uri:
        committer = Committer(
            TableWriter.claim(uri, "net@0123456789ab"),
            num_images,
            stamp={schema.CONFIG_HASH: "0123456789ab", schema.RUN_ID: "run"},
            run_date=date(2026, 1, 2),
            commit_rows=COMMIT_ROWS,
        )
        policy, started, processor_s = AbortPolicy(), time.perf_counter(), 0.0
        for first in range(0, num_images, UNIT_SIZE):
            rows, before = unit(first, template), time.process_time()
            committer.add(rows)
            assert policy.abort_reason(committer, time.monotonic()) is None
            processor_s += time.process_time() - before
            if committer.done % COMMIT_ROWS == 0:
                print(f"{committer.done:,} images, {committer.commits} commits: {resident_mib():.0f} MiB")
        committer.close()
        print(f"{committer.ok:,} images in {time.perf_counter() - started:.1f} s, including the time to make them up")
        print(f"{committer.ok / processor_s:,.0f} rows per second of a core")


if __name__ == "__main__":
    main(int(sys.argv[1]))
