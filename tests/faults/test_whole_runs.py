"""Complete runs, each with its own Ray: one asked to stop, one killed, one paused while another completes."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from locray.errors import ExitCode
from locray.verification.findings import Check
from tests.helpers.commands import start_locray
from tests.helpers.commit_path import (
    Action,
    AtMutation,
    Place,
    asked_to_stop,
    assert_kept,
    killed_when_applied,
    over_in_any_case,
    paused_before,
)
from tests.helpers.fault_images import Done, Versions, check_sound, check_whole, fill_folder, summary_of
from tests.helpers.made_up import ENDS_WITHIN_S, stop

pytestmark = [pytest.mark.ray, pytest.mark.s3]

NUM_IMAGES = 24
IN_MID_RUN = 4
"""Index of the request to interrupt: the first commit of rows in a new table, a data file in an existing one."""


@dataclass(frozen=True)
class Process:
    """A driver with its own Ray."""

    process: "subprocess.Popen[str]"

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def pause(self) -> None:
        stop(self.process.pid)

    def resume(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def ask_to_stop(self) -> None:
        os.kill(self.process.pid, signal.SIGTERM)

    def end(self) -> Done:
        stdout, stderr = self.process.communicate(timeout=ENDS_WITHIN_S)
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, stdout, stderr)


@pytest.fixture
def versions(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Versions:
    """Puts images that complete runs can decode."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    place.images = tmp_path / "images"
    return fill_folder(place.images, NUM_IMAGES)


@contextmanager
def running(place: Place, **environment: str) -> Iterator[Process]:
    arguments = ("--images", str(place.images), "--model", place.model, "--table", place.table)
    options = ("--unit-size", "2", "--commit-rows", "2", "--json")
    with start_locray("label", *arguments, *options, **environment) as process:
        yield Process(process)


def end_with(place: Place, index: int, action: Action) -> tuple[Done, AtMutation]:
    """A run whose process is interrupted at a request that changes the store."""
    place.proxy.fault = fault = AtMutation(index, action)
    with running(place, AWS_ENDPOINT_URL=place.proxy.endpoint_url) as driver:
        fault.driver.set_result(driver)
        return driver.end(), fault


def test_a_run_with_many_faults(place: Place, versions: Versions) -> None:
    done, fault = end_with(place, IN_MID_RUN, asked_to_stop)
    assert (done.returncode, fault.hit) == (ExitCode.DEFERRED, "commit"), done
    summary = summary_of(done)
    rows = place.rows()
    assert 0 < summary["ok"] == len(rows) < summary["planned"] == NUM_IMAGES
    assert "asked to stop (SIGTERM)" in summary["deferred_reason"]
    assert "the next run will retry them" in " ".join(done.stderr.split())
    assert check_sound(place.table, versions).findings.notes == {}

    done, fault = end_with(place, IN_MID_RUN, killed_when_applied)
    assert (done.returncode, fault.hit) == (-signal.SIGKILL, "file"), done
    assert_kept(rows, place.rows())
    rows = place.rows()
    # The file that no commit refers to, and the worklist.
    assert check_sound(place.table, versions).findings.notes[Check.FILE_UNREFERENCED].count == 2

    place.proxy.fault = fault = AtMutation(IN_MID_RUN, paused_before)
    with over_in_any_case(fault), running(place, AWS_ENDPOINT_URL=place.proxy.endpoint_url) as paused:
        fault.driver.set_result(paused)
        assert fault.happened.wait(ENDS_WITHIN_S)
        assert fault.hit == "file"
        check_sound(place.table, versions)
        with running(place) as second:
            done = second.end()
        assert done.returncode == ExitCode.DONE, done
        assert summary_of(done)["planned"] == NUM_IMAGES - len(rows)
        assert_kept(rows, place.rows())
        rows = place.rows()
        check_whole(place.table, versions)
        fault.over.set()
        paused.resume()
        done = paused.end()
    assert done.returncode == ExitCode.FENCED, done
    assert "another run" in " ".join(done.stderr.split())
    assert place.rows() == rows
    check = check_sound(place.table, versions)
    assert check.findings.notes.keys() == {Check.FILE_UNREFERENCED}

    with running(place) as idle:
        done = idle.end()
    summary = summary_of(done)
    assert (done.returncode, summary["planned"], summary["commits"]) == (ExitCode.DONE, 0, 0), done
    assert place.rows() == rows
    check_whole(place.table, versions)
