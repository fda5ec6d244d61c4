"""A driver killed with SIGKILL at every request that changes the store, and a run after it."""

import signal

import pytest
from faults.commit_path import (
    AFTER_A_CRASH,
    FIRST_NIGHT,
    RETRY,
    SCENARIOS,
    WITH_CHECKPOINTS,
    AtMutation,
    Deed,
    Place,
    Scenario,
    Templates,
    assert_kept,
    at,
    killed_after,
    killed_before,
    killed_when_applied,
    named,
    request_lost,
)

pytestmark = pytest.mark.s3


WHERE = [
    *at(FIRST_NIGHT),
    *at(AFTER_A_CRASH, "orphan", "scratch"),
    *at(RETRY, "file", "commit"),
    *at(WITH_CHECKPOINTS, "checkpoint", "last checkpoint"),
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=named)
def test_an_undisturbed_run_changes_the_store_in_these_steps(
    scenario: Scenario, place: Place, templates: Templates
) -> None:
    """So that the tests below leave none out."""
    templates.put(scenario, place.bucket)
    nothing_happens = AtMutation(100, request_lost)
    driver = place.start_with(nothing_happens, scenario)
    assert driver.wait() == 0, driver.log.read_text()
    assert tuple(nothing_happens.kinds) == scenario.mutations
    place.check()


@pytest.mark.parametrize("deed", [killed_before, killed_when_applied, killed_after], ids=lambda deed: deed.__name__)
@pytest.mark.parametrize(("scenario", "index"), WHERE, ids=named)
def test_after_a_kill_the_next_run_makes_the_table_whole(
    scenario: Scenario, index: int, deed: Deed, place: Place, templates: Templates
) -> None:
    templates.put(scenario, place.bucket)
    committed = place.rows()
    fault = AtMutation(index, deed)
    exit_code = place.start_with(fault, scenario).wait()
    assert fault.kinds == list(scenario.mutations[: index + 1])
    assert exit_code == -signal.SIGKILL or (exit_code == 0 and index == len(scenario.mutations) - 1)

    also_failed = scenario is not RETRY
    left = place.rows()
    assert_kept(committed, left, also_failed=also_failed)
    place.finish(scenario)
    assert_kept(left, place.rows(), also_failed=also_failed)
    if deed is killed_before:
        place.do_nothing()
