"""A run on Ray Train: workers, their batches, stopping and progress. The only module of training that imports Ray.

Each worker asks Ray Data for its own batches. `BatchOrder` decides what is in them, so that no row is dropped to make
shares equal, and all workers take the same number of steps.
"""

import logging
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from locray import storage
from locray.errors import LocrayError, RunStoppedError, UsageError, WorkersFailedError
from locray.inference.devices import KEEP_FREED_MEMORY_VARIABLES, find_gpu_problem
from locray.models.architectures import build_model
from locray.models.interface import LabelModel
from locray.progress import Progress, Report
from locray.ray_runtime.data import pause_between_steps
from locray.ray_runtime.nodes import alive_nodes, call_on_gpu, cpus_of_this_node
from locray.ray_runtime.start import check_gpus, start_local_actor, start_ray
from locray.training.checkpoints import CheckpointStore, Latest, Place, report_damaged
from locray.training.feed import END, START, BatchActor, Feed, use_idle_priority
from locray.training.history import best_of, is_over
from locray.training.learner import Learner, use_deterministic_algorithms
from locray.training.placement import BatchPool, scaling_options, small_batch_warning
from locray.training.plan import TrainPlan
from locray.training.process_group import ProcessGroup
from locray.training.supervision import ProgressActor, WorkerStatus, supervise
from locray.training.worker import WorkerRun

_log = logging.getLogger(__name__)

_PROBE_TIMEOUT_S = 60.0
_EXECUTOR_PAUSE_S = 0.02
_UNITS_PER_DATASET = 4096
_UNITS_AHEAD = 2


@dataclass(frozen=True)
class TrainedWeights:
    """Result of a run.

    Attributes:
        weights: Averaged weights of the best epoch.
        history: Metrics by epoch.
        unusable: Images and boxes that could not be used, by error code or reason.
    """

    weights: dict[str, Tensor]
    history: list[dict[str, float]]
    unusable: dict[str, int]

    @property
    def best(self) -> dict[str, float]:
        """Metrics of the best epoch."""
        return best_of(self.history)


def fit(plan: TrainPlan, model: LabelModel, report: Report) -> TrainedWeights:
    """Trains on Ray Train. Resumes a run with the same name and output from its latest checkpoint.

    Raises:
        UsageError: the training diverged, or with `--strict` an image or a box can't be used.
        RunStoppedError: the run was asked to stop (SIGTERM, Ctrl-C); it is saved.
        WorkersFailedError: workers failed more often than `--max-failures` tolerates.
    """
    store = CheckpointStore(storage.join(plan.checkpoints_uri, plan.run_name))
    latest = store.latest()
    report_damaged(latest, report)
    if not _is_over(latest, plan):
        _run_workers(plan, model, store, latest, report)
        latest = store.latest()
    state = latest.state
    if state is None or not _is_over(latest, plan):
        raise RunStoppedError(
            f"the training was asked to stop, and is saved after {latest.place.epoch} of {plan.config.epochs} epochs "
            f"and {latest.place.step} steps of the next: run the same command again to resume it"
        )
    return TrainedWeights(state["best"]["weights"], state["history"], state["unusable"])


def _is_over(latest: Latest, plan: TrainPlan) -> bool:
    return latest.state is not None and is_over(latest.state["history"], plan.config.epochs, plan.config.patience)


def _run_workers(plan: TrainPlan, model: LabelModel, store: CheckpointStore, latest: Latest, report: Report) -> None:
    start_ray(verbose=plan.config.verbose)
    import ray
    from ray import train
    from ray.train.torch import TorchTrainer

    assert isinstance(model, torch.nn.Module)
    resources = alive_nodes()
    check_gpus(plan.config.device, sum(node.get("GPU", 0) for node in resources))
    scaling = scaling_options(plan.config, resources)
    on_gpus = scaling.get("use_gpu", False)
    if on_gpus:
        _check_gpu()
    report(Progress(f"training on {'GPUs' if on_gpus else 'processors'}"))
    warning = small_batch_warning(plan.config.batch_size, plan.config.workers) if on_gpus else None
    if warning is not None:
        _log.warning(warning)
    config = {
        "plan": plan,
        "weights": ray.put(model.state_dict()),
        "store": store,
        "known_damaged": latest.damaged,
        "on_gpus": on_gpus,
    }
    # On the driver's node: the loss of another node must not end it.
    actor = start_local_actor(ProgressActor)
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config=config | {"progress_actor": actor},
        scaling_config=train.ScalingConfig(**scaling),
        run_config=_run_config(plan),
    )
    try:
        status: WorkerStatus = supervise(
            trainer.fit,
            read_status=lambda: ray.get(actor.status.remote()),
            request_stop=actor.request_stop.remote,
            report=report,
        )
    except train.TrainingFailedError as error:
        raise _cause(error, plan) from error
    if status.failure is not None:
        raise UsageError(status.failure)


def _check_gpu() -> None:
    """Checks that PyTorch can use a GPU that Ray gives. Does nothing while no GPU is free: one may still come.

    Raises:
        UsageError: it can't. Ray Train would start its workers again and again.
    """
    node, problem = call_on_gpu(find_gpu_problem, _PROBE_TIMEOUT_S) or ("", None)
    if problem is not None:
        raise UsageError(
            f"Ray gave a GPU on the node {node}, but PyTorch can't use it: {problem}. Repair the node's driver "
            "(`nvidia-smi` there) or install a PyTorch for it, or use --device cpu to train on processors"
        )


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
        "failure_config": train.FailureConfig(max_failures=plan.config.max_failures),
        "worker_runtime_env": {"env_vars": KEEP_FREED_MEMORY_VARIABLES},
    }
    return train.RunConfig(**options)


