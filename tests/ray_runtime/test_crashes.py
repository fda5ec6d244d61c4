"""Crashes of workers are counted outside of them: for tasks and actors of Ray Data, which Ray starts again."""

import subprocess
import sys

import pytest

from locray.ray_runtime.crashes import _attempt_number
from tests.helpers.commands import PROJECT_ROOT

COUNTS = """
import os, sys
import ray
from locray.ray_runtime import crashes
from locray.ray_runtime.start import start_ray, stop_ray

start_ray(verbose=False)
counter = crashes.CrashCounter()
without_the_private_name = sys.argv[1] == "fallback"

def work(block):
    if without_the_private_name:
        crashes._attempt_number = lambda: None
    with counter.task_attempt("task") as before:
        if before < 2:
            os._exit(1)
    with counter.task_attempt("task") as again:
        return {"crashes": [before, again if without_the_private_name else before - 2]}

class Work:
    def __call__(self, block):
        with counter.attempt("actor") as before:
            if before < 2:
                os._exit(1)
        with counter.attempt("actor") as again:
            return {"crashes": [*block["crashes"], before, again]}

blocks = ray.data.range(1).map_batches(work, batch_size=None, num_cpus=1)
blocks = blocks.map_batches(Work, batch_size=None, num_cpus=0, compute=ray.data.ActorPoolStrategy(size=1))
print([row["crashes"] for row in blocks.take_all()])
ray.kill(counter._attempts)
with counter.attempt("actor") as before:
    print(before)
stop_ray()
"""


@pytest.mark.ray
@pytest.mark.parametrize("how", ["usual", "fallback"])
def test_crashes_are_counted_until_the_work_is_done(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    done = subprocess.run(
        [sys.executable, "-c", COUNTS, how], cwd=PROJECT_ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.stdout.splitlines() == ["[2, 0, 2, 0]", "0"], done


@pytest.mark.slow
def test_without_the_private_name_there_is_no_attempt_number(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray._private.worker

    monkeypatch.delattr(ray._private.worker, "global_worker")
    assert _attempt_number() is None
