"""Runs without disk space: for the table, for the worklist's database, for blocks between the stages."""

import re
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from locray.errors import StoreError
from locray.storage.temporary_database import temporary_database
from tests.helpers.commands import killed_at_the_end, locray
from tests.helpers.fault_images import (
    Versions,
    check_sound,
    check_whole,
    fill_bucket,
    fill_folder,
    label,
    summary_of,
)
from tests.helpers.processes import DEADLINE_S
from tests.helpers.s3_proxy import Answer, Forward, Request, S3Proxy, honest
from tests.helpers.s3_server import S3Bucket
from tests.helpers.small_disk import Disk, small_disk

NUM_IMAGES = 240
OPTIONS = ("--unit-size", "8", "--commit-rows", "8")
UNIT_IN_STORE = 60
"""Images per unit whose pixels, 3 KiB each in these tests, go to Ray's object store: more than 100 KiB."""
UNITS_BEFORE = 3
"""Two units run at once and the driver fetches images itself: at least one unit is complete, and one is not."""
FIRST_ROWS = 2
"""Version of a new table's first commit with rows."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory, proxy: S3Proxy) -> Iterator[None]:
    """A running cluster with the smallest object store that Ray accepts, and no disk space to spill to.

    Its workers reach the store through the proxy.
    """
    from ray.cluster_utils import Cluster

    with small_disk(tmp_path_factory.mktemp("spill") / "disk") as disk, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        (disk.folder / "full").write_bytes(bytes(196 << 10))
        resources = {"num_cpus": 2, "object_store_memory": 80 << 20, "object_spilling_directory": str(disk.folder)}
        nodes = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **resources})
        patch.setenv("RAY_ADDRESS", nodes.address)
        yield
        nodes.shutdown()
        proxy.fault = honest


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Versions]:
    folder = tmp_path_factory.mktemp("images") / "in"
    return str(folder), fill_folder(folder, NUM_IMAGES)


@pytest.mark.slow
def test_a_full_disk_of_the_table_loses_no_image(disk: Disk, images: tuple[str, Versions], artifact: str) -> None:
    table = str(disk.folder / "table")
    held = 0
    for attempt in range(2):
        done = label(images[0], artifact, table, *OPTIONS)
        assert done.returncode in {1, 2, 4}, done
        assert re.search(r"[Nn]o space (is )?left", done.stderr), done
        before, held = held, check_sound(table, images[1]).num_rows
        assert max(before, 1) <= held < NUM_IMAGES, attempt

    disk.resize(100_000)
    last = label(images[0], artifact, table, *OPTIONS)
    assert (last.returncode, summary_of(last)["planned"]) == (0, NUM_IMAGES - held), last
    check_whole(table, images[1])


@pytest.mark.slow
def test_a_full_temporary_folder_is_reported_and_harmless(
    disk: Disk, images: tuple[str, Versions], artifact: str, tmp_path: Path
) -> None:
    table = str(tmp_path / "table")
    disk.resize(8)
    done = label(images[0], artifact, table, TMPDIR=str(disk.folder))
    assert (done.returncode, done.stdout) == (1, ""), done
    told = " ".join(done.stderr.split())
    assert f"the keys of the images don't fit into {disk.folder}" in told
    assert "TMPDIR" in told
    assert check_sound(table, {}).num_rows == 0
    assert list(disk.folder.iterdir()) == []
    assert label(images[0], artifact, table).returncode == 0
    check_whole(table, images[1])


@pytest.mark.parametrize("num_rows", [10_000, 1_000_000])
def test_a_database_that_outgrows_its_disk_is_reported(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, num_rows: int
) -> None:
    """Whether the disk fills up at the end of a statement or in the middle of it."""
    monkeypatch.setattr("tempfile.tempdir", str(disk.folder))
    told = f"the keys of the images don't fit into {disk.folder}: .* No space left"
    with pytest.raises(StoreError, match=told), temporary_database() as connection:
        connection.execute(f"CREATE TABLE keys AS SELECT md5(range::VARCHAR) AS key FROM range({num_rows})")
    assert list(disk.folder.iterdir()) == []


HOARDER = """
import time
import numpy as np
import ray
ray.init(log_to_driver=False)
held = []
for num_bytes in (8_000_000, 400_000, 120_000):
    try:
        while True:
            held.append(ray.put(np.ones(num_bytes, np.uint8)))
    except ray.exceptions.OutOfDiskError:
        pass
print("full", flush=True)
while True:
    time.sleep(0.1)
    try:
        held.append(ray.put(np.ones(120_000, np.uint8)))
    except ray.exceptions.OutOfDiskError:
        pass
"""
"""Fills the object store, and keeps filling it as others free memory."""


@contextmanager
def hoarder() -> Iterator[Callable[[], None]]:
    """Yields a function that starts a job which fills the object store, and returns when it is full."""
    with ExitStack() as jobs:

        def fill() -> None:
            process = subprocess.Popen(
                [sys.executable, "-c", HOARDER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                start_new_session=True,
            )  # fmt: skip
            jobs.enter_context(killed_at_the_end(process))
            assert process.stdout is not None
            readable, *_ = select.select([process.stdout], [], [], DEADLINE_S)
            assert readable, "the store does not get full"
            assert process.stdout.readline() == "full\n"

        yield fill


class FullFromTheMiddle:
    """Serves some images; the others only after the first rows are committed and the object store is full."""

    def __init__(self, fill: Callable[[], None]) -> None:
        self._fill = fill
        self._asked_for = 0
        self._is_full = threading.Event()
        self._counting, self._filling = threading.Lock(), threading.Lock()

    def __call__(self, request: Request, forward: Forward) -> Answer:
        if request.method == "GET" and request.path.endswith(".jpg"):
            with self._counting:
                self._asked_for += 1
                is_late = self._asked_for > UNITS_BEFORE * UNIT_IN_STORE
            assert not is_late or self._is_full.wait(2 * DEADLINE_S)
        answer = forward()
        if request.method == "PUT" and request.path.endswith(f"_delta_log/{FIRST_ROWS:020d}.json"):
            with self._filling:
                if not self._is_full.is_set():
                    try:
                        self._fill()
                    finally:
                        self._is_full.set()
        return answer


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.usefixtures("cluster")
def test_an_object_store_that_can_not_spill_loses_no_image(one_bucket: S3Bucket, artifact: str, proxy: S3Proxy) -> None:
    """Another job fills the object store after the first commit of rows, and holds it during the next run, too."""
    name = uuid4().hex[:8]
    versions = fill_bucket(one_bucket, f"{name}/in", NUM_IMAGES)
    images, table = f"{one_bucket.uri}/{name}/in", f"{one_bucket.uri}/{name}/out"
    options = ("--unit-size", str(UNIT_IN_STORE), "--commit-rows", str(UNIT_IN_STORE))
    held = 0
    with hoarder() as fill:
        proxy.fault = FullFromTheMiddle(fill)
        for is_first in (True, False):
            done = label(images, artifact, table, *options, run=locray)
            assert done.returncode == 1, done
            assert "no space is left on a node of the cluster" in done.stderr
            assert "--object-spilling-directory" in done.stderr
            before, check = held, check_sound(table, versions)
            held = check.num_rows
            assert summary_of(done)["ok"] == held - before
            assert (0 < held < NUM_IMAGES) if is_first else (held == before)
    last = label(images, artifact, table, *options, run=locray)
    assert (last.returncode, summary_of(last)["planned"]) == (0, NUM_IMAGES - held), last
    check_whole(table, versions)
