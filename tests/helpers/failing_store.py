"""A server that gives an S3 client prescribed responses."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@contextmanager
def failing_store(
    statuses: list[int | None], monkeypatch: pytest.MonkeyPatch, code: str | None = None, etag: str | None = '"abc"'
) -> Iterator[list[str | None]]:
    """A server that responds with these statuses in order, repeating the last one. The environment points at it.

    Yields the `If-Match` header of each request so far.

    Args:
        statuses: 200 gives a body of five bytes; None gives two bytes of it and closes the connection.
        monkeypatch: For the environment.
        code: The S3 error code of all errors. None: `Code` and the status.
        etag: The header of all responses.
    """
    left = list(statuses)
    if_match: list[str | None] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with lock:
                if_match.append(self.headers["If-Match"])
                status = left.pop(0) if len(left) > 1 else left[0]
            error = f"<Error><Code>{code or f'Code{status}'}</Code></Error>".encode()
            body = b"12345" if status in (None, 200) else error
            self.send_response(status or 200)
            self.send_header("Content-Length", str(len(body)))
            if etag is not None:
                self.send_header("ETag", etag)
            self.send_header("Last-Modified", "Tue, 14 Nov 2023 22:13:20 GMT")
            self.end_headers()
            self.wfile.write(body[:2] if status is None else body)
            self.close_connection = status is None

        def log_message(self, *_: object) -> None:
            """Prints nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "any")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        try:
            yield if_match
        finally:
            server.shutdown()
            thread.join()
