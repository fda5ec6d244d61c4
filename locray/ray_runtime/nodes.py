"""The nodes of the cluster, and what its autoscaler may still start."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import yaml

from locray.ray_runtime.connection import is_attached

_LAUNCHER_CONFIG = Path("~/ray_bootstrap_config.yaml")
"""Where Ray's cluster launcher puts the configuration of the autoscaler, on the head."""

Result = TypeVar("Result")


def alive_nodes() -> list[dict[str, float]]:
    """Resources of each node that is alive, by name."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if node["Alive"]]


def free_resources() -> dict[str, float]:
    """What all nodes together have left, by name of the resource."""
    import ray

    return dict(ray.available_resources())  # type: ignore[no-untyped-call]


def max_gpus() -> int | None:
    """Number of GPUs that the cluster may grow to; None if it is unknown.

    Some autoscalers report their limits to Ray. That of Ray's cluster launcher does not; its configuration is a file on
    the head, where a submitted job runs. A cluster without an autoscaler has what it has, but nothing says so.
    """
    return _max_resource("GPU")


def max_cpus() -> int | None:
    """Number of CPUs that the cluster may grow to; None if it is unknown."""
    return _max_resource("CPU")


def _max_resource(name: str) -> int | None:
    if not is_attached():
        return int(sum(node.get(name, 0) for node in alive_nodes()))
    limits = _reported_limits()
    if limits is None:
        limits = _launcher_limits()
    return None if limits is None else int(limits.get(name, 0))


def _reported_limits() -> dict[str, float] | None:
    """Maximum of each resource as the autoscaler has reported it. Ray has no public way to ask."""
    try:
        from ray._private.state import state

        return state.get_max_resources_from_cluster_config()  # type: ignore[return-value]
    except (ImportError, AttributeError):
        return None


def _launcher_limits() -> dict[str, float] | None:
    """Maximum of each resource by the cluster launcher's configuration on this machine."""
    with suppress(OSError, yaml.YAMLError, AttributeError, TypeError):
        config = yaml.safe_load(_LAUNCHER_CONFIG.expanduser().read_text(encoding="utf-8"))
        num_workers = config.get("max_workers", 2)
        total: dict[str, float] = {}
        for name, kind in config["available_node_types"].items():
            is_head = name == config.get("head_node_type")
            num_nodes = 1 if is_head else min(kind.get("max_workers", num_workers), num_workers)
            for resource, count in kind.get("resources", {}).items():
                total[resource] = total.get(resource, 0) + num_nodes * count
        return total
    return None


def cpus_of_this_node() -> int:
    """Number of processors that a worker's node offers: Ray's count of them, or fewer if the process may use fewer."""
    declared = int(_resources_of_this_node().get("CPU", 0))
    usable = len(os.sched_getaffinity(0))
    return max(1, min(usable, declared or usable))


def gpus_of_this_node() -> int:
    """Number of GPUs of a worker's node, as Ray counts them; at least 1."""
    return max(1, int(_resources_of_this_node().get("GPU", 0)))


def _resources_of_this_node() -> dict[str, float]:
    import ray

    node_id = ray.get_runtime_context().get_node_id()
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return next((node["Resources"] for node in nodes if node["NodeID"] == node_id), {})


def call_on_gpu(function: Callable[[], Result], timeout_s: float) -> tuple[str, Result] | None:
    """Calls a function in a worker that has a part of a GPU.

    Returns:
        The name of the worker's node, and the result. None if there was no free GPU in time.
    """
    import ray

    def with_node() -> tuple[str, Result]:
        return os.uname().nodename, function()

    task: Any = ray.remote(num_cpus=0, num_gpus=0.01, max_retries=1)(with_node)
    reference = task.remote()
    try:
        result: tuple[str, Result] = ray.get(reference, timeout=timeout_s)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(reference, force=True)
        return None
    return result
