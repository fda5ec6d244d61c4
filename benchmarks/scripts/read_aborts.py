"""Counts processes that are aborted after they have read a predictions table.

    python -m benchmarks.scripts.read_aborts --processes 200

Threads of pyarrow that still hold a Python file when the process ends abort it
(https://github.com/apache/arrow/issues/34314). `deltalake` shows how often; the others are locray's own ways to read.
"""

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import date
from pathlib import Path

import pyarrow as pa

from locray import schema
from locray.table.writer import TableWriter

NUM_FILES, ROWS_PER_FILE = 20, 1_000
WAYS = {
    "deltalake": ("-c", "import deltalake; deltalake.DeltaTable('table').to_pyarrow_table()"),
    "read_predictions": ("-c", "import locray; locray.read_predictions('table').to_table()"),
    "read_predictions in DuckDB": (
        "-c",
        "import duckdb, locray; rows = locray.read_predictions('table'); "
        "duckdb.sql('SELECT status, count(*) FROM rows GROUP BY ALL').fetchall()",
    ),
    "the first batch alone": ("-c", "import locray; next(iter(locray.read_predictions('table').to_batches()))"),
    "locray status": ("-m", "locray", "status", "--table", "table"),
    "locray verify": ("-m", "locray", "verify", "--table", "table", "--sample", "0"),
}
"""Arguments of Python, in the folder that holds the table."""


def make_table(uri: str) -> None:
    """Makes a table of small files."""
    writer = TableWriter.claim(uri, "net@0123456789ab")
    for number in range(NUM_FILES):
        rows = [
            {
                schema.IMAGE_URI: f"s3://bucket/{number:03}/{row:06}.jpg",
                schema.ETAG: "1",
                schema.SIZE_BYTES: 1,
                schema.WIDTH: 10,
                schema.HEIGHT: 10,
                schema.FORMAT: "jpeg",
                schema.STATUS: schema.STATUS_OK,
                schema.DETECTIONS: [],
                schema.CONFIG_HASH: "c0ffee",
                schema.RUN_ID: "run",
                schema.LABELLED_AT: 0,
            }
            for row in range(ROWS_PER_FILE)
        ]
        fields = [field for field in schema.PREDICTIONS_SCHEMA if field.name not in schema.PARTITION_COLUMNS]
        writer.append(pa.Table.from_pylist(rows, schema=pa.schema(fields)), date(2026, 1, 2))


def main() -> None:
    """Prints a line per way to read."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--processes", type=int, default=200)
    processes = parser.parse_args().processes
    with tempfile.TemporaryDirectory() as folder:
        make_table(str(Path(folder, "table")))
        for way, arguments in WAYS.items():
            codes = Counter(
                subprocess.run([sys.executable, *arguments], check=False, capture_output=True, cwd=folder).returncode
                for _ in range(processes)
            )
            aborted = processes - codes[0]
            print(f"{way}: {aborted} of {processes} processes failed {dict(codes) if aborted else ''}", flush=True)


if __name__ == "__main__":
    main()
