"""The labelling benchmark: it runs, counts only correct labels, and finds locray not far below the ceiling."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks.agreement import Agreement, Predictions, compare
from benchmarks.config import BenchmarkConfig
from benchmarks.labelling import benchmark
from benchmarks.network import compile_beforehand
from benchmarks.processes import run_measured
from benchmarks.results import CEILING, LOCRAY, Result, Run, ratios, steady_images_per_s
from benchmarks.tiers import make_tiers
from locray.errors import UsageError
from locray.models.architectures import build_model
from locray.models.artifact import save_artifact
from locray.models.files import ArtifactInfo
from locray.progress import ignore
from tests.gpu_check.whole_runs import contenders
from tests.helpers.commands import benchmark as run_benchmark

BOX = np.array([10.0, 10, 30, 30])


def predictions(num_images, box=BOX, label=0):
    names = [f"{number}.jpg" for number in range(num_images)]
    return Predictions(dict.fromkeys(names, label), dict.fromkeys(names, box))


def result(contender, speeds, counts=True):
    agreement = Agreement(True, 1.0 if counts else 0.5, 1.0)
    return Result("small", contender, "float32", agreement, [Run(speed, 5.0, 1.0, 1.0, 1.0) for speed in speeds])


def size_of(path):
    with Image.open(path) as file:
        return file.size


def test_the_same_answers_agree():
    assert compare(predictions(100), predictions(100)) == Agreement(True, 1.0, 1.0)


@pytest.mark.parametrize(
    "found",
    [
        predictions(99),
        predictions(101),
        predictions(100, box=BOX + 2),
        predictions(100, label=1),
        predictions(100, label=-1),
    ],
)
def test_other_answers_do_not_count(found):
    assert not compare(found, predictions(100)).is_valid


def test_one_in_a_hundred_may_differ():
    found = predictions(100)
    found.label_ids["7.jpg"] = 5
    assert compare(found, predictions(100)).is_valid
    found.label_ids["8.jpg"] = 5
    assert not compare(found, predictions(100)).is_valid


def test_nothing_found_agrees_with_nothing_found():
    nothing = predictions(5, box=np.zeros(4), label=-1)
    assert compare(nothing, nothing).is_valid
    assert not compare(predictions(5), nothing).is_valid


def test_the_steady_state_leaves_out_the_first_batch_and_the_last_part():
    ticks = [(100.0, 20), (101.0, 40), (102.0, 60), (103.0, 80), (104.0, 90), (150.0, 100)]
    assert steady_images_per_s(ticks, 100) == pytest.approx(70 / 4)
    assert steady_images_per_s([(100.0, 100)], 100) is None
    assert steady_images_per_s([(100.0, 20), (100.1, 40), (100.2, 90), (150.0, 100)], 100) is None


def test_ratios_are_of_medians():
    found = ratios(
        [
            result("ray_data", [1, 1, 1]),
            result("dataloader tuned", [4, 5, 90]),
            result(CEILING, [20] * 3),
            result(LOCRAY, [10, 10, 1]),
        ]
    )
    assert found["small: locray / ceiling"] == 0.5
    assert found["small: locray / best tuned peer"] == 2
    assert found["small: locray / ray_data"] == 10


def test_figures_need_all_rounds_and_fast_peers_count():
    own, slow = result(LOCRAY, [10, 10, 10]), result("ray_data tuned", [1, 1, 1])
    found = ratios([slow, result("dataloader tuned", [4, None, None]), own])
    assert found["small: locray / best tuned peer"] is None
    assert ratios([slow, result("dataloader tuned", [4], counts=False), own])["small: locray / best tuned peer"] == 10


def test_who_labels_otherwise_has_no_figure():
    assert ratios([result(CEILING, [20]), result(LOCRAY, [10], counts=False)]) == {"small: locray / ceiling": None}


@pytest.mark.slow
def test_processes_of_processes_are_measured():
    child = "import time; b = b'x' * 200_000_000; e = time.process_time() + 1\nwhile time.process_time() < e: pass"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    measured = run_measured([sys.executable, "-c", parent], {})
    assert 0.5 < measured.cpu_s < 3
    assert measured.peak_bytes > 150e6
    assert measured.wall_s > 0.9


def test_a_contender_that_fails_is_told():
    with pytest.raises(UsageError, match="ended with 3: no luck"):
        run_measured([sys.executable, "-c", "import sys; print('no luck'); sys.exit(3)"], {})


@pytest.mark.slow
def test_images_of_both_tiers(tmp_path):
    small, large = make_tiers(None, tmp_path, 3, 2)
    assert [size_of(path) for path in small.folder.iterdir()] == [(300, 300)] * 3
    for path in large.folder.iterdir():
        width, height = size_of(path)
        assert 2e6 * 0.99 < width * height < 12e6 * 1.01
        assert path.stat().st_size > 0.1 * width * height


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": "nothing"}, "no folder"),
        ({"images": "."}, "has 1 JPEG files of the 256"),
        ({"daft": "."}, "holds no daft"),
        ({"contenders": "ceiling, me"}, "no 'me'; expected some of: ray_data, ray_data tuned"),
        ({"model": "."}, "no model"),
    ],
)
def test_wrong_input_is_told(tmp_path, options, message):
    (tmp_path / "one.jpg").write_bytes(b"")
    paths = {name: value if name == "contenders" else str(tmp_path / value) for name, value in options.items()}
    config = BenchmarkConfig(**paths)
    with pytest.raises(UsageError, match=message):
        benchmark(config, ignore)


def test_an_output_that_can_not_be_written_is_told(tmp_path):
    for output in (tmp_path, tmp_path / "nothing" / "page.md"):
        done = run_benchmark("labelling", "--output", str(output))
        assert done.returncode == 2
        assert str(output) in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_network_is_compiled_beforehand_beside_its_model(tmp_path):
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("there is no C++ compiler in PATH, and CXX names none")
    info = ArtifactInfo(architecture="small_cnn", classes=["a", "b"], input_size=32)
    save_artifact(str(tmp_path / "model"), build_model("small_cnn", 2), info)
    reason = compile_beforehand(str(tmp_path / "model"), str(tmp_path / "packages"))
    assert (tmp_path / "packages").exists() == (reason is None)
    assert reason is None or "times as fast" in reason
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["model.json", "model.safetensors"]


@pytest.mark.ray
def test_locray_is_measured_beside_the_ceiling(tmp_path):
    info = ArtifactInfo(architecture="localizer/resnet18", classes=["a", "b"], input_size=224)
    save_artifact(str(tmp_path / "model"), build_model("localizer/resnet18", 2, 224), info)
    options = {"model": tmp_path / "model", "small-images": 64, "large-images": 0, "rounds": 1}
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    done = run_benchmark("labelling", "--contenders", "ceiling", "--no-compile", "--json", *flags)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    runs = {one["contender"]: one["runs"] for one in found["results"]}
    assert {name: len(some) for name, some in runs.items()} == {LOCRAY: 1, CEILING: 1}
    assert all(run["images_per_s"] > 0 for some in runs.values() for run in some)
    assert all(one["agreement"]["same_rows"] for one in found["results"])
    assert sum(found["breakdown_ms"]["small"].values()) > 0
    # The check of a GPU reads the same output.
    assert [line.name for line in contenders(done.stdout)] == ["benchmark, small, ceiling", "benchmark, small, locray"]
