"""The run on Ray Train: workers, their batches, checkpoints and progress. Called by `run`.

The only module of training that imports ray. Each worker asks Ray Data for its own batches: what is in them
is decided by `samples.Order`, so that no row is dropped to make shares even and all workers step together.
"""

import io
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from locray import cluster, storage
from locray.errors import LocrayError
from locray.models import build_model
from locray.models.contract import LabelModel
from locray.progress import Progress, Report
from locray.training.board import Board
from locray.training.history import write_history
from locray.training.learner import Learner, LearnerSettings, TrainingStep
from locray.training.metrics import SCORE
from locray.training.plan import TrainPlan
from locray.training.precision import fastest_dtype
from locray.training.worker import WorkerRun

STATE_FILE = "state.pt"

_MAX_FAILURES = 2
_POLL_S = 0.5
_BYTES_AHEAD = 64 << 20
_SECONDS_BETWEEN_STEPS = 0.02
# Without a GPU, training and the making of batches share the processors. A worker that held whole slots would leave
# none to what it waits for.
_SLOTS_OF_CPU_WORKER = 0.01
_MOST_BATCH_ACTORS = 8
_UNITS_AT_ONCE = 4096


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
    cluster.start_ray(verbose=plan.verbose)
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
    settings = LearnerSettings(
        plan.learning_rate, plan.weight_decay, plan.pretrained, plan.num_steps, fastest_dtype(device)
    )
    run = WorkerRun(
        plan,
        Learner(model, step, settings, device),
        context.get_world_rank(),
        post=config["board"].post.remote,
        leave=partial(_leave_checkpoint, plan),
    )
    checkpoint = train.get_checkpoint()
    first_epoch = run.resume(_read_state(checkpoint)) if checkpoint else 0
    batches = _batches(plan, first_epoch, context.get_world_rank())
    for epoch in range(first_epoch, plan.epochs):
        run.epoch(epoch, batches)


def _leave_checkpoint(plan: TrainPlan, metrics: dict[str, float], state: dict[str, Any] | None) -> None:
    """Reports an epoch; all workers meet here. The first one brings the state."""
    from ray import train

    if state is None:
        train.report(metrics)
        return
    write_history(plan.output_uri, state["history"])
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder) / STATE_FILE)
        train.report(metrics, checkpoint=train.Checkpoint.from_directory(folder))


class _BatchActor:
    """Makes batches in a process that stays.

    A task's process is ended as soon as it has to wait, and the next one spends seconds on importing torch.
    """

    def __init__(self, plan: TrainPlan, worker: int) -> None:
        torch.set_num_threads(1)
        self._plan = plan
        self._worker = worker

    def __call__(self, block: dict[str, Any]) -> Any:
        """The batch of one unit: an epoch's steps of training, then those of validation, then the next epoch's."""
        train, val = self._plan.train, self._plan.val
        epoch, step = divmod(int(block["id"][0]), train.order.num_steps + val.order.num_steps)
        if step < train.order.num_steps:
            return train(epoch, step, self._worker)
        return val(epoch, step - train.order.num_steps, self._worker)


class _Breather:
    """Lets the executor of Ray Data sleep between its steps.

    With enough batches made, no task is under way, and Ray 2.60's executor then turns without waiting: its thread took
    half of the processor of the training that it runs beside. This is an `ExecutionCallback`.
    """

    def before_execution_starts(self, executor: Any) -> None:
        """Nothing to do."""

    def on_execution_step(self, executor: Any) -> None:  # noqa: ARG002
        """Sleeps."""
        time.sleep(_SECONDS_BETWEEN_STEPS)

    def after_execution_succeeds(self, executor: Any) -> None:
        """Nothing to do."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Nothing to do."""


def _batches(plan: TrainPlan, first_epoch: int, worker: int) -> Iterator[dict[str, Tensor]]:
    """The batches of one worker from an epoch to the end of the run, in order; made while the network learns."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    # Batches made far ahead would take the processors from the training that they are for.
    ahead = ray.data.ExecutionResources(object_store_memory=_BYTES_AHEAD)
    context.execution_options.resource_limits = ahead
    context.custom_execution_callback_classes = [_Breather]  # type: ignore[list-item]
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    units_an_epoch = plan.train.order.num_steps + plan.val.order.num_steps
    epochs_at_once = max(1, _UNITS_AT_ONCE // units_an_epoch)
    for epoch in range(first_epoch, plan.epochs, epochs_at_once):
        first, end = (units_an_epoch * at for at in (epoch, min(plan.epochs, epoch + epochs_at_once)))
        units = [pa.table({"id": [unit]}) for unit in range(first, end)]
        made = ray.data.from_arrow(units).map_batches(
            _BatchActor,
            fn_constructor_args=(plan, worker),
            batch_size=None,
            num_cpus=0,
            compute=ray.data.ActorPoolStrategy(size=_num_batch_actors(plan.num_workers)),
        )
        yield from made.iter_torch_batches(batch_size=None, prefetch_batches=2, device="cpu")


def _num_batch_actors(num_workers: int) -> int:
    """For each worker its share of the processors, less one that feeds the device or is itself the device."""
    import ray

    num_cpus = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    return min(_MOST_BATCH_ACTORS, max(1, num_cpus // num_workers - 1))


def _read_state(checkpoint: Any) -> dict[str, Any]:
    """The state in a checkpoint; tensors and plain values only, no code."""
    with checkpoint.as_directory() as folder:
        data = (Path(folder) / STATE_FILE).read_bytes()
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return state
