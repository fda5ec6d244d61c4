"""A check on every node of a cluster, before a run writes anything."""

import logging
import pickle
from collections.abc import Callable
from typing import Any

from locray.errors import UsageError
from locray.ray_runtime.connection import is_attached
from locray.ray_runtime.start import start_ray

_TIMEOUT_S = 60.0
_WHOSE = "Workers use the environment and the disks of their node, not those of this command"

_log = logging.getLogger(__name__)


def check_nodes(check: Callable[[], object], *, verbose: bool) -> None:
    """Calls a function once on every node that can work. Does nothing where Ray runs on this machine alone.

    Connects to the cluster. Nodes that have neither CPUs nor GPUs to offer are left out, and so are those that don't
    answer within a minute: they may be leaving.

    Args:
        check: Has no arguments, can be pickled, and raises where something is missing.
        verbose: Whether Ray shows its own messages.

    Raises:
        UsageError: the cluster can't be reached, locray is not installed on a node, or the check failed on one.
    """
    if not is_attached():
        return
    start_ray(verbose=verbose)
    import ray
    from ray.exceptions import RayError

    nodes = {node["NodeID"]: node for node in ray.nodes() if is_worker(node)}  # type: ignore[no-untyped-call]
    waiting = {_run_on(node_id, check): node for node_id, node in nodes.items()}
    done, late = ray.wait(list(waiting), num_returns=len(waiting), timeout=_TIMEOUT_S) if waiting else ([], [])
    problems = {}
    for result in done:
        try:
            problem = ray.get(result)
        except RayError as error:  # the node has left
            _log.warning(f"the node {node_name(waiting[result])} could not be checked: {type(error).__name__}")
            continue
        if problem is not None:
            problems[node_name(waiting[result])] = problem
    for result in late:
        _log.warning(f"the node {node_name(waiting[result])} has not answered for {_TIMEOUT_S:.0f} s")
    if problems:
        raise UsageError(describe_problems(problems))


def describe_problems(problems: dict[str, str]) -> str:
    """One message for the problems of some nodes, by the nodes' names."""
    name, problem = min(problems.items())
    others = len(problems) - 1
    also = f" ({others} other node{'s' if others > 1 else ''} failed the check, too)" if others else ""
    return f"on the cluster's node {name}{also}: {problem}"


def is_worker(node: dict[str, Any]) -> bool:
    """Whether a node of `ray.nodes()` is alive and can run tasks."""
    return bool(node["Alive"] and (node["Resources"].get("CPU") or node["Resources"].get("GPU")))


def node_name(node: dict[str, Any]) -> str:
    """Address and host name of a node of `ray.nodes()`."""
    return f"{node['NodeManagerAddress']} ({node['NodeManagerHostname']})"


def _run_on(node_id: str, check: Callable[[], object]) -> Any:
    """Starts the check on a node. Its result is what is wrong there, or None."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    pickled, whose = pickle.dumps(check), _WHOSE

    # Nested, so that Ray pickles its code: the node may lack locray.
    def run() -> str | None:
        try:
            call = pickle.loads(pickled)  # noqa: S301 (made above)
        except ImportError as error:
            return f"locray can't be imported there ({error}). Install it on every node, or submit with --upload"
        try:
            call()
        except Exception as error:  # noqa: BLE001 - whatever it is, the driver has to hear of it
            return f"{str(error).rstrip('.')}. {whose}"
        return None

    there: Any = NodeAffinitySchedulingStrategy(node_id, soft=False)
    make_remote: Any = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)
    return make_remote(run).remote()
