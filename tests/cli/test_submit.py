"""`locray submit` on a real head node: exit codes, results, stopping, attaching, tokens."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from deltalake import DeltaTable

from tests.helpers.commands import PROJECT_ROOT, locray, start_locray
from tests.helpers.fault_images import fill_folder
from tests.helpers.processes import wait_for
from tests.helpers.ray_head import RayHead, start_head
from tests.helpers.s3_server import S3Bucket

pytestmark = pytest.mark.ray

GOLDEN_TABLE = str(PROJECT_ROOT / "tests" / "golden" / "table")
NUM_IMAGES = 400


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    with start_head(tmp_path_factory.mktemp("head")) as head:
        yield head


def submit(head: RayHead, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return locray("submit", "--address", head.url, *arguments, **(head.token | environment))


def lines(done: "subprocess.CompletedProcess[str]") -> list[str]:
    return [line for line in done.stderr.splitlines() if line.strip()]


def test_the_result_and_exit_code_0(head: RayHead) -> None:
    done = submit(head, "--", "status", "--table", GOLDEN_TABLE, "--json")
    assert done.returncode == 0, done
    assert json.loads(done.stdout)["table"] == GOLDEN_TABLE


def test_exit_code_2_and_output_without_json(head: RayHead, tmp_path: Path) -> None:
    done = submit(head, "status", "--table", str(tmp_path / "none"))
    assert done.returncode == 2, done
    assert "there is no predictions table" in done.stdout
    assert "exit $code" not in done.stdout
    assert "ended with exit code" not in done.stdout


def test_exit_code_3(head: RayHead, artifact: str, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
    flags = ("--images", str(images), "--model", artifact, "--table", str(tmp_path / "table"))
    done = submit(head, "--json", "--", "label", *flags)
    assert done.returncode == 3, done
    assert json.loads(done.stdout)["failed"] == 1
    assert "--max-failure-rate" in done.stderr


def test_sigterm_ends_the_job_in_order(head: RayHead, artifact: str, tmp_path: Path) -> None:
    images, table = tmp_path / "images", str(tmp_path / "table")
    fill_folder(images, NUM_IMAGES, (640, 480))
    flags = ("--images", str(images), "--model", artifact, "--table", table, "--unit-size", "4", "--commit-rows", "8")
    with start_locray("submit", "--address", head.url, "label", *flags, "--json", **head.token) as process:
        wait_for(lambda: DeltaTable.is_deltatable(table) and DeltaTable(table).version() > 1)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 4, (stdout, stderr)
    result = json.loads(stdout)
    assert result["deferred_reason"] == "the run was asked to stop (SIGTERM)"
    assert result["ok"] + result["deferred"] == NUM_IMAGES
    assert 0 < result["ok"] == DeltaTable(table).count() < NUM_IMAGES


def test_detach_follow_and_a_second_id(head: RayHead) -> None:
    command = ("status", "--table", GOLDEN_TABLE, "--json")
    detached = submit(head, "--id", "night.1", "--detach", "--", *command)
    assert (detached.returncode, detached.stdout.split()) == (0, ["submission_id", "night.1"]), detached
    again = submit(head, "--id", "night.1", "--", *command)
    assert again.returncode == 2, again
    assert "the cluster has a job night.1 already. Choose another --id" in again.stderr
    assert len(lines(again)) == 1
    followed = submit(head, "--follow", "night.1", "--json")
    assert followed.returncode == 0, followed
    assert json.loads(followed.stdout)["table"] == GOLDEN_TABLE
    unknown = submit(head, "--follow", "night.2")
    assert unknown.returncode == 2, unknown
    assert "has no job night.2" in unknown.stderr


def test_what_is_uploaded(head: RayHead, tmp_path: Path) -> None:
    (tmp_path / "night.yaml").write_text("table: /elsewhere\n")  # read here: its option arrives as a flag
    done = submit(head, "--id", "up.1", "--upload", "--", "status", "--config", str(tmp_path / "night.yaml"))
    assert done.returncode == 2, done
    assert "no predictions table at /elsewhere" in done.stdout
    assert head.job("up.1")["runtime_env"]["py_modules"][0].startswith("gcs://")


def test_a_cluster_without_locray(head: RayHead, tmp_path: Path) -> None:
    (tmp_path / "locray").mkdir()
    (tmp_path / "locray" / "__init__.py").write_text("raise ImportError\n")
    done = submit(head, "--working-dir", str(tmp_path), "--", "status", "--table", GOLDEN_TABLE)
    assert done.returncode == 2, done
    assert "locray is not installed on this cluster" in done.stdout


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "requires a token: set RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}, "refuses the token"),
    ],
)
def test_tokens(head: RayHead, artifact: str, tmp_path: Path, token: dict[str, str], message: str) -> None:
    submitted = submit(head, "status", "--table", GOLDEN_TABLE, **token)
    flags = ("--images", str(PROJECT_ROOT / "docs" / "images"), "--model", artifact, "--table", str(tmp_path / "table"))
    attached = locray("label", *flags, "--log-level", "warning", RAY_ADDRESS=head.address, **token)
    for done in (submitted, attached):
        assert done.returncode == 2, done
        assert len(lines(done)) == 1
        assert message in done.stderr
    assert not (tmp_path / "table").exists()


def test_another_version_of_ray(head: RayHead) -> None:
    code = (
        "import ray; ray.__version__ = '2.55.1'\n"
        "from locray.errors import UsageError\n"
        "from locray.ray_runtime.start import start_ray\n"
        "try: start_ray(verbose=False)\n"
        "except UsageError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=_environment() | head.token | {"RAY_ADDRESS": head.address},
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "the cluster runs Ray 2." in done.stdout, done
    assert "this machine Ray 2.55.1" in done.stdout


def test_a_package_that_nodes_lack(head: RayHead, tmp_path: Path) -> None:
    (tmp_path / "only_here.py").write_text("def check():\n    pass\n")
    code = (
        "from only_here import check\n"
        "from locray.errors import UsageError\n"
        "from locray.ray_runtime.node_check import check_nodes\n"
        "try: check_nodes(check, verbose=False)\n"
        "except UsageError as error: print(error)"
    )
    environment = _environment() | head.token | {"RAY_ADDRESS": head.address}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"PYTHONPATH": f"{tmp_path}:{PROJECT_ROOT}"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "on the cluster's node " in done.stdout, done
    assert "locray can't be imported there (No module named 'only_here')" in done.stdout


@pytest.mark.s3
def test_keys_that_only_the_driver_has(head: RayHead, s3_bucket: S3Bucket, artifact: str, tmp_path: Path) -> None:
    s3_bucket.put("images/a.jpg", b"")
    flags = ("--images", f"s3://{s3_bucket.name}/images", "--model", artifact, "--table", str(tmp_path / "table"))
    done = locray("label", *flags, "--log-level", "warning", RAY_ADDRESS=head.address, **head.token)
    assert done.returncode == 2, done
    assert len(lines(done)) == 1
    assert "on the cluster's node " in done.stderr
    assert "no valid AWS credentials" in done.stderr
    assert not (tmp_path / "table").exists()


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "LOCRAY_"))}
