"""A connection that breaks at the last request of each kind that changes the store, before or after its effect.

The last request, which cleans up, is also refused on its own.
"""

import pytest

from locray import storage
from tests.helpers.commit_path import (
    AFTER_A_CRASH,
    FIRST_RUN,
    RETRY,
    SECOND_RUN,
    WITH_CHECKPOINTS,
    Action,
    AtMutation,
    Place,
    Scenario,
    Templates,
    answer_lost,
    assert_kept,
    last,
    named,
    request_lost,
)
from tests.helpers.s3_proxy import Answer, Forward

pytestmark = pytest.mark.s3

WHERE = [
    *last(FIRST_RUN),
    *last(AFTER_A_CRASH, "deletion"),
    *last(RETRY, "file", "commit"),
    *last(WITH_CHECKPOINTS, "checkpoint", "last checkpoint"),
    *last(SECOND_RUN, "list", "deletion", "file", "commit", "record", "page"),
]


@pytest.mark.parametrize("action", [request_lost, answer_lost], ids=named)
@pytest.mark.parametrize(("scenario", "index"), WHERE, ids=named)
def test_a_connection_that_breaks_once_has_no_effect(
    scenario: Scenario, index: int, action: Action, place: Place, templates: Templates
) -> None:
    place.put(templates[scenario.name])
    committed = place.rows()
    fault = AtMutation(index, action)
    driver = place.start_with(fault, scenario)
    assert driver.wait() == 0, driver.log.read_text()
    assert fault.happened.is_set()
    place.check()
    assert_kept(committed, place.rows(), also_failed=not scenario.replaces)


def test_a_worklist_that_can_not_be_deleted_is_left_behind(place: Place) -> None:
    def denied(_: AtMutation, __: Forward) -> Answer:
        return Answer(403, b"<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>")

    fault = AtMutation(FIRST_RUN.mutations.index("work folder"), denied)
    driver = place.start_with(fault, FIRST_RUN)
    assert driver.wait() == 0, driver.log.read_text()
    assert fault.happened.is_set()
    assert (driver.summary()["ok"], driver.summary()["failed"]) == (4, 2)
    assert any("/_locray/" in uri for uri in storage.list_uris(place.table))
    place.do_nothing()
