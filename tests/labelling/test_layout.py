"""Number of model workers, and what each takes from its node."""

import sys

import pytest

from locray.config import InferenceOptions
from locray.errors import UsageError
from locray.labelling.layout import CPU, DECODER_CPUS, GPU, MEMORY, PREDICTOR_CPUS, Layout, Node

GIB = 2.0**30
HEAD: Node = {MEMORY: 8 * GIB}
DECODE: Node = {CPU: 16, MEMORY: 24 * GIB}
GPU_NODE: Node = {CPU: 4, GPU: 1, MEMORY: 12 * GIB}


def layout(*nodes: Node, max_gpus: int | None = None, can_grow: bool = True, **options: object) -> Layout:
    return Layout.for_cluster(InferenceOptions(**options), nodes, max_gpus, can_grow=can_grow)  # type: ignore[arg-type]


def sizes(layout: Layout) -> tuple[int, int]:
    return layout.min_predictors, layout.max_predictors


@pytest.mark.parametrize("num_cpus", [*range(1, 65), 96, 128, 192, 256, 999])
def test_a_node_runs_a_decoder_per_cpu_beside_a_model_worker(num_cpus: int) -> None:
    """In the ten-thousandths in which Ray counts."""
    left = num_cpus * 10_000 - round(PREDICTOR_CPUS * 10_000)
    assert left // round(DECODER_CPUS * 10_000) == num_cpus


def test_gpus_that_are_there_and_those_that_may_come_get_a_model_worker() -> None:
    for device in ("auto", "gpu"):
        assert sizes(layout(HEAD, GPU_NODE, GPU_NODE, device=device)) == (2, sys.maxsize)
        assert sizes(layout(HEAD, DECODE, max_gpus=8, device=device)) == (8, sys.maxsize)
        assert sizes(layout(HEAD, GPU_NODE, max_gpus=8, device=device)) == (8, sys.maxsize)
        assert sizes(layout(GPU_NODE, max_gpus=1, can_grow=False, device=device)) == (1, 1)
        found = layout(HEAD, GPU_NODE, device=device)
        assert found.resources() == {"num_cpus": PREDICTOR_CPUS, "num_gpus": 1}


def test_a_cluster_that_may_have_gpus_is_waited_for_if_they_are_asked_for() -> None:
    assert sizes(layout(HEAD, DECODE, device="gpu")) == (1, sys.maxsize)
    assert layout(HEAD, DECODE, device="auto").gpus_per_predictor == 0


@pytest.mark.parametrize("nodes", [(HEAD, DECODE, DECODE), (HEAD, DECODE, DECODE, GPU_NODE)])
def test_without_gpus_each_node_with_cpus_gets_one(nodes: tuple[Node, ...]) -> None:
    found = layout(*nodes, max_gpus=0, device="cpu")
    assert sizes(found) == (len(nodes) - 1, sys.maxsize)
    smallest = min(node[MEMORY] for node in nodes[1:])
    assert found.predictors_per_node == 1
    # One fits on the smallest node, and a second one does not.
    assert smallest / 2 < found.memory_per_predictor < smallest
    assert found.resources()["num_gpus"] == 0


def test_a_cluster_without_a_node_that_computes_waits_for_one() -> None:
    found = layout(HEAD, device="cpu")
    assert sizes(found) == (1, sys.maxsize)
    assert found.resources()["num_cpus"] == PREDICTOR_CPUS  # never on the head


@pytest.mark.parametrize(("given", "expected"), [("3", (3, 3)), ("2-5", (2, 5)), (" 7 ", (7, 7))])
def test_the_option_decides(given: str, expected: tuple[int, int]) -> None:
    assert sizes(layout(HEAD, GPU_NODE, max_gpus=8, predictors=given)) == expected
    assert sizes(layout(HEAD, DECODE, predictors=given)) == expected


def test_several_on_a_node_share_its_memory_and_processors() -> None:
    found = layout(HEAD, DECODE, DECODE, predictors="4")
    assert found.predictors_per_node == 2
    assert 2 * found.memory_per_predictor < DECODE[MEMORY] < 4 * found.memory_per_predictor


@pytest.mark.parametrize("per_gpu", [*range(1, 17)])
def test_model_workers_that_share_a_gpu_fit_on_it(per_gpu: int) -> None:
    """In the ten-thousandths in which Ray counts."""
    found = layout(GPU_NODE, max_gpus=3, can_grow=False, predictors_per_gpu=per_gpu)
    assert sizes(found) == (3 * per_gpu, 3 * per_gpu)
    assert 10_000 // round(found.resources()["num_gpus"] * 10_000) == per_gpu


def test_sharing_a_gpu_changes_the_number_that_can_come_and_nothing_on_processors() -> None:
    assert sizes(layout(GPU_NODE, predictors="6", max_gpus=2, predictors_per_gpu=3)) == (6, 6)
    with pytest.raises(UsageError, match="7 model workers on GPUs need 3 GPUs; Ray has 1 and can get at most 2"):
        layout(GPU_NODE, predictors="7", max_gpus=2, predictors_per_gpu=3)
    half = layout(GPU_NODE, predictors_per_gpu=2)
    assert half.waits_for([GPU_NODE], {CPU: 4, GPU: 0.5}) is None
    assert half.waits_for([GPU_NODE], {CPU: 4, GPU: 0.4}) == "a GPU is free: other work of the cluster holds all"
    assert sizes(layout(HEAD, DECODE, device="cpu", predictors_per_gpu=4))[0] == 1


@pytest.mark.parametrize(
    ("nodes", "max_gpus", "predictors", "message"),
    [
        ([DECODE], 0, None, "1 model worker on GPUs needs 1 GPU; Ray has none and can get at most 0"),
        ([GPU_NODE], 4, "6", "6 model workers on GPUs need 6 GPUs; Ray has 1 and can get at most 4"),
        ([GPU_NODE], 4, "5-8", "5 model workers"),
    ],
)
def test_more_than_can_come_is_refused(nodes: list[Node], max_gpus: int, predictors: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        layout(*nodes, max_gpus=max_gpus, device="gpu", predictors=predictors)


def test_what_the_first_model_worker_waits_for() -> None:
    on_gpus, on_processors = layout(GPU_NODE), layout(DECODE)
    assert on_gpus.waits_for([HEAD, GPU_NODE], GPU_NODE) is None
    assert on_gpus.waits_for([HEAD, DECODE], DECODE) == "a GPU comes: the cluster has none yet"
    assert on_gpus.waits_for([HEAD, GPU_NODE], DECODE) == "a GPU is free: other work of the cluster holds all"
    assert on_processors.waits_for([HEAD, DECODE], DECODE) is None
    assert on_processors.waits_for([HEAD], HEAD) == "a node with CPUs comes: the cluster has none yet"
    taken = {CPU: 16, MEMORY: 8 * GIB}
    assert on_processors.waits_for([DECODE], taken) == "a node with CPUs is free: other work of the cluster holds all"


def test_a_pool_has_no_more_workers_than_units() -> None:
    assert layout(HEAD, GPU_NODE, GPU_NODE).pool_sizes(1) == (1, 1)
    assert layout(HEAD, GPU_NODE, GPU_NODE).pool_sizes(9) == (2, 9)
    assert layout(predictors="2-4").pool_sizes(3) == (2, 3)


@pytest.mark.parametrize("given", ["0", "-1", "2-1", "two", "1-", "1-2-3", ""])
def test_a_wrong_number_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="expected a number of at least 1, or two as MIN-MAX; found"):
        InferenceOptions(predictors=given)  # type: ignore[arg-type]
