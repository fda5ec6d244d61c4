"""Runs locray's command line in its own process, as a user would."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROJECT_ROOT = Path(__file__).parents[2]


@contextmanager
def start_locray(*arguments: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """A running command in its own process group, which ends with the block.

    LOCRAY_ variables of the caller are not passed on.
    """
    with _start("-m", "locray", *arguments, **environment) as process:
        yield process


@contextmanager
def _start(*arguments: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LOCRAY_")}
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=clean | environment,
        cwd=PROJECT_ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with killed_at_the_end(process):
        yield process


@contextmanager
def killed_at_the_end(process: "subprocess.Popen[str]") -> Iterator[None]:
    """Kills the process and its group when the block ends, in any way, so that waiting for them can't hang."""
    try:
        yield
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def locray(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs a command to its end."""
    with start_locray(*arguments, **environment) as process:
        return _ended(process, arguments)


def benchmark(verb: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs a benchmark to its end."""
    with _start("-m", "benchmarks", verb, *arguments) as process:
        return _ended(process, arguments)


def locray_job(verb: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs the same command by its script in jobs/, as a submitted job does."""
    with _start(f"jobs/{verb}.py", *arguments) as process:
        return _ended(process, arguments)


def _ended(process: "subprocess.Popen[str]", arguments: tuple[str, ...]) -> "subprocess.CompletedProcess[str]":
    stdout, stderr = process.communicate(timeout=500)
    return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)
