"""The run on Ray Train: workers, their batches, stopping and progress. Called by `run`.

The only module of training that imports ray. Each worker asks Ray Data for its own batches: what is in them
is decided by `samples.Order`, so that no row is dropped to make shares even and all workers step together.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from locray import storage
from locray.errors import LocrayError, RunStoppedError, UsageError, WorkersFailedError
from locray.inference.precision import dtype_for
from locray.models.architectures import build_model
from locray.models.backbones import pretrained_stages
from locray.models.interface import LabelModel
from locray.progress import Progress, Report
from locray.ray_runtime.start import check_gpus, start_ray
from locray.training.board import Board
from locray.training.checkpoints import CheckpointStore, Latest, Place
from locray.training.determinism import repeat_exactly
from locray.training.feed import END, START, BatchActor, ExecutorThrottle, Feed, stand_back_here
from locray.training.history import best_of, is_over
from locray.training.learner import Learner, LearnerSettings
from locray.training.placement import placement
from locray.training.plan import TrainPlan
from locray.training.process_group import ProcessGroup
from locray.training.supervision import supervise
from locray.training.worker import WorkerRun

# Left alone, glibc gives the memory of each large tensor back to the system, and takes it page by page for the next.
_ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
_BYTES_AHEAD = 64 << 20
_MOST_BATCH_ACTORS = 8
_UNITS_AT_ONCE = 4096
_UNITS_READY = 2


@dataclass(frozen=True)
class Fitted:
    """What a run came to: the averaged weights of its best epoch, and the metrics of every epoch."""

    weights: dict[str, Tensor]
    history: list[dict[str, float]]
    unusable: dict[str, int]

    @property
    def best(self) -> dict[str, float]:
        """The metrics of the best epoch."""
        return best_of(self.history)


def fit(plan: TrainPlan, model: LabelModel, report: Report) -> Fitted:
    """Trains on Ray Train. A run with the same name and output that was cut off is taken up where it was saved last.

    Raises:
        UsageError: the training diverged, or not one image could be used.
        RunStoppedError: somebody asked the run to stop (SIGTERM, Ctrl-C); it is saved.
        WorkersFailedError: the workers died more often than is forgiven.
    """
    store = CheckpointStore(storage.join(plan.checkpoints_uri, plan.run_name))
    latest = store.latest()
    _tell_damaged(latest, report)
    if not _is_over(latest, plan):
        _run_workers(plan, model, store, latest, report)
        latest = store.latest()
    state = latest.state
    if state is None or not _is_over(latest, plan):
        raise RunStoppedError(
            f"the training was asked to stop, and is saved after {latest.place.epoch} of {plan.epochs} epochs and "
            f"{latest.place.step} steps of the next: run the same command again to go on"
        )
    return Fitted(state["best"]["weights"], state["history"], state["unusable"])


def _is_over(latest: Latest, plan: TrainPlan) -> bool:
    return latest.state is not None and is_over(latest.state["history"], plan.epochs, plan.patience)


def _tell_damaged(latest: Latest, report: Callable[[Progress], object], known: Sequence[str] = ()) -> None:
    for name in latest.damaged:
        if name not in known:
            going_on = f"going on from epoch {latest.place.epoch}" if latest.state else "beginning anew"
            report(Progress(f"the checkpoint {name} is damaged: {going_on}"))


def _run_workers(plan: TrainPlan, model: LabelModel, store: CheckpointStore, latest: Latest, report: Report) -> None:
    start_ray(verbose=plan.verbose)
    import ray
    from ray import train
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    assert isinstance(model, torch.nn.Module)
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    resources: list[dict[str, float]] = [node["Resources"] for node in nodes if node["Alive"]]
    check_gpus(plan.device, sum(node.get("GPU", 0) for node in resources))
    scaling = placement(plan, resources)
    on_gpus = scaling.get("use_gpu", False)
    report(Progress(f"training on {'GPUs' if on_gpus else 'processors'}"))
    config = {
        "plan": plan,
        "weights": ray.put(model.state_dict()),
        "store": store,
        "known_damaged": latest.damaged,
        "on_gpus": on_gpus,
    }
    # On the driver's node: a node that is lost must not take it along.
    board: Any = ray.remote(num_cpus=0, scheduling_strategy=_on_this_node())(Board).remote()
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config=config | {"board": board},
        scaling_config=train.ScalingConfig(**scaling),
        run_config=_run_config(plan),
    )
    try:
        notes = supervise(
            trainer.fit,
            read=lambda: ray.get(board.read.remote()),
            ask_to_stop=board.ask_to_stop.remote,
            report=report,
        )
    except TrainingFailedError as error:
        raise _cause(error, plan) from error
    if notes.failure is not None:
        raise UsageError(notes.failure)


def _run_config(plan: TrainPlan) -> Any:
    from ray import train

    path, filesystem = plan.checkpoints_uri, None
    if storage.is_remote(path):
        path, filesystem = _s3_filesystem(path)
    # As a dictionary: type checkers see the configuration of Ray Train's first version.
    options: dict[str, Any] = {
        "name": plan.run_name,
        "storage_path": path,
        "storage_filesystem": filesystem,
        "failure_config": train.FailureConfig(max_failures=plan.max_failures),
        "worker_runtime_env": {"env_vars": _ALLOCATOR},
    }
    return train.RunConfig(**options)


def _s3_filesystem(uri: str) -> tuple[str, Any]:
    """Path and file system as Ray Train takes them. Without credentials: every process finds its own."""
    from pyarrow.fs import S3FileSystem

    options = storage.delta_storage_options(uri) or {}
    filesystem = S3FileSystem(region=options["AWS_REGION"], endpoint_override=options.get("AWS_ENDPOINT_URL"))
    return uri.removeprefix("s3://"), filesystem


def _cause(error: Exception, plan: TrainPlan) -> LocrayError:
    """Our own error where that stopped the workers, else what is to be said of Ray's."""
    failures = list(getattr(error, "worker_failures", {}).values())
    for failure in failures:
        inner = getattr(failure, "cause", None) or failure
        if isinstance(inner, LocrayError):
            return inner
    last = str(failures[0] if failures else error).strip().splitlines()[-1]
    return WorkersFailedError(
        f"the training workers failed more than the {plan.max_failures} times that --max-failures forgives; the last "
        f"time: {last}. Run the same command again to go on from the last checkpoint, with --verbose to see more"
    )


