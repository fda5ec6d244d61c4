"""GPUs: copies while the network computes, and the network as a CUDA graph."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_WARM_UPS = 3

GPU_ERRORS = (torch.AcceleratorError, torch.OutOfMemoryError)
"""Errors of a GPU that has failed or is out of memory: the process can't go on with it."""


def upload(batches: Iterable[NDArray[np.uint8]], device: torch.device) -> Iterator[Tensor]:
    """Copies each batch to the GPU from pinned memory, in a separate stream, while the previous one is computed."""
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(batch: NDArray[np.uint8]) -> tuple[Tensor, torch.cuda.Event]:
        # The allocator reuses pinned memory only after the copy.
        pinned = torch.from_numpy(batch).pin_memory()
        with torch.cuda.stream(copies):
            return pinned.to(device, non_blocking=True), copies.record_event()

    def receive(images: Tensor, sent: torch.cuda.Event) -> Tensor:
        computing = torch.cuda.current_stream(device)
        computing.wait_event(sent)
        images.record_stream(computing)
        return images

    in_flight = None
    for batch in batches:
        following = send(batch)
        if in_flight is not None:
            yield receive(*in_flight)
        in_flight = following
    if in_flight is not None:
        yield receive(*in_flight)


class CudaGraph:
    """A network as a CUDA graph: one launch per batch. Each batch overwrites the outputs of the previous one.

    Args:
        run: the network.
        images: a batch of the shape that the graph is captured for.
    """

    def __init__(self, run: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor) -> None:
        self.shape = images.shape
        self._images = images.clone()
        warm_up = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
        warm_up.wait_stream(torch.cuda.current_stream(images.device))
        with torch.cuda.stream(warm_up):
            for _ in range(_WARM_UPS):
                run(self._images)
        torch.cuda.current_stream(images.device).wait_stream(warm_up)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = run(self._images)

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """The network's outputs for a batch of the captured shape."""
        self._images.copy_(images)
        self._graph.replay()
        return self._outputs
