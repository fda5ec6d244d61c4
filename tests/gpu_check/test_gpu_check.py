"""The check of a GPU, run with the processors in the place of the GPU: whatever of it can fail without one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.gpu_check import checks
from tests.gpu_check.stand_ins import NOT_NEEDED
from tests.helpers.commands import PROJECT_ROOT

WITHOUT_PACKAGES = """
import runpy, sys
sys.modules.update(dict.fromkeys(sys.argv.pop(1).split(",")))
runpy.run_module("tests.gpu_check", run_name="__main__", alter_sys=True)
"""
"""Runs the check where the named packages can't be imported."""


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *command], cwd=PROJECT_ROOT, capture_output=True, text=True, check=False, timeout=500
    )


def test_a_difference_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert checks.compare_scores("small_cnn", cpu, checks.SMALL).passed
    monkeypatch.setattr(checks, "MAX_SCORE_DIFFERENCE", -1.0)
    assert not checks.compare_scores("small_cnn", cpu, checks.SMALL).passed


@pytest.mark.slow
def test_the_form_that_needs_six_packages(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    done = run(
        "-c", WITHOUT_PACKAGES, ",".join(NOT_NEEDED), "--bare", "--device", "cpu", "--quick", "--output", str(page)
    )
    assert done.returncode == 0, done
    assert done.stdout.startswith(f"without {', '.join(NOT_NEEDED)}\n")
    lines = page.read_text().splitlines()
    assert sum("| ok |" in line for line in lines) >= 10
    assert not any("FAILED" in line for line in lines)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_one_line_says_so() -> None:
    done = run("-m", "tests.gpu_check", "--bare")
    assert (done.returncode, done.stderr) == (
        2,
        "PyTorch finds no CUDA device (`nvidia-smi` shows what the system finds)\n",
    )
