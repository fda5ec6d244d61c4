"""Whole commands on a device: the CUDA-marked tests, a training, labelling beside the processors', the benchmark."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.agreement import compare, read_table
from locray.demo.images import write_dataset
from tests.gpu_check.checks import MIN_SHARE, Check
from tests.helpers.commands import PROJECT_ROOT

CONTENDERS = "ceiling,dataloader tuned,ray_data tuned"


def run_whole(device: str, *, quick: bool, ends_at_s: float) -> Iterator[Check]:
    """Yields the results as they come.

    Args:
        device: cuda or cpu.
        quick: Few images.
        ends_at_s: On the monotonic clock: what is not done then has failed.
    """
    option = "gpu" if device == "cuda" else "cpu"
    commands = _Commands(ends_at_s)
    yield _cuda_tests(commands)
    with tempfile.TemporaryDirectory(prefix="locray-gpu-check-") as name:
        folder = Path(name)
        data, model = folder / "drawn", folder / "model"
        write_dataset(data, {"train": 96 if quick else 960, "val": 64 if quick else 512}, seed=0)
        architecture = {"model": "small_cnn"} if quick else {"model": "localizer/resnet18", "input-size": 224}
        ended, trained, seconds = commands.locray(
            "train", data=data, format="csv", epochs=4, output=model, device=option, **architecture
        )
        yield Check("locray train", ended, f"{seconds:.0f} s; {trained}")
        if not ended:
            return
        tables = {}
        for one in (option, "cpu"):
            tables[one] = folder / f"table-{one}"
            ended, labelled, seconds = commands.locray(
                "label", images=data / "images", model=model, table=tables[one], device=one, score_threshold=0
            )
            yield Check(f"locray label --device {one}", ended, f"{seconds:.0f} s; {labelled}")
            if not ended:
                return
        agreement = compare(*(read_table(table) for table in (tables[option], tables["cpu"])))
        found = f"same class {agreement.same_class:.3f}, same box {agreement.same_box:.3f}"
        yield Check("the two tables", agreement.is_valid, f"same rows: {agreement.same_rows}, {found}")
        if not quick:  # tests/benchmarks runs it with few images
            yield from _benchmark(commands, model)


class _Commands:
    def __init__(self, ends_at_s: float) -> None:
        self._ends_at_s = ends_at_s

    def run(self, *command: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        timeout_s = max(1.0, self._ends_at_s - time.monotonic())
        try:
            done = subprocess.run(
                [sys.executable, "-m", *command], cwd=PROJECT_ROOT, capture_output=True, text=True, check=False,
                timeout=timeout_s,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return 124, "", "the time of the check is over"
        return done.returncode, done.stdout, done.stderr

    def locray(self, verb: str, **options: Any) -> tuple[bool, str, float]:
        """Whether a command succeeded, what it found or its last line, and its seconds."""
        flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        started = time.monotonic()
        code, stdout, stderr = self.run("locray", verb, *flags, "--json", "--log-level", "warning")
        seconds = time.monotonic() - started
        if code:
            return False, f"exit code {code}: {_last_line(stderr)}", seconds
        facts = json.loads(stdout.splitlines()[-1])
        shown = ("images_per_s", "class_accuracy", "mean_iou", "ok", "failed", "deferred")
        return True, ", ".join(f"{name} {facts[name]}" for name in shown if name in facts), seconds


def _last_line(text: str) -> str:
    return next(reversed(text.strip().splitlines()), "no output").replace("|", "/")[:200]


def _cuda_tests(commands: _Commands) -> Check:
    code, stdout, stderr = commands.run("pytest", "-q", "-n", "0", "-m", "cuda", "tests/inference")
    return Check("pytest -m cuda", code == 0, _last_line(stdout or stderr))


def _benchmark(commands: _Commands, model: Path) -> Iterator[Check]:
    code, stdout, stderr = commands.run(
        "benchmarks", "labelling", "--model", str(model), "--json", "--rounds", "1", "--no-compile",
        "--contenders", CONTENDERS, "--small-images", "2000", "--large-images", "32",
    )  # fmt: skip
    if code:
        yield Check("benchmark", False, f"exit code {code}: {_last_line(stderr)}")
    else:
        yield from contenders(stdout)


def contenders(stdout: str) -> Iterator[Check]:
    """A line for each contender of the benchmark's `--json`."""
    for one in json.loads(stdout.splitlines()[-1])["results"]:
        run, agreement = one["runs"][0], one["agreement"]
        steady = run["images_per_s_steady"]
        found = (
            f"{'no' if steady is None else f'{steady:,.0f} images/s'} steady, {run['images_per_s']:,.0f} end to end, "
            f"same class {agreement['same_class']:.3f}, same box {agreement['same_box']:.3f}"
        )
        passed = agreement["same_rows"] and min(agreement["same_class"], agreement["same_box"]) >= MIN_SHARE
        yield Check(f"benchmark, {one['tier']}, {one['contender']}", passed, found)
