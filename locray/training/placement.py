"""Where the workers of a training and the makers of their batches run, and what each holds of its node."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from locray.config import WorkerOptions
from locray.errors import UsageError

_CPU, _MEMORY, _GPU = "CPU", "memory", "GPU"

# Without a GPU, training and data loading share the processors. If a worker held a whole CPU slot, the cluster would
# have none left for other work on a machine with one processor; and Ray Train wants a worker to hold something.
_TOKEN_MEMORY_BYTES = float(1 << 20)
_TOKEN_CPUS = 0.001
_SHARE_OF_NODE = 0.9

_UNITS_AHEAD_PER_ACTOR = 4
"""One that is made, one that waits for its turn, and room for the order in which they are needed."""
_MIN_BYTES_AHEAD = 64 << 20
_MAX_ACTORS_BESIDE_CPU_TRAINING = 8
"""A network on processors takes nearly all the time: more processes would take memory only."""
_FEW_IMAGES_PER_GPU = 8


def scaling_options(options: WorkerOptions, nodes: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Options of Ray Train's `ScalingConfig`: workers on GPUs or on processors.

    Args:
        options: How many workers, and on which devices.
        nodes: Resources of each node that is alive, by name.

    Raises:
        UsageError: there are some GPUs, but fewer than workers.
    """
    num_workers = (options.min_workers, options.workers) if options.min_workers else options.workers
    num_gpus, num_needed = int(sum(node.get(_GPU, 0) for node in nodes)), options.min_workers or options.workers
    if options.device == "auto" and 0 < num_gpus < num_needed:
        raise UsageError(
            f"found {num_gpus} GPUs for {num_needed} workers, which take one each: use --workers {num_gpus}, or "
            "--device gpu to wait for more GPUs, or --device cpu to train on processors"
        )
    if options.device == "gpu" or (options.device == "auto" and num_gpus):
        return {"num_workers": num_workers, "use_gpu": True}
    with_cpus = [node for node in nodes if node.get(_CPU)]
    held = {_MEMORY: _share_of_node_bytes(options.workers, with_cpus) if options.min_workers else _TOKEN_MEMORY_BYTES}
    if len(with_cpus) < len(nodes):
        # Otherwise Ray would also place workers on a head that only schedules.
        held[_CPU] = _TOKEN_CPUS
    return {"num_workers": num_workers, "resources_per_worker": held, "placement_strategy": "SPREAD"}


@dataclass(frozen=True, slots=True)
class BatchPool:
    """The processes that make the batches of a worker.

    Attributes:
        num_actors: The worker's share of its node's processors, except for one that trains or feeds the GPU.
        cpus_per_actor: CPU slots that each holds. Beside a GPU a whole one, which an autoscaler sees. On processors
            next to nothing, as they work in the gaps of the training, but not nothing: Ray would place an actor
            without on a head that only schedules.
        idle_priority: Whether they run only when a processor is idle.
    """

    num_actors: int
    cpus_per_actor: float
    idle_priority: bool

    @classmethod
    def for_worker(cls, node_cpus: int, workers_on_node: int, *, on_gpu: bool) -> Self:
        """The pool of one of the workers that share a node."""
        num_others = node_cpus // workers_on_node - 1
        if not on_gpu:
            num_others = min(num_others, _MAX_ACTORS_BESIDE_CPU_TRAINING)
        return cls(max(1, num_others), 1 if on_gpu and num_others > 0 else _TOKEN_CPUS, not on_gpu)

    def bytes_ahead(self, unit_bytes: int) -> int:
        """Memory for batches that are made ahead: enough that all actors can work at once."""
        return max(_MIN_BYTES_AHEAD, self.num_actors * _UNITS_AHEAD_PER_ACTOR * unit_bytes)


def small_batch_warning(batch_size: int, num_workers: int) -> str | None:
    """A line where a batch over all workers leaves each GPU too little to do; None where it doesn't."""
    per_gpu = batch_size // num_workers
    if num_workers == 1 or per_gpu >= _FEW_IMAGES_PER_GPU:
        return None
    return (
        f"--batch-size {batch_size} is over all {num_workers} workers: each GPU gets about {per_gpu} images per step, "
        f"and waits for the others most of the time. Try --batch-size {num_workers * 32}"
    )


def _share_of_node_bytes(num_workers: int, nodes: Sequence[Mapping[str, float]]) -> float:
    """Memory that a worker holds with `--min-workers`: enough that the workers of a missing node fit on no other."""
    workers_per_node = -(-num_workers // max(1, len(nodes)))
    smallest = min((node.get(_MEMORY, _TOKEN_MEMORY_BYTES) for node in nodes), default=_TOKEN_MEMORY_BYTES)
    return _SHARE_OF_NODE * smallest / workers_per_node
