"""What only a GPU has: copies beside the computing, and a network replayed without Python. Called by `inference`."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_WARM_UPS = 3

NO_FAULT_OF_AN_IMAGE = (torch.AcceleratorError, torch.OutOfMemoryError)
"""What a GPU says when it has failed, or has no room: no process gets answers from it that then goes on."""


def upload(batches: Iterable[NDArray[np.uint8]], device: torch.device) -> Iterator[Tensor]:
    """The batches on a GPU, each copied from pinned memory in a stream of its own while the one before is computed."""
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(batch: NDArray[np.uint8]) -> tuple[Tensor, torch.cuda.Event]:
        # The allocator of pinned memory gives it out again only after the copy.
        pinned = torch.from_numpy(batch).pin_memory()
        with torch.cuda.stream(copies):
            return pinned.to(device, non_blocking=True), copies.record_event()

    def receive(images: Tensor, sent: torch.cuda.Event) -> Tensor:
        computing = torch.cuda.current_stream(device)
        computing.wait_event(sent)
        images.record_stream(computing)
        return images

    under_way = None
    for batch in batches:
        following = send(batch)
        if under_way is not None:
            yield receive(*under_way)
        under_way = following
    if under_way is not None:
        yield receive(*under_way)


class Replayed:
    """A network as a CUDA graph: one launch a batch. What it gives is overwritten by the next batch."""

    def __init__(self, run: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor) -> None:
        self._images = images.clone()
        beside = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream(images.device))
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UPS):
                run(self._images)
        torch.cuda.current_stream(images.device).wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = run(self._images)

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """What the network gives of a batch of the same shape."""
        self._images.copy_(images)
        self._graph.replay()
        return self._outputs
