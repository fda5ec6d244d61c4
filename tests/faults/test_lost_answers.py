"""A connection that breaks at a request that changes the store, before it or with the answer: the run goes on."""

import pytest
from faults.commit_path import (
    AFTER_A_CRASH,
    FIRST_NIGHT,
    RETRY,
    WITH_CHECKPOINTS,
    AtMutation,
    Deed,
    Place,
    Scenario,
    Templates,
    answer_lost,
    assert_kept,
    at,
    named,
    request_lost,
)

pytestmark = pytest.mark.s3

WHERE = [
    *at(FIRST_NIGHT),
    *at(AFTER_A_CRASH, "orphan"),
    *at(RETRY, "file", "commit"),
    *at(WITH_CHECKPOINTS, "checkpoint", "last checkpoint"),
]


@pytest.mark.parametrize("deed", [request_lost, answer_lost], ids=lambda deed: deed.__name__)
@pytest.mark.parametrize(("scenario", "index"), WHERE, ids=named)
def test_a_connection_that_breaks_once_is_not_noticed(
    scenario: Scenario, index: int, deed: Deed, place: Place, templates: Templates
) -> None:
    templates.put(scenario, place.bucket)
    committed = place.rows()
    fault = AtMutation(index, deed)
    driver = place.start_with(fault, scenario)
    assert driver.wait() == 0, driver.log.read_text()
    assert fault.happened.is_set()
    place.check()
    assert_kept(committed, place.rows(), also_failed=scenario is not RETRY)
