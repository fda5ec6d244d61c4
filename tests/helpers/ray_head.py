"""A head node with a dashboard that requires a token, started as a user starts it."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.commands import PROJECT_ROOT, killed_at_the_end
from tests.helpers.processes import descendants_of
from tests.helpers.s3_server import free_ports

TOKEN = "0123456789abcdef" * 4
DEADLINE_S = 60


@dataclass(frozen=True)
class RayHead:
    address: str
    url: str

    def job(self, submission_id: str) -> dict[str, Any]:
        """What its jobs API tells about a job."""
        with self.request(f"/api/jobs/{submission_id}") as response:
            found: dict[str, Any] = json.load(response)
        return found

    def request(self, path: str) -> Any:
        """Opens a path of its dashboard."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return urllib.request.urlopen(urllib.request.Request(self.url + path, headers=headers), timeout=5)

    @property
    def token(self) -> dict[str, str]:
        """Variables with which commands reach it."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}


@contextmanager
def start_head(folder: Path) -> Iterator[RayHead]:
    """Two CPUs, none of the caller's AWS variables. Everything that it starts is killed at the end."""
    ports = free_ports(4)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_", "LOCRAY_"))
    }
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(PROJECT_ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(folder / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "none"),
    }
    command = [
        "ray", "start", "--head", "--block", "--num-cpus=2", "--include-dashboard=true", "--disable-usage-stats",
        f"--port={ports[0]}", f"--dashboard-port={ports[1]}",
        f"--dashboard-agent-listen-port={ports[2]}", f"--ray-client-server-port={ports[3]}",
    ]  # fmt: skip
    log = folder / "ray-start.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    head = RayHead(f"127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}")
    with killed_at_the_end(process):
        until = time.monotonic() + DEADLINE_S
        while not _serves(head):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        try:
            yield head
        finally:
            for pid in descendants_of(process.pid):  # some are in sessions of their own
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _serves(head: RayHead) -> bool:
    try:
        with head.request("/api/jobs/"):
            return True
    except (urllib.error.URLError, OSError):
        return False
