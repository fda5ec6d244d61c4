"""Where the workers of a run go: onto GPUs, or onto processors. Called by the loop, whose cluster it is told of.

Knows nothing of Ray but what its `ScalingConfig` is called.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from locray.errors import UsageError
from locray.training.plan import TrainPlan

# Without a GPU, training and the making of batches share the processors. A worker that held a slot of them, or the
# hundredth part of one, would keep Ray Data's own small tasks from starting where there is one processor; and nothing
# at all can't be asked for.
_NEXT_TO_NOTHING = float(1 << 20)
_OF_A_NODE = 0.9
_MEMORY, _GPU = "memory", "GPU"


def placement(plan: TrainPlan, nodes: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The options of Ray Train's `ScalingConfig`.

    Args:
        plan: the run.
        nodes: what each node that is alive has, by the name of the resource.

    Raises:
        UsageError: some GPUs, but fewer than workers.
    """
    workers = (plan.min_workers, plan.num_workers) if plan.min_workers else plan.num_workers
    gpus, needed = int(sum(node.get(_GPU, 0) for node in nodes)), plan.min_workers or plan.num_workers
    if plan.device == "auto" and 0 < gpus < needed:
        raise UsageError(
            f"found {gpus} GPUs for {needed} workers, which take one each: use --workers {gpus}, or --device gpu to "
            "wait for GPUs that are still to come, or --device cpu to train on processors"
        )
    if plan.device == "gpu" or (plan.device == "auto" and gpus):
        return {"num_workers": workers, "use_gpu": True}
    held = _share_of_a_node(plan.num_workers, nodes) if plan.min_workers else _NEXT_TO_NOTHING
    return {"num_workers": workers, "resources_per_worker": {_MEMORY: held}, "placement_strategy": "SPREAD"}


def _share_of_a_node(num_workers: int, nodes: Sequence[Mapping[str, float]]) -> float:
    """What a worker holds where workers are to be counted: so much that a node that is missing is missed."""
    workers_per_node = -(-num_workers // max(1, len(nodes)))
    return _OF_A_NODE * min(node.get(_MEMORY, _NEXT_TO_NOTHING) for node in nodes) / workers_per_node
