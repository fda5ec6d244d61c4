"""Labelling on clusters whose nodes come while it runs. Their GPUs are only declared."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.commands import PROJECT_ROOT

pytestmark = pytest.mark.ray

NUM_IMAGES = 1200
TIMEOUT_S = 120
MEMORY = 4 * 2**30
PREDICTOR, DECODER = "_PredictStage", "decode_unit"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(NUM_IMAGES):
        Image.new("RGB", (16, 16), (number % 256, number // 256, 0)).save(folder / f"{number:04d}.png")
    return folder


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A cluster of its own, with a head that only schedules. This process is connected to it."""
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "memory": MEMORY, "object_store_memory": 256 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def add_node(cluster: Any, num_cpus: int, num_gpus: int = 0) -> str:
    """Adds a node. Returns its id."""
    node = cluster.add_node(
        num_cpus=num_cpus, num_gpus=num_gpus, memory=MEMORY, object_store_memory=256 << 20, wait=True
    )
    return str(node.node_id)


def report_limits(num_gpus: int) -> None:
    """Reports that the cluster may grow to this many GPUs, as an autoscaler does."""
    import ray
    from ray._private.state import state
    from ray.core.generated import autoscaler_pb2

    config = autoscaler_pb2.ClusterConfig()
    group = config.node_group_configs.add()
    group.name, group.max_count = "gpu", max(1, num_gpus)
    group.resources.update({"CPU": 2} | ({"GPU": 1} if num_gpus else {}))
    accessor: Any = state._connect_and_get_accessor()
    assert accessor is not None
    ray.experimental.internal_kv._internal_kv_put(
        ray._raylet.GCS_AUTOSCALER_CLUSTER_CONFIG_KEY.encode(),
        config.SerializeToString(),
        namespace=ray._raylet.GCS_AUTOSCALER_STATE_NAMESPACE.encode(),
    )
    assert state.get_max_resources_from_cluster_config()["GPU" if num_gpus else "CPU"] >= 1


def actors(name: str) -> list[dict[str, Any]]:
    """The actors of a stage that there are or were."""
    from ray._private.state import actors

    return [actor for actor in actors().values() if name in actor["ActorClassName"]]


def nodes_of(name: str) -> set[str]:
    return {actor["Address"]["NodeID"] for actor in actors(name) if actor["StartTime"]}


def wait_until(condition: Callable[[], object], driver: subprocess.Popen[str] | None = None) -> None:
    until = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < until
        assert driver is None or driver.poll() is None, driver.communicate()
        time.sleep(0.2)


@contextmanager
def labelling(cluster: Any, images: Path, artifact: str, table: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    command = [
        *(sys.executable, "-m", "locray", "label", "--images", str(images), "--model", artifact),
        *("--table", str(table), "--unit-size", "8", "--json", *options),
    ]
    environment = os.environ | {"RAY_ADDRESS": cluster.address}
    with subprocess.Popen(
        command, cwd=PROJECT_ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as driver:
        try:
            yield driver
        finally:
            driver.kill()


def summary_of(driver: subprocess.Popen[str]) -> tuple[dict[str, Any], str]:
    stdout, stderr = driver.communicate(timeout=TIMEOUT_S)
    assert driver.returncode == 0, stderr
    return json.loads(stdout.splitlines()[-1]), stderr


def test_gpu_nodes_are_asked_for_and_used_when_they_come(
    cluster: Any, images: Path, artifact: str, tmp_path: Path
) -> None:
    head = cluster.head_node.node_id
    decode = add_node(cluster, num_cpus=2)
    report_limits(num_gpus=2)
    with labelling(cluster, images, artifact, tmp_path / "table") as driver:
        # Model workers that wait for a GPU are the demand that an autoscaler sees.
        wait_until(lambda: len(actors(PREDICTOR)) == 2, driver)
        assert not nodes_of(PREDICTOR)
        first = add_node(cluster, num_cpus=1, num_gpus=1)
        wait_until(lambda: nodes_of(PREDICTOR) == {first}, driver)
        second = add_node(cluster, num_cpus=1, num_gpus=1)
        wait_until(lambda: nodes_of(PREDICTOR) == {first, second}, driver)
        summary, messages = summary_of(driver)
    assert (summary["ok"], summary["deferred"]) == (NUM_IMAGES, 0)
    assert nodes_of(PREDICTOR) == {first, second}
    assert {head, decode}.isdisjoint(nodes_of(PREDICTOR))
    assert "labelling starts when a GPU comes: the cluster has none yet" in messages
    assert messages.count("Its processors are used instead") <= 2
    assert "PyTorch can't use it" in messages


def test_without_gpus_a_node_that_comes_does_all_the_work_and_the_head_none(
    cluster: Any, images: Path, artifact: str, tmp_path: Path
) -> None:
    with labelling(cluster, images, artifact, tmp_path / "table", "--limit", "400") as driver:
        wait_until(lambda: actors(PREDICTOR), driver)
        assert not nodes_of(PREDICTOR)
        first = add_node(cluster, num_cpus=1)
        wait_until(lambda: nodes_of(PREDICTOR), driver)
        summary, _ = summary_of(driver)
    assert (summary["ok"], summary["deferred"]) == (400, 0)
    assert nodes_of(PREDICTOR) == {first}


@pytest.mark.parametrize(
    ("num_gpus", "limit", "options", "message"),
    [
        (0, 0, (), "1 model worker on GPUs needs 1 GPU; Ray has none and can get at most 0"),
        (1, 2, ("--predictors", "3"), "3 model workers on GPUs need 3 GPUs; Ray has 1 and can get at most 2"),
        (1, 1, (), "but PyTorch can't use it"),
    ],
    ids=["none", "too few", "broken"],
)
def test_gpus_that_are_not_to_be_had_are_told_before_anything_is_written(
    cluster: Any, images: Path, artifact: str, tmp_path: Path,
    num_gpus: int, limit: int, options: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    add_node(cluster, num_cpus=1, num_gpus=num_gpus)
    report_limits(limit)
    table = tmp_path / "table"
    with labelling(cluster, images, artifact, table, "--device", "gpu", *options) as driver:
        _, stderr = driver.communicate(timeout=TIMEOUT_S)
    assert driver.returncode == 2, stderr
    assert message in stderr
    assert "Traceback" not in stderr
    assert not table.exists()
