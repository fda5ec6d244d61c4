"""Training on Ray, from the command line: an artifact is written, and killed runs resume."""

import json
import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from locray.config import AugmentationOptions
from locray.datasets import read_dataset
from locray.demo.images import write_dataset
from locray.models.artifact import load_artifact
from locray.training.batches import IMAGES, BatchMaker
from locray.training.metrics import image_results, summarise
from locray.training.packed import BatchOrder, PackedRecords
from tests.helpers.commands import locray, start_locray

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Drawn pictures, one of them broken."""
    folder = tmp_path_factory.mktemp("drawn")
    write_dataset(folder, {"train": 60, "val": 15}, seed=0)
    (folder / "images" / "train-00007.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
    return folder


def arguments(data: Path | str, output: Path | str, *more: str, epochs: int = 4) -> list[str]:
    options = {"data": data, "format": "csv", "output": output, "model": "small_cnn", "epochs": epochs, "workers": 2}
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return ["train", *flags, "--batch-size", "16", "--json", *more]


LONG = 40
"""Epochs of a run that must still be running after three starts: each takes a fraction of a second."""


def history(output: Path) -> list[dict[str, float]]:
    file = output / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def newest(output: Path) -> Path | None:
    """Returns the newest checkpoint; its name contains the run's progress."""
    return max(output.glob("checkpoints/*/epoch-*.pt"), default=None)


def wait_for_checkpoint(process, output: Path) -> int:
    """Waits for a new checkpoint. Returns its epoch."""
    before = newest(output)
    wait_until(lambda: newest(output) not in {None, before}, process)
    return int(newest(output).name[6:12])


