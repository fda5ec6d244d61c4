"""Workers are placed where the cluster has room for them; too few GPUs are an error."""

import pytest

from locray.config import WorkerOptions
from locray.errors import UsageError
from locray.training.loop import scaling_options

GIB = float(2**30)


def scaling(nodes, **options):
    return scaling_options(WorkerOptions(**options), nodes)


def node(gpus=0.0, memory=8 * GIB):
    return {"CPU": 4.0, "memory": memory} | ({"GPU": gpus} if gpus else {})


def test_gpus_are_used_where_there_are_some():
    assert scaling([node(), node(1), node(1)], workers=2) == {"num_workers": 2, "use_gpu": True}
    assert scaling([node(2)], workers=4, min_workers=2) == {"num_workers": (2, 4), "use_gpu": True}
    assert "use_gpu" not in scaling([node(4)], workers=2, device="cpu")


def test_device_gpu_waits_for_gpus():
    assert scaling([node()], workers=2, device="gpu") == {"num_workers": 2, "use_gpu": True}


def test_fewer_gpus_than_workers_are_an_error():
    with pytest.raises(UsageError, match=r"found 2 GPUs for 4 workers.*--workers 2.*--device gpu.*--device cpu"):
        scaling([node(1), node(1)], workers=4)


def test_a_worker_on_processors_holds_next_to_nothing():
    options = scaling([node(), node()], workers=2)
    assert options["placement_strategy"] == "SPREAD"
    assert options["resources_per_worker"]["memory"] < GIB / 100


@pytest.mark.parametrize(("workers", "nodes", "left"), [(2, 2, 1), (3, 3, 2), (4, 2, 2), (5, 3, 4)])
def test_with_min_workers_those_of_a_lost_node_are_missing(workers, nodes, left):
    held = scaling([node()] * nodes, workers=workers, min_workers=1)["resources_per_worker"]["memory"]
    a_node = 8 * GIB // held
    assert a_node * nodes >= workers
    assert min(workers, a_node * (nodes - 1)) == left
