"""A driver paused at the last request of each kind that changes the store while another completes; two at once."""

import threading

import pytest

from locray.errors import ExitCode
from tests.helpers.commit_path import (
    FIRST_RUN,
    RETRY,
    SECOND_RUN,
    Action,
    AtMutation,
    Place,
    Scenario,
    Templates,
    assert_kept,
    each,
    kind_of,
    last,
    named,
    over_in_any_case,
    paused_after,
    paused_before,
)
from tests.helpers.made_up import ENDS_WITHIN_S
from tests.helpers.s3_proxy import Answer, Forward, Request

pytestmark = pytest.mark.s3

WHERE = [
    *last(FIRST_RUN),
    *last(RETRY, "file", "commit"),
    *each(SECOND_RUN, "deletion")[:1],
    *last(SECOND_RUN, "file", "commit"),
]


@pytest.mark.parametrize("action", [paused_before, paused_after], ids=named)
@pytest.mark.parametrize(("scenario", "index"), WHERE, ids=named)
def test_a_paused_driver_is_fenced_and_changes_nothing(
    scenario: Scenario, index: int, action: Action, place: Place, templates: Templates
) -> None:
    place.put(templates[scenario.name])
    fault = AtMutation(index, action)
    with over_in_any_case(fault):
        paused = place.start_with(fault, scenario)
        assert fault.happened.wait(ENDS_WITHIN_S)
        committed = place.rows()
        second = place.start(scenario)
        assert second.wait() == 0, second.log.read_text()
        rows = place.rows()
        assert_kept(committed, rows, also_failed=not scenario.replaces)
        fault.over.set()
        paused.resume()
        exit_code = paused.wait()
    # Before its claim there is nothing to take over; after its last commit there is nothing left to do.
    no_matter = scenario.mutations[index] in {"table", "work folder"}
    assert exit_code == (ExitCode.DONE if no_matter else ExitCode.FENCED), paused.log.read_text()
    assert place.rows() == rows
    if scenario.command[0] == "label" and scenario.mutations[index] in {"file", "commit"}:
        told = paused.summary()
        assert told["ok"] + told["failed"] + told["deferred"] == told["planned"]
        assert told["deferred_causes"]["not_committed"] > 0
    place.do_nothing()


@pytest.mark.parametrize("kind", ["table", "claim"])
def test_of_two_concurrent_drivers_one_stops(kind: str, place: Place) -> None:
    arrived: list[Request] = []
    both_are_there = threading.Event()

    def meet(request: Request, forward: Forward) -> Answer:
        if kind_of(request) == kind and not both_are_there.is_set():
            arrived.append(request)
            if len(arrived) == 2:
                both_are_there.set()
            assert both_are_there.wait(ENDS_WITHIN_S)
        return forward()

    place.proxy.fault = meet
    drivers = [place.start(FIRST_RUN, AWS_ENDPOINT_URL=place.proxy.endpoint_url) for _ in range(2)]
    exit_codes = sorted(driver.wait() for driver in drivers)
    one_after_the_other = [[ExitCode.DONE, ExitCode.DONE]] if kind == "table" else []
    told = [driver.log.read_text() for driver in drivers]
    assert exit_codes in [[ExitCode.DONE, ExitCode.FENCED], *one_after_the_other], told
    place.finish(FIRST_RUN)
