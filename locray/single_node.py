"""Ray Data on one machine, without the processes that a cluster needs. Called by `cluster` where it started Ray itself.

Ray Data 2.60 begins an execution with three actors, each a process that imports Ray Data anew: one keeps statistics
for a dashboard, which is off; one shares the cluster's nodes among jobs and asks an autoscaler for more; one knows
which actor is on which node. On two cores they take four seconds of a core at the moment at which a model is loaded,
and no task begins before the second one has answered. On a machine that one process has to itself, the answers are
known without them: see docs/decisions/ray.md.
"""

from typing import Any
from uuid import uuid4

from ray.data._internal.cluster_autoscaler import rate_based_cluster_autoscaler
from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import AutoscalingCoordinator
from ray.data._internal.execution.operators import actor_pool_map_operator
from ray.data._internal.stats import _StatsManager


def do_without_helpers() -> None:
    """Puts the known answers in the place of the three actors, for all executions of this process."""
    statistics: Any = _StatsManager
    for name in ("update_execution_metrics", "update_iteration_metrics", "register_dataset_to_stats_actor"):
        setattr(statistics, name, staticmethod(_nothing))
    statistics.gen_dataset_id_from_stats_actor = staticmethod(_dataset_id)
    autoscaler: Any = rate_based_cluster_autoscaler
    autoscaler.DefaultAutoscalingCoordinator = _WholeMachine
    actor_pools: Any = actor_pool_map_operator
    actor_pools.get_or_create_actor_location_tracker = _Nowhere
    actor_pools.get_actor_locations = _no_locations


def _nothing(*_: Any, **__: Any) -> None:
    """Statistics that nobody looks at."""


def _dataset_id() -> str:
    return uuid4().hex


def _no_locations(_: object) -> dict[str, str]:
    """Then what actors said of their place at their start counts."""
    return {}


class _WholeMachine(AutoscalingCoordinator):
    """Gives whoever asks all that the machine has, at once, and never more."""

    def __init__(self, **_: Any) -> None:
        import ray

        self._nodes: dict[str, dict[str, float]] = {
            node["NodeID"]: dict(node["Resources"])
            for node in ray.nodes()  # type: ignore[no-untyped-call]
        }

    def request_resources(self, *_: Any, **__: Any) -> None:
        """There is no more to be had."""

    def cancel_request(self) -> None:
        """Nothing was requested."""

    def get_reserved_resources(self) -> dict[str, dict[str, float]]:
        """Of each node."""
        return self._nodes


class _Nowhere:
    """Where an actor reports its place: nobody keeps it."""

    def __init__(self) -> None:
        self.update_actor_location = self

    def remote(self, *_: Any) -> None:
        """As of a method of an actor."""
