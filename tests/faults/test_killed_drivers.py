"""A driver killed at each request that changes the store, followed by another run; a driver asked to stop.

Nightly runs are included: the list of deleted images, a vacuum's deletions, a compaction's file and commit.
A kill before a request is the same as a kill after the previous one.
"""

import signal

import pytest

from locray.errors import ExitCode
from tests.helpers.commit_path import (
    AFTER_A_CRASH,
    FIRST_RUN,
    RETRY,
    SCENARIOS,
    SECOND_RUN,
    WITH_CHECKPOINTS,
    Action,
    AtMutation,
    Place,
    Scenario,
    Templates,
    asked_to_stop,
    assert_kept,
    each,
    killed_before,
    killed_when_applied,
    named,
    request_lost,
)

FIRST_COMMIT = FIRST_RUN.mutations.index("commit")

pytestmark = pytest.mark.s3


WHERE = [
    *each(FIRST_RUN),
    *each(AFTER_A_CRASH, "deletion", "work folder"),
    *each(RETRY, "file", "commit"),
    *each(WITH_CHECKPOINTS, "checkpoint", "last checkpoint"),
    *each(SECOND_RUN, "list", "deletion", "file", "commit", "record", "page"),
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=named)
def test_an_undisturbed_run_makes_these_changes(scenario: Scenario, place: Place, templates: Templates) -> None:
    """Ensures that the tests below cover every change."""
    place.put(templates[scenario.name])
    nothing_happens = AtMutation(100, request_lost)
    driver = place.start_with(nothing_happens, scenario)
    assert driver.wait() == 0, driver.log.read_text()
    assert tuple(nothing_happens.kinds) == scenario.mutations
    place.check()
    place.do_nothing()


@pytest.mark.parametrize("action", [killed_before, killed_when_applied], ids=named)
@pytest.mark.parametrize(("scenario", "index"), WHERE, ids=named)
def test_after_a_kill_the_next_run_completes_the_table(
    scenario: Scenario, index: int, action: Action, place: Place, templates: Templates
) -> None:
    place.put(templates[scenario.name])
    committed = place.rows()
    fault = AtMutation(index, action)
    assert place.start_with(fault, scenario).wait() == -signal.SIGKILL
    assert fault.kinds[: index + 1] == list(scenario.mutations[: index + 1])
    assert set(fault.kinds[index:]) == {scenario.mutations[index]}  # several deletions run at once

    also_failed = not scenario.replaces
    left = place.rows()
    assert_kept(committed, left, also_failed=also_failed)
    place.finish(scenario)
    assert_kept(left, place.rows(), also_failed=also_failed)


@pytest.mark.parametrize(
    ("index", "exit_code", "message"),
    [
        (
            FIRST_RUN.mutations.index("worklist"),
            ExitCode.UNEXPECTED,
            "interrupted; run the command again to continue",
        ),
        (FIRST_COMMIT, ExitCode.DEFERRED, "the run was asked to stop (SIGTERM)"),
    ],
    ids=["before it labels", "in a commit"],
)
def test_an_interrupted_driver_ends_with_whole_commits(
    index: int, exit_code: ExitCode, message: str, place: Place
) -> None:
    driver = place.start_with(AtMutation(index, asked_to_stop), FIRST_RUN)
    assert driver.wait() == exit_code
    assert message in " ".join(driver.log.read_text().split())
    rows = place.rows()
    assert len(rows) == (4 if index == FIRST_COMMIT else 0)
    place.finish(FIRST_RUN)
    assert_kept(rows, place.rows())
