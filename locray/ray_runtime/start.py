"""How to reach Ray, and to keep it quiet. Called by training/loop.py and labelling/pipeline.py."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from locray.errors import UsageError

_log = logging.getLogger(__name__)

_ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    # Ray ends idle workers beyond one a CPU after a second. Actors that take no CPU slot count too, so that on a
    # small machine every task of ours would start a process and import everything anew.
    "RAY_num_workers_soft_limit": "64",
    # Ray gives its workers the priority of background jobs, at which everything else on the machine interrupts a
    # network in training, also the making of its batches, which is to fill its gaps.
    "RAY_worker_niceness": "0",
    # Ray Data asks a Prometheus on this machine for counters, to report how it is used; where there is none, a thread
    # may write a traceback to the terminal of a command that ends.
    "RAY_DATA_USAGE_DISABLED": "1",
}
"""What Ray reads when it is imported and started. What the user has set stays."""

_HARMLESS = (
    # Of every pool of actors: https://github.com/ray-project/ray/issues/53727
    b"has constructor arguments in the object store and max_restarts > 0",
    # A process for each small actor is what training and labelling are made of.
    b"PYTHON worker processes have been started on node",
    # Of a pool of actors that is shut down at the end of an execution.
    b"The actor is dead because it was killed by `ray.kill`",
)
_MAP_WHOLE_BLOCKS = ("map_batches_internal", "_map_batches_without_batch_size_validation")
"""What `Dataset.map_batches` without its check of the batch size is called, the newest name first."""

_stderr_is_quiet = False
_is_ours = False
"""Whether this process has started or reached Ray here, and nobody before."""


def start_ray(*, verbose: bool) -> None:
    """Connects to the cluster, or starts Ray on this machine, unless this process is connected already."""
    global _is_ours  # noqa: PLW0603
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if not ray.is_initialized():
        # Ray waits for its processes most of the time that it takes to start.
        importing = threading.Thread(target=_import_libraries)
        importing.start()
        with _handler_kept(signal.SIGTERM):
            ray.init(**_init_arguments(verbose=verbose))
        _is_ours = True
        importing.join()
    _import_libraries()
    if not verbose:
        _quiet_loggers()
        _quiet_stderr()
    _log_messages(verbose=verbose)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = verbose
    context.print_on_execution_start = verbose


def stop_ray() -> None:
    """Stops or leaves Ray, where `start_ray` has started or reached it. For a command that has come through.

    Left to the end of the process, Ray sleeps for half a second first. What ends with an error leaves it there: an
    execution of Ray Data may be under way still. Nothing that happens here changes what came of the command.
    """
    if _is_ours:
        import ray

        with suppress(Exception, KeyboardInterrupt):
            ray.shutdown()


def map_blocks(dataset: Any, fn: Any, *, max_rows_per_block: int, **options: Any) -> Any:
    """`Dataset.map_batches` over whole blocks, also with GPUs, for which the public call wants a number of rows.

    Where Ray lacks the internal call, blocks of `max_rows_per_block` rows still come alone; `fn` may get smaller ones
    joined with others, and columns that one of them lacks filled with nulls.
    """
    for name in _MAP_WHOLE_BLOCKS:
        map_batches = getattr(dataset, name, None)
        if map_batches is not None:
            return map_batches(fn, batch_size=None, zero_copy_batch=True, **options)
    batch_size = max_rows_per_block if options.get("num_gpus") else None
    return dataset.map_batches(fn, batch_size=batch_size, zero_copy_batch=True, **options)


def _import_libraries() -> None:
    import ray.data
    import ray.train  # noqa: F401 (its loggers are there afterwards)


def check_gpus(device: str, num_gpus: float) -> None:
    """Refuses to wait for GPUs that can't come.

    Args:
        device: What is to run the network.
        num_gpus: How many Ray has.

    Raises:
        UsageError: `device` is gpu, and Ray runs on this machine alone, where it finds none.
    """
    if device == "gpu" and not num_gpus and "RAY_ADDRESS" not in os.environ:
        raise UsageError(
            "--device gpu: Ray finds no GPU on this machine (`nvidia-smi` says what the system finds). Where a cluster "
            "has some, name it in RAY_ADDRESS, or submit the job to it"
        )


@contextmanager
def _handler_kept(number: signal.Signals) -> Iterator[None]:
    """Leaves a signal to whom it was left before: Ray makes SIGTERM the end of the process, with exit code 15."""
    before = signal.getsignal(number)
    yield
    if before is not signal.SIG_DFL and threading.current_thread() is threading.main_thread():
        signal.signal(number, before)


def _init_arguments(*, verbose: bool) -> dict[str, Any]:
    """Arguments for `ray.init`.

    Attaches to a running cluster only where RAY_ADDRESS says so, as it does inside a submitted job; a bare
    `ray.init()` would attach to whatever cluster it finds on the machine.
    """
    arguments: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
    }
    if "RAY_ADDRESS" not in os.environ:
        arguments |= {"address": "local", "include_dashboard": False}
    return arguments


def _quiet_loggers() -> None:
    """Lets only errors of Ray's libraries through to the terminal; their log files stay whole.

    Each library sets up its logger when it is imported, so this comes after.
    """
    for name in ("ray", "ray.data", "ray.train"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setLevel(logging.ERROR)
                handler.addFilter(_is_not_raised)


def _is_not_raised(record: logging.LogRecord) -> bool:
    """Ray Data writes down, traceback and all, what it then raises: whoever catches it tells it once."""
    return not (record.name.startswith("ray.data") and (record.exc_info or record.name.endswith("exceptions")))


def _log_messages(*, verbose: bool) -> None:
    """Logs what Ray's nodes and workers tell the driver; unless `verbose`, drops what concerns no user.

    Ray prints it to stdout, which is for the command's result, and knows no setting against that. What a node says
    again and again, such as that it finds no space, is said once.
    """
    from ray._private import worker

    last = ""

    def pass_on(data: dict[str, Any], **_: Any) -> None:
        nonlocal last
        if verbose:
            for line in data["lines"]:
                _log.debug("(%s, pid %s) %s", data.get("actor_name") or data.get("task_name"), data.get("pid"), line)
            return
        for message in map(_without_traceback, data["lines"]):
            if message != last and not any(harmless in message.encode() for harmless in _HARMLESS):
                _log.warning(message)
                last = message

    worker.print_to_stdstream = pass_on  # type: ignore[assignment]


def _without_traceback(message: str) -> str:
    """Of a traceback through Ray's own processes, the last line."""
    return message.strip().rsplit("\n", 1)[-1] if message.startswith("Traceback") else message


def _quiet_stderr() -> None:
    """Drops the lines that Ray's C++ core writes to this process's stderr although they concern no user.

    The core writes to file descriptor 2 itself, so the descriptor becomes a pipe that a thread reads and logs;
    Python's own stderr keeps the terminal. Everything but the known lines comes through. A stderr that
    something else has replaced, such as a notebook, is left alone.
    """
    global _stderr_is_quiet  # noqa: PLW0603
    stderr = sys.__stderr__
    if _stderr_is_quiet or stderr is None or sys.stderr is not stderr:
        return
    _stderr_is_quiet = True
    stderr.flush()
    terminal = os.dup(2)
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    sys.stderr = os.fdopen(terminal, "w", buffering=1, encoding="utf-8", errors="backslashreplace")

    def pass_on() -> None:
        with os.fdopen(reading, "rb") as lines:
            for line in lines:
                if line.strip() and not any(harmless in line for harmless in _HARMLESS):
                    _log.warning(line.decode(errors="replace").rstrip())

    threading.Thread(target=pass_on, name="stderr-filter", daemon=True).start()
