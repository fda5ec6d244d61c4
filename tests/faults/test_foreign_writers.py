"""Another program that changes the table at each commit of a run: the run goes on, and no row is lost or doubled."""

import pytest
from deltalake import DeltaTable

from locray import storage
from locray.errors import ExitCode
from tests.helpers.commit_path import (
    FIRST_RUN,
    RETRY,
    SECOND_RUN,
    AtMutation,
    Place,
    Scenario,
    Templates,
    assert_kept,
    each,
    named,
)
from tests.helpers.foreign_writers import ForeignWriter, add_column, compact, delete_nothing, set_properties
from tests.helpers.s3_proxy import Answer, Forward

pytestmark = pytest.mark.s3

OTHERS = [delete_nothing, set_properties, add_column]
CASES = [
    *((*place, compact) for place in each(FIRST_RUN, "claim", "commit")),
    *((*place, compact) for place in each(RETRY, "claim", "file", "commit")),
    *((*place, compact) for place in each(SECOND_RUN, "commit")),
    *((*place, foreign) for place in each(RETRY, "commit") for foreign in OTHERS),
    *((*place, foreign) for place in each(SECOND_RUN, "commit") for foreign in OTHERS),
]


@pytest.mark.parametrize(("scenario", "index", "foreign"), CASES, ids=named)
def test_a_run_goes_on_after_a_foreign_commit(
    scenario: Scenario, index: int, foreign: ForeignWriter, place: Place, templates: Templates
) -> None:
    place.put(templates[scenario.name])
    committed = place.rows()

    def change_table(_: AtMutation, forward: Forward) -> Answer:
        foreign(DeltaTable(place.table, storage_options=storage.delta_storage_options(place.table)))
        return forward()

    fault = AtMutation(index, change_table)
    driver = place.start_with(fault, scenario)
    assert driver.wait() == 0, driver.log.read_text()
    assert fault.happened.is_set()
    place.check()
    assert_kept(committed, place.rows(), also_failed=not scenario.replaces)


def test_a_constraint_that_is_added_ends_the_run_and_loses_nothing(place: Place, templates: Templates) -> None:
    place.put(templates[FIRST_RUN.name])

    def table() -> DeltaTable:
        return DeltaTable(place.table, storage_options=storage.delta_storage_options(place.table))

    def add_constraint(_: AtMutation, forward: Forward) -> Answer:
        table().alter.add_constraint({"positive": "size_bytes > 0"})
        return forward()

    fault = AtMutation(FIRST_RUN.mutations.index("commit"), add_constraint)
    driver = place.start_with(fault, FIRST_RUN)
    assert driver.wait() == ExitCode.USAGE
    messages = driver.log.read_text()
    assert "has the constraint positive, which locray doesn't check" in messages
    assert "Traceback" not in messages
    table().alter.drop_constraint("positive")
    place.finish(FIRST_RUN)
