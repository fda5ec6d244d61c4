"""Drivers of one model in any order, over a store that misbehaves: no row is there twice, is lost or changes."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError
from faults.commit_path import assert_whole
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule
from labelling.rows import predicted

from locray import schema
from locray.errors import ErrorCode, FencedError, StoreError
from locray.labelling import writer
from locray.labelling.committer import Committer
from locray.labelling.writer import TableWriter
from locray.labelling.worklist import Difference, InlineWorklist, num_units

MODEL_ID = "net@0123456789ab"
CONFIG_HASH = "c0ffee"
NUM_IMAGES = 12
UNIT_SIZE = 3
COMMIT_ROWS = 5
LISTING = pa.RecordBatch.from_pylist(
    [{schema.IMAGE_URI: f"s3://bucket/{number:06d}.jpg", schema.ETAG: "v1"} for number in range(NUM_IMAGES)],
    schema=schema.LISTING_SCHEMA,
)

MISFORTUNES = ["request lost", "answer lost", "refused itself", "overtaken before", "overtaken after", "file lost"]
Row = tuple[tuple[str, Any], ...]


class Listed:
    """A source of the images."""

    def listing(self) -> Iterator[pa.RecordBatch]:
        yield LISTING


@dataclass(eq=False)
class Driver:
    """A run as far as it has come."""

    writer: TableWriter
    retries: bool
    worklist: InlineWorklist | None = None
    committer: Committer | None = None
    pending: set[str] = field(default_factory=set)
    """Images that it has rows of, not yet committed."""
    seen: set[str] = field(default_factory=set)


class DriversInAnyOrder(RuleBasedStateMachine):
    drivers = Bundle("drivers")

    @initialize()
    def make_the_table(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.uri = str(self.folder / "table")
        self.patch = pytest.MonkeyPatch()
        self.misfortunes: list[str] = []
        self.rows: dict[str, Row] = {}
        self.latest: TableWriter | None = None
        self.acting: Driver | None = None
        self._misbehave()
        TableWriter.claim(self.uri, MODEL_ID)

    def _misbehave(self) -> None:
        try_commit, write_file = TableWriter._try_commit, writer.write_file

        def try_commit_somehow(writer: TableWriter, actions: Any, properties: Any) -> None:
            fate = self.misfortunes.pop(0) if self.misfortunes else "none"
            if fate == "request lost":
                raise StoreError("no answer")
            if fate == "overtaken before":
                self._claimed_by_another()
            try_commit(writer, actions, properties)
            if fate == "overtaken after":
                self._claimed_by_another()
            if fate == "answer lost":
                raise StoreError("no answer")
            if fate == "refused itself":
                raise CommitFailedError("met itself")

        def write_file_somehow(*arguments: Any, **keywords: Any) -> Any:
            if self.misfortunes[:1] == ["file lost"]:
                self.misfortunes.pop(0)
                raise StoreError("no answer")
            return write_file(*arguments, **keywords)

        self.patch.setattr(TableWriter, "_try_commit", try_commit_somehow)
        self.patch.setattr(writer, "write_file", write_file_somehow)
        self.patch.setattr(writer, "_PAUSES_S", (0.0, 0.0))

    def _claimed_by_another(self) -> None:
        later, self.misfortunes = self.misfortunes, []
        another = TableWriter.claim(self.uri, MODEL_ID)
        another.clean_up()
        self.misfortunes, self.latest = later, another

    @rule(misfortunes=st.lists(st.sampled_from(MISFORTUNES), min_size=1, max_size=4))
    def bad_times_come(self, misfortunes: list[str]) -> None:
        self.misfortunes = misfortunes

    @rule(target=drivers, retries=st.booleans())
    def claim(self, retries: bool) -> Any:
        before = self.latest
        try:
            writer = TableWriter.claim(self.uri, MODEL_ID)
        except StoreError:
            return multiple()
        except FencedError:
            assert self.latest is not before
            return multiple()
        self.latest = writer
        return Driver(writer, retries)

    @rule(driver=drivers)
    def clean_up_and_plan(self, driver: Driver) -> None:
        if driver.committer is not None:
            return
        try:
            driver.writer.clean_up()
        except FencedError:
            assert driver.writer is not self.latest
            return
        with Difference.open(
            Listed(),
            driver.writer.table,
            MODEL_ID,
            CONFIG_HASH,
            retry=tuple(ErrorCode) if driver.retries else (),
        ) as difference:
            batches = list(difference.batches(None, 100))
        rows = pa.Table.from_batches(batches) if batches else LISTING.schema.empty_table()
        driver.worklist = InlineWorklist.of(rows, UNIT_SIZE)
        driver.committer = Committer(
            driver.writer,
            len(rows),
            stamp={schema.CONFIG_HASH: CONFIG_HASH, schema.RUN_ID: "run"},
            run_date=date(2026, 1, 2),
            commit_rows=COMMIT_ROWS,
            commit_interval_s=3600,
            replace=driver.retries,
        )

    @rule(driver=drivers, number=st.integers(0, NUM_IMAGES // UNIT_SIZE - 1))
    def add_a_unit(self, driver: Driver, number: int) -> None:
        if driver.worklist is None or number >= num_units(driver.worklist):
            return
        images = driver.worklist.read_unit(number)
        rows = pa.concat_tables(self._labelled(image, retries=driver.retries) for image in images.to_pylist())
        driver.pending |= set(images[schema.IMAGE_URI].to_pylist()) - driver.seen
        driver.seen |= driver.pending
        assert driver.committer
        self._act(driver, lambda committer: committer.add(rows))

    @staticmethod
    def _labelled(image: dict[str, Any], *, retries: bool) -> pa.Table:
        number = int(image[schema.IMAGE_URI][-10:-4])
        status = schema.STATUS_FAILED if number % 3 == 0 and not retries else schema.STATUS_OK
        rows = predicted([number], status=status)
        return rows.set_column(0, schema.WORKLIST_SCHEMA.field(0), pa.array([image[schema.ORDINAL]]))

    @rule(driver=drivers)
    def flush(self, driver: Driver) -> None:
        if driver.committer is not None:
            self._act(driver, Committer.flush)

    @rule(driver=consumes(drivers))
    def crash(self, driver: Driver) -> None:
        driver.committer = driver.worklist = None

    def _act(self, driver: Driver, act: Any) -> None:
        self.acting = driver
        try:
            act(driver.committer)
        except FencedError:
            assert self.latest is not driver.writer
            driver.committer = driver.worklist = None
        except StoreError:
            driver.committer = driver.worklist = None
        else:
            assert driver.committer
            if not driver.committer._num_pending:
                self._compare(must_be_there=True)
                driver.pending = set()

    @invariant()
    def nothing_is_lost_changed_or_half_there(self) -> None:
        if hasattr(self, "rows"):
            self._compare(must_be_there=False)
            self.acting = None

    def _compare(self, *, must_be_there: bool) -> None:
        rows = self._rows_now()
        news = {uri for uri, row in rows.items() if self.rows.get(uri) != row}
        whole = self.acting.pending if self.acting else set()
        assert news == whole or (not news and not must_be_there)
        for uri, row in self.rows.items():
            assert rows[uri] == row or (dict(row)[schema.STATUS] == schema.STATUS_FAILED and uri in whole)
        self.rows = rows

    def _rows_now(self) -> dict[str, Row]:
        rows = DeltaTable(self.uri).to_pyarrow_dataset().to_table().to_pylist()
        times = Counter(row[schema.IMAGE_URI] for row in rows)
        assert set(times.values()) <= {1}, times
        return {row[schema.IMAGE_URI]: tuple(row.items()) for row in rows}

    def teardown(self) -> None:
        """In good times, one more run makes the table whole."""
        if not hasattr(self, "uri"):
            return
        try:
            self.misfortunes = []
            last = self.claim(False)
            self.clean_up_and_plan(last)
            for number in range(num_units(last.worklist)):
                self.add_a_unit(last, number)
            self.flush(last)
            assert_whole(self.uri, LISTING)
        finally:
            self.patch.undo()
            shutil.rmtree(self.folder)


TestDriversInAnyOrder = DriversInAnyOrder.TestCase
TestDriversInAnyOrder.settings = settings(max_examples=15, stateful_step_count=25)
