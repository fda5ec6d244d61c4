"""How the stages of the pipeline share a cluster: number of model workers, and what each takes from its node."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from locray.config import InferenceOptions
from locray.errors import UsageError

CPU, GPU, MEMORY = "CPU", "GPU", "memory"
Node = Mapping[str, float]
"""Resources of a node, as Ray has them: CPU, GPU, memory in bytes."""

DECODER_CPUS = 0.999
PREDICTOR_CPUS = 0.001
"""A model worker takes next to nothing, for decoding needs the CPU slots, but not nothing: then Ray would place it on a
node with 0 CPUs, such as a head that only schedules. A node of n CPUs, up to 999, runs n decoders beside it."""
_GPU_STEPS = 10_000
"""In which Ray counts parts of a GPU."""
_SHARE_OF_MEMORY = 0.6
"""Of a node without GPUs, per model worker: more than half, so that each node gets one."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The pool of model workers."""

    min_predictors: int
    """Number that is started at once. Where there is no place yet, they wait for it, which tells an autoscaler."""
    max_predictors: int
    """Number that the pool may grow to when nodes join."""
    gpus_per_predictor: float
    """A fraction where model workers share a GPU; 0 on processors."""
    memory_per_predictor: float
    """In bytes; 0 on GPUs, which limit the number of model workers themselves."""
    predictors_per_node: int
    """Model workers that share the processors of a node."""

    @classmethod
    def for_cluster(
        cls, options: InferenceOptions, nodes: Sequence[Node], max_gpus: int | None, *, can_grow: bool
    ) -> Self:
        """One model worker per GPU of the cluster, or as many as are asked for; without GPUs one per node with CPUs.

        Args:
            options: Number of model workers and device, as far as the user has chosen them.
            nodes: The nodes that are there.
            max_gpus: Number of GPUs that the cluster may grow to. None if nobody knows.
            can_grow: Whether nodes may join.

        Raises:
            UsageError: GPUs are needed that are not there and can't come.
        """
        num_gpus = int(sum(node.get(GPU, 0) for node in nodes))
        num_reachable = max(num_gpus, max_gpus or 0)
        if options.device == "gpu" or (options.device == "auto" and num_reachable):
            return cls._on_gpus(options, num_gpus, max_gpus, can_grow=can_grow)
        return cls._on_processors(options, nodes, can_grow=can_grow)

    @classmethod
    def _on_gpus(cls, options: InferenceOptions, num_gpus: int, max_gpus: int | None, *, can_grow: bool) -> Self:
        num_reachable = max(num_gpus, max_gpus or 0)
        requested, per_gpu = options.predictors, options.predictors_per_gpu
        num_needed = requested.min if requested else 1
        gpus_needed = -(-num_needed // per_gpu)
        if max_gpus is not None and gpus_needed > num_reachable:
            raise UsageError(
                f"{_count(num_needed, 'model worker')} on GPUs need{'s' if num_needed == 1 else ''} "
                f"{_count(gpus_needed, 'GPU')}; Ray has {num_gpus or 'none'} and can get at most {num_reachable}. Use "
                "--device cpu, lower --predictors, or add nodes with GPUs (`nvidia-smi` shows those of a machine)"
            )
        # Rounded down to the steps in which Ray counts, so that all of them fit.
        share = 1 if per_gpu == 1 else math.floor(_GPU_STEPS / per_gpu) / _GPU_STEPS
        if requested:
            return cls(requested.min, requested.max, share, 0, 1)
        num_min = max(1, num_reachable) * per_gpu
        return cls(num_min, sys.maxsize if can_grow else num_min, share, 0, 1)

    @classmethod
    def _on_processors(cls, options: InferenceOptions, nodes: Sequence[Node], *, can_grow: bool) -> Self:
        with_cpus = [node for node in nodes if node.get(CPU, 0) >= 1]
        num_nodes = max(1, len(with_cpus))
        requested = options.predictors
        per_node = -(-requested.max // num_nodes) if requested else 1
        memory = min((node.get(MEMORY, 0) for node in with_cpus), default=0.0)
        num_max = sys.maxsize if can_grow else num_nodes
        num_min, num_max = (requested.min, requested.max) if requested else (num_nodes, num_max)
        return cls(num_min, num_max, 0, _SHARE_OF_MEMORY * memory / per_node, per_node)

    def waits_for(self, nodes: Sequence[Node], free: Node) -> str | None:
        """What must happen before the first model worker has a place; None if it has one.

        Args:
            nodes: The nodes that are there.
            free: What all of them together have left.
        """
        kind = "GPU" if self.gpus_per_predictor else "node with CPUs"
        if not any(node.get(GPU if self.gpus_per_predictor else CPU, 0) for node in nodes):
            return f"a {kind} comes: the cluster has none yet"
        if free.get(GPU, 0) < self.gpus_per_predictor or free.get(MEMORY, 0) < self.memory_per_predictor:
            return f"a {kind} is free: other work of the cluster holds all"
        return None

    def pool_sizes(self, num_units: int) -> tuple[int, int]:
        """Minimum and maximum size of the pool for this many units of work."""
        num_max = min(self.max_predictors, num_units)
        return min(self.min_predictors, num_max), num_max

    def resources(self) -> dict[str, Any]:
        """Arguments of Ray Data's `map_batches` that reserve the resources of a model worker."""
        held: dict[str, Any] = {"num_cpus": PREDICTOR_CPUS, "num_gpus": self.gpus_per_predictor}
        return held | ({"memory": self.memory_per_predictor} if self.memory_per_predictor else {})


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
