"""Small fixed runs reproduce their golden loss curves."""

import json

import pytest

from tests.helpers.training_golden import GOLDEN, RUNS, losses

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", RUNS)
def test_the_loss_curve_is_the_golden_one(name):
    # Processors round sums differently, and the differences grow with each step.
    assert losses(name) == pytest.approx(json.loads(GOLDEN.read_text())[name], rel=0.01)
