"""Fixtures that more than one folder of tests uses."""

import os
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import settings

from tests.helpers.ray_cluster import ray_cluster  # noqa: F401 (a fixture)
from tests.helpers.s3_server import (
    PORT_OPTIONS,
    S3Bucket,
    S3Server,
    aws_keys,
    free_ports,
    new_bucket,
    new_client,
    remove_sockets,
    server_command,
    wait_until_it_serves,
)

PROJECT_ROOT = Path(__file__).parents[1]
NOBODY = 65534

# Processes started in the background of a shell ignore Ctrl-C, and so do all their children.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: tests assert no timing.
settings.register_profile("locray", deadline=None)
settings.load_profile("locray")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images, or a skip that says how to provide it."""
    folder = Path(os.environ.get("LOCRAY_TEST_DATA", PROJECT_ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real images not found at {folder}: set LOCRAY_TEST_DATA to their folder")
    return folder


@pytest.fixture
def unprivileged_folder() -> Iterator[Path]:
    """A folder that everyone may read, for a user without root's rights (tests often run as root)."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO)
        user = os.geteuid()
        if user == 0:
            os.seteuid(NOBODY)
        try:
            yield Path(name)
        finally:
            os.seteuid(user)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server for the whole session, and an environment in which boto3 finds it."""
    folder = tmp_path_factory.mktemp("s3")
    ports = free_ports(len(PORT_OPTIONS))
    endpoint_url = f"http://127.0.0.1:{ports[0]}"
    server = S3Server(endpoint_url, *map(aws_keys, ("owner", "successor", "reader", "stranger")))
    environment = {
        "AWS_ENDPOINT_URL": server.endpoint_url,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(folder / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "no-credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
        **server.owner,
    }
    before = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            server_command(folder, ports), stdout=output, stderr=subprocess.STDOUT, cwd=folder, start_new_session=True
        )
    try:
        for name in before:
            del os.environ[name]
        os.environ.update(environment)
        with closing(new_client()) as client:
            wait_until_it_serves(process, client, log)
        yield server
    finally:
        for name in environment:
            os.environ.pop(name, None)
        os.environ.update(before)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        remove_sockets(ports)


@pytest.fixture
def s3_bucket(s3_server: S3Server) -> Iterator[S3Bucket]:  # noqa: ARG001 (the environment names it)
    """A fresh bucket, empty."""
    with closing(new_client()) as client:
        yield new_bucket(client)


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small network with random weights: one detection per image."""
    import torch

    from locray.models.architectures import build_model
    from locray.models.artifact import save_artifact
    from locray.models.files import ArtifactInfo

    torch.manual_seed(0)
    folder = str(tmp_path_factory.mktemp("artifact"))
    model = build_model("small_cnn", 3)
    save_artifact(folder, model, ArtifactInfo(architecture="small_cnn", classes=["a", "b", "c"], input_size=32))
    return folder
