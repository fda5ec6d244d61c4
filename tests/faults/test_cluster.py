"""A complete run on a cluster whose processes are killed in mid-run by a real kill -9."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from tests.helpers.commands import start_locray
from tests.helpers.fault_images import Versions, check_whole, fill_folder, summary_of
from tests.helpers.processes import children_of, raylet_pid, title_of, wait_for

pytestmark = pytest.mark.ray

NUM_IMAGES = 300
NO_ROWS = 1
"""Version of a table that has been created and claimed."""
PREDICTOR = "_PredictStage"
DECODE = "decode_unit"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield nodes
    nodes.shutdown()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Versions]:
    folder = tmp_path_factory.mktemp("images") / "in"
    return str(folder), fill_folder(folder, NUM_IMAGES, (640, 480))


@pytest.fixture
def driver(
    cluster: Any, images: tuple[str, Versions], artifact: str, tmp_path: Path
) -> Iterator["subprocess.Popen[str]"]:
    """A run into the table `table`, on two nodes."""
    node = cluster.add_node(num_cpus=1)
    options = {
        "images": images[0], "model": artifact, "table": str(tmp_path / "table"), "unit-size": 4, "commit-rows": 8,
    }  # fmt: skip
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    with start_locray("label", "--json", *flags, RAY_ADDRESS=cluster.address) as driver:
        yield driver
    cluster.remove_node(node, allow_graceful=False)


def wait_until_committed(driver: "subprocess.Popen[str]", table: str, more_than: int = NO_ROWS) -> None:
    """Waits until the table holds some of the rows, but not all."""

    def holds_rows() -> bool:
        assert driver.poll() is None, driver.communicate()
        return DeltaTable.is_deltatable(table) and DeltaTable(table).version() > more_than

    wait_for(holds_rows)
    assert DeltaTable(table).count() < NUM_IMAGES


def kill_worker(cluster: Any, title: str) -> None:
    """Kills a worker of the cluster whose process title contains `title`."""

    def find() -> int | None:
        nodes = [cluster.head_node, *cluster.worker_nodes]
        workers = [pid for node in nodes for pid in children_of(raylet_pid(node))]
        return next((pid for pid in workers if title in title_of(pid)), None)

    os.kill(wait_for(find), signal.SIGKILL)


def check_ended_well(driver: "subprocess.Popen[str]", table: str, versions: Versions) -> None:
    stdout, stderr = driver.communicate(timeout=300)
    done = subprocess.CompletedProcess(driver.args, driver.returncode, stdout, stderr)
    assert driver.returncode == 0, done
    assert "Traceback" not in stderr, stderr
    assert (summary_of(done)["planned"], summary_of(done)["ok"]) == (NUM_IMAGES, NUM_IMAGES)
    check_whole(table, versions)


def test_killed_workers_and_a_killed_raylet_lose_no_image(
    cluster: Any, driver: "subprocess.Popen[str]", images: tuple[str, Versions], tmp_path: Path
) -> None:
    table = str(tmp_path / "table")
    wait_until_committed(driver, table)
    kill_worker(cluster, PREDICTOR)
    kill_worker(cluster, DECODE)
    assert driver.poll() is None
    wait_until_committed(driver, table, more_than=DeltaTable(table).version())
    (node,) = cluster.worker_nodes
    os.kill(raylet_pid(node), signal.SIGKILL)
    assert driver.poll() is None
    check_ended_well(driver, table, images[1])
