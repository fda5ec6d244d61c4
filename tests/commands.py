"""Runs locray's command line in a process of its own, as a user would."""

import os
import subprocess
import sys
from pathlib import Path

PROJECT_ROOT = Path(__file__).parents[1]


def start_locray(*arguments: str, **environment: str) -> "subprocess.Popen[str]":
    """A command under way, in a process group of its own. LOCRAY_ variables of the caller don't reach it."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LOCRAY_")}
    return subprocess.Popen(
        [sys.executable, "-m", "locray.cli", *arguments],
        env=clean | environment,
        cwd=PROJECT_ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def locray(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """A command run to its end."""
    with start_locray(*arguments, **environment) as process:
        stdout, stderr = process.communicate(timeout=500)
    return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)
