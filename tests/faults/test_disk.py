"""Runs that find no space left: for the table, for the worklist's database, for what is between the stages."""

import re
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import killed_at_the_end, locray
from faults.images import Versions, check_sound, check_whole, fill_folder, label, summary_of
from processes import DEADLINE_S
from small_disk import Disk, small_disk

from locray.errors import StoreError
from locray.labelling.scratch import scratch_database

NUM_IMAGES = 240
OPTIONS = ("--unit-size", "8", "--commit-rows", "8")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A running cluster of the smallest object store that Ray takes, which finds no space where it would spill."""
    from ray.cluster_utils import Cluster

    with small_disk(tmp_path_factory.mktemp("spill") / "disk") as disk, pytest.MonkeyPatch.context() as patch:
        (disk.folder / "full").write_bytes(bytes(196 << 10))
        resources = {"num_cpus": 2, "object_store_memory": 80 << 20, "object_spilling_directory": str(disk.folder)}
        nodes = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **resources})
        patch.setenv("RAY_ADDRESS", nodes.address)
        yield
        nodes.shutdown()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Versions]:
    folder = tmp_path_factory.mktemp("images") / "in"
    return str(folder), fill_folder(folder, NUM_IMAGES)


@pytest.mark.slow
def test_a_table_s_disk_that_gets_full_costs_no_image(disk: Disk, images: tuple[str, Versions], artifact: str) -> None:
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
def test_a_temporary_folder_that_gets_full_is_told_and_changes_nothing(
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
def test_a_database_that_outgrows_its_disk_says_so(disk: Disk, monkeypatch: pytest.MonkeyPatch, num_rows: int) -> None:
    """At the end of a statement, or in the middle of it."""
    monkeypatch.setattr("tempfile.tempdir", str(disk.folder))
    told = f"the keys of the images don't fit into {disk.folder}: .* No space left"
    with pytest.raises(StoreError, match=told), scratch_database() as connection:
        connection.execute(f"CREATE TABLE keys AS SELECT md5(range::VARCHAR) AS key FROM range({num_rows})")
    assert list(disk.folder.iterdir()) == []


HOARDER = """
import time
import numpy as np
import ray
ray.init(log_to_driver=False)
held = []
for num_bytes in (8_000_000, 400_000):
    try:
        while True:
            held.append(ray.put(np.ones(num_bytes, np.uint8)))
    except ray.exceptions.OutOfDiskError:
        pass
print("full", flush=True)
time.sleep(1000)
"""


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_an_object_store_that_can_not_spill_costs_no_image(
    images: tuple[str, Versions], artifact: str, tmp_path: Path
) -> None:
    """Another job of the cluster takes all of the store."""
    table = str(tmp_path / "table")
    hoarder = subprocess.Popen(
        [sys.executable, "-c", HOARDER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        start_new_session=True,
    )  # fmt: skip
    with killed_at_the_end(hoarder):
        assert hoarder.stdout is not None
        readable, *_ = select.select([hoarder.stdout], [], [], DEADLINE_S)
        assert readable, "the store does not get full"
        assert hoarder.stdout.readline() == "full\n"
        done = label(images[0], artifact, table, run=locray)
    assert done.returncode == 1, done
    assert "no space is left on a node of the cluster" in done.stderr
    assert "--object-spilling-directory" in done.stderr
    assert check_sound(table, images[1]).num_rows == 0
    assert label(images[0], artifact, table).returncode == 0
    check_whole(table, images[1])
