"""Starts, connects to and stops Ray, and filters its output on the terminal."""

import logging
import os
import re
import secrets
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from locray.errors import UsageError
from locray.ray_runtime.connection import auth_token, check_cluster, explain_refusal, is_attached
from locray.ray_runtime.quiet import log_messages, quiet_loggers, quiet_stderr

_ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    # Ray stops idle workers beyond one per CPU after a second. Actors without a CPU slot count too, so on a small
    # machine every task of ours would start a process and import everything again.
    "RAY_num_workers_soft_limit": "64",
    # By default Ray gives its workers the priority of background jobs. Everything else on the machine would interrupt
    # a network in training, including the processes that make its batches and should run in its gaps.
    "RAY_worker_niceness": "0",
    # For its usage report, Ray Data asks a Prometheus server on this machine for counters. Where there is none, its
    # thread may write a traceback to the terminal when the process ends.
    "RAY_DATA_USAGE_DISABLED": "1",
}
"""Read by Ray when it is imported and started. Values set by the user take precedence."""

_SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|PRIVATE_KEY|API_KEY|ACCOUNT_KEY", re.IGNORECASE)
_NO_SECRET = re.compile(r"_(FILE|PATH|DIR|URI|URL|NAME|ARN)$|TOKENIZERS", re.IGNORECASE)

_log = logging.getLogger(__name__)

_started_by_us = False


def start_ray(*, verbose: bool) -> None:
    """Attaches to the cluster, or starts Ray on this machine, unless this process is connected already.

    Raises:
        UsageError: the cluster can't be reached, refuses the token, or runs other versions.
    """
    global _started_by_us  # noqa: PLW0603
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if not ray.is_initialized():
        check_cluster()
        if not is_attached() and auth_token(is_found_by_ray=True) is None:
            # Ray would make one and write it to the home folder, which may be read-only.
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        # ray.init mostly waits for its processes: import the libraries meanwhile.
        importing = threading.Thread(target=_import_libraries)
        importing.start()
        with _keep_handler(signal.SIGTERM):
            _connect(verbose=verbose)
        _started_by_us = True
        importing.join()
    _import_libraries()
    if not verbose:
        quiet_loggers()
        quiet_stderr()
    log_messages(verbose=verbose)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = verbose
    context.print_on_execution_start = verbose


def stop_ray() -> None:
    """Stops Ray or detaches from it, if `start_ray` has started or attached it. For commands that succeeded.

    At the end of the process, Ray would sleep for half a second first. Commands that failed leave it to that: an
    execution of Ray Data may still be running. Errors are ignored, since the command is done.
    """
    if _started_by_us:
        import ray

        with suppress(Exception, KeyboardInterrupt):
            ray.shutdown()


def check_gpus(device: str, num_gpus: float) -> None:
    """Checks that GPUs are there, or may still come, if the network is to run on them.

    Args:
        device: Value of `--device`.
        num_gpus: Number of GPUs that Ray has.

    Raises:
        UsageError: `device` is gpu, Ray runs on this machine alone and finds none.
    """
    if device == "gpu" and not num_gpus and not is_attached():
        raise UsageError(
            "--device gpu: Ray finds no GPU on this machine (`nvidia-smi` shows what the system finds). If a cluster "
            "has some, set RAY_ADDRESS to it, or submit the job to it"
        )


def start_local_actor(cls: type, *arguments: Any, **named_arguments: Any) -> Any:
    """Starts an actor without a CPU slot on the caller's node, so that the loss of another node can't stop it.

    Returns:
        Its handle. The actor ends when no handle is left.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    make_remote: Any = ray.remote(num_cpus=0, scheduling_strategy=here)
    return make_remote(cls).remote(*arguments, **named_arguments)


def _import_libraries() -> None:
    import ray.data
    import ray.train  # noqa: F401 (sets up its loggers)


@contextmanager
def _keep_handler(number: signal.Signals) -> Iterator[None]:
    """Restores the signal's handler at the end: `ray.init` makes SIGTERM end the process with exit code 15."""
    before = signal.getsignal(number)
    yield
    if before is not signal.SIG_DFL and threading.current_thread() is threading.main_thread():
        signal.signal(number, before)


def _connect(*, verbose: bool) -> None:
    """Calls `ray.init`, and warns of secrets that the job carries."""
    import ray
    from ray.exceptions import RayError

    try:
        ray.init(**_init_arguments(verbose=verbose))
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        if not is_attached():
            raise
        raise explain_refusal(error) from error
    held = secret_names(ray.get_runtime_context().runtime_env.get("env_vars") or {})
    if held:
        _log.warning(
            f"the job's runtime environment holds {', '.join(held)}, which everyone who reaches the cluster's "
            "dashboard can read. Set them in the environment of the nodes, or use instance roles"
        )


def secret_names(variables: Iterable[str]) -> list[str]:
    """Those environment variables whose names say that they hold secrets."""
    return sorted(name for name in variables if _SECRET.search(name) and not _NO_SECRET.search(name))


def _init_arguments(*, verbose: bool) -> dict[str, Any]:
    """Arguments for `ray.init`.

    Attaches to a running cluster only if RAY_ADDRESS is set, as it is in a submitted job; a bare `ray.init()` would
    attach to any cluster that it finds on the machine.
    """
    arguments: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
    }
    if not is_attached():
        arguments |= {"address": "local", "include_dashboard": False}
    return arguments
