"""The run on Ray Train: workers, their data tasks, checkpoints and progress. Called by `run`.

The only module of training that imports ray. Each worker asks Ray Data for its own batches of an epoch: what is in
them is decided by `samples.Order`, so that no row is dropped to make shares even and all workers step together.
"""

import io
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from locray import cluster, storage
from locray.errors import LocrayError, UsageError
from locray.models import build_model
from locray.models.contract import LabelModel
from locray.progress import Progress, Report
from locray.training.board import Board
from locray.training.history import write_history
from locray.training.learner import Learner, LearnerSettings, TrainingStep
from locray.training.metrics import SCORE, Counts
from locray.training.plan import TrainPlan
from locray.training.precision import fastest_dtype
from locray.training.samples import OUTCOME_NAMES, OUTCOMES, BatchMaker

STATE_FILE = "state.pt"

_MAX_FAILURES = 2
_SECONDS_BETWEEN_POSTS = 2.0
_POLL_S = 0.5
# Without a GPU, training and data tasks share the processors. A worker that held whole slots would leave none to
# the tasks that it waits for.
_SLOTS_OF_CPU_WORKER = 0.01
_SLOTS_OF_DATA_TASK = 0.5


@dataclass(frozen=True)
class Fitted:
    """What a run came to: the averaged weights of its best epoch."""

    weights: dict[str, Tensor]
    best: dict[str, float]
    history: list[dict[str, float]]
    unusable: dict[str, int]


def fit(plan: TrainPlan, model: LabelModel, report: Report) -> Fitted:
    """Trains on Ray Train. A run with the same name and output that was cut off is taken up after its last epoch.

    Raises:
        UsageError: the training diverged.
        TrainingFailedError: the workers died more often than is forgiven.
    """
    start_ray(verbose=plan.verbose)
    import ray
    from ray import train
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    assert isinstance(model, torch.nn.Module)
    board = ray.remote(num_cpus=0)(Board).remote()
    use_gpu = ray.cluster_resources().get("GPU", 0) >= plan.num_workers  # type: ignore[no-untyped-call]
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"plan": plan, "weights": ray.put(model.state_dict()), "board": board},
        scaling_config=train.ScalingConfig(
            num_workers=plan.num_workers,
            use_gpu=use_gpu,
            resources_per_worker=None if use_gpu else {"CPU": _SLOTS_OF_CPU_WORKER},
        ),
        run_config=_run_config(plan),
    )
    with _progress(board, report):
        try:
            result = trainer.fit()
        except TrainingFailedError as error:
            raise _cause(error) from error
    assert result.best_checkpoints is not None
    checkpoint, best = max(result.best_checkpoints, key=lambda pair: pair[1][SCORE])
    state = _read_state(checkpoint)
    last = _read_state(result.checkpoint)
    return Fitted(state["learner"]["average"], best, last["history"], last["unusable"])


def start_ray(*, verbose: bool) -> None:
    """Connects to the cluster, or starts Ray on this machine, unless this process is connected already."""
    cluster.prepare_environment()
    import ray
    import ray.data
    import ray.train

    if not ray.is_initialized():
        ray.init(**cluster.init_arguments(verbose=verbose))
    if not verbose:
        cluster.quiet_loggers()


def _run_config(plan: TrainPlan) -> Any:
    from ray import train

    path, filesystem = plan.checkpoints_uri, None
    if storage.is_remote(path):
        path, filesystem = _s3_filesystem(path)
    return train.RunConfig(
        name=plan.run_name,
        storage_path=path,
        storage_filesystem=filesystem,
        failure_config=train.FailureConfig(max_failures=_MAX_FAILURES),
        checkpoint_config=train.CheckpointConfig(num_to_keep=1, checkpoint_score_attribute=SCORE),
    )


def _s3_filesystem(uri: str) -> tuple[str, Any]:
    """Path and file system as Ray Train takes them. Without credentials: every process finds its own."""
    from pyarrow.fs import S3FileSystem

    options = storage.delta_storage_options(uri) or {}
    filesystem = S3FileSystem(region=options["AWS_REGION"], endpoint_override=options.get("AWS_ENDPOINT_URL"))
    return uri.removeprefix("s3://"), filesystem


def _cause(error: Exception) -> Exception:
    """Our own error where that stopped the workers, else Ray's."""
    failures = getattr(error, "worker_failures", {}).values()
    for failure in failures:
        inner = getattr(failure, "cause", None) or failure
        if isinstance(inner, LocrayError):
            return inner
    return error


