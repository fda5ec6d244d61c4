"""The training benchmark runs and reports the speed of each contender."""

import json

import pytest

from locray.demo.images import write_dataset
from tests.helpers.commands import benchmark


@pytest.mark.ray
def test_training_is_measured_beside_a_plain_loop(tmp_path):
    write_dataset(tmp_path, {"train": 40, "val": 5}, seed=0)
    options = {"data": tmp_path, "format": "csv", "model": "small_cnn", "batch-size": 8, "rounds": 1}
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    done = benchmark("training", *flags, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    speeds = found["images_per_s"]
    assert {name: len(rounds) for name, rounds in speeds.items()} == {"locray": 1, "plain_fp32": 1, "plain_bf16": 1}
    assert all(speed > 0 for rounds in speeds.values() for speed in rounds)
    assert found["ratio_to_plain_fp32"] == pytest.approx(speeds["locray"][0] / speeds["plain_fp32"][0], rel=0.01)


@pytest.mark.slow
def test_a_benchmark_of_what_is_not_there_says_so(tmp_path):
    done = benchmark("training", "--data", str(tmp_path / "nothing"), "--format", "voc")
    assert done.returncode == 2
    assert "nothing" in done.stderr
    assert "Traceback" not in done.stderr