def _train_worker(config: dict[str, Any]) -> None:
    """What every worker does, from its first batch to its last."""
    import ray
    from ray import train
    from ray.train.torch import get_device

    context = train.get_context()
    # Ray names the first GPU of a node also to a worker that holds none.
    device = get_device() if config["on_gpus"] else torch.device("cpu")
    if device.type == "cpu":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // context.get_local_world_size()))
    elif context.get_world_size() == 1:
        repeat_exactly()
    team = ProcessGroup(context.get_world_rank(), context.get_world_size(), device)
    plan: TrainPlan = config["plan"].for_workers(team.size)
    model = build_model(plan.architecture, len(plan.classes), plan.input_size_px)
    assert isinstance(model, torch.nn.Module)
    model.load_state_dict(ray.get(config["weights"]))
    model.to(device).to(memory_format=torch.channels_last)
    settings = LearnerSettings(plan.optimiser, plan.num_steps, plan.accumulate, dtype_for(plan.precision, device))
    stages = pretrained_stages(model) if plan.pretrained else []
    board, store = config["board"], config["store"]
    run = WorkerRun(
        plan,
        Learner(model, settings, device, stages, wrap=_wrapped),
        team,
        store,
        post=board.post.remote,
        fail=lambda message: ray.get(board.fail.remote(message)),
        is_to_stop=lambda: bool(ray.get(board.is_to_stop.remote())),
        epoch_done=train.report,
    )
    latest = store.latest()
    if team.is_first:
        _tell_damaged(latest, board.post.remote, known=config["known_damaged"])
    place = run.resume(latest)
    run.run(place, _batches(plan, place, team))


def _wrapped(module: torch.nn.Module) -> torch.nn.Module:
    """For several workers. Their statistics are shared by the learner: those of one alone would be sent around here."""
    from ray.train.torch import prepare_model

    wrapped: torch.nn.Module = prepare_model(module, parallel_strategy_kwargs={"broadcast_buffers": False})
    return wrapped


class _Feeder:
    """Runs Ray Data for one worker, in a process beside it.

    In the worker's own process the executor's threads hold Python's lock whenever the training wants to go on.
    """

    def units(self, feed: Feed, place: Place, *, stand_back: bool) -> Iterator[dict[str, Any]]:
        """The batches from a place to the end of the run, unit by unit; made while the network learns."""
        import ray.data

        if stand_back:
            stand_back_here()
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        # Batches made far ahead would take the processors from the training that they are for.
        ahead = ray.data.ExecutionResources(object_store_memory=_BYTES_AHEAD)
        context.execution_options.resource_limits = ahead
        context.custom_execution_callback_classes = [ExecutorThrottle]  # type: ignore[list-item]
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        units = feed.units(place)
        while some := list(islice(units, _UNITS_AT_ONCE)):
            blocks = [pa.table({START: [unit.start], END: [unit.stop]}) for unit in some]
            made = ray.data.from_arrow(blocks).map_batches(
                BatchActor,
                fn_constructor_args=(feed,),
                fn_constructor_kwargs={"stand_back": stand_back},
                batch_size=None,
                num_cpus=0,
                compute=ray.data.ActorPoolStrategy(size=_num_batch_actors(feed.plan.num_workers)),
            )
            yield from made.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1)


def _batches(plan: TrainPlan, place: Place, team: ProcessGroup) -> Iterator[dict[str, Tensor]]:
    """What the worker's feeder gives, as tensors; a few units wait ready-made."""
    import ray

    feeder: Any = ray.remote(num_cpus=0, scheduling_strategy=_on_this_node())(_Feeder).remote()
    feed = Feed(plan, team.rank)
    stream = feeder.units.options(num_returns="streaming", _generator_backpressure_num_objects=_UNITS_READY).remote(
        feed, place, stand_back=team.device.type == "cpu"
    )
    for unit, reference in zip(feed.units(place), stream, strict=True):
        for batch in feed.cut(ray.get(reference), unit):
            # Copied: what lies in the object store can't be written to, which torch wants to be able to.
            yield {name: torch.from_numpy(part.copy()) for name, part in batch.items()}


def _on_this_node() -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _num_batch_actors(num_workers: int) -> int:
    """For each worker its share of the processors, less one that feeds the device or is itself the device."""
    import ray

    num_cpus = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    return min(_MOST_BATCH_ACTORS, max(1, num_cpus // num_workers - 1))
