"""A cluster that can't be reached is one message, before Ray is imported."""

import socket
from pathlib import Path

import pytest

from locray.errors import UsageError
from locray.ray_runtime.connection import auth_token, check_cluster, explain_refusal
from locray.ray_runtime.jobs import Jobs
from locray.ray_runtime.node_check import describe_problems, is_worker
from locray.ray_runtime.start import secret_names


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


def message(monkeypatch: pytest.MonkeyPatch, address: str) -> str:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UsageError) as error:
        check_cluster()
    return str(error.value)


def test_nothing_answers(monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    found = message(monkeypatch, f"127.0.0.1:{closed_port}")
    assert found.startswith(f"RAY_ADDRESS=127.0.0.1:{closed_port}: nothing answers there (connection refused).")
    assert "nothing answers" in message(monkeypatch, f"ray://127.0.0.1:{closed_port}")
    with pytest.raises(UsageError, match="nothing answers there"):
        Jobs(f"127.0.0.1:{closed_port}")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://127.0.0.1:8265", "is the address of a dashboard"),
        ("head", "expected HOST:PORT"),
        ("head:port", "expected HOST:PORT"),
        ("127.0.0.1:99999", "nothing answers there"),
        ("no-such-host.invalid:6379", "nothing answers there"),
    ],
)
def test_no_address_of_a_head(monkeypatch: pytest.MonkeyPatch, address: str, expected: str) -> None:
    assert expected in message(monkeypatch, address)


def test_something_else_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert "what answers there is no Ray" in message(monkeypatch, f"127.0.0.1:{port}")


@pytest.mark.parametrize("address", [None, "auto", "local"])
def test_addresses_that_ray_finds_itself_are_not_checked(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    check_cluster()


def test_the_token_is_found_as_ray_finds_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("default\n")
    (tmp_path / "other").write_text("other\n")
    assert auth_token() is None
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert auth_token() == "default"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "other"))
    assert auth_token() == "other"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "variable")
    assert auth_token() == "variable"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "missing"))
    with pytest.raises(UsageError, match=r"expected a file that holds a token \(no such file or directory\)"):
        auth_token()
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    (tmp_path / ".ray" / "auth_token").unlink()
    assert auth_token() is None


def test_an_error_of_ray_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert str(explain_refusal(ConnectionError("no cluster\nmore"))) == (
        "RAY_ADDRESS=auto: the connection to the cluster failed: no cluster"
    )
    assert "the connection to the cluster failed: ConnectionError" in str(explain_refusal(ConnectionError()))


def test_variables_that_hold_secrets() -> None:
    secrets = {"AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "DB_PASSWORD", "hf_token"}
    others = {"AWS_REGION", "AWS_WEB_IDENTITY_TOKEN_FILE", "RAY_AUTH_TOKEN_PATH", "TOKENIZERS_PARALLELISM", "PATH"}
    assert secret_names(secrets | others) == sorted(secrets)


def test_problems_of_nodes_are_one_message() -> None:
    two = describe_problems({"b": "two", "a": "one"})
    assert two == "on the cluster's node a (1 other node failed the check, too): one"
    assert describe_problems({"a": "one"}) == "on the cluster's node a: one"


def test_a_head_without_cpus_is_no_worker() -> None:
    assert not is_worker({"Alive": True, "Resources": {"memory": 1.0}})
    assert not is_worker({"Alive": False, "Resources": {"CPU": 1.0}})
    assert is_worker({"Alive": True, "Resources": {"GPU": 1.0}})
