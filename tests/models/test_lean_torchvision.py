"""torchvision without torch's compiler, in a process that has imported neither."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import locray.models
assert "torchvision" in sys.modules
assert "torch._dynamo" not in sys.modules

import torch
from torchvision.ops.roi_align import is_compile_supported as as_torchvision_asks
assert as_torchvision_asks("cpu") == torch._dynamo.utils.is_compile_supported("cpu")
assert "torch._dynamo" in sys.modules
"""


@pytest.mark.slow
def test_networks_need_no_compiler_until_one_is_asked_for() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
