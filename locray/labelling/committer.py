"""The committer: gathers predicted rows on the driver and commits each image exactly once."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime

import pyarrow as pa
import pyarrow.compute as pc

from locray import schema
from locray.errors import MODEL_CODES, STORE_CODES, DeferralCause, ErrorCode
from locray.labelling.outcomes import ImageOutcomes
from locray.table.writer import TableWriter

MAX_DEFERRED_EXAMPLES = 10
"""Deferred images that a summary names."""
FEW_FAILURES = 10
"""Fewer failures than this are the images' own, if the table has rows of the model from earlier runs."""


class Committer:
    """Turns a stream of predicted rows into commits of well-sized files.

    Failures that may not be the images' fault are quarantined instead of committed: `STORE_CODES` while no image could
    be fetched or `check_store` reports a failure, `MODEL_CODES` while the model has labelled no image. What is still
    quarantined at the end is deferred. A few such failures are committed nevertheless if the whole worklist is done,
    the table has previous rows, and `check_store` reports nothing: a run may have no other images.

    Thread-safe for the thread that adds rows and that of `commit_every`. Counters are replaced, never changed.

    Args:
        writer: The claimed writer of the table.
        num_images: Length of the worklist; ordinals are below it.
        stamp: Columns with the same value in all rows of the run, such as config_hash and run_id.
        run_date: Partition of the run.
        commit_rows: Pending rows at which a commit is made.
        replace: Whether rows replace older ones with the same key.
        has_previous_rows: Whether the table has rows of this model and configuration from earlier runs.
        check_store: Called before images that could not be fetched become rows. Returns None if the store still
            serves images, else the failure.
    """

    def __init__(
        self,
        writer: TableWriter,
        num_images: int,
        *,
        stamp: dict[str, str],
        run_date: date,
        commit_rows: int,
        replace: bool = False,
        has_previous_rows: bool = False,
        check_store: Callable[[], ErrorCode | DeferralCause | None] = lambda: None,
    ) -> None:
        self.writer = writer
        self._write = writer.replace if replace else writer.append
        self._num_images = num_images
        self._stamp = stamp
        self._run_date = run_date
        self._commit_rows = commit_rows
        self._has_previous_rows = has_previous_rows
        self._check_store = check_store
        self._pending: list[pa.Table] = []
        self._num_pending = 0
        self._lock = threading.RLock()
        self._error: BaseException | None = None
        """Error of the other thread, not yet raised in this one."""
        self._last_commit_s = time.monotonic()
        self.outcomes = ImageOutcomes(num_images)
        self.commits = 0
        self.ok = 0
        self.failed = 0
        self.deferred = 0
        self.errors: Counter[str] = Counter()
        self.deferred_causes: Counter[str] = Counter()
        self.deferred_examples: dict[str, str] = {}
        """Reasons by URI, of at most `MAX_DEFERRED_EXAMPLES` images."""
        self.store_failure: ErrorCode | DeferralCause | None = None
        """Last result of `check_store`."""

    @property
    def done(self) -> int:
        """Number of images that are labelled, failed or deferred."""
        return self.ok + self.failed + self.deferred

    def add(self, rows: pa.Table) -> None:
        """Takes rows of `schema.PREDICTED_SCHEMA`, ignores those of images that are done, commits when due."""
        with self._lock:
            self._raise_error()
            self._add(rows)
            if self._num_pending >= self._commit_rows:
                self._flush()

    def _add(self, rows: pa.Table) -> None:
        rows = rows.filter(pa.array(self.outcomes.add(rows[schema.ORDINAL].to_numpy())))
        is_deferred = pc.equal(rows[schema.STATUS], schema.STATUS_DEFERRED)
        self._defer(rows.filter(is_deferred))
        rows = rows.filter(pc.invert(is_deferred))
        codes = _error_codes(rows)
        self.errors = self.errors + Counter(codes)
        self.failed += len(codes)
        self.ok += len(rows) - len(codes)
        if len(rows):
            self._pending.append(self._stamped(rows))
            self._num_pending += len(rows)

    @contextmanager
    def commit_every(self, interval_s: float) -> Iterator[None]:
        """Within the block, also commits pending rows this long after the last commit, in a thread.

        Raises:
            The error of such a commit, from the next `add` or at the end of the block.
        """
        ended = threading.Event()

        def due_in_s() -> float:
            return self._last_commit_s + interval_s - time.monotonic()

        def commit() -> None:
            try:
                while not ended.wait(max(0.0, due_in_s())):
                    with self._lock:
                        if due_in_s() <= 0:
                            self._flush()
            except BaseException as error:  # noqa: BLE001 - raised in the other thread
                self._error = error

        thread = threading.Thread(target=commit, name="commits", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
        self._raise_error()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def flush(self) -> None:
        """Commits pending rows that are not quarantined, in one commit.

        After an error the commit may still have succeeded. Its rows count as deferred; the next run reads the table.
        """
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            pending = pa.concat_tables(self._pending)
            codes = pa.array(self._codes_to_quarantine(_error_codes(pending)), pa.string())
            is_quarantined = pc.is_in(pending[schema.ERROR_CODE], value_set=codes)
            rows, quarantined = pending.filter(pc.invert(is_quarantined)), pending.filter(is_quarantined)
            self._pending = [quarantined] if len(quarantined) else []
            if len(rows):
                self._commit(rows)
        self._num_pending = 0
        self._last_commit_s = time.monotonic()

    def close(self) -> None:
        """Commits pending rows; defers those that stay quarantined, and all of them after an error."""
        with self._lock:
            try:
                self._flush()
                if self._may_commit_quarantined():
                    quarantined, self._pending = self._pending, []
                    for rows in quarantined:
                        self._commit(rows)
            finally:
                for rows in self._pending:
                    self._defer_counted(rows, None)
                self._pending, self._num_pending = [], 0

    def _commit(self, rows: pa.Table) -> None:
        try:
            self._write(rows.drop_columns([schema.ORDINAL]), self._run_date)
        except BaseException:
            self._defer_counted(rows, DeferralCause.NOT_COMMITTED)
            raise
        self.commits += 1

    def _codes_to_quarantine(self, codes: list[str]) -> list[str]:
        """Which of these error codes may not be the images' fault."""
        store_codes = STORE_CODES.intersection(codes)
        num_fetched = self.ok + self.failed - sum(self.errors[code] for code in STORE_CODES)
        self.store_failure = self._check_store() if store_codes and num_fetched else None
        quarantined = store_codes if self.store_failure or not num_fetched else frozenset()
        return sorted(quarantined if self.ok else quarantined | MODEL_CODES)

    def _may_commit_quarantined(self) -> bool:
        """Whether the quarantined rows are few enough to be the images' fault. Not if the run was cut short."""
        num_quarantined = sum(map(len, self._pending))
        if not self._has_previous_rows or self.done < self._num_images or num_quarantined >= FEW_FAILURES:
            return False
        if self.store_failure is None and any(STORE_CODES.intersection(_error_codes(rows)) for rows in self._pending):
            self.store_failure = self._check_store()
        return self.store_failure is None

    def _defer_counted(self, rows: pa.Table, cause: DeferralCause | None) -> None:
        """Defers rows that were counted as ok or failed. Without a cause, each for its own error code."""
        codes = _error_codes(rows)
        self.errors = self.errors - Counter(codes)
        self.failed -= len(codes)
        self.ok -= len(rows) - len(codes)
        self._defer(rows, cause)

    def _defer(self, rows: pa.Table, cause: DeferralCause | None = None) -> None:
        self.deferred += len(rows)
        codes = rows[schema.ERROR_CODE].to_pylist()
        causes = [str(cause or code or DeferralCause.NOT_COMMITTED) for code in codes]
        self.deferred_causes = self.deferred_causes + Counter(causes)
        self.outcomes.defer(rows[schema.ORDINAL].to_numpy(), causes)
        with_uri = rows.filter(pc.not_equal(rows[schema.IMAGE_URI], ""))  # unknown if the unit could not be read
        examples = with_uri.slice(0, MAX_DEFERRED_EXAMPLES - len(self.deferred_examples))
        reasons = [str(cause or reason) for reason in examples[schema.ERROR_MESSAGE].to_pylist()]
        self.deferred_examples = self.deferred_examples | dict(
            zip(examples[schema.IMAGE_URI].to_pylist(), reasons, strict=True)
        )

    def _stamped(self, rows: pa.Table) -> pa.Table:
        now = datetime.now(UTC)
        for name, value in self._stamp.items():
            rows = rows.append_column(pa.field(name, pa.string()), pa.repeat(pa.scalar(value), len(rows)))
        return rows.append_column(
            pa.field(schema.LABELLED_AT, schema.TIMESTAMP), pa.repeat(pa.scalar(now, schema.TIMESTAMP), len(rows))
        )


def _error_codes(rows: pa.Table) -> list[str]:
    """Error codes of the rows that have one."""
    return list(rows[schema.ERROR_CODE].drop_null().to_pylist())
