"""A real S3 server (SeaweedFS) for tests, in its own process."""

import json
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

SERVER_STARTS_WITHIN_S = 90

PORT_OPTIONS = [
    "s3.port",
    "s3.port.grpc",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
]


@dataclass(frozen=True)
class S3Server:
    """A running S3 server. The environment holds the credentials of its owner.

    `successor` has the rights of the owner, `reader` may only read, and `stranger` may do nothing.
    """

    endpoint_url: str
    owner: dict[str, str]
    successor: dict[str, str]
    reader: dict[str, str]
    stranger: dict[str, str]


@dataclass(frozen=True)
class S3Bucket:
    """A fresh bucket."""

    name: str
    client: Any

    @property
    def uri(self) -> str:
        return f"s3://{self.name}"

    def put(self, key: str, data: bytes) -> str:
        """Writes an object and returns its etag, without quotes."""
        return self.client.put_object(Bucket=self.name, Key=key, Body=data)["ETag"].strip('"')

    def entries(self) -> dict[str, dict[str, Any]]:
        """boto3's entries by key, folder markers included."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return {entry["Key"]: entry for page in pages for entry in page.get("Contents", ())}

    def keys(self) -> list[str]:
        return sorted(self.entries())


def aws_keys(name: str) -> dict[str, str]:
    return {"AWS_ACCESS_KEY_ID": f"{name}-key", "AWS_SECRET_ACCESS_KEY": f"{name}-secret"}


def identity(name: str, actions: list[str]) -> dict[str, Any]:
    keys = aws_keys(name)
    credentials = {"accessKey": keys["AWS_ACCESS_KEY_ID"], "secretKey": keys["AWS_SECRET_ACCESS_KEY"]}
    return {"name": name, "credentials": [credentials], "actions": actions}


def free_ports(count: int) -> list[int]:
    """Returns distinct free ports: each is held until the last one is found."""
    with ExitStack() as held:
        sockets = [held.enter_context(closing(socket.socket())) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def server_command(folder: Path, ports: list[int]) -> list[str]:
    identities = [
        identity("owner", ["Admin", "Read", "Write", "List", "Tagging"]),
        identity("successor", ["Admin", "Read", "Write", "List", "Tagging"]),
        identity("reader", ["Read", "List"]),
        identity("stranger", ["Read:none"]),
    ]
    (folder / "identities.json").write_text(json.dumps({"identities": identities}))
    (folder / "data").mkdir()
    return [
        str(Path(sys.executable).with_name("weed")),
        "server",
        f"-dir={folder / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=10000",  # each bucket takes several volumes
        "-s3",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.config={folder / 'identities.json'}",
        *(f"-{name}={port}" for name, port in zip(PORT_OPTIONS, ports, strict=True)),
    ]


def remove_sockets(ports: list[int]) -> None:
    """Removes the sockets in /tmp that the server leaves when it is killed."""
    for port in ports:
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            path.unlink(missing_ok=True)


def wait_until_it_serves(process: subprocess.Popen[bytes], client: Any, log: Path) -> None:
    """Waits until the server stores an object: it may accept connections before it can."""
    deadline = time.monotonic() + SERVER_STARTS_WITHIN_S
    while True:
        try:
            client.create_bucket(Bucket="probe")
            client.put_object(Bucket="probe", Key="probe", Body=b"probe")
            client.get_object(Bucket="probe", Key="probe")["Body"].read()
            return
        except (BotoCoreError, ClientError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the S3 server did not start: {error}\n{log.read_text()[-4000:]}")
            time.sleep(0.2)


def new_bucket(client: Any) -> S3Bucket:
    bucket = S3Bucket(f"test-{uuid4().hex[:16]}", client)
    client.create_bucket(Bucket=bucket.name)
    return bucket


def new_client() -> Any:
    return boto3.session.Session().client("s3", config=Config(retries={"total_max_attempts": 2}))
