"""A worker's run without Ray: it resumes exactly and stops when it should."""

import csv
from pathlib import Path

import pytest
import torch

from locray.config import TrainConfig
from locray.demo.images import write_dataset
from locray.progress import Progress
from locray.training.batches import LABEL_IDS
from locray.training.checkpoints import CheckpointStore, Place
from locray.training.history import read_history
from locray.training.learner import Learner
from locray.training.plan import make_plan
from locray.training.process_group import ProcessGroup
from locray.training.run import initial_model
from locray.training.worker import WorkerRun

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    write_dataset(folder, {"train": 24, "val": 8}, seed=0)
    return folder


class Rehearsal:
    """A run of one worker whose batches are made on demand."""

    def __init__(self, data: Path, output: Path, **options: object) -> None:
        usual = {"format": "csv", "model": "small_cnn", "epochs": 3, "batch_size": 8, "precision": "fp32"}
        config = TrainConfig(**{"data": str(data), "output": str(output), **usual, **options})
        self.plan = make_plan(config)
        self.posted: list[Progress] = []
        self.model = initial_model(self.plan, self.posted.append)
        self.store = CheckpointStore(f"{output}/checkpoints/run")
        self.failures: list[str] = []
        self.epochs: list[dict[str, float]] = []
        self.weights: list[dict[str, torch.Tensor]] = []
        self.batches_until_stop: int | None = None
        self.validated_until_stop: int | None = None
        self.taken = self.validated = 0
        pretrained = config.weights is not None
        self.learner = Learner(self.model, config, self.plan.num_steps, CPU, pretrained=pretrained)
        self.worker = WorkerRun(
            self.plan,
            self.learner,
            ProcessGroup(0, 1, CPU),
            self.store,
            report=self.posted.append,
            fail=self.failures.append,
            stop_requested=self.stop_requested,
            end_epoch=self.end_epoch,
        )

    def stop_requested(self) -> bool:
        limits = ((self.taken, self.batches_until_stop), (self.validated, self.validated_until_stop))
        return any(limit is not None and done >= limit for done, limit in limits)

    def end_epoch(self, metrics: dict[str, float]) -> None:
        self.epochs.append(metrics)
        self.weights.append({name: part.clone() for name, part in self.learner.average.model.state_dict().items()})

    def batches(self, place: Place):
        train, val = self.plan.train, self.plan.val
        for epoch in range(place.epoch, self.plan.config.epochs):
            for step in range(place.step if epoch == place.epoch else 0, train.order.num_steps):
                self.taken += 1
                yield self.changed({name: torch.from_numpy(part) for name, part in train(epoch, step, 0).items()})
            for step in range(val.order.num_steps):
                self.validated += 1
                yield {name: torch.from_numpy(part) for name, part in val(epoch, step, 0).items()}

    def changed(self, batch):
        return batch

    def run(self) -> Place:
        place = self.worker.resume(self.store.latest())
        self.worker.run(place, self.batches(place))
        return self.store.latest().place


@pytest.fixture
def impatient(monkeypatch):
    """Makes a worker check for a stop after every step, not every few seconds."""
    monkeypatch.setattr("locray.training.worker._PROGRESS_INTERVAL_S", 0)


@pytest.mark.parametrize("stop_after", [2, 3, 4, 7])
@pytest.mark.usefixtures("impatient")
def test_a_run_that_was_stopped_anywhere_resumes_exactly(data, tmp_path, stop_after):
    whole = Rehearsal(data, tmp_path / "whole")
    assert whole.run() == Place(3, 0)
    first = Rehearsal(data, tmp_path / "parts")
    first.batches_until_stop = stop_after
    # If stopped after the last step of an epoch, the resumed run does the validation.
    epoch, step = divmod(stop_after - 1, 3)
    assert first.run() == Place(epoch, step + 1)
    second = Rehearsal(data, tmp_path / "parts", seed=0)
    assert second.run() == Place(3, 0)
    assert second.taken == 9 - first.taken
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[name], tensor, rtol=0, atol=0)
    timeless = [
        [
            {name: value for name, value in epoch.items() if name != "images_per_s"}
            for epoch in read_history(str(folder))
        ]
        for folder in (tmp_path / "whole", tmp_path / "parts")
    ]
    assert timeless[0] == timeless[1]


