"""Workers are placed where the cluster has room for them; too few GPUs are an error."""

import pytest

from locray.config import WorkerOptions
from locray.errors import UsageError
from locray.training.placement import BatchPool, scaling_options, small_batch_warning

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


def test_workers_on_processors_leave_a_head_that_only_schedules_free():
    head = {"memory": 8 * GIB}
    assert "CPU" not in scaling([node(), node()], workers=2)["resources_per_worker"]
    assert 0 < scaling([head, node(), node()], workers=2)["resources_per_worker"]["CPU"] < 0.01
    held = scaling([head, node(), node()], workers=2, min_workers=1)["resources_per_worker"]["memory"]
    assert 8 * GIB // held == 1


@pytest.mark.parametrize(("cpus", "workers", "actors"), [(1, 1, 1), (2, 1, 1), (16, 1, 15), (192, 8, 23), (4, 8, 1)])
def test_a_worker_is_fed_by_its_share_of_its_nodes_processors(cpus, workers, actors):
    pool = BatchPool.for_worker(cpus, workers, on_gpu=True)
    # Beside the slot that Ray Train's own worker holds on a GPU.
    assert pool == BatchPool(actors, 1 if cpus > workers else 0.001, idle_priority=False)
    assert BatchPool.for_worker(cpus, workers, on_gpu=False) == BatchPool(min(actors, 8), 0.001, idle_priority=True)


def test_the_memory_for_batches_lets_all_actors_work_at_once():
    unit = 96 * 224 * 224 * 3
    assert BatchPool(8, 1, idle_priority=False).bytes_ahead(unit) >= 256 << 20
    assert BatchPool(23, 1, idle_priority=False).bytes_ahead(unit) >= 2 * 23 * unit
    assert BatchPool(1, 1, idle_priority=False).bytes_ahead(1) == 64 << 20


def test_few_images_per_gpu_are_told():
    assert small_batch_warning(32, 1) is small_batch_warning(4, 1) is small_batch_warning(32, 4) is None
    assert "32 is over all 8 workers: each GPU gets about 4 images" in str(small_batch_warning(32, 8))
