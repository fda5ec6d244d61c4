"""Batches that are made together are split by step."""

import numpy as np
import pytest

from locray.config import TrainConfig
from locray.demo.images import write_dataset
from locray.training.checkpoints import Place
from locray.training.feed import Feed
from locray.training.plan import make_plan

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    # Three validation images: fewer than the workers of one test.
    write_dataset(folder, {"train": 22, "val": 3}, seed=0)
    return folder


def plan(data, num_workers, **changes):
    options = {"model": "small_cnn", "epochs": 3, "batch_size": 8} | changes
    config = TrainConfig(data=str(data), format="csv", output=str(data / "out"), **options)
    return make_plan(config).for_workers(num_workers)


def expected(plan, worker):
    for epoch in range(plan.config.epochs):
        for maker in (plan.train, plan.val):
            for step in range(maker.order.num_steps):
                yield maker(epoch, step, worker)


@pytest.mark.parametrize("place", [Place(0, 0), Place(1, 2), Place(2, 3)])
@pytest.mark.parametrize(
    ("num_workers", "changes"), [(1, {}), (2, {"mosaic": 1.0}), (5, {}), (1, {"input_size": 1024})]
)
def test_a_feed_has_the_batches_of_all_steps_from_its_place(data, num_workers, changes, place):
    run = plan(data, num_workers, **changes)
    for worker in range(num_workers):
        feed = Feed(run, worker)
        units = list(feed.units(place))
        found = [batch for unit in units for batch in feed.split(feed.make(unit), unit)]
        steps = run.train.order.num_steps + run.val.order.num_steps
        wanted = list(expected(run, worker))[place.epoch * steps + place.step :]
        assert len(found) == len(wanted) > 0
        for one, other in zip(found, wanted, strict=True):
            assert one.keys() == other.keys()
            assert all(_same(one[name], other[name]) for name in one)


def _same(found, wanted):
    """Whether arrays are equal, except for more room for objects in one of them."""
    if found.ndim > 1 and found.shape != wanted.shape:
        unused = np.delete(found, range(wanted.shape[1]), axis=1)
        found = found[:, : wanted.shape[1]]
        if not (unused <= 0).all():
            return False
    return np.array_equal(found, wanted)


def test_every_block_has_rows(data):
    """Ray Data skips empty blocks, so that all later batches would be a step early."""
    feed = Feed(plan(data, 5, input_size=1024), 0)
    made = [feed.make(unit) for unit in feed.units(Place(0, 0))]
    assert all(len(part) > 0 for block in made for part in block.values())
    assert 0 in [len(batch["outcomes"]) for batch in expected(feed.plan, 0)]


def test_small_batches_share_a_task_and_large_ones_do_not(data):
    assert [len(unit) for unit in Feed(plan(data, 1), 0).units(Place(0, 0))] == [12]
    large = plan(data, 1, input_size=1024)
    assert {len(unit) for unit in Feed(large, 0).units(Place(0, 0))} == {1}
