"""GPUs: copies while the network computes, the network as a CUDA graph, and the errors of a GPU."""

import logging
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_log = logging.getLogger(__name__)

_WARM_UPS = 3
_MEMORY_ERRORS = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "can't allocate memory")
"""Parts of the messages of PyTorch's allocators, cuBLAS and cuDNN; the last one is that of the allocator on CPUs."""


class DeviceError(RuntimeError):
    """The device doesn't compute any more, or has no memory left for one image: no image is to blame."""


GPU_ERRORS = (torch.AcceleratorError, torch.OutOfMemoryError, DeviceError)
"""Errors of a device that has failed or is out of memory: the process can't go on with it."""


def is_memory_shortage(error: BaseException) -> bool:
    """Whether an error says that memory is short: a smaller batch may fit."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(part in str(error) for part in _MEMORY_ERRORS)
    )


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
    """A function of a batch as a CUDA graph: one launch per batch. Each batch overwrites the outputs of the last one.

    Args:
        run: may make no tensors on the CPU and read none of the GPU's values, since a graph holds kernels alone.
        images: a batch of the shape that the graph is captured for.

    Raises:
        RuntimeError: `run` fails, or can't be captured.
    """

    def __init__(self, run: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor) -> None:
        self._images = images.clone()
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
        computing = torch.cuda.current_stream(images.device)
        stream.wait_stream(computing)
        # This context also ends the use of the stream where `torch.cuda.graph` fails to.
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                run(self._images)
            # The other threads of a worker of Ray don't disturb the capture.
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                self._outputs = run(self._images)
        computing.wait_stream(stream)

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """The outputs for a batch of the captured shape."""
        self._images.copy_(images)
        self._graph.replay()
        return self._outputs


def captured(run: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """`run` as a CUDA graph for batches of this shape; `run` itself, with one line in the log, where that fails.

    Raises:
        RuntimeError: the GPU has too little memory for the batch.
    """
    try:
        return CudaGraph(run, images)
    except RuntimeError as error:
        if is_memory_shortage(error):
            raise
        message = next(iter(str(error).splitlines()), type(error).__name__)
    _log.warning("the network can't be captured as a CUDA graph and runs in its eager form: %s", message)
    return run