def wait_until(is_so, process) -> None:
    deadline = time.monotonic() + 240
    while not is_so():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def workers_of(output: Path) -> list[int]:
    """Returns the processes of Ray Train's workers, in the tests' cluster if there is one, else in this run's Ray."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            title, environment = (content(entry / name) for name in ("cmdline", "environ"))
            raylet = re.search(r"RAY_RAYLET_PID=(\d+)", environment)
            if "RayTrainWorker" in title and raylet:
                address = os.environ.get("RAY_ADDRESS", "no cluster")
                if f"TEST_RUN={output}" in environment or address in content(Path("/proc", raylet[1], "cmdline")):
                    found.append(int(entry.name))
    return found


def content(file: Path) -> str:
    return file.read_bytes().decode(errors="replace")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained") / "model"
    done = locray(*arguments(data, output))
    assert done.returncode == 0, done.stderr
    return output, done


def test_the_artifact_has_the_metrics_of_its_best_epoch(trained):
    output, done = trained
    facts = json.loads(done.stdout.splitlines()[-1])
    loaded = load_artifact(str(output))
    assert loaded.info.classes == sorted(loaded.info.classes)
    assert facts["model_id"] == loaded.model_id
    assert facts["already_trained"] is False
    assert (facts["train_images"], facts["val_images"]) == (60, 15)
    assert facts["errors"] == {"corrupt": 1} or facts["errors"] == {"truncated": 1}
    epochs = history(output)
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3, 4]
    best = max(epochs, key=lambda epoch: epoch["score"])
    assert facts["best_epoch"] == best["epoch"]
    assert loaded.info.metrics["mean_iou"] == pytest.approx(best["mean_iou"], abs=1e-5)
    assert epochs[-1]["loss"] < epochs[0]["loss"]


def test_validation_sees_every_image_once(trained, data):
    """The metrics of two workers equal those of one pass over all images."""
    loaded = load_artifact(str(trained[0]))
    records = read_dataset(str(data), "csv", "val").records
    packed = PackedRecords.of(records, tuple(loaded.info.classes))
    maker = BatchMaker(
        packed, BatchOrder(15, 15, 1, None), AugmentationOptions(), loaded.info.input_size, augmented=False
    )
    batch = {name: torch.from_numpy(part) for name, part in maker(0, 0, 0).items()}
    with torch.no_grad():
        predicted = loaded.model.predict(batch[IMAGES].permute(0, 3, 1, 2))
    metrics = summarise(image_results(predicted, batch, loaded.info.classes), one_object=True)
    # One missing or duplicate image of the fifteen would change it by more.
    assert metrics["class_accuracy"] == pytest.approx(loaded.info.metrics["class_accuracy"], abs=0.004)
    assert metrics["mean_iou"] == pytest.approx(loaded.info.metrics["mean_iou"], abs=0.01)


def test_the_same_command_again_says_that_it_is_done(trained, data):
    output, done = trained
    before = {file: file.stat().st_mtime_ns for file in output.rglob("*") if file.is_file()}
    again = locray(*arguments(data, output))
    assert again.returncode == 0, again.stderr
    facts = json.loads(again.stdout.splitlines()[-1])
    assert facts["already_trained"] is True
    assert facts["model_id"] == json.loads(done.stdout.splitlines()[-1])["model_id"]
    assert {file: file.stat().st_mtime_ns for file in output.rglob("*") if file.is_file()} == before


def test_ray_prints_nothing(trained):
    _, done = trained
    assert len(done.stdout.splitlines()) == 1
    chatter = [line for line in done.stderr.splitlines() if "ray" in line.lower() or "warn" in line.lower()]
    assert chatter == []


@pytest.mark.timeout(1200)  # Ray and its workers start three times
def test_a_run_survives_its_workers_and_drivers_and_resumes(data, tmp_path):
    """A worker is killed, the run is asked to stop, its driver is killed, and its newest checkpoint damaged."""
    output = tmp_path / "model"
    command = arguments(data, output, epochs=LONG)
    with start_locray(*command, TEST_RUN=str(output)) as driver:
        safe = wait_for_checkpoint(driver, output)
        before = history(output)[:safe]
        wait_until(lambda: len(workers_of(output)) == 2, driver)
        pids = workers_of(output)
        os.kill(pids[0], signal.SIGKILL)
        wait_until(lambda: set(workers_of(output)).isdisjoint(pids) and len(workers_of(output)) == 2, driver)
        wait_for_checkpoint(driver, output)
        before = asked_to_stop(driver, output, before)
    with start_locray(*command, TEST_RUN=str(output)) as driver:
        safe = wait_for_checkpoint(driver, output)
        killed = history(output)
        driver.kill()
        driver.communicate()
    wait_until(lambda: not workers_of(output), None)
    # Speeds are included: an epoch that was trained again would have another one.
    assert killed[: len(before)] == before
    checkpoint = newest(output)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    again = locray(*command)
    assert again.returncode == 0, again.stderr
    assert f"{checkpoint.name} is damaged: resuming from epoch" in again.stderr
    after = history(output)
    assert [epoch["epoch"] for epoch in after] == list(range(1, LONG + 1))
    assert after[: safe - 1] == killed[: safe - 1]
    assert load_artifact(str(output)).info.provenance["epochs"] == LONG


def asked_to_stop(driver, output, before):
    """Ends a run by SIGTERM. Its history begins with the earlier epochs."""
    driver.send_signal(signal.SIGTERM)
    stdout, stderr = driver.communicate(timeout=120)
    assert driver.returncode == 1
    assert "run the same command again to resume it" in stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    after = history(output)
    assert len(before) < len(after) < LONG
    assert after[: len(before)] == before
    return after


def test_a_non_finite_loss_ends_the_run_and_names_the_images(data, tmp_path):
    output = tmp_path / "model"
    options = ("--learning-rate", "1e30", "--optimizer", "sgd", "--clip-norm", "1e30")
    done = locray(*arguments(data, output, *options))
    assert done.returncode == 2
    assert "the training has diverged. The batch held" in done.stderr
    assert "train-000" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_name_is_refused_with_other_options(data, tmp_path):
    output = tmp_path / "model"
    (output / "checkpoints").mkdir(parents=True)
    (output / "checkpoints" / "mine.json").write_text('{"run_identity": "0123456789ab"}')
    done = locray(*arguments(data, output, "--run-name", "mine"))
    assert done.returncode == 2
    assert "holds checkpoints of a run named 'mine' with other options" in done.stderr


def test_a_run_killed_before_its_artifact_only_writes_it(trained, data):
    output, done = trained
    before = history(output)
    (output / "model.json").unlink()
    again = locray(*arguments(data, output))
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["model_id"] == json.loads(done.stdout.splitlines()[-1])["model_id"]
    assert history(output) == before


@pytest.mark.s3
def test_data_checkpoints_and_artifact_may_be_in_a_bucket(data, s3_bucket):
    for file in data.rglob("*.*"):
        s3_bucket.put(f"data/{file.relative_to(data)}", file.read_bytes())
    output = f"{s3_bucket.uri}/models/first"
    done = locray(*arguments(f"{s3_bucket.uri}/data", output, epochs=2))
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert load_artifact(output).model_id == facts["model_id"]
    keys = list(s3_bucket.entries())
    assert "models/first/metrics.jsonl" in keys
    assert len([key for key in keys if key.startswith("models/first/checkpoints/") and key.endswith(".pt")]) == 2
    assert len([key for key in keys if key.startswith("models/first/tensorboard/events.out.tfevents.")]) == 2
    again = locray(*arguments(f"{s3_bucket.uri}/data", output, epochs=2))
    assert json.loads(again.stdout.splitlines()[-1])["already_trained"] is True