@contextmanager
def _progress(board: Any, report: Report) -> Iterator[None]:
    """Passes on what is on the board, from a thread: `fit` keeps the main one."""
    import ray

    stopped = threading.Event()

    def poll() -> None:
        shown: Progress | None = None
        last = False
        while not last:
            last = stopped.wait(_POLL_S)
            try:
                latest = ray.get(board.read.remote(), timeout=10)
            except ray.exceptions.GetTimeoutError:
                continue
            except ray.exceptions.RayError:
                return
            if latest is not None and latest != shown:
                report(latest)
                shown = latest

    report(Progress("starting workers"))
    thread = threading.Thread(target=poll, name="training-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _train_worker(config: dict[str, Any]) -> None:
    """What every worker does, from its first batch to its last."""
    import ray
    from ray import train
    from ray.train.torch import get_device, prepare_model

    plan: TrainPlan = config["plan"]
    context = train.get_context()
    device = get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // context.get_local_world_size()))
    model = build_model(plan.architecture, len(plan.classes), plan.input_size_px)
    assert isinstance(model, torch.nn.Module)
    model.load_state_dict(ray.get(config["weights"]))
    model.to(device).to(memory_format=torch.channels_last)
    step = prepare_model(TrainingStep(model))
    settings = LearnerSettings(plan.learning_rate, plan.weight_decay, plan.num_steps, fastest_dtype(device))
    run = _WorkerRun(plan, Learner(model, step, settings, device), config["board"], context.get_world_rank())
    checkpoint = train.get_checkpoint()
    first_epoch = run.resume(_read_state(checkpoint)) if checkpoint else 0
    for epoch in range(first_epoch, plan.epochs):
        run.epoch(epoch)


class _WorkerRun:
    """One worker's part of a run."""

    def __init__(self, plan: TrainPlan, learner: Learner, board: Any, rank: int) -> None:
        self._plan = plan
        self._learner = learner
        self._board = board
        self._rank = rank
        self._history: list[dict[str, float]] = []
        self._unusable: dict[str, int] = {}
        self._last_post = 0.0

    def resume(self, state: dict[str, Any]) -> int:
        """Takes up the state after an epoch; the next epoch."""
        self._learner.load_state(state["learner"])
        self._history, self._unusable = state["history"], state["unusable"]
        return len(self._history)

    def epoch(self, epoch: int) -> None:
        """Trains for an epoch, evaluates, and leaves a checkpoint."""
        # Dropout is the only thing that draws from here: a resumed epoch draws as an uninterrupted one.
        torch.manual_seed(hash((self._plan.seed, epoch, self._rank)) % 2**63)
        order, start = self._plan.train.order, time.monotonic()
        losses = torch.zeros(2, dtype=torch.float64)
        outcomes: Counter[int] = Counter()
        for step, batch in enumerate(_batches(self._plan.train, epoch, self._rank)):
            losses += torch.tensor([self._learner.train_on(batch, epoch * order.num_steps + step), 1])
            outcomes.update(batch[OUTCOMES].tolist())
            seen = (step + 1) * order.num_images // order.num_steps
            self._post(epoch, seen, float(losses[0] / losses[1]), seen / (time.monotonic() - start))
        images_per_s = order.num_images / (time.monotonic() - start)
        counts = Counts.zero()
        for batch in _batches(self._plan.val, epoch, self._rank):
            self._learner.evaluate_on(batch, counts)
        self._add_up(losses, counts.sums, outcomes)
        metrics = {"epoch": epoch + 1, "loss": float(losses[0] / losses[1]), **counts.metrics()}
        self._history.append({**metrics, "images_per_s": images_per_s})
        self._post(epoch, order.num_images, metrics["loss"], images_per_s, finished=True)
        self._leave_checkpoint(metrics)

    def _add_up(self, losses: Tensor, sums: Tensor, outcomes: Counter[int]) -> None:
        """Makes the sums those of all workers."""
        counted = torch.tensor([float(outcomes[index]) for index in range(len(OUTCOME_NAMES))], dtype=torch.float64)
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            device = next(self._learner.average.model.parameters()).device
            for part in (losses, sums, counted):
                shared = part.to(device)
                torch.distributed.all_reduce(shared)
                part.copy_(shared)
        self._unusable = {
            name: int(count) for name, count in zip(OUTCOME_NAMES[1:], counted[1:].tolist(), strict=True) if count
        }
        if not counted[0]:
            raise UsageError(f"not one training image could be used: {self._unusable}")

    def _post(self, epoch: int, seen: int, loss: float, images_per_s: float, *, finished: bool = False) -> None:
        """Tells how far the run is, each epoch and every few seconds; the first worker speaks for all."""
        now = time.monotonic()
        if self._rank or not (finished or now - self._last_post >= _SECONDS_BETWEEN_POSTS):
            return
        self._last_post = now
        facts: dict[str, int | float | str] = {"epoch": f"{epoch + 1}/{self._plan.epochs}", "loss": round(loss, 4)}
        if self._history:
            shown = ("class_accuracy", "mean_iou", "localization_accuracy")
            facts |= {name: round(self._history[-1][name], 4) for name in shown}
        facts["images_per_s"] = round(images_per_s, 1)
        num_images = self._plan.train.order.num_images
        self._board.post.remote(Progress("training", epoch * num_images + seen, self._plan.epochs * num_images, facts))

    def _leave_checkpoint(self, metrics: dict[str, float]) -> None:
        from ray import train

        if self._rank:
            train.report(metrics)
            return
        write_history(self._plan.output_uri, self._history)
        with tempfile.TemporaryDirectory() as folder:
            torch.save(
                {"learner": self._learner.state(), "history": self._history, "unusable": self._unusable},
                Path(folder) / STATE_FILE,
            )
            train.report(metrics, checkpoint=train.Checkpoint.from_directory(folder))


def _batches(maker: BatchMaker, epoch: int, worker: int) -> Iterator[dict[str, Tensor]]:
    """The batches of an epoch for one worker, in order, made by tasks of Ray Data wherever there is room."""
    import ray.data

    def make(block: dict[str, Any]) -> Any:
        torch.set_num_threads(1)
        return maker(epoch, int(block["id"][0]), worker)

    data_context = ray.data.DataContext.get_current()
    data_context.execution_options.preserve_order = True
    data_context.enable_progress_bars = False
    steps = maker.order.num_steps
    made = ray.data.range(steps, override_num_blocks=steps).map_batches(
        make, batch_size=None, num_cpus=_SLOTS_OF_DATA_TASK
    )
    yield from made.iter_torch_batches(batch_size=None, prefetch_batches=2, device="cpu")


def _read_state(checkpoint: Any) -> dict[str, Any]:
    """The state in a checkpoint; tensors and plain values only, no code."""
    with checkpoint.as_directory() as folder:
        data = (Path(folder) / STATE_FILE).read_bytes()
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return state
