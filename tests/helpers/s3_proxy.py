"""A proxy in front of the S3 server that injects faults of networks and overloaded stores.

It passes the `Host` header on unchanged, since signatures include it.
"""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

_SIGNED_WITH = re.compile("Credential=([^/]+)/")
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass(frozen=True)
class Request:
    """A request, before it reaches the server."""

    method: str
    path: str
    """Bucket and key, decoded: `/bucket/key`."""
    query: str
    body: bytes = field(repr=False)
    access_key: str
    """The access key that signed it; empty without a signature."""

    @property
    def changes_the_store(self) -> bool:
        """Whether it may modify the store."""
        return self.method in {"PUT", "POST", "DELETE"}


@dataclass(frozen=True)
class Answer:
    """A response for the client. `status` 0 closes the connection without a response."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


CLOSED = Answer(0)
BUSY = Answer(503, b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>")

Forward = Callable[[], Answer]
Fault = Callable[[Request, Forward], Answer]
"""Returns the response for the client. The second argument, called once, returns the server's own."""


def honest(request: Request, forward: Forward) -> Answer:  # noqa: ARG001 (the signature of a fault)
    """No fault."""
    return forward()


@dataclass
class S3Proxy:
    """A running proxy. `fault` runs in the thread of each request and may be replaced at any time."""

    endpoint_url: str
    fault: Fault = honest
    requests: list[Request] = field(default_factory=list)
    """All requests so far, in order of arrival."""


@contextmanager
def s3_proxy(server_url: str) -> Iterator[S3Proxy]:
    """A proxy in front of the server, until the block ends."""
    server = urlsplit(server_url)
    assert server.hostname
    assert server.port
    proxy = S3Proxy("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.upstream = HTTPConnection(str(server.hostname), server.port, timeout=120)

        def finish(self) -> None:
            self.upstream.close()
            super().finish()

        def do_ANY(self) -> None:
            split = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            signed = _SIGNED_WITH.search(self.headers.get("Authorization") or "")
            request = Request(self.command, unquote(split.path), split.query, body, signed[1] if signed else "")
            proxy.requests.append(request)
            self._give(proxy.fault(request, lambda: self._forward(body)))

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_ANY  # noqa: N815 (names that http.server expects)

        def _forward(self, body: bytes) -> Answer:
            self.upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                self.upstream.putheader(name, value)
            self.upstream.endheaders(body or None)
            response: HTTPResponse = self.upstream.getresponse()
            answer = Answer(response.status, response.read(), tuple(response.getheaders()))
            self.upstream.close()  # the server might close an idle connection just when it is reused
            return answer

        def _give(self, answer: Answer) -> None:
            if not answer.status:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response_only(answer.status)
            length = str(len(answer.body))
            for name, value in answer.headers:
                if name.lower() == "content-length":
                    length = value  # the answer to HEAD has a length but no body
                elif name.lower() not in HOP_BY_HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

        def log_message(self, *_: object) -> None:
            """Prints nothing: tests look at `requests`."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, request: object, client_address: object) -> None:
            """Ignores errors of clients that a test has killed."""

    with Server(("127.0.0.1", 0), Handler) as listening:
        proxy.endpoint_url = f"http://127.0.0.1:{listening.server_address[1]}"
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            listening.shutdown()
            thread.join()
