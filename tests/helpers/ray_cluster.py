"""A running cluster for the drivers that tests start."""

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def ray_cluster(s3_server: object) -> Iterator[Any]:
    """A cluster (`ray.cluster_utils.Cluster`) of one node; RAY_ADDRESS names it, as inside a submitted job.

    It starts after the S3 server, so that its workers inherit the server's address and keys, and lasts as long as the
    tests: a test that needs a Ray of its own removes RAY_ADDRESS.
    """
    from ray.cluster_utils import Cluster

    assert s3_server
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
    cluster.shutdown()
