"""Every mutation of the store by a run, and the invariants that must hold after any fault at one of them."""

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import pyarrow as pa
from deltalake import DeltaTable

from locray import schema, storage
from locray.table.open import create_table
from locray.verification.findings import Check
from locray.verification.table import check_table
from tests.helpers.made_up import BROKEN, ENDS_WITHIN_S, MENDED, Driver
from tests.helpers.s3_proxy import CLOSED, Answer, Forward, Request, S3Proxy
from tests.helpers.s3_server import S3Bucket
from tests.helpers.tables import dataset_of

# The date is fixed, as midnight may pass between two runs of a test.
_OPTIONS = ("--unit-size", "2", "--commit-rows", "4", "--max-failure-rate", "1", "--run-date", "2026-01-02", "--json")
LABEL = ("label", *_OPTIONS)
NIGHTLY = ("nightly", *_OPTIONS, "--sample", "0")


@dataclass(frozen=True)
class Scenario:
    """A command run on a table in a given state."""

    name: str
    mutations: tuple[str, ...]
    """Kinds of the requests that change the store, in the order of a run without faults."""
    command: tuple[str, ...] = LABEL
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def replaces(self) -> bool:
        """Whether failed rows are replaced."""
        return "--retry-failed" in self.command

    def __str__(self) -> str:
        return self.name


FIRST_RUN = Scenario("first run", ("table", "claim", "worklist", "file", "commit", "file", "commit", "work folder"))
AFTER_A_CRASH = Scenario(
    "after a crash", ("claim", "deletion", "work folder", "worklist", "file", "commit", "work folder")
)
RETRY = Scenario(
    "retry",
    ("claim", "worklist", "file", "file", "file", "commit", "work folder"),
    (*LABEL, "--retry-failed"),
    {MENDED: "1"},
)
WITH_CHECKPOINTS = Scenario(
    "with checkpoints",
    ("claim", "worklist", "file", "commit", "checkpoint", "last checkpoint", "file", "commit", "work folder"),
)
SECOND_RUN = Scenario(
    "second run",
    (
        *("claim", "worklist", "file", "file", "commit", "work folder"),
        *("list", "deletion", "deletion", "deletion", "file", "commit", "record", "page"),
    ),
    (*NIGHTLY, "--retry-failed", "--retention-hours", "0"),
    {MENDED: "1"},
)
"""Labels, lists deleted images, deletes removed files, compacts two files into one, and writes its record."""
SCENARIOS = (FIRST_RUN, AFTER_A_CRASH, RETRY, WITH_CHECKPOINTS, SECOND_RUN)

Point = tuple[Scenario, int]
"""A request of a scenario, by its index among those that change the store."""


def each(scenario: Scenario, *kinds: str) -> list[Point]:
    """Returns all requests of these kinds; without kinds, all."""
    return [(scenario, index) for index, kind in enumerate(scenario.mutations) if not kinds or kind in kinds]


def last(scenario: Scenario, *kinds: str) -> list[Point]:
    """Returns the last request of each of these kinds; without kinds, of each kind."""
    found = {scenario.mutations[index]: (scenario, index) for _, index in each(scenario, *kinds)}
    return list(found.values())


def named(value: object) -> str:
    return str(getattr(value, "__name__", value)).replace(" ", "-")


_KINDS = {
    r"PUT .*/_locray/nights/.*/deleted": "list",
    r"PUT .*/_locray/nights/.*\.json": "record",
    r"PUT .*/_locray/nights/.*\.html": "page",
    r"DELETE .*/_locray/.*": "work folder",
    r"PUT .*/_locray/.*": "worklist",
    r"PUT .*/_delta_log/_last_checkpoint": "last checkpoint",
    r"PUT .*/_delta_log/.*\.checkpoint.*": "checkpoint",
    r"PUT .*/_delta_log/0+\.json": "table",
    r"PUT .*/_delta_log/\d+\.json": "commit",
    r"PUT .*\.parquet": "file",
    r"DELETE .*\.parquet": "deletion",
}


def kind_of(request: Request) -> str | None:
    """Returns the kind of change to the table's folder; None for requests that change nothing."""
    if not request.changes_the_store:
        return None
    said = f"{request.method} {request.path}"
    kind = next((kind for pattern, kind in _KINDS.items() if re.fullmatch(pattern, said)), said)
    return "claim" if kind == "commit" and b'"add"' not in request.body else kind


