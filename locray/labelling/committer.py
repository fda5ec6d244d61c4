"""The committer: gathers predicted rows on the driver and commits them, each image once. Called by labelling/run.py."""

import time
from collections import Counter
from datetime import UTC, date, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from locray import schema
from locray.labelling.table import TableWriter


class Bitmap:
    """Which ordinals have been seen: one bit an image."""

    def __init__(self, num_images: int) -> None:
        self._bits = np.zeros(-(-num_images // 8), dtype=np.uint8)

    def add(self, ordinals: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Marks the ordinals; says of each whether it is the first time, also within the array itself."""
        first_here = np.zeros(len(ordinals), dtype=bool)
        first_here[np.unique(ordinals, return_index=True)[1]] = True
        byte, bit = ordinals >> 3, (1 << (ordinals & 7)).astype(np.uint8)
        fresh = first_here & ((self._bits[byte] & bit) == 0)
        np.bitwise_or.at(self._bits, byte, bit)
        return np.asarray(fresh)

    @property
    def num_bytes(self) -> int:
        """Memory that the bitmap takes."""
        return self._bits.nbytes

    def count(self) -> int:
        """How many ordinals have been seen."""
        return int(np.bitwise_count(self._bits).sum())


class Committer:
    """Turns a stream of predicted rows into commits of well-sized files.

    Args:
        writer: the table's writer, claimed.
        num_images: images of the worklist; ordinals are below it.
        stamp: config_hash, run_id and whatever else is the same in all rows of the run.
        run_date: the partition of the run.
        commit_rows: rows after which a commit is made.
        commit_interval_s: seconds after which one is made, if there are rows.
        replace: rows take the place of older ones with the same key.
    """

    def __init__(
        self,
        writer: TableWriter,
        num_images: int,
        *,
        stamp: dict[str, str],
        run_date: date,
        commit_rows: int,
        commit_interval_s: float,
        replace: bool = False,
    ) -> None:
        self._write = writer.replace if replace else writer.append
        self._seen = Bitmap(num_images)
        self._stamp = stamp
        self._run_date = run_date
        self._commit_rows = commit_rows
        self._commit_interval_s = commit_interval_s
        self._pending: list[pa.Table] = []
        self._num_pending = 0
        self._last_commit = time.monotonic()
        self.commits = 0
        self.ok = 0
        self.failed = 0
        self.deferred = 0
        self.deferred_reason: str | None = None
        self.errors: Counter[str] = Counter()

    @property
    def answered(self) -> int:
        """Images whose fate is known: labelled, failed or deferred."""
        return self.ok + self.failed + self.deferred

    def add(self, rows: pa.Table) -> None:
        """Takes rows of `schema.PREDICTED_SCHEMA`; rows that came before are dropped. Commits when it is time."""
        rows = rows.filter(pa.array(self._seen.add(rows[schema.ORDINAL].to_numpy())))
        is_deferred = pc.equal(rows[schema.STATUS], schema.STATUS_DEFERRED)
        reasons = rows.filter(is_deferred)[schema.ERROR_MESSAGE].to_pylist()
        self.deferred += len(reasons)
        self.deferred_reason = self.deferred_reason or next(iter(reasons), None)
        rows = rows.filter(pc.invert(is_deferred))
        codes = rows[schema.ERROR_CODE].drop_null().to_pylist()
        self.errors.update(codes)
        self.failed += len(codes)
        self.ok += len(rows) - len(codes)
        if len(rows):
            self._pending.append(self._stamped(rows))
            self._num_pending += len(rows)
        due = time.monotonic() - self._last_commit >= self._commit_interval_s
        if self._num_pending >= self._commit_rows or due:
            self.flush()

    def flush(self) -> None:
        """Commits what is pending: once. After an error nobody knows here whether it was; the next run does."""
        rows, self._pending, self._num_pending = self._pending, [], 0
        if rows:
            self._write(pa.concat_tables(rows), self._run_date)
            self.commits += 1
        self._last_commit = time.monotonic()

    def _stamped(self, rows: pa.Table) -> pa.Table:
        now = datetime.now(UTC)
        rows = rows.drop_columns([schema.ORDINAL])
        for name, value in self._stamp.items():
            rows = rows.append_column(pa.field(name, pa.string()), pa.repeat(pa.scalar(value), len(rows)))
        return rows.append_column(
            pa.field(schema.LABELLED_AT, schema.TIMESTAMP), pa.repeat(pa.scalar(now, schema.TIMESTAMP), len(rows))
        )
