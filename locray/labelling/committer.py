"""The committer: gathers predicted rows on the driver and commits them, each image once. Called by labelling/run.py."""

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

DEFERRED_EXAMPLES = 10
"""Deferred images that a summary names; `outcomes` knows of all."""
FEW_IMAGES = 10
"""Fewer failures than this say nothing against a store and a model that have has_previous_rows the table before."""


class Committer:
    """Turns a stream of predicted rows into commits of well-sized files.

    A failure that may be ours is not committed before it is known to be the image's: one of `STORE_CODES` while no
    image could be fetched, or while `check_store` says so; one of `MODEL_CODES` while the model has answered to none.
    At the end of the worklist, a few such failures are committed where the table holds rows of this model already, and
    `check_store` says nothing else: a night may have no other image.

    Safe in two threads: the one that adds rows, and that of `also_every`. What it tells is never changed in place.

    Args:
        writer: the table's writer, claimed.
        num_images: images of the worklist; ordinals are below it.
        stamp: config_hash, run_id and whatever else is the same in all rows of the run.
        run_date: the partition of the run.
        commit_rows: rows after which a commit is made.
        replace: rows take the place of older ones with the same key.
        has_previous_rows: whether the table holds rows of this model and configuration already.
        check_store: asked before images that could not be fetched become rows: None if the store still gives what
            it gave before, else what it gives instead.
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
        self._served = has_previous_rows
        self._vouch = check_store
        self._pending: list[pa.Table] = []
        self._num_pending = 0
        self._lock = threading.RLock()
        self._error: BaseException | None = None
        """What stopped a commit in the other thread, until it is raised in this one."""
        self._last_commit = time.monotonic()
        self.outcomes = ImageOutcomes(num_images)
        self.commits = 0
        self.ok = 0
        self.failed = 0
        self.deferred = 0
        self.errors: Counter[str] = Counter()
        self.deferred_causes: Counter[str] = Counter()
        self.deferred_examples: dict[str, str] = {}
        """Reasons by URI, of some."""
        self.quarantine: ErrorCode | DeferralCause | None = None
        """What `check_store` said last."""

    @property
    def answered(self) -> int:
        """Images whose fate is known: labelled, failed or deferred."""
        return self.ok + self.failed + self.deferred

    def add(self, rows: pa.Table) -> None:
        """Takes rows of `schema.PREDICTED_SCHEMA`; rows that came before are dropped. Commits when they are enough."""
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
        codes = _codes(rows)
        self.errors = self.errors + Counter(codes)
        self.failed += len(codes)
        self.ok += len(rows) - len(codes)
        if len(rows):
            self._pending.append(self._stamped(rows))
            self._num_pending += len(rows)

    @contextmanager
    def also_every(self, interval_s: float) -> Iterator[None]:
        """Until the block ends, commits what is pending so long after the last commit, whether rows come or not.

        Raises:
            What stopped such a commit: from the next `add`, or at the end of the block.
        """
        ended = threading.Event()

        def due_in_s() -> float:
            return self._last_commit + interval_s - time.monotonic()

        def commit() -> None:
            try:
                while not ended.wait(max(0.0, due_in_s())):
                    with self._lock:
                        if due_in_s() <= 0:
                            self._flush()
            except BaseException as error:  # noqa: BLE001 - it is raised in the other thread
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
        """Commits what is pending and not quarantined, once. After an error it is not known whether it was committed.

        The next run does; here it counts as deferred.
        """
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            pending = pa.concat_tables(self._pending)
            doubted_codes = pa.array(self._doubted(_codes(pending)), pa.string())
            is_doubted = pc.is_in(pending[schema.ERROR_CODE], value_set=doubted_codes)
            rows, quarantined = pending.filter(pc.invert(is_doubted)), pending.filter(is_doubted)
            self._pending = [quarantined] if len(quarantined) else []
            if len(rows):
                self._commit(rows)
        self._num_pending = 0
        self._last_commit = time.monotonic()

    def close(self) -> None:
        """Commits what is pending and not quarantined. What stays quarantined, also after an error, is deferred."""
        with self._lock:
            try:
                self._flush()
                if self._are_few_and_its_own():
                    few, self._pending = self._pending, []
                    for rows in few:
                        self._commit(rows)
            finally:
                for rows in self._pending:
                    self._take_back(rows, None)
                self._pending, self._num_pending = [], 0

    def _commit(self, rows: pa.Table) -> None:
        try:
            self._write(rows.drop_columns([schema.ORDINAL]), self._run_date)
        except BaseException:
            self._take_back(rows, DeferralCause.NOT_COMMITTED)
            raise
        self.commits += 1

    def _doubted(self, codes: list[str]) -> list[str]:
        """Which of these codes may be ours."""
        pending_of_the_store = STORE_CODES.intersection(codes)
        num_fetched = self.ok + self.failed - sum(self.errors[code] for code in STORE_CODES)
        self.quarantine = self._vouch() if pending_of_the_store and num_fetched else None
        quarantined = pending_of_the_store if self.quarantine or not num_fetched else frozenset()
        return sorted(quarantined if self.ok else quarantined | MODEL_CODES)

    def _are_few_and_its_own(self) -> bool:
        """Whether what is still quarantined is the images' fault; not known of a run that was cut off."""
        if not self._served or self.answered < self._num_images or sum(map(len, self._pending)) >= FEW_IMAGES:
            return False
        if self.quarantine is None and any(STORE_CODES.intersection(_codes(rows)) for rows in self._pending):
            self.quarantine = self._vouch()
        return self.quarantine is None

    def _take_back(self, rows: pa.Table, cause: DeferralCause | None) -> None:
        """Defers rows that were counted already, for this cause; None: for their own codes, where they have one."""
        codes = _codes(rows)
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
        named = rows.filter(pc.not_equal(rows[schema.IMAGE_URI], ""))  # not of a unit that could not be read
        some = named.slice(0, DEFERRED_EXAMPLES - len(self.deferred_examples))
        reasons = [str(cause or reason) for reason in some[schema.ERROR_MESSAGE].to_pylist()]
        self.deferred_examples = self.deferred_examples | dict(
            zip(some[schema.IMAGE_URI].to_pylist(), reasons, strict=True)
        )

    def _stamped(self, rows: pa.Table) -> pa.Table:
        now = datetime.now(UTC)
        for name, value in self._stamp.items():
            rows = rows.append_column(pa.field(name, pa.string()), pa.repeat(pa.scalar(value), len(rows)))
        return rows.append_column(
            pa.field(schema.LABELLED_AT, schema.TIMESTAMP), pa.repeat(pa.scalar(now, schema.TIMESTAMP), len(rows))
        )


def _codes(rows: pa.Table) -> list[str]:
    """The error codes of those that have one."""
    return list(rows[schema.ERROR_CODE].drop_null().to_pylist())
