"""What `locray submit` sends, and what it takes out of a job's output; the entry point runs in a real shell."""

import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from locray.cli.submission import JobOutput, Submission
from locray.config import COMMANDS, load_config
from locray.errors import UsageError

LABEL = ("label", "--images", "/in", "--model", "m", "--table", "/a table")


def of(*command: str, as_json: bool = False, **environment: str) -> Submission:
    return Submission.of(command, as_json=as_json, environment=environment)


def options_of(submission: Submission) -> dict[str, str]:
    return dict(zip(submission.flags[::2], submission.flags[1::2], strict=True))


def test_options_of_file_and_environment_become_flags(tmp_path: Path) -> None:
    (tmp_path / "night.yaml").write_text("table: /from the file\nretry-failed: [truncated, corrupt]\nunit-size: 7\n")
    command = ("label", "--config", str(tmp_path / "night.yaml"), "--images", "/in", "--model", "m")
    submission = of(*command, LOCRAY_UNIT_SIZE="9")
    assert options_of(submission) == {
        "--images": "/in", "--model": "m", "--table": "/from the file", "--unit-size": "9",
        "--retry-failed": "truncated,corrupt",
    }  # fmt: skip
    assert "'/from the file'" in submission.entry_point()


@pytest.mark.parametrize(
    ("verb", "flags"),
    [
        ("label", {"images": "/i", "model": "m", "table": "/t", "retry_failed": "all", "run_date": "2026-01-02"}),
        ("label", {"images": "/i", "model": "m", "table": "/t", "retry_failed": "none", "json": True}),
        ("train", {"data": "/d", "format": "voc", "output": "/o", "learning_rate": "1e-3", "strict": True}),
        ("demo", {"output": "/o"}),
    ],
)
def test_the_flags_make_the_same_configuration(verb: str, flags: dict[str, object]) -> None:
    given = [
        part
        for name, value in flags.items()
        for part in ([f"--{name.replace('_', '-')}"] if value is True else [f"--{name.replace('_', '-')}", str(value)])
    ]
    again = Submission.of([verb, *of(verb, *given).flags], as_json=False, environment={})
    assert again == of(verb, *given)
    assert load_config(COMMANDS[verb], flags=flags).model_fields_set == {
        "json_output" if name == "json" else name for name in flags
    }


def test_json_is_asked_for_by_either_command() -> None:
    assert of(*LABEL, as_json=True).prints_json
    assert of(*LABEL, "--json").prints_json
    assert not of(*LABEL).prints_json


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("labl",), "'labl' is no command to submit; did you mean 'label'"),
        (("submit", "label"), "'submit' is no command to submit"),
        (("label", "--imges", "x"), "label: No such option '--imges'. Did you mean '--images'"),
        (("label", "--images", "x"), "label: --model is required; --table is required"),
    ],
)
def test_a_wrong_command_is_refused(command: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError) as error:
        of(*command)
    assert message in str(error.value)


def shell(tmp_path: Path, script: str, *, name: str = "python") -> tuple[list[str], dict[str, str]]:
    """The entry point of a job in a shell whose `python` is this script."""
    python = tmp_path / name
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return ["/bin/sh", "-c", of(*LABEL).entry_point()], {"PATH": str(tmp_path)}


@pytest.mark.parametrize("code", [0, 2, 4, 6, 130])
def test_the_entry_point_ends_with_the_exit_code_of_its_command(tmp_path: Path, code: int) -> None:
    command, environment = shell(tmp_path, f"echo result; exit {code}")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, f"result\nlocray ended with exit code {code}\n")


def test_a_cluster_without_locray_is_an_error_of_usage(tmp_path: Path) -> None:
    command, environment = shell(tmp_path, "exit 1")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "locray is not installed on this cluster" in done.stderr
    command, environment = shell(tmp_path, '[ "$1" = -c ] || exit 1')
    assert subprocess.run(command, env=environment, check=False, stdout=subprocess.DEVNULL).returncode == 1


def test_a_cluster_without_python_is_an_error_of_usage(tmp_path: Path) -> None:
    command, environment = shell(tmp_path, "exit 0", name="other")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no python on the PATH" in done.stderr


def test_the_shell_waits_for_a_command_that_ends_in_order(tmp_path: Path) -> None:
    command, environment = shell(
        tmp_path, "trap '/bin/sleep 1; exit 4' TERM; echo up; while :; do /bin/sleep 0.1; done"
    )
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGTERM)  # as Ray does: the shell as well as its children
    rest, _ = process.communicate(timeout=20)
    assert (process.returncode, rest) == (4, "locray ended with exit code 4\n")


def shown(lines: list[str], *, as_json: bool) -> tuple[list[str], JobOutput]:
    output = JobOutput(as_json)
    return [text for line in lines if (text := output.add(line)) is not None], output


def test_the_result_is_taken_out_of_the_output() -> None:
    log = '{"time": "t", "level": "info", "logger": "locray", "message": "m"}'
    lines = ["checking", '{"ok": 1}', log, "{not json", "[1]", "locray ended with exit code 3"]
    assert shown(lines, as_json=True)[0] == ["checking", log, "{not json", "[1]"]
    assert shown(lines, as_json=True)[1] == JobOutput(True, 3, '{"ok": 1}')
    assert shown(lines, as_json=False)[0] == lines[:-1]
    assert shown(['{"ok": 1}', '{"ok": 2}'], as_json=True)[0] == ['{"ok": 1}']


def test_the_entry_point_is_not_shown() -> None:
    entry = of(*LABEL).entry_point().splitlines()
    lines = [f"Running entrypoint for job a: {entry[0]}", *entry[1:], "checking"]
    assert shown(lines, as_json=False)[0] == [entry[1], "checking"]
