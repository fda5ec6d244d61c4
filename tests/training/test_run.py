"""Training on Ray, from the command line: an artifact comes out, and what is killed goes on where it was."""

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from commands import locray, start_locray

from locray.demo.images import write_dataset
from locray.models.artifact import load_artifact

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


LONG = 60
"""Epochs of a run that must still be under way when its first checkpoint is seen: one takes a fraction of a second."""


def history(output: Path) -> list[dict[str, float]]:
    file = output / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_for_checkpoint(process, output: Path) -> int:
    """Until a checkpoint is safe; the epoch that it was made after."""
    deadline = time.monotonic() + 240
    while True:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        for snapshot in output.glob("checkpoints/*/checkpoint_manager_snapshot.json"):
            results = []
            with suppress(json.JSONDecodeError):  # it is being written
                results = json.loads(snapshot.read_text())["checkpoint_results"]
            if results:
                return max(int(result["metrics"]["epoch"]) for result in results)
        time.sleep(0.05)


def workers_of(output: Path) -> list[int]:
    """The processes of Ray Train's workers that were started for this output."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            title = (entry / "cmdline").read_bytes().decode(errors="replace")
            log = (entry / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "RayTrainWorker" in title and f"TEST_RUN={output}" in log:
            found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained") / "model"
    done = locray(*arguments(data, output))
    assert done.returncode == 0, done.stderr
    return output, done


def test_an_artifact_comes_out_with_its_metrics(trained):
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
    """The metrics of two workers together are those of one pass over all images."""
    import torch

    from locray.datasets import read_dataset
    from locray.images.decode import DecodeLimits
    from locray.models.contract import NO_OBJECT, Targets
    from locray.training.metrics import Counts
    from locray.training.samples import BOXES, IMAGES, LABEL_IDS, BatchMaker, Order, Packed

    loaded = load_artifact(str(trained[0]))
    records = read_dataset(str(data), "csv", "val").records
    packed = Packed.of(records, tuple(loaded.info.classes))
    limits = DecodeLimits(2**24, 2**24)
    batch = BatchMaker(packed, Order(15, 15, 1, None), loaded.info.input_size, limits, None, 0)(0, 0, 0)
    label_ids = torch.from_numpy(batch[LABEL_IDS])
    counts = Counts.zero()
    with torch.no_grad():
        predicted = loaded.model.predict(torch.from_numpy(batch[IMAGES]).permute(0, 3, 1, 2))
    counts.add(predicted, Targets(torch.from_numpy(batch[BOXES]), label_ids, label_ids != NO_OBJECT))
    assert counts.metrics()["class_accuracy"] == pytest.approx(loaded.info.metrics["class_accuracy"], abs=0.07)
    assert counts.metrics()["mean_iou"] == pytest.approx(loaded.info.metrics["mean_iou"], abs=0.01)


def test_the_same_command_again_does_nothing_and_says_so(trained, data):
    output, done = trained
    before = {file: file.stat().st_mtime_ns for file in output.rglob("*") if file.is_file()}
    again = locray(*arguments(data, output))
    assert again.returncode == 0, again.stderr
    facts = json.loads(again.stdout.splitlines()[-1])
    assert facts["already_trained"] is True
    assert facts["model_id"] == json.loads(done.stdout.splitlines()[-1])["model_id"]
    assert {file: file.stat().st_mtime_ns for file in output.rglob("*") if file.is_file()} == before


def test_ray_keeps_quiet(trained):
    _, done = trained
    assert len(done.stdout.splitlines()) == 1
    chatter = [line for line in done.stderr.splitlines() if "ray" in line.lower() or "warn" in line.lower()]
    assert chatter == []


def test_a_killed_driver_goes_on_at_the_next_epoch(data, tmp_path):
    output = tmp_path / "model"
    with start_locray(*arguments(data, output, epochs=LONG)) as driver:
        safe = wait_for_checkpoint(driver, output)
        before = history(output)
        driver.kill()
        driver.communicate()
    assert len(history(output)) < LONG
    again = locray(*arguments(data, output, epochs=LONG))
    assert again.returncode == 0, again.stderr
    after = history(output)
    assert [epoch["epoch"] for epoch in after] == list(range(1, LONG + 1))
    # Speeds are part of it: an epoch that was trained again would have another one.
    assert after[:safe] == before[:safe]
    assert load_artifact(str(output)).info.provenance["epochs"] == LONG


def test_a_killed_worker_is_replaced(data, tmp_path):
    output = tmp_path / "model"
    with start_locray(*arguments(data, output, epochs=LONG), TEST_RUN=str(output)) as driver:
        safe = wait_for_checkpoint(driver, output)
        before = history(output)
        pids = workers_of(output)
        assert len(pids) == 2
        os.kill(pids[0], signal.SIGKILL)
        _, stderr = driver.communicate(timeout=300)
    assert driver.returncode == 0, stderr
    after = history(output)
    assert [epoch["epoch"] for epoch in after] == list(range(1, LONG + 1))
    assert after[:safe] == before[:safe]


def test_a_run_name_is_not_taken_up_with_other_options(data, tmp_path):
    output = tmp_path / "model"
    (output / "checkpoints").mkdir(parents=True)
    (output / "checkpoints" / "mine.json").write_text('{"run_identity": "0123456789ab"}')
    done = locray(*arguments(data, output, "--run-name", "mine"))
    assert done.returncode == 2
    assert "Choose another --run-name" in done.stderr


def test_a_run_that_was_killed_before_its_artifact_only_writes_it(trained, data):
    output, done = trained
    before = history(output)
    (output / "model.json").unlink()
    again = locray(*arguments(data, output))
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["model_id"] == json.loads(done.stdout.splitlines()[-1])["model_id"]
    assert history(output) == before


@pytest.mark.s3
def test_data_checkpoints_and_artifact_may_lie_in_a_bucket(data, s3_bucket):
    for file in data.rglob("*.*"):
        s3_bucket.put(f"data/{file.relative_to(data)}", file.read_bytes())
    output = f"{s3_bucket.uri}/models/first"
    done = locray(*arguments(f"{s3_bucket.uri}/data", output, epochs=2))
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert load_artifact(output).model_id == facts["model_id"]
    keys = list(s3_bucket.entries())
    assert "models/first/metrics.jsonl" in keys
    assert [key for key in keys if key.startswith("models/first/checkpoints/") and key.endswith("state.pt")]
    again = locray(*arguments(f"{s3_bucket.uri}/data", output, epochs=2))
    assert json.loads(again.stdout.splitlines()[-1])["already_trained"] is True
