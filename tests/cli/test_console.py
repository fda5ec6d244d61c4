"""Console output, on a terminal (a real pseudo-terminal) and when stderr is a file."""

import json
import logging
import os
import re
import subprocess
import sys

import pytest

from locray.cli import commands
from locray.cli.console import Console
from locray.cli.main import main
from tests.helpers.commands import PROJECT_ROOT

A_RUN = """
import logging, os, sys, time
from locray.ray_runtime.quiet import quiet_stderr
from locray.cli.console import Console
from locray.progress import Progress

console = Console(log_format=sys.argv[1])
showing = console.show_log("info")
showing.__enter__()
console.report(Progress("starting", 0, 40))
quiet_stderr()
os.write(2, b"Actor has constructor arguments in the object store and max_restarts > 0. See the web\\n")
os.write(2, b"a real trouble\\n")
time.sleep(0.5)
console.report(Progress("labelling", 40, 40, {"failed": 3}))
logging.getLogger("locray.some.room").warning("a node is lost")
console.result({}, {"ok": "37", "errors": "truncated 3, " * 20})
"""


def on_a_terminal(code: str) -> str:
    controller, terminal = os.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"}
    with subprocess.Popen(
        [sys.executable, "-c", code, "text"], cwd=PROJECT_ROOT, env=environment, stdout=terminal, stderr=terminal
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
    assert "locray: warning: a node is lost" in shown


def off_a_terminal(log_format: str) -> list[str]:
    """Returns the lines of stderr. The result on stdout is the same in each format."""
    command = [sys.executable, "-c", A_RUN, log_format]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == ["ok      37", "errors  " + "truncated 3, " * 20]
    return done.stderr.splitlines()


@pytest.mark.slow
def test_elsewhere_lines_with_a_time() -> None:
    lines = off_a_terminal("text")
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", line) for line in lines)
    told = sorted(line.split(" ", 1)[1] for line in lines)
    warnings = ["locray: warning: a node is lost", "locray: warning: a real trouble"]
    assert told == ["labelling 40/40 failed 3", *warnings, "starting 0/40"]


@pytest.mark.slow
def test_one_json_object_per_line() -> None:
    lines = [json.loads(line) for line in off_a_terminal("json")]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time")) for line in lines)
    assert [line["message"] for line in lines[:2]] == ["starting 0/40", "a real trouble"]
    assert lines[2:] == [
        {
            "level": "info",
            "logger": "locray.cli.console",
            "message": "labelling 40/40 failed 3",
            "stage": "labelling",
            "done": 40,
            "planned": 40,
            "facts": {"failed": 3},
        },
        {"level": "warning", "logger": "locray.some.room", "message": "a node is lost"},
    ]


@pytest.mark.parametrize("level", ["info", "debug"])
def test_the_traceback_of_an_unexpected_error(
    level: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("never seen before")

    monkeypatch.setattr(commands, "status", fail)
    assert main(["status", "--table", "t", "--log-level", level, "--log-format", "json"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = map(json.loads, shown.err.splitlines())
    assert line["message"].startswith("unexpected ZeroDivisionError: never seen before")
    assert ("Traceback" in line.get("traceback", "")) == (level == "debug")
    assert ("--log-level debug" in line["message"]) == (level == "info")


def test_a_level_hides_what_is_less_severe(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("locray.some.room")
    with Console().show_log("error"):
        log.warning("hidden")
        log.error("shown")
    log.error("after the command")
    assert [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()] == ["locray: error: shown"]


def test_wrong_usage_is_told_in_the_format_that_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--log-format", "json"]) == 2
    assert json.loads(capsys.readouterr().err)["message"] == "--table is required"
