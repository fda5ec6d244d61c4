"""What the workers of a run say to each other. Used by each worker; one that is alone says it to itself.

Over torch's collectives, so that every worker must make the same calls in the same order.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class Signal(IntEnum):
    """What a worker asks of all after a step. Where they ask for different things, the highest holds."""

    GO_ON = 0
    SAVE = 1
    STOP = 2
    """Save and end: the run is to be taken up later."""
    FAILED = 3
    """End without saving: this step must not be taken."""


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The workers of a run, as one of them sees it."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this worker is the one that writes and speaks for all."""
        return self.rank == 0

    def agree(self, signal: Signal) -> Signal:
        """The highest of all signals, the same for every worker."""
        if self.size == 1:
            return signal
        shared = torch.tensor(int(signal), device=self.device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return Signal(int(shared))

    def total(self, values: Tensor) -> Tensor:
        """The sum over all workers of (n,) float64 values."""
        if self.size == 1:
            return values
        shared = values.to(self.device)
        dist.all_reduce(shared)
        return shared.cpu()

    def gather(self, items: list[T]) -> list[T]:
        """The items of all workers, in the order of their ranks; for all but the first worker nothing."""
        if self.size == 1:
            return items
        parts: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(items, parts)
        return [item for part in parts or [] for item in part]

    def share(self, value: T) -> T:
        """The first worker's value."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box)
        shared: T = box[0]
        return shared
