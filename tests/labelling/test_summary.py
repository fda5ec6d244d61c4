"""The summary of a run."""

import json

import pytest

from locray import progress
from locray.labelling.committer import FEW_FAILURES
from locray.labelling.summary import LabelSummary
from locray.progress import Clock


def test_no_speed_is_told_before_there_is_one_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    clock = Clock()
    assert (clock.images_per_s_steady, clock.speed(), clock.startup_s) == (None, {}, 0)
    now = 110.0
    clock.tick(256)
    assert (clock.images_per_s_steady, clock.speed(), clock.startup_s) == (None, {}, 10)
    now = 110.0025
    clock.tick(363)  # was waiting: no speed
    assert (clock.images_per_s_steady, clock.speed()) == (None, {})
    now = 112.0
    clock.tick(456)
    assert (clock.images_per_s_steady, clock.speed()) == (100, {"images/s": 100})


def test_a_speed_that_was_not_measured_is_null() -> None:
    summary = LabelSummary("run", "model", "table", listed=1, already_labelled=0, planned=1, ok=1)
    assert json.loads(json.dumps(summary.to_dict()))["images_per_s_steady"] is None


@pytest.mark.parametrize(
    ("already_labelled", "ok", "failed", "deferred", "exit_code"),
    [
        (0, 1, 0, 0, 0),
        (0, 9, 1, 0, 0),  # a tenth may fail
        (0, 8, 1, 0, 3),
        (0, 8, 1, 5, 3),
        (0, 9, 1, 5, 4),
        (0, 0, 0, 5, 4),
        (0, 0, 0, 0, 0),
        (1, 0, 1, 0, 0),  # a nightly run with one new image, which is broken
        (1, 0, FEW_FAILURES - 1, 0, 0),
        (1, 0, FEW_FAILURES, 0, 3),
        (1, 9 * FEW_FAILURES, FEW_FAILURES, 0, 0),
        (1, 9 * FEW_FAILURES - 1, FEW_FAILURES, 0, 3),
        (1, 0, 1, 1, 4),
    ],
)
def test_the_exit_code_is_what_the_numbers_say(already_labelled, ok, failed, deferred, exit_code) -> None:
    planned = ok + failed + deferred
    summary = LabelSummary(
        "run", "model", "table", already_labelled + planned, already_labelled, planned, ok, failed, deferred
    )
    assert summary.exit_code(0.1) == exit_code
