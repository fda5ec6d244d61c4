"""Drivers of one model in any order, on a store that fails: no row is duplicated, lost or changed."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from locray import schema, storage
from locray.errors import DeferralCause, ErrorCode, FencedError, StoreError
from locray.labelling import worklist
from locray.labelling.committer import Committer
from locray.labelling.worklist import InlineWorklist, PendingImages, num_units
from locray.table import claimed
from locray.table import writer as writing
from locray.table.key import PredictionKey
from locray.table.writer import TableWriter
from tests.helpers.commit_path import assert_whole
from tests.helpers.rows import predicted
from tests.helpers.tables import dataset_of

KEY = PredictionKey("net@0123456789ab", "c0ffee")
MODEL_ID, CONFIG_HASH = KEY.model_id, KEY.config_hash
NUM_IMAGES = 12
UNIT_SIZE = 3
COMMIT_ROWS = 5
LISTING = pa.RecordBatch.from_pylist(
    [{schema.IMAGE_URI: f"s3://bucket/{number:06d}.jpg", schema.ETAG: "v1"} for number in range(NUM_IMAGES)],
    schema=schema.LISTING_SCHEMA,
)

MISFORTUNES = {
    "commit": ("request lost", "answer lost", "refused itself", "overtaken before", "overtaken after"),
    "file": ("lost",),
    "refresh": ("lost",),
    "look": ("lost",),
    "folder": ("lost",),
    "keys": ("lost",),
    "images": ("lost", "lost halfway"),
    "deletion": ("lost", "answer lost"),
}
"""Faults that may hit the next request of each kind, once."""
EACH_MISFORTUNE = [(place, fate) for place, outcomes in MISFORTUNES.items() for fate in outcomes]
Row = tuple[tuple[str, Any], ...]


@dataclass
class Listed:
    """A source of the images whose store may fail."""

    strike: Callable[[str], str | None]

    def listing(self) -> Iterator[pa.RecordBatch]:
        fate = self.strike("images")
        yield LISTING.slice(0, NUM_IMAGES // 2 if fate == "lost halfway" else 0)
        if fate:
            raise StoreError("no answer")
        yield LISTING


@dataclass(eq=False)
class Driver:
    """State of a run."""

    writer: TableWriter
    retries: bool
    worklist: InlineWorklist | None = None
    committer: Committer | None = None
    pending: set[str] = field(default_factory=set)
    """Images whose rows are not committed yet."""
    statuses: dict[str, str] = field(default_factory=dict)
    """Expected status of each image that it has seen."""
    is_in_doubt: bool = False
    """Whether the store failed during its last commit, so that the outcome is unknown."""


class DriversInAnyOrder(RuleBasedStateMachine):
    drivers = Bundle("drivers")

    @initialize()
    def make_the_table(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.uri = str(self.folder / "table")
        self.patch = pytest.MonkeyPatch()
        self.misfortunes: list[tuple[str, str]] = []
        self.rows: dict[str, Row] = {}
        self.latest: TableWriter | None = None
        self.acting: Driver | None = None
        self._misbehave()
        TableWriter.claim(self.uri, MODEL_ID)

    def _strike(self, place: str) -> str | None:
        """Returns the fault that hits this request, or None."""
        fate = next((one for one in self.misfortunes if one[0] == place), None)
        if fate is None:
            return None
        self.misfortunes.remove(fate)
        return fate[1]

    def _misbehave(self) -> None:
        try_commit = TableWriter._send_commit

        def try_commit_somehow(writer: TableWriter, actions: Any, properties: Any) -> None:
            fate = self._strike("commit")
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

        self.patch.setattr(TableWriter, "_send_commit", try_commit_somehow)
        for place, owner, name in (
            ("file", writing, "write_file"),
            ("refresh", TableWriter, "_advance"),
            ("look", TableWriter, "_read_latest"),
            ("folder", storage, "list_uris"),
            ("keys", worklist, "scan_strings"),
            ("deletion", storage, "delete"),
        ):
            self.patch.setattr(owner, name, self._failing(place, getattr(owner, name)))
        self.patch.setattr(claimed, "_RETRY_DELAYS_S", (0.0, 0.0))

    def _failing(self, place: str, request: Callable[..., Any]) -> Callable[..., Any]:
        def somehow(*arguments: Any, **keywords: Any) -> Any:
            fate = self._strike(place)
            answer = None if fate == "lost" else request(*arguments, **keywords)
            if fate:
                raise StoreError("no answer")
            return answer

        return somehow

    def _claimed_by_another(self) -> None:
        later, self.misfortunes = self.misfortunes, []
        another = TableWriter.claim(self.uri, MODEL_ID)
        another.clean_up()
        self.misfortunes, self.latest = later, another

    @rule(misfortunes=st.lists(st.sampled_from(EACH_MISFORTUNE), min_size=1, max_size=4))
    def bad_times_come(self, misfortunes: list[tuple[str, str]]) -> None:
        self.misfortunes = misfortunes

    @rule(target=drivers, retries=st.booleans())
    def claim(self, retries: bool) -> Any:
        before, number = self.latest, self._number_now()
        try:
            writer = TableWriter.claim(self.uri, MODEL_ID)
        except StoreError:
            if self._number_now() != number:  # the claim was written, but no driver continues from it
                self.latest = None
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
        retry = tuple(ErrorCode) if driver.retries else ()
        try:
            driver.writer.clean_up()
            with PendingImages.find(
                Listed(self._strike), driver.writer.table, driver.writer.uri, KEY, retry=retry
            ) as pending:
                batches = list(pending.batches(None, 100))
        except FencedError:
            assert driver.writer is not self.latest
            return
        except StoreError:
            return
        rows = pa.Table.from_batches(batches) if batches else LISTING.schema.empty_table()
        if driver.writer is self.latest:
            assert set(rows[schema.IMAGE_URI].to_pylist()) == self._lacking(retries=driver.retries)
        driver.worklist = InlineWorklist.of(rows, UNIT_SIZE)
        driver.committer = Committer(
            driver.writer,
            len(rows),
            stamp={schema.CONFIG_HASH: CONFIG_HASH, schema.RUN_ID: "run"},
            run_date=date(2026, 1, 2),
            commit_rows=COMMIT_ROWS,
            replace=driver.retries,
        )

    def _lacking(self, *, retries: bool) -> set[str]:
        """Returns the images without a row, or with one to replace."""
        final = {uri for uri, row in self.rows.items() if not (retries and _status(row) == schema.STATUS_FAILED)}
        return set(LISTING[schema.IMAGE_URI].to_pylist()) - final

    @rule(driver=drivers, number=st.integers(0, NUM_IMAGES // UNIT_SIZE - 1), defers=st.booleans())
    def add_a_unit(self, driver: Driver, number: int, defers: bool) -> None:
        if driver.worklist is None or number >= num_units(driver.worklist):
            return
        images = driver.worklist.read_unit(number)
        rows = pa.concat_tables(
            self._labelled(image, retries=driver.retries, defers=defers) for image in images.to_pylist()
        )
        told = zip(rows[schema.IMAGE_URI].to_pylist(), rows[schema.STATUS].to_pylist(), strict=True)
        news = {uri: status for uri, status in told if uri not in driver.statuses}
        driver.statuses |= news
        driver.pending |= {uri for uri, status in news.items() if status != schema.STATUS_DEFERRED}
        assert driver.committer
        self._act(driver, lambda committer: committer.add(rows))

    @staticmethod
    def _labelled(image: dict[str, Any], *, retries: bool, defers: bool) -> pa.Table:
        number = int(image[schema.IMAGE_URI][-10:-4])
        status = schema.STATUS_FAILED if number % 3 == 0 and not retries else schema.STATUS_OK
        rows = predicted([number], status=status)
        if defers and number % 4 < 2:
            rows = predicted([number], status=schema.STATUS_DEFERRED, code=DeferralCause.CREDENTIALS)
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
            self._compare_counts(driver, fate_of_pending=schema.STATUS_DEFERRED)
            driver.committer = driver.worklist = None
        except StoreError:  # pending rows were committed all or not at all; the driver continues
            self._compare_counts(driver, fate_of_pending=schema.STATUS_DEFERRED)
            driver.is_in_doubt = True
        else:
            assert driver.committer
            self._compare_counts(driver)
            if not driver.committer._num_pending:
                self._compare(must_be_there=True)
                driver.pending = set()

    @staticmethod
    def _compare_counts(driver: Driver, fate_of_pending: str | None = None) -> None:
        """Checks the committer's counts against the expected status of each image."""
        if fate_of_pending:
            driver.statuses |= dict.fromkeys(driver.pending, fate_of_pending)
        counts, committer = Counter(driver.statuses.values()), driver.committer
        assert committer
        assert counts == +Counter(
            {
                schema.STATUS_OK: committer.ok,
                schema.STATUS_FAILED: committer.failed,
                schema.STATUS_DEFERRED: committer.deferred,
            }
        )
        assert committer.failed == committer.errors.total()
        assert committer.deferred == committer.deferred_causes.total()
        assert committer.done == len(driver.statuses)

    @invariant()
    def nothing_is_lost_changed_or_half_there(self) -> None:
        if hasattr(self, "rows"):
            self._compare(must_be_there=False)
            if self.acting and self.acting.is_in_doubt:
                self.acting.pending, self.acting.is_in_doubt = set(), False
            self.acting = None

    def _compare(self, *, must_be_there: bool) -> None:
        rows = self._rows_now()
        news = {uri for uri, row in rows.items() if self.rows.get(uri) != row}
        whole = self.acting.pending if self.acting else set()
        assert news == whole or (not news and not must_be_there)
        for uri, row in self.rows.items():
            assert rows[uri] == row or (_status(row) == schema.STATUS_FAILED and uri in whole)
        self.rows = rows

    def _number_now(self) -> int:
        return DeltaTable(self.uri).transaction_version(f"locray:{MODEL_ID}") or 0

    def _rows_now(self) -> dict[str, Row]:
        rows = dataset_of(self.uri).to_table().to_pylist()
        times = Counter(row[schema.IMAGE_URI] for row in rows)
        assert set(times.values()) <= {1}, times
        return {row[schema.IMAGE_URI]: tuple(row.items()) for row in rows}

    def teardown(self) -> None:
        """Without faults, one more run labels all images but those it defers, and the next one completes the table."""
        if not hasattr(self, "uri"):
            return
        try:
            self.misfortunes = []
            deferred = self._run_to_its_end(defers=True)
            assert deferred == self._lacking(retries=False)
            assert self._run_to_its_end(defers=False) == set()
            assert_whole(self.uri, LISTING)
        finally:
            self.patch.undo()
            shutil.rmtree(self.folder)

    def _run_to_its_end(self, *, defers: bool) -> set[str]:
        """Runs over all pending images. Returns those that were deferred."""
        driver = self.claim(False)
        self.clean_up_and_plan(driver)
        for number in range(num_units(driver.worklist)):
            self.add_a_unit(driver, number, defers)
        self.flush(driver)
        self.nothing_is_lost_changed_or_half_there()
        assert driver.committer.done == driver.worklist.num_images
        return {uri for uri, status in driver.statuses.items() if status == schema.STATUS_DEFERRED}


def _status(row: Row) -> Any:
    return dict(row)[schema.STATUS]


TestDriversInAnyOrder = pytest.mark.slow(DriversInAnyOrder.TestCase)
TestDriversInAnyOrder.settings = settings(max_examples=13, stateful_step_count=25)