def test_weights_depend_on_the_seed_alone(data, tmp_path):
    runs = [Rehearsal(data, tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    for run in runs:
        run.run()
    first, same, other = (torch.cat([part.flatten() for part in run.model.state_dict().values()]) for run in runs)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_patience_ends_a_run_that_gets_no_better(data, tmp_path):
    # A network that hardly changes does not improve.
    run = Rehearsal(data, tmp_path, epochs=40, patience=2, learning_rate=1e-9, ema=0.0)
    place = run.run()
    best = max(run.epochs, key=lambda epoch: epoch["score"])
    assert place.epoch == best["epoch"] + 2 < 40
    again = Rehearsal(data, tmp_path, epochs=40, patience=2, learning_rate=1e-9, ema=0.0)
    assert (again.run(), again.taken) == (place, 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_loss_names_the_images_and_keeps_checkpoints(data, tmp_path, bad):
    class Poisoned(Rehearsal):
        def changed(self, batch):
            if self.taken == 5:
                with torch.no_grad():
                    self.model.dense[0].bias.fill_(bad)
            return batch

    run = Poisoned(data, tmp_path)
    assert run.run() == Place(1, 0)
    (message,) = run.failures
    rows = run.plan.train.order.rows(1, 1, 0)
    assert "epoch 2, step 2" in message
    assert all(run.plan.train.packed.image_uris[row] in message for row in rows)
    assert all(torch.isfinite(part).all() for part in run.store.latest().state["learner"]["model"].values())


@pytest.mark.usefixtures("impatient")
def test_a_run_whose_epochs_have_a_single_step_can_be_stopped(data, tmp_path):
    run = Rehearsal(data, tmp_path, batch_size=64)
    assert run.plan.train.order.num_steps == 1
    run.batches_until_stop = 1
    assert run.run() == Place(0, 1)
    again = Rehearsal(data, tmp_path, batch_size=64)
    again.batches_until_stop = 1
    assert again.run() == Place(1, 1), "each run comes a step further"


@pytest.mark.usefixtures("impatient")
def test_a_validation_that_was_stopped_is_repeated(data, tmp_path):
    whole, first = Rehearsal(data, tmp_path / "whole", batch_size=2), Rehearsal(data, tmp_path / "parts", batch_size=2)
    whole.run()
    first.validated_until_stop = first.plan.val.order.num_steps + 2
    steps = first.plan.train.order.num_steps
    assert first.run() == Place(1, steps)
    assert len(first.epochs) == 1
    second = Rehearsal(data, tmp_path / "parts", batch_size=2)
    assert second.run() == Place(3, 0)
    assert second.taken == steps
    assert [epoch["score"] for epoch in first.epochs + second.epochs] == [epoch["score"] for epoch in whole.epochs]


def test_validation_images_that_cannot_be_used_are_counted(tmp_path):
    write_dataset(tmp_path, {"train": 24, "val": 8}, seed=0)
    (tmp_path / "images" / "val-00000.jpg").write_bytes(b"<html>")
    run = Rehearsal(tmp_path, tmp_path / "run", epochs=1)
    run.run()
    assert run.store.latest().state["unusable"] == {"unsupported_format": 1}


@pytest.fixture
def unframed(tmp_path):
    """A data set whose annotations don't give the size of images; one box is outside its image."""
    write_dataset(tmp_path, {"train": 24, "val": 8}, seed=0)
    for split in ("train", "val"):
        with (tmp_path / f"{split}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        if split == "train":
            rows.append(rows[0] | {"xmin": "5000", "ymin": "5000", "xmax": "5100", "ymax": "5100"})
        columns = [name for name in rows[0] if name not in {"width", "height"}]
        with (tmp_path / f"{split}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
    return tmp_path


def test_boxes_outside_their_image_are_counted_once_per_epoch(unframed, tmp_path):
    run = Rehearsal(unframed, tmp_path / "run", epochs=2)
    run.run()
    assert run.store.latest().state["unusable"] == {"outside_box": 1}


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_unusable_image_ends_a_strict_run_and_is_named(tmp_path, split):
    write_dataset(tmp_path, {"train": 24, "val": 8}, seed=0)
    (tmp_path / "images" / f"{split}-00003.jpg").write_bytes(b"<html>")
    run = Rehearsal(tmp_path, tmp_path / "run", strict=True)
    run.run()
    (message,) = run.failures
    assert f"images/{split}-00003.jpg: unsupported_format. Expected" in message
    assert run.epochs == []


def test_a_box_outside_its_image_ends_a_strict_run(unframed, tmp_path):
    run = Rehearsal(unframed, tmp_path / "run", strict=True)
    run.run()
    (message,) = run.failures
    assert "images/train-00000.jpg: outside_box. Expected" in message


def test_non_finite_gradients_end_the_run_before_the_step(data, tmp_path):
    run = Rehearsal(data, tmp_path)
    parameter = next(run.model.parameters())
    parameter.register_hook(lambda gradient: gradient * float("inf") if run.taken == 6 else gradient)
    assert run.run() == Place(1, 0)
    (message,) = run.failures
    assert "the norm of the gradients became" in message
    assert "epoch 2, step 3" in message
    assert torch.isfinite(parameter).all()


def test_the_images_of_a_step_do_not_depend_on_the_workers(data, tmp_path):
    plan = Rehearsal(data, tmp_path).plan
    for step in range(plan.train.order.num_steps):
        seen = [
            sorted(row for worker in range(size) for row in plan.for_workers(size).train.order.rows(2, step, worker))
            for size in (1, 2, 3)
        ]
        assert seen[0] == seen[1] == seen[2]


def test_accumulated_gradients_are_those_of_the_whole_batch(data, tmp_path):
    runs = [Rehearsal(data, tmp_path / str(parts), accumulate=parts, optimizer="sgd") for parts in (1, 3)]
    batch = next(runs[0].batches(Place(0, 0)))
    losses = [run.learner.compute(batch) for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for one, three in zip(*(run.model.parameters() for run in runs), strict=True):
        torch.testing.assert_close(one.grad, three.grad, rtol=1e-4, atol=1e-6)
    assert len(batch[LABEL_IDS]) == 8


def test_the_best_epoch_is_kept_beside_the_last(data, tmp_path):
    # A network that hardly changes does not improve, but its weights keep changing.
    run = Rehearsal(data, tmp_path, epochs=40, patience=2, learning_rate=1e-6, ema=0.0)
    place = run.run()
    state = run.store.latest().state
    best = max(run.epochs, key=lambda epoch: epoch["score"])
    assert state["best"]["epoch"] == best["epoch"] < place.epoch
    assert [epoch["epoch"] for epoch in state["history"]] == list(range(1, place.epoch + 1))
    assert same(state["best"]["weights"], run.weights[int(best["epoch"]) - 1])
    assert not same(state["best"]["weights"], run.weights[-1])
    assert same(state["learner"]["average"], run.weights[-1])


def same(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)
