"""Whether a cluster can be reached, found out in a moment: `ray.init` takes 20 s for it, and writes to the terminal."""

import os
import re
import socket
from pathlib import Path
from typing import Any

from locray.errors import UsageError

ADDRESS_VARIABLE = "RAY_ADDRESS"
_TIMEOUT_S = 5.0
_DEFAULT_FILE = "~/.ray/auth_token"
_ANY_REQUEST = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""A private name of Ray's protocol: a request without arguments. If a cluster has none, the check passes."""

NO_TOKEN = (
    "the cluster requires a token: set RAY_AUTH_MODE=token, and the token in RAY_AUTH_TOKEN, the file that "
    f"RAY_AUTH_TOKEN_PATH names, or {_DEFAULT_FILE}"
)
WRONG_TOKEN = (
    "the cluster refuses the token. The one in RAY_AUTH_TOKEN, else in the file that RAY_AUTH_TOKEN_PATH names, else "
    f"in {_DEFAULT_FILE} has to be the cluster's"
)

_NO_RAY = (
    "what answers there is no Ray. Expected HOST:PORT of the cluster's head, by default port 6379; a cluster with TLS "
    "needs RAY_USE_TLS=1 and its certificates"
)
_TLS_FILES = ("RAY_TLS_CA_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_SERVER_CERT")
_NO_RAY_OVER_TLS = (
    "what answers there is no Ray with TLS whose certificate is signed by RAY_TLS_CA_CERT for this host. Check the "
    f"address, and the files of {', '.join(_TLS_FILES)}"
)

_VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")


def is_attached() -> bool:
    """Whether commands run on a cluster, rather than on a Ray that they start themselves."""
    return ADDRESS_VARIABLE in os.environ


def check_cluster() -> None:
    """Checks that the cluster of RAY_ADDRESS answers and accepts the token. Returns at once without RAY_ADDRESS.

    Raises:
        UsageError: it doesn't.
    """
    address = os.environ.get(ADDRESS_VARIABLE)
    if address is None or address == "local":
        return
    shown = f"{ADDRESS_VARIABLE}={address}"
    if address == "auto":
        found = _find_on_this_machine()
        if found is not None:
            _check_token(shown, found, auth_token(is_found_by_ray=True))
        return
    if address.startswith(("http://", "https://")):
        raise UsageError(
            f"{shown} is the address of a dashboard. Expected HOST:PORT of the cluster's head; to run a command as a "
            f"job there: locray submit --address {address} -- COMMAND"
        )
    host_port = address.split("://")[-1]
    check_port(shown, host_port, None)
    if "://" not in address:
        _check_token(shown, host_port, auth_token())


def _find_on_this_machine() -> str | None:
    """HOST:PORT of the cluster that Ray takes for `auto`; None if there is none, or Ray's private name has changed."""
    try:
        from ray._private.services import canonicalize_bootstrap_address

        return canonicalize_bootstrap_address("auto")
    except (ImportError, ConnectionError):
        return None  # Ray decides, and says why


def check_port(shown: str, host_port: str, default_port: int | None) -> None:
    """Checks that something listens at HOST:PORT.

    Args:
        shown: The address with its option or variable, for messages.
        host_port: The address.
        default_port: Port of an address that has none; None: it has to have one.

    Raises:
        UsageError: nothing does.
    """
    host, colon, port = host_port.rpartition(":")
    if not colon or port.endswith("]"):
        host, port = host_port, str(default_port or "")
    if not host or not port.isdecimal():
        raise UsageError(f"{shown}: expected HOST:PORT")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT_S):
            pass
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"{shown}: nothing answers there ({reason.lower()}). Check the address, and that the cluster is running"
        ) from None


def _check_token(shown: str, address: str, token: str | None) -> None:
    """Makes one request as Ray would, with the token that Ray would send."""
    try:
        import grpc
    except ImportError:
        return
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with _open_channel(address) as channel:
        try:
            channel.unary_unary(_ANY_REQUEST)(b"", timeout=_TIMEOUT_S, metadata=metadata)
        except grpc.RpcError as error:
            code = error.code()  # the others are left to Ray
            if code is grpc.StatusCode.UNAUTHENTICATED:
                raise UsageError(f"{shown}: {WRONG_TOKEN if token else NO_TOKEN}") from None
            if code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                raise UsageError(f"{shown}: {_NO_RAY_OVER_TLS if _uses_tls() else _NO_RAY}") from None


def _uses_tls() -> bool:
    return os.environ.get("RAY_USE_TLS", "0").lower() in {"1", "true"}


def _open_channel(address: str) -> Any:
    """A connection like Ray's own.

    Raises:
        UsageError: with RAY_USE_TLS=1, a file of it can't be read.
    """
    import grpc

    options = [("grpc.enable_http_proxy", 0)]
    if not _uses_tls():
        return grpc.insecure_channel(address, options=options)
    authority, key, certificate = map(_read_tls_file, _TLS_FILES)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(authority, key, certificate), options=options)


def _read_tls_file(variable: str) -> bytes:
    path = os.environ.get(variable)
    if not path:
        raise UsageError(f"RAY_USE_TLS=1 needs {variable}, the path of a PEM file; found none")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(
            f"{variable}={path}: expected a PEM file ({(error.strerror or 'unreadable').lower()})"
        ) from None


def auth_token(*, is_found_by_ray: bool = False) -> str | None:
    """The token that Ray sends from this process; None if it sends none.

    Args:
        is_found_by_ray: Whether the cluster is one that Ray finds on this machine. To such a one it sends the token
            that there is unless RAY_AUTH_MODE says otherwise.

    Raises:
        UsageError: the file that RAY_AUTH_TOKEN_PATH names can't be read, with which Ray would abort this process.
    """
    if os.environ.get("RAY_AUTH_MODE", "token" if is_found_by_ray else "").lower() != "token":
        return None
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    try:
        token = Path(named or _DEFAULT_FILE).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        token, reason = "", getattr(error, "strerror", None) or "not text"
    else:
        reason = "empty"
    if named and not token:
        raise UsageError(f"RAY_AUTH_TOKEN_PATH={named}: expected a file that holds a token ({reason.lower()})")
    return token or None


def explain_refusal(error: BaseException) -> UsageError:
    """The error for a user whose connection `ray.init` has refused."""
    texts: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        texts.append(str(cause))
        cause = cause.__cause__
    text, shown = "\n".join(texts), f"{ADDRESS_VARIABLE}={os.environ.get(ADDRESS_VARIABLE, '')}"
    versions = _VERSIONS.findall(text)
    if len(versions) > 1:
        (cluster_ray, cluster_python), (ray, python) = versions[:2]
        return UsageError(
            f"{shown}: the cluster runs Ray {cluster_ray} with Python {cluster_python}, this machine Ray {ray} with "
            f"Python {python}. Both have to be the same: use an environment like the cluster's, or `locray submit`"
        )
    if "oken" in text and "uthentication" in text:
        return UsageError(f"{shown}: {WRONG_TOKEN if auth_token() else NO_TOKEN}")
    reason = next(iter(texts[-1].strip().splitlines()), type(error).__name__)[:300]
    return UsageError(f"{shown}: the connection to the cluster failed: {reason}")
