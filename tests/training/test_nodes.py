"""Training on a cluster that loses a node."""

import time
from pathlib import Path

import pytest

from locray.demo.images import write_dataset
from locray.models.artifact import load_artifact
from locray.training.history import read_history
from tests.helpers.commands import start_locray

pytestmark = pytest.mark.ray

EPOCHS = 15


@pytest.fixture
def cluster():
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield nodes
    nodes.shutdown()


def test_training_continues_when_a_node_is_lost(cluster, tmp_path):
    """One worker remains, and resumes from the last checkpoint to the last epoch."""
    lost = cluster.add_node(num_cpus=1)
    write_dataset(tmp_path, {"train": 60, "val": 15}, seed=0)
    output = tmp_path / "model"
    options = {
        "data": tmp_path, "format": "csv", "output": output, "model": "small_cnn", "epochs": EPOCHS, "batch-size": 16,
        "workers": 2, "min-workers": 1,
    }  # fmt: skip
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    with start_locray("train", *flags, RAY_ADDRESS=cluster.address) as driver:
        _wait_for_an_epoch(driver, output)
        cluster.remove_node(lost, allow_graceful=False)
        _, stderr = driver.communicate(timeout=400)
    assert driver.returncode == 0, stderr
    epochs = read_history(str(output))
    assert [epoch["epoch"] for epoch in epochs] == list(range(1, EPOCHS + 1))
    assert (epochs[0]["workers"], epochs[-1]["workers"]) == (2, 1)
    assert load_artifact(str(output)).info.provenance["epochs"] == EPOCHS


def _wait_for_an_epoch(driver, output: Path) -> None:
    deadline = time.monotonic() + 300
    while not (output / "metrics.jsonl").exists():
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_gpu_that_pytorch_cannot_use_is_one_usage_error(cluster, tmp_path):
    cluster.add_node(num_cpus=1, num_gpus=1)
    write_dataset(tmp_path, {"train": 8, "val": 2}, seed=0)
    flags = ["--data", str(tmp_path), "--format", "csv", "--output", str(tmp_path / "model"), "--model", "small_cnn"]
    with start_locray("train", *flags, RAY_ADDRESS=cluster.address, CUDA_VISIBLE_DEVICES="") as driver:
        _, stderr = driver.communicate(timeout=120)
    assert driver.returncode == 2, stderr
    assert "but PyTorch can't use it: " in stderr
    assert "--device cpu" in stderr
    assert "Traceback" not in stderr
