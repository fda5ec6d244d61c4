"""The memory of freed tensors is reused, measured by the pages that a process takes from the system."""

import platform
import subprocess
import sys

import pytest

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
