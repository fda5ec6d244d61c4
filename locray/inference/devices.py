"""Number formats and memory of the device that the network runs on."""

import ctypes
import time
from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional

from locray.config import Precision
from locray.errors import UsageError

BATCH_SIZE_ON_CPU = 32
_MIN_BATCH_SIZE_ON_GPU, _MAX_BATCH_SIZE_ON_GPU = 8, 128
_BYTES_PER_PIXEL = 1024
"""GPU memory for a pixel of the input of the largest networks, several times over that of small ones."""

_HALF_PRECISION = (torch.bfloat16, torch.float16)
_MIN_SPEEDUP = 1.2
_ROUNDS = 4
_CONVOLUTIONS_ON_GPU = 10
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h."""
_LARGEST = 2**31 - 1

KEEP_FREED_MEMORY_VARIABLES = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
"""Environment with the effect of `keep_freed_memory` in a new process, for tensors of all its threads."""


def batch_size_for(device: torch.device, input_size_px: int, num_processes: int = 1) -> int:
    """Default number of images per batch, where so many processes share the device."""
    if device.type != "cuda":
        return BATCH_SIZE_ON_CPU
    memory_bytes = torch.cuda.get_device_properties(device).total_memory // num_processes
    return batch_size_for_memory(memory_bytes, input_size_px)


def batch_size_for_memory(memory_bytes: int, input_size_px: int) -> int:
    """Default number of images per batch on a GPU: a power of two, as many as fit in half of its memory, 8 to 128."""
    fitting = memory_bytes // 2 // (_BYTES_PER_PIXEL * input_size_px**2)
    largest = 1 << max(0, fitting.bit_length() - 1)
    return min(max(largest, _MIN_BATCH_SIZE_ON_GPU), _MAX_BATCH_SIZE_ON_GPU)


def dtype_for(
    precision: Precision, device: torch.device, half_precision: Sequence[torch.dtype] = _HALF_PRECISION
) -> torch.dtype:
    """The number format of the arithmetic.

    Args:
        precision: `auto` measures.
        device: Where it is computed.
        half_precision: Formats that `auto` may choose besides float32.

    Raises:
        UsageError: float16 on a CPU without instructions for it.
    """
    if precision == "auto":
        return fastest_dtype(device, half_precision)
    if precision == "fp16" and device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        raise UsageError(
            "--precision fp16: this processor has no instructions for float16 (avx512_fp16 or amx_fp16 in `lscpu`). "
            "Use --precision auto, which takes what is fastest here"
        )
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]


def fastest_dtype(device: torch.device, half_precision: Sequence[torch.dtype] = _HALF_PRECISION) -> torch.dtype:
    """The fastest number format of the device, measured; float32 unless another is clearly faster.

    Some processors that offer bfloat16 convert back and forth, and are slower with it. GPUs before NVIDIA's Ampere
    have units for float16 alone. Processors are not tried with float16, for which few have instructions.
    """
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        tried = [dtype for dtype in half_precision if has_bfloat16 or dtype is not torch.bfloat16]
        return choose_dtype(_convolution_s_on_gpu((torch.float32, *tried), device))
    # Without kernels bfloat16 is emulated, and measuring it would take longer than a small run.
    if torch.bfloat16 not in half_precision or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.float32
    return choose_dtype(_convolution_s((torch.float32, torch.bfloat16)))


def choose_dtype(seconds: Mapping[torch.dtype, float]) -> torch.dtype:
    """The number format to use, from the seconds of the same work in each.

    One with fewer bits or a smaller range must be clearly faster: bfloat16 than float32, float16 than the better of
    the two. float16 ends at 65,504.
    """
    chosen = torch.float32
    for dtype in _HALF_PRECISION:
        if dtype in seconds and seconds[dtype] * _MIN_SPEEDUP < seconds[chosen]:
            chosen = dtype
    return chosen


@torch.no_grad()
def _convolution_s_on_gpu(dtypes: Sequence[torch.dtype], device: torch.device) -> dict[torch.dtype, float]:
    """Seconds that some typical convolutions take in each format: the minimum of several rounds."""
    found = {}
    for dtype in dtypes:
        images = torch.rand(32, 256, 28, 28, dtype=dtype, device=device).to(memory_format=torch.channels_last)
        weights = torch.rand(256, 256, 3, 3, dtype=dtype, device=device).to(memory_format=torch.channels_last)
        milliseconds = []
        for _ in range(_ROUNDS + 1):  # the first one also chooses the algorithm
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record(torch.cuda.current_stream(device))
            for _ in range(_CONVOLUTIONS_ON_GPU):
                functional.conv2d(images, weights, padding=1)
            end.record(torch.cuda.current_stream(device))
            end.synchronize()
            milliseconds.append(start.elapsed_time(end))
        found[dtype] = min(milliseconds) / 1000
    return found


def _convolution_s(dtypes: Sequence[torch.dtype]) -> dict[torch.dtype, float]:
    """Seconds that a typical convolution takes in each format: the minimum of several rounds.

    Measured as processor time of one thread, since other workers start at the same time. The convolution is large
    enough for its arithmetic to outweigh the conversion of the operands, as in a whole network.
    """
    images = torch.rand(8, 256, 14, 14).to(memory_format=torch.channels_last)
    weights = torch.rand(256, 256, 3, 3)
    found = dict.fromkeys(dtypes, float("inf"))
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for dtype in [*dtypes] * _ROUNDS:
            start = time.thread_time()
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
                functional.conv2d(images, weights, padding=1)
            found[dtype] = min(found[dtype], time.thread_time() - start)
    finally:
        torch.set_num_threads(num_threads)
    return found


def find_gpu_problem() -> str | None:
    """Why this process can't compute on its GPU, in one line; None if it can."""
    try:
        torch.zeros(8, device="cuda").sum().item()
    except Exception as error:  # noqa: BLE001 - whatever the driver says
        return next(iter(str(error).splitlines()), type(error).__name__)
    return None


def keep_freed_memory() -> bool:
    """Keeps the memory of freed tensors for later ones, from now on in this process.

    By default glibc returns the memory of each large tensor to the system and takes it back page by page, which costs
    a fifth of the time of a ResNet-18 and more than a third of that of a MobileNetV2. The process stays at its peak
    size.

    Returns:
        Whether the C library has these settings; glibc does.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _LARGEST))
