"""Number formats and batches by device, and memory of freed tensors, by the pages that a process takes."""

import platform
import subprocess
import sys

import pytest
import torch

from locray.errors import UsageError
from locray.inference.devices import batch_size_for, batch_size_for_memory, choose_dtype, dtype_for

CPU = torch.device("cpu")
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32

PAGES = """
import resource, sys
import torch
from locray.inference.devices import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()
for _ in range(4):
    torch.ones(25_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):  # of which one may need new pages, where something small lies in the way
    torch.ones(25_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages_taken(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PAGES, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no such settings")
def test_the_memory_of_a_freed_tensor_is_taken_for_the_next() -> None:
    assert pages_taken("kept") * 10 < pages_taken("given back")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({FP32: 1.0}, FP32),
        ({FP32: 1.0, BF16: 0.9}, FP32),
        ({FP32: 1.0, BF16: 0.5}, BF16),
        ({FP32: 1.0, BF16: 0.5, FP16: 0.5}, BF16),
        ({FP32: 1.0, BF16: 0.5, FP16: 0.3}, FP16),
        ({FP32: 1.0, FP16: 0.15}, FP16),
        ({FP32: 1.0, BF16: 4.0, FP16: 0.9}, FP32),
        ({FP32: 1.0, BF16: 4.0, FP16: 0.15}, FP16),
    ],
)
def test_fewer_bits_or_a_smaller_range_must_be_clearly_faster(seconds, expected):
    assert choose_dtype(seconds) is expected


def test_a_given_precision_is_taken():
    assert (dtype_for("fp32", CPU), dtype_for("bf16", CPU)) == (FP32, BF16)
    assert dtype_for("fp16", torch.device("cuda")) is FP16


def test_float16_on_a_processor_needs_its_instructions():
    if torch.ops.mkldnn._is_mkldnn_fp16_supported():
        assert dtype_for("fp16", CPU) is FP16
    else:
        with pytest.raises(UsageError, match="--precision fp16: this processor has no instructions for float16"):
            dtype_for("fp16", CPU)


@pytest.mark.parametrize(
    ("memory_gib", "input_size_px", "expected"),
    [(16, 224, 128), (16, 512, 32), (24, 512, 32), (80, 512, 128), (80, 1024, 32), (8, 2048, 8), (1, 512, 8)],
)
def test_a_batch_fits_in_the_memory_of_its_gpu(memory_gib, input_size_px, expected):
    assert batch_size_for_memory(memory_gib << 30, input_size_px) == expected


def test_a_processor_takes_batches_of_32():
    assert batch_size_for(CPU, 512) == 32
