"""Ray's own start and end on one machine, without what only a cluster needs. Called by `cluster` where it starts Ray.

Ray 2.60 starts a monitor, which would ask an autoscaler for nodes; it imports all that an autoscaler needs, and doesn't
end within the second that it has for that at the end of Ray. And while a node starts, `ray.init` looks once a second
whether it is there. Both together are two seconds of each run.
"""

import time
from typing import Any

from ray._private import services
from ray._private.node import Node
from ray._private.state import GlobalState

_BETWEEN_LOOKS_S = 0.02
_NODE_TIMEOUT_S = 10


def shorten_the_start() -> None:
    """Of every Ray that this process starts from now on."""
    node: Any = Node
    node.start_monitor = _start_no_monitor
    ray_services: Any = services
    ray_services.get_node = _node_once_it_is_there


def _start_no_monitor(_: Node) -> None:
    """There is no node to be had, nor to be given back."""


def _node_once_it_is_there(gcs_address: str, node_id: str) -> Any:
    """What `services.get_node` gives, without its waiting for the next second."""
    ray_services: Any = services
    state: Any = GlobalState()  # type: ignore[no-untyped-call]
    state._initialize_global_state(ray_services._get_gcs_client_options(gcs_address))
    until = time.monotonic() + _NODE_TIMEOUT_S
    while time.monotonic() < until and node_id not in {node["NodeID"] for node in state.node_table()}:
        time.sleep(_BETWEEN_LOOKS_S)
    return state.get_node(node_id)