class Victim(Protocol):
    """A process that a test may interrupt."""

    def kill(self) -> None: ...

    def pause(self) -> None: ...

    def ask_to_stop(self) -> None: ...


class AtMutation:
    """A fault at one of the requests that change the store; all others pass.

    `driver` is the process that it hits.
    """

    def __init__(self, index: int, action: "Action") -> None:
        self.driver: Future[Victim] = Future()
        self.kinds: list[str] = []
        self.happened = threading.Event()
        self.over = threading.Event()
        self._index = index
        self._action = action
        self._lock = threading.Lock()

    @property
    def hit(self) -> str | None:
        """Kind of the request that was hit; None before."""
        return self.kinds[self._index] if len(self.kinds) > self._index else None

    def __call__(self, request: Request, forward: Forward) -> Answer:
        kind = kind_of(request)
        with self._lock:
            if kind:
                self.kinds.append(kind)
            is_it = kind is not None and len(self.kinds) == self._index + 1
        if not is_it:
            return forward()
        try:
            return self._action(self, forward)
        finally:
            self.happened.set()


Action = Callable[[AtMutation, Forward], Answer]


def killed_before(fault: AtMutation, _: Forward) -> Answer:
    fault.driver.result().kill()
    return CLOSED


def killed_when_applied(fault: AtMutation, forward: Forward) -> Answer:
    forward()
    fault.driver.result().kill()
    return CLOSED


def paused_before(fault: AtMutation, forward: Forward) -> Answer:
    """Holds the request while the driver is paused, and delivers it at the end."""
    fault.driver.result().pause()
    fault.happened.set()
    assert fault.over.wait(ENDS_WITHIN_S)
    return forward()


def paused_after(fault: AtMutation, forward: Forward) -> Answer:
    answer = forward()
    fault.driver.result().pause()
    return answer


def asked_to_stop(fault: AtMutation, forward: Forward) -> Answer:
    fault.driver.result().ask_to_stop()
    return forward()


def answer_lost(_: AtMutation, forward: Forward) -> Answer:
    forward()
    return CLOSED


def request_lost(_: AtMutation, __: Forward) -> Answer:
    return CLOSED


@dataclass
class Place:
    """Images, their table in a bucket, and the proxy in front of the bucket."""

    images: Path
    model: str
    bucket: S3Bucket
    proxy: S3Proxy
    logs: Path
    name: str = field(default_factory=lambda: uuid4().hex[:8])
    _number: Iterator[int] = field(default_factory=count)

    @property
    def table(self) -> str:
        return f"{self.bucket.uri}/{self.name}"

    @property
    def scratch(self) -> Path:
        """Folder for the temporary files of all drivers."""
        return self.logs / "scratch"

    def put(self, files: dict[str, bytes]) -> None:
        """Copies a table's files to this table's place."""
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(self.bucket.put, [f"{self.name}/{name}" for name in files], files.values()))

    def start(self, scenario: Scenario, **environment: str) -> Driver:
        """Starts a driver. It bypasses the proxy unless `environment` sets the endpoint."""
        where = ("--images", str(self.images), "--model", self.model, "--table", self.table)
        log = self.logs / f"log-{next(self._number)}"
        self.scratch.mkdir(exist_ok=True)
        environment |= {"TMPDIR": str(self.scratch), **scenario.environment}
        return Driver(log, *scenario.command, *where, **environment)

    def start_with(self, fault: AtMutation, scenario: Scenario) -> Driver:
        self.proxy.fault = fault
        driver = self.start(scenario, AWS_ENDPOINT_URL=self.proxy.endpoint_url)
        fault.driver.set_result(driver)
        return driver

    def rows(self) -> list[dict[str, Any]]:
        """Returns all rows of the table by image; none if there is no table yet."""
        options = storage.delta_storage_options(self.table)
        if not DeltaTable.is_deltatable(self.table, storage_options=options):
            return []
        rows = dataset_of(self.table).to_table(columns=schema.PREDICTIONS_SCHEMA.names).to_pylist()
        return sorted(rows, key=lambda row: (row[schema.IMAGE_URI], str(row[schema.LABELLED_AT])))

    def finish(self, scenario: Scenario) -> None:
        """Runs the command to its end. Afterwards the table is complete and its folder clean."""
        driver = self.start(scenario)
        assert driver.wait() == 0, driver.log.read_text()
        self.check()
        assert list(self.scratch.iterdir()) == []

    def do_nothing(self) -> None:
        """Runs the command once more and checks that no image is labelled again."""
        rows = self.rows()
        driver = self.start(FIRST_RUN)
        assert driver.wait() == 0, driver.log.read_text()
        assert driver.summary()["planned"] == 0
        assert self.rows() == rows
        self.check()

    def check(self) -> None:
        """Checks that each image has one row and that the folder holds only files of the table, each written once."""
        assert_whole(self.table, listing_of(self.images))
        log = DeltaTable(self.table, storage_options=storage.delta_storage_options(self.table)).history()
        assert [entry["operation"] for entry in log].count("CREATE TABLE") == 1


