"""What a run tells of itself."""

import json

import pytest

from locray.errors import FEW_IMAGES, ExitCode
from locray.labelling.summary import Clock, LabelSummary


def test_no_speed_is_told_before_there_is_one_to_measure() -> None:
    clock = Clock()
    assert (clock.images_per_s_steady, clock.speed(), clock.startup_s) == (None, {}, 0)
    clock.tick(256)
    assert (clock.images_per_s_steady, clock.speed()) == (None, {})
    clock.tick(512)
    steady = clock.images_per_s_steady
    assert steady is not None
    assert steady > 0
    assert clock.speed() == {"images/s": steady}


def test_a_speed_that_was_not_measured_is_null() -> None:
    summary = LabelSummary("run", "model", "table", listed=1, already_labelled=0, planned=1, ok=1)
    assert json.loads(json.dumps(summary.to_dict()))["images_per_s_steady"] is None


@pytest.mark.parametrize(
    ("already_labelled", "failed", "expected"),
    [
        (1, 1, ExitCode.DONE),
        (1, FEW_IMAGES - 1, ExitCode.DONE),
        (1, FEW_IMAGES, ExitCode.FAILURE_RATE),
        (0, 1, ExitCode.FAILURE_RATE),
    ],
)
def test_few_failures_beside_older_rows_are_no_rate(already_labelled: int, failed: int, expected: ExitCode) -> None:
    """One broken image that is alone in its night is all of its images."""
    summary = LabelSummary("run", "model", "table", 20, already_labelled, planned=failed, failed=failed)
    assert summary.exit_code(0.1) is expected
    assert summary.exit_code(1.0) is ExitCode.DONE
