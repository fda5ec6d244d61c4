"""A cluster for the drivers that tests start, and a model for them to run."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_cluster(s3_server: object) -> Iterator[None]:  # noqa: ARG001 (workers inherit the store's address and keys)
    """A running cluster of one node; RAY_ADDRESS points at it, as inside a submitted job."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield
    cluster.shutdown()


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small network with random weights: one detection an image."""
    import torch

    from locray.models import build_model
    from locray.models.artifact import ArtifactInfo, save_artifact

    torch.manual_seed(0)
    folder = str(tmp_path_factory.mktemp("artifact"))
    model = build_model("small_cnn", 3)
    save_artifact(folder, model, ArtifactInfo(architecture="small_cnn", classes=["a", "b", "c"], input_size=32))
    return folder
