"""A cluster that can't be reached is one message, before Ray is imported."""

import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
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


@pytest.mark.parametrize("address", [None, "local"])
def test_a_ray_of_ones_own_is_not_checked(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    check_cluster()


class Head(grpc.GenericRpcHandler):
    """Answers every request, or refuses it without the token."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        is_known = ("authorization", "Bearer right") in handler_call_details.invocation_metadata

        def answer(_request: bytes, context: grpc.ServicerContext) -> bytes:
            if not is_known:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A self-signed certificate and its key, by the variables that name them."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return {
        "RAY_TLS_SERVER_KEY": str(key),
        "RAY_TLS_SERVER_CERT": str(certificate),
        "RAY_TLS_CA_CERT": str(certificate),
    }


@contextmanager
def head(tls_files: dict[str, str] | None) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1), handlers=[Head()])
    if tls_files is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        pair = tuple(Path(tls_files[f"RAY_TLS_SERVER_{name}"]).read_bytes() for name in ("KEY", "CERT"))
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


@pytest.fixture
def own_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home folder whose token file is to be written."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    return tmp_path / ".ray" / "auth_token"


def test_the_cluster_that_ray_finds_is_checked_with_the_token_that_ray_sends_it(
    monkeypatch: pytest.MonkeyPatch, own_token: Path
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with head(None) as address:
        monkeypatch.setattr("ray._private.services.canonicalize_bootstrap_address", lambda _: address)
        assert "RAY_ADDRESS=auto: the cluster requires a token" in message(monkeypatch, "auto")
        own_token.write_text("wrong")
        assert "RAY_ADDRESS=auto: the cluster refuses the token" in message(monkeypatch, "auto")
        own_token.write_text("right")
        check_cluster()
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        assert "requires a token" in message(monkeypatch, "auto")
        monkeypatch.delattr("ray._private.services.canonicalize_bootstrap_address")
        check_cluster()  # left to Ray


def test_a_cluster_with_tls_is_checked(
    monkeypatch: pytest.MonkeyPatch, tls_files: dict[str, str], tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with head(tls_files) as address, head(None) as without_tls:
        assert (
            message(monkeypatch, address) == "RAY_USE_TLS=1 needs RAY_TLS_CA_CERT, the path of a PEM file; found none"
        )
        for name, path in tls_files.items():
            monkeypatch.setenv(name, path)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
        assert "the cluster refuses the token" in message(monkeypatch, address)
        assert "is no Ray with TLS" in message(monkeypatch, without_tls)
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
        check_cluster()
        monkeypatch.setenv("RAY_TLS_CA_CERT", str(tmp_path / "missing"))
        assert "missing: expected a PEM file (no such file or directory)" in message(monkeypatch, address)
        monkeypatch.delenv("RAY_USE_TLS")
        assert "a cluster with TLS needs RAY_USE_TLS=1" in message(monkeypatch, address)


def test_the_token_is_found_as_ray_finds_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own_token: Path) -> None:
    own_token.write_text("default\n")
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
    own_token.unlink()
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
