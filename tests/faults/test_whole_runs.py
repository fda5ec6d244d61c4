"""Complete runs, each with a Ray of its own: one asked to stop, one killed, one paused while another does it all."""

import io
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from commands import start_locray
from faults.commit_path import (
    AtMutation,
    Deed,
    Place,
    asked_to_stop,
    assert_kept,
    killed_when_applied,
    over_in_any_case,
    paused_before,
)
from faults.made_up import ENDS_WITHIN_S, stop
from PIL import Image

from locray import schema
from locray.errors import ExitCode

pytestmark = [pytest.mark.ray, pytest.mark.s3]

NUM_IMAGES = 24
IN_MID_RUN = 4
"""The commit of the first rows, where the table is new; something soon after it, where it is not."""


@dataclass(frozen=True)
class Process:
    """A driver with its Ray."""

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

    def end(self) -> tuple[int, str, str]:
        stdout, stderr = self.process.communicate(timeout=ENDS_WITHIN_S)
        return self.process.returncode, stdout, stderr


@pytest.fixture
def whole_runs(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    place.images = tmp_path / "images"
    place.images.mkdir()
    for number in range(NUM_IMAGES):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG")
        (place.images / f"{number:03d}.jpg").write_bytes(buffer.getvalue())
    return place


@contextmanager
def running(place: Place, **environment: str) -> Iterator[Process]:
    arguments = ("--images", str(place.images), "--model", place.model, "--table", place.table)
    options = ("--unit-size", "2", "--commit-rows", "2", "--json")
    with start_locray("label", *arguments, *options, **environment) as process:
        yield Process(process)


def end_with(place: Place, index: int, deed: Deed) -> tuple[int, str, str]:
    """A run to whose process something happens at a request that changes the store."""
    place.proxy.fault = fault = AtMutation(index, deed)
    with running(place, AWS_ENDPOINT_URL=place.proxy.endpoint_url) as driver:
        fault.driver.set_result(driver)
        return driver.end()


def test_a_night_of_accidents(whole_runs: Place) -> None:
    place = whole_runs
    code, stdout, stderr = end_with(place, IN_MID_RUN, asked_to_stop)
    assert code == ExitCode.DEFERRED, stderr
    summary = json.loads(stdout.splitlines()[-1])
    rows = place.rows()
    assert 0 < summary["ok"] == len(rows) < NUM_IMAGES
    assert summary["ok"] + summary["deferred"] == summary["planned"] == NUM_IMAGES
    assert "asked to stop (SIGTERM)" in summary["deferred_reason"]
    assert "the next run takes them up again" in " ".join(stderr.split())

    code, *_ = end_with(place, IN_MID_RUN, killed_when_applied)
    assert code == -signal.SIGKILL
    assert_kept(rows, place.rows())
    rows = place.rows()

    place.proxy.fault = fault = AtMutation(IN_MID_RUN, paused_before)
    with over_in_any_case(fault), running(place, AWS_ENDPOINT_URL=place.proxy.endpoint_url) as paused:
        fault.driver.set_result(paused)
        assert fault.happened.wait(ENDS_WITHIN_S)
        with running(place) as second:
            code, _, stderr = second.end()
        assert code == ExitCode.DONE, stderr
        assert_kept(rows, place.rows())
        rows = place.rows()
        assert [row[schema.IMAGE_URI] for row in rows] == [str(path) for path in sorted(place.images.iterdir())]
        fault.over.set()
        paused.resume()
        code, _, stderr = paused.end()
    assert code == ExitCode.FENCED, stderr
    assert "another run" in " ".join(stderr.split())
    assert place.rows() == rows
