"""The check on the nodes of a cluster: which nodes it asks, and how it tells of problems."""

import pytest

from locray.ray_runtime.node_check import check_nodes, describe_problems, is_worker


@pytest.mark.parametrize(
    ("alive", "resources", "asked"),
    [
        (True, {"CPU": 4.0}, True),
        (True, {"GPU": 1.0, "CPU": 0.0}, True),
        (True, {"CPU": 0.0}, False),
        (True, {"memory": 1e9}, False),
        (False, {"CPU": 4.0}, False),
    ],
)
def test_nodes_that_can_work_are_asked(alive: bool, resources: dict[str, float], asked: bool) -> None:
    assert is_worker({"Alive": alive, "Resources": resources}) is asked


def test_one_problem_is_told_with_the_number_of_others() -> None:
    one, two, three = ({f"10.0.0.{number}": "no file" for number in range(count)} for count in (1, 2, 3))
    assert describe_problems(one) == "on the cluster's node 10.0.0.0: no file"
    assert "(1 other node failed the check, too): no file" in describe_problems(two)
    assert "(2 other nodes failed the check, too): no file" in describe_problems(three)


def test_ray_on_this_machine_alone_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    called: list[int] = []
    check_nodes(lambda: called.append(1), verbose=False)
    assert not called