def _s3_filesystem(uri: str) -> tuple[str, Any]:
    """Path and file system as Ray Train takes them. Without credentials: every process finds its own."""
    from pyarrow.fs import S3FileSystem

    options = storage.delta_storage_options(uri) or {}
    filesystem = S3FileSystem(region=options["AWS_REGION"], endpoint_override=options.get("AWS_ENDPOINT_URL"))
    return uri.removeprefix("s3://"), filesystem


def _cause(error: Exception, plan: TrainPlan) -> LocrayError:
    """The error of ours that stopped the workers, or one that describes Ray's."""
    failures = list(getattr(error, "worker_failures", {}).values())
    for failure in failures:
        inner = getattr(failure, "cause", None) or failure
        if isinstance(inner, LocrayError):
            return inner
    last = str(failures[0] if failures else error).strip().splitlines()[-1]
    return WorkersFailedError(
        f"the training workers failed more than the {plan.config.max_failures} times that --max-failures tolerates; "
        f"the last failure: {last}. Run the same command again to resume from the last checkpoint; "
        "--log-level debug shows more"
    )


def _train_worker(config: dict[str, Any]) -> None:
    """The main function of a worker."""
    import ray
    from ray import train
    from ray.train.torch import get_device

    context = train.get_context()
    # Ray returns the first GPU of a node also to a worker that holds none.
    device = get_device() if config["on_gpus"] else torch.device("cpu")
    if device.type == "cpu":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // context.get_local_world_size()))
    elif config["plan"].config.deterministic:
        use_deterministic_algorithms()
    else:
        torch.backends.cudnn.benchmark = True
    group = ProcessGroup(context.get_world_rank(), context.get_world_size(), device)
    plan: TrainPlan = config["plan"].for_workers(group.size)
    model = build_model(plan.config.model, len(plan.classes), plan.input_size_px)
    assert isinstance(model, torch.nn.Module)
    model.load_state_dict(ray.get(config["weights"]))
    model.to(device).to(memory_format=torch.channels_last)
    actor, store = config["progress_actor"], config["store"]
    pretrained = plan.config.weights is not None
    run = WorkerRun(
        plan,
        Learner(model, plan.config, plan.num_steps, device, pretrained=pretrained, wrap=_distributed),
        group,
        store,
        report=actor.post.remote,
        fail=lambda message: ray.get(actor.fail.remote(message)),
        stop_requested=lambda: bool(ray.get(actor.stop_requested.remote())),
        end_epoch=train.report,
    )
    latest = store.latest()
    if group.is_first:
        report_damaged(latest, actor.post.remote, known=config["known_damaged"])
    place = run.resume(latest)
    run.run(place, _batches(plan, place, group))


def _distributed(module: torch.nn.Module) -> torch.nn.Module:
    """Wraps a network for several workers. Running statistics are left to the learner, which averages them."""
    from ray.train.torch import prepare_model

    wrapped: torch.nn.Module = prepare_model(module, parallel_strategy_kwargs={"broadcast_buffers": False})
    return wrapped


class _Feeder:
    """Ray actor that runs Ray Data for one worker.

    In the worker's own process, the executor's threads would hold the interpreter's lock.
    """

    def __init__(self, feed: Feed, place: Place, pool: BatchPool) -> None:
        self._units = self._make_units(feed, place, pool)

    def next_unit(self) -> dict[str, Any]:
        """The batches of the next unit."""
        return next(self._units)

    def _make_units(self, feed: Feed, place: Place, pool: BatchPool) -> Iterator[dict[str, Any]]:
        import ray.data

        if pool.idle_priority:
            use_idle_priority()
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        # Making batches far ahead would take processor time from the training.
        limits = ray.data.ExecutionResources(object_store_memory=pool.bytes_ahead(feed.unit_bytes))
        context.execution_options.resource_limits = limits
        pause_between_steps(_EXECUTOR_PAUSE_S)
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        units = feed.units(place)
        while part := list(islice(units, _UNITS_PER_DATASET)):
            blocks = [pa.table({START: [unit.start], END: [unit.stop]}) for unit in part]
            # Unlike `from_arrow`, it runs no tasks, for which the actors may have left no CPU slot.
            made = ray.data.from_blocks(blocks).map_batches(
                BatchActor,
                fn_constructor_args=(feed,),
                fn_constructor_kwargs={"idle_priority": pool.idle_priority},
                batch_size=None,
                compute=ray.data.ActorPoolStrategy(size=pool.num_actors),
                num_cpus=pool.cpus_per_actor,
            )
            yield from made.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1)


def _batches(plan: TrainPlan, place: Place, group: ProcessGroup) -> Iterator[dict[str, Tensor]]:
    """The batches of a worker as tensors. A few units are made ahead."""
    import ray
    from ray import train

    feed = Feed(plan, group.rank)
    num_on_node = train.get_context().get_local_world_size()
    pool = BatchPool.for_worker(cpus_of_this_node(), num_on_node, on_gpu=group.device.type != "cpu")
    feeder = start_local_actor(_Feeder, feed, place, pool)
    to_request = feed.units(place)
    requested = deque(feeder.next_unit.remote() for _ in islice(to_request, _UNITS_AHEAD))
    for unit in feed.units(place):
        requested.extend(feeder.next_unit.remote() for _ in islice(to_request, 1))
        for batch in feed.split(ray.get(requested.popleft()), unit):
            # Copied, because torch wants writable memory, which the object store is not.
            yield {name: torch.from_numpy(part.copy()) for name, part in batch.items()}
