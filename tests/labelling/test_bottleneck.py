"""Which stage limits a run."""

import pytest

from locray.labelling.bottleneck import Capacity, Stage, StageCosts, stage_rates

PHOTOGRAPHS = StageCosts(fetch_s=0.001, decode_cpu_s=0.04, predict_s=0.0002, measured_cpus=4)


@pytest.mark.parametrize(
    ("costs", "capacity", "bottleneck", "total"),
    [
        (PHOTOGRAPHS, Capacity(64, 1), "decoding", 1600),
        (PHOTOGRAPHS, Capacity(400, 1), "predicting", 5000),
        (PHOTOGRAPHS, Capacity(400, 8), "decoding", 10_000),
        (StageCosts(0.01, 0.01, 0.0002, 4), Capacity(16, 1), "fetching", 400),
        (StageCosts(0.001, 0.001, 0.004, 2), Capacity(2, 0), "predicting", 1 / 0.0045),
        (StageCosts(0.001, 0.02, 0.004, 2), Capacity(2, 0), "decoding", 1 / 0.014),
        (StageCosts(0.02, 0.02, 0.004, 2), Capacity(2, 0), "fetching", 50),
        (StageCosts(0.001, 0.001, 0.004, 2), Capacity(8, 0), "predicting", 4 / 0.0045),
        (StageCosts(0.01, 0.04, None, 4), Capacity(64, 4), None, None),
    ],
)
def test_the_stage_that_limits(costs: StageCosts, capacity: Capacity, bottleneck: Stage, total: float) -> None:
    found = stage_rates(costs, capacity)
    assert found.bottleneck == bottleneck
    assert found.total == (None if total is None else pytest.approx(total))


def test_a_cluster_without_a_node_yet_has_a_speed() -> None:
    assert stage_rates(PHOTOGRAPHS, Capacity(0, 0)).decode == 25