def listing_of(folder: Path) -> pa.RecordBatch:
    """Lists a folder without locray's own listing."""
    files = [(path, path.stat()) for path in sorted(folder.iterdir())]
    rows = [
        {
            schema.IMAGE_URI: str(path),
            schema.ETAG: f"{status.st_mtime_ns}-{status.st_size}",
            schema.SIZE_BYTES: status.st_size,
        }
        for path, status in files
    ]
    return pa.RecordBatch.from_pylist(rows, schema=schema.LISTING_SCHEMA)


def assert_whole(table: str, listing: pa.RecordBatch) -> None:
    """Checks the invariants: one row per image, intact files, and no file that never belonged to the table."""
    check = check_table(table, [listing])
    assert not check.findings.faults
    assert not check.findings.pending
    assert set(check.findings.notes) <= {Check.FILE_REMOVED}, check.findings.notes
    assert check.num_rows == check.num_listed == len(listing)


def assert_kept(before: Iterable[dict[str, Any]], after: Iterable[dict[str, Any]], *, also_failed: bool = True) -> None:
    """Checks that no committed row is lost or changed, except failed ones that are retried."""
    kept = list(after)
    for row in before:
        assert row in kept or (row[schema.STATUS] == schema.STATUS_FAILED and not also_failed), row


def made_images(folder: Path) -> Path:
    """Six images, the first and last broken: with four rows per commit, each data file has one."""
    folder.mkdir()
    for number in range(6):
        name = f"{number}-{BROKEN}.jpg" if number in {0, 5} else f"{number}.jpg"
        (folder / name).write_bytes(b"x" * (number + 1))
    return folder


Templates = dict[str, dict[str, bytes]]
"""Files of the tables that the scenarios start from."""


def made_templates(folder: Path, images: Path, model: str) -> Templates:
    """Makes the templates in local folders: the files are the same everywhere."""
    halfway, labelled, checkpoints = (str(folder / name) for name in ("halfway", "labelled", "checkpoints"))

    def run(table: str, *command: str) -> dict[str, bytes]:
        driver = Driver(folder / "log", *command, "--images", str(images), "--model", model, "--table", table)
        assert driver.wait() == 0, driver.log.read_text()
        return _files_of(table)

    create_table(checkpoints).alter.set_table_properties({"delta.checkpointInterval": "2"})
    files = {
        FIRST_RUN.name: {},
        AFTER_A_CRASH.name: run(halfway, *LABEL, "--limit", "4"),
        RETRY.name: run(labelled, *LABEL),
        WITH_CHECKPOINTS.name: _files_of(checkpoints),
        SECOND_RUN.name: run(labelled, *NIGHTLY),
    }
    partition = next(name for name in files[AFTER_A_CRASH.name] if name.endswith(".parquet")).rpartition("/")[0]
    model_id = partition.split("/")[0].removeprefix(f"{schema.MODEL_ID}=")
    files[AFTER_A_CRASH.name] |= {
        f"{partition}/part-{'0' * 32}.parquet": b"never committed",
        f"_locray/{model_id}/run/worklist-000000": b"of a crashed run",
    }
    return files


def _files_of(folder: str) -> dict[str, bytes]:
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@contextmanager
def over_in_any_case(fault: AtMutation) -> Iterator[None]:
    """Releases waiting threads of the proxy when the test ends, in any way."""
    try:
        yield
    finally:
        fault.over.set()
