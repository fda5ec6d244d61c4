"""Collective operations between the workers of a run. A single worker needs no torch.distributed.

Every worker must make the same calls in the same order.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class Signal(IntEnum):
    """Request of a worker after a step. If requests differ, the highest applies to all workers."""

    CONTINUE = 0
    SAVE = 1
    STOP = 2
    """Save and end: the run will be resumed."""
    FAIL = 3
    """End without saving: this step must not be taken."""


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The workers of a run, as seen by one of them.

    Attributes:
        rank: Number of this worker.
        size: Number of workers.
        device: Where this worker's tensors lie when they are exchanged.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the worker that writes files and reports progress."""
        return self.rank == 0

    def all_reduce_max(self, signal: Signal) -> Signal:
        """Highest signal of all workers."""
        if self.size == 1:
            return signal
        shared = torch.tensor(int(signal), device=self.device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return Signal(int(shared))

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Sum over all workers of (n,) float64 values, on the CPU."""
        if self.size == 1:
            return values
        shared = values.to(self.device)
        dist.all_reduce(shared)
        return shared.cpu()

    def gather(self, items: list[T]) -> list[T]:
        """The items of all workers by rank on the first worker; an empty list on the others."""
        if self.size == 1:
            return items
        parts: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(items, parts)
        return [item for part in parts or [] for item in part]

    def broadcast(self, value: T) -> T:
        """The first worker's value, on all workers."""
        if self.size == 1:
            return value
        values: list[Any] = [value]
        dist.broadcast_object_list(values)
        received: T = values[0]
        return received
