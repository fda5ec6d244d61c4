"""Workers go where the cluster has room for them, and it is said where it hasn't."""

from dataclasses import dataclass

import pytest

from locray.errors import UsageError
from locray.training.placement import placement

GIB = float(2**30)


@dataclass
class Plan:
    num_workers: int
    min_workers: int | None = None
    device: str = "auto"


def node(gpus=0.0, memory=8 * GIB):
    return {"CPU": 4.0, "memory": memory} | ({"GPU": gpus} if gpus else {})


def test_gpus_are_taken_where_there_are_some():
    assert placement(Plan(2), [node(), node(1), node(1)]) == {"num_workers": 2, "use_gpu": True}
    assert placement(Plan(4, 2), [node(2)]) == {"num_workers": (2, 4), "use_gpu": True}
    assert "use_gpu" not in placement(Plan(2, device="cpu"), [node(4)])


def test_gpus_that_are_still_to_come_can_be_waited_for():
    assert placement(Plan(2, device="gpu"), [node()]) == {"num_workers": 2, "use_gpu": True}


def test_fewer_gpus_than_workers_are_told():
    with pytest.raises(UsageError, match=r"found 2 GPUs for 4 workers.*--workers 2.*--device gpu.*--device cpu"):
        placement(Plan(4), [node(1), node(1)])


def test_on_processors_a_worker_is_no_burden():
    options = placement(Plan(2), [node(), node()])
    assert options["placement_strategy"] == "SPREAD"
    assert options["resources_per_worker"]["memory"] < GIB / 100


@pytest.mark.parametrize(("workers", "nodes", "left"), [(2, 2, 1), (3, 3, 2), (4, 2, 2), (5, 3, 4)])
def test_where_few_workers_will_do_those_of_a_lost_node_are_missing(workers, nodes, left):
    held = placement(Plan(workers, 1), [node()] * nodes)["resources_per_worker"]["memory"]
    a_node = 8 * GIB // held
    assert a_node * nodes >= workers
    assert min(workers, a_node * (nodes - 1)) == left
