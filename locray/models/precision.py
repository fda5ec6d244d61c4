"""Which number format is fastest here. Called where a worker starts, to train or to predict."""

import time

import torch
from torch.nn import functional

from locray.config import Precision

_WORTHWHILE = 1.2
_ROUNDS = 6


def dtype_for(precision: Precision, device: torch.device) -> torch.dtype:
    """The number format of the arithmetic; `auto` measures."""
    if precision == "auto":
        return fastest_dtype(device)
    return torch.bfloat16 if precision == "bf16" else torch.float32


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device is clearly faster with it, else float32.

    On a CPU this is timed: processors that know bfloat16 only by name convert back and forth, and are slower.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    # Without kernels for it, bfloat16 is emulated: the measurement would last longer than a small labelling.
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.float32
    whole, half = _convolution_s(torch.float32), _convolution_s(torch.bfloat16)
    return torch.bfloat16 if half * _WORTHWHILE < whole else torch.float32


def _convolution_s(dtype: torch.dtype) -> float:
    """Seconds of a forward and backward pass of a usual convolution; the quickest of some, as others share the CPU.

    It is large enough that the arithmetic outweighs the conversion of its operands, as in a whole network.
    """
    images = torch.rand(16, 256, 14, 14).to(memory_format=torch.channels_last).requires_grad_()
    weights = torch.rand(256, 256, 3, 3, requires_grad=True)
    seconds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            out = functional.conv2d(images, weights, padding=1)
        torch.autograd.grad(out.float().sum(), (images, weights))
        seconds.append(time.perf_counter() - start)
    return min(seconds)
