"""Number formats and memory of the device that the network runs on."""

import ctypes
import time
from collections.abc import Sequence

import torch
from torch.nn import functional

from locray.config import Precision

_MIN_SPEEDUP = 1.2
_ROUNDS = 4
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


def dtype_for(precision: Precision, device: torch.device) -> torch.dtype:
    """The number format of the arithmetic; `auto` measures."""
    if precision == "auto":
        return fastest_dtype(device)
    return torch.bfloat16 if precision == "bf16" else torch.float32


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device is clearly faster with it, else float32.

    On a CPU this is timed: some processors that offer bfloat16 convert back and forth, and are slower with it.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    # Without kernels bfloat16 is emulated, and measuring it would take longer than a small run.
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.float32
    seconds = _convolution_s((torch.float32, torch.bfloat16))
    return torch.bfloat16 if seconds[torch.bfloat16] * _MIN_SPEEDUP < seconds[torch.float32] else torch.float32


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
