"""What a person sees: on a terminal (a real pseudo-terminal), and where stderr is a file."""

import os
import subprocess
import sys

import pytest

from tests.helpers.commands import PROJECT_ROOT

A_RUN = """
import os, time
from locray.ray_runtime import start
from locray.cli.console import Console
from locray.progress import Progress

console = Console()
console.report(Progress("starting", 0, 40))
start._quiet_stderr()
os.write(2, b"Actor has constructor arguments in the object store and max_restarts > 0. See the web\\n")
os.write(2, b"a real trouble\\n")
time.sleep(0.5)
console.report(Progress("labelling", 40, 40, {"failed": 3}))
console.result({}, {"ok": "37", "errors": "truncated 3, " * 20})
"""


def on_a_terminal(code: str) -> str:
    controller, terminal = os.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"}
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=PROJECT_ROOT, env=environment, stdout=terminal, stderr=terminal
    ) as process:
        os.close(terminal)
        shown = b""
        while True:
            try:
                shown += os.read(controller, 4096)
            except OSError:  # the other end is closed
                break
        os.close(controller)
    assert process.returncode == 0, shown
    return shown.decode()


@pytest.mark.slow
def test_a_live_bar_keeps_rays_harmless_messages_off_the_terminal() -> None:
    shown = on_a_terminal(A_RUN)
    assert "━" in shown
    assert "40/40" in shown
    assert "failed 3" in shown
    assert "max_restarts" not in shown
    assert "a real trouble" in shown


@pytest.mark.slow
def test_elsewhere_plain_lines_that_are_not_broken() -> None:
    done = subprocess.run(
        [sys.executable, "-c", A_RUN], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines() == ["ok      37", "errors  " + "truncated 3, " * 20]
    assert sorted(done.stderr.splitlines()) == ["a real trouble", "labelling 40/40 failed 3", "starting 0/40"]
