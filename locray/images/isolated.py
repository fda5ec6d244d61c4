"""Decoding in a child process, which an image may crash or hang.

A child has a deadline per image, a memory limit, no inherited files and an environment without credentials. It decodes
one image after another; when it crashes, the next image gets a new child. This module is both ends: the parent imports
it, the child runs it. A child responds with JSON and pixels, never a pickle: a malicious image may control it.
"""

import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

import numpy as np

from locray.errors import ErrorCode
from locray.images.decode import DecodedImage, DecodeLimits, ImageFailure, decode_image
from locray.images.sniff import sniff_format

_KEPT_VARIABLES = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "TMPDIR")
"""Environment variables that a child inherits, beside the module path. All others may be secrets."""

_MEMORY_OF_PYTHON_BYTES = 256 * 2**20
_MEMORY_PER_FILE_BYTE = 4
_MEMORY_PER_PIXEL_BYTES = 48
"""TIFFs of floats take most: between 32 and 40 bytes per pixel."""

_START_TIMEOUT_S = 120
_EXIT_TIMEOUT_S = 5
"""From the end of a child's socket to the end of its process."""
_ORPHAN_DEADLINE_FACTOR = 2
"""A hanging child whose parent has died exits after this many times the deadline."""

_READY = b"!"
_LENGTH = struct.Struct("!Q")
_MAX_HEADER_BYTES = 2**20


@contextmanager
def process_deadline(timeout_s: float) -> Iterator[None]:
    """Kills this process with SIGALRM if the block takes longer.

    The kernel does it, so it works whatever a decoder does and whether or not it holds the interpreter's lock. Costs
    microseconds. The timer belongs to the process: one block at a time.
    """
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def decode_with_deadline(
    data: bytes, limits: DecodeLimits, timeout_s: float, min_longer_side_px: int | None = None
) -> DecodedImage | ImageFailure:
    """`decode_image` with a deadline that kills this process."""
    with process_deadline(timeout_s):
        return decode_image(data, limits, min_longer_side_px=min_longer_side_px)


class IsolatedDecoder:
    """Decodes in a child process; a context manager that leaves no process behind."""

    def __init__(self, limits: DecodeLimits, timeout_s: float, min_longer_side_px: int | None = None) -> None:
        self._limits = limits
        self._timeout_s = timeout_s
        self._min_longer_side_px = min_longer_side_px
        self._child: _Child | None = None

    def __call__(self, data: bytes) -> DecodedImage | ImageFailure:
        """The result of `decode_image`, or a failure `decoder_crash` or `decoder_timeout`.

        Raises:
            OSError: no child can be started; this says nothing about the image.
        """
        if self._child is not None:
            with suppress(_ChildDiedError):  # maybe an earlier image damaged the child: a new one decides
                return self._ask(self._child, data)
        try:
            return self._ask_new_child(data)
        except _ChildDiedError as error:
            if not error.was_killed:
                return _failure(error, data)
        try:  # maybe the machine was out of memory and the kernel killed the child
            return self._ask_new_child(data)
        except _ChildDiedError as error:
            return _failure(error, data)

    def _ask_new_child(self, data: bytes) -> DecodedImage | ImageFailure:
        self._child = _Child(self._limits, self._timeout_s, self._min_longer_side_px)
        return self._ask(self._child, data)

    def _ask(self, child: "_Child", data: bytes) -> DecodedImage | ImageFailure:
        try:
            return child.decode(data)
        except _ChildDiedError:
            self._child = None
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None


class _ChildDiedError(Exception):
    def __init__(self, code: ErrorCode, message: str, *, was_killed: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.was_killed = was_killed
        """Whether the child ended by SIGKILL, which no decoder sends to itself."""


def _failure(error: _ChildDiedError, data: bytes) -> ImageFailure:
    return ImageFailure(error.code, str(error), sniff_format(data))


class _Child:
    """The parent's side of one child."""

    def __init__(self, limits: DecodeLimits, timeout_s: float, min_longer_side_px: int | None) -> None:
        self._limits = limits
        self._timeout_s = timeout_s
        self._socket, child_socket = socket.socketpair()
        arguments = (child_socket.fileno(), limits.max_bytes, limits.max_pixels, min_longer_side_px or 0, timeout_s)
        try:
            with child_socket:
                self._process = subprocess.Popen(  # noqa: S603 (ourselves)
                    [sys.executable, "-P", "-m", __name__, *map(str, arguments)],
                    env=_environment(),
                    cwd="/",
                    pass_fds=[child_socket.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
        except OSError:
            self._socket.close()
            raise
        try:
            _receive(self._socket, len(_READY), time.monotonic() + _START_TIMEOUT_S)
        except (EOFError, OSError) as error:
            end = _describe_exit(self.end())
            raise ChildProcessError(
                f"the decoder {end} before it was ready; run `python -m {__name__}` to see why"
            ) from error

    def decode(self, data: bytes) -> DecodedImage | ImageFailure:
        """Raises `_ChildDiedError` if the child crashes or hangs."""
        until = time.monotonic() + self._timeout_s
        try:
            self._socket.settimeout(self._timeout_s)
            self._socket.sendall(_LENGTH.pack(len(data)))
            self._socket.sendall(data)
            return self._receive_outcome(until)
        except TimeoutError:
            self.end()
            message = f"the decoder was not done after {self._timeout_s:g} s"
            raise _ChildDiedError(ErrorCode.DECODER_TIMEOUT, message) from None
        except (EOFError, OSError):
            with suppress(subprocess.TimeoutExpired):  # a child that closed its socket but lives on is killed below
                self._process.wait(_EXIT_TIMEOUT_S)
            was_killed = self._process.returncode == -signal.SIGKILL
            message = f"the decoder {_describe_exit(self.end())}"
            raise _ChildDiedError(ErrorCode.DECODER_CRASH, message, was_killed=was_killed) from None
        except (ValueError, TypeError, KeyError):
            self.end()
            message = "the decoder's memory is damaged: its response can't be read"
            raise _ChildDiedError(ErrorCode.DECODER_CRASH, message) from None

    def end(self) -> int:
        """Kills and reaps the child; returns the exit code that it had before, if it was dead."""
        self._process.kill()
        self._socket.close()
        return self._process.wait()

    def _receive_outcome(self, until: float) -> DecodedImage | ImageFailure:
        (length,) = _LENGTH.unpack(_receive(self._socket, _LENGTH.size, until))
        if length > _MAX_HEADER_BYTES:
            raise ValueError(length)
        facts: dict[str, Any] = json.loads(_receive(self._socket, length, until))
        if "code" in facts:
            return ImageFailure(ErrorCode(facts.pop("code")), **facts)
        height, width = facts.pop("shape")
        if height * width > self._limits.max_pixels:
            raise ValueError(height, width)
        image = np.empty((height, width, 3), dtype=np.uint8)
        _receive_into(self._socket, image.data.cast("B"), until)
        return DecodedImage(image, **facts)


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return kept | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "OPENBLAS_NUM_THREADS": "1"}


def _describe_exit(return_code: int) -> str:
    return f"died of {signal.Signals(-return_code).name}" if return_code < 0 else f"ended with code {return_code}"


def _receive(connection: socket.socket, num_bytes: int, until: float | None = None) -> bytes:
    """Raises `EOFError` if the other side is gone, `TimeoutError` at the monotonic time `until`."""
    data = bytearray(num_bytes)
    _receive_into(connection, memoryview(data), until)
    return bytes(data)


def _receive_into(connection: socket.socket, rest: memoryview, until: float | None) -> None:
    while rest:
        if until is not None:
            left_s = until - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            connection.settimeout(left_s)
        num_bytes = connection.recv_into(rest)
        if not num_bytes:
            raise EOFError
        rest = rest[num_bytes:]


def _serve(connection: socket.socket, limits: DecodeLimits, timeout_s: float, min_longer_side_px: int | None) -> None:
    """The child's side: receives images and sends outcomes, until the parent closes the socket."""
    connection.sendall(_READY)
    while True:
        try:
            (length,) = _LENGTH.unpack(_receive(connection, _LENGTH.size))
        except EOFError:
            return
        data = _receive(connection, length)
        outcome = decode_with_deadline(data, limits, timeout_s * _ORPHAN_DEADLINE_FACTOR, min_longer_side_px)
        if isinstance(outcome, ImageFailure):
            _send_header(connection, asdict(outcome))
        else:
            image = outcome.image_hwc_u8
            facts = {name: getattr(outcome, name) for name in ("width_px", "height_px", "format", "orientation")}
            _send_header(connection, {"shape": image.shape[:2], **facts})
            connection.sendall(image.data.cast("B"))


def _send_header(connection: socket.socket, facts: dict[str, Any]) -> None:
    header = json.dumps(facts).encode()
    connection.sendall(_LENGTH.pack(len(header)) + header)


def _lower_limit(limit: int, value: int) -> None:
    """Lowers a resource limit of this process, soft and hard, unless a stricter one is in force."""
    _, hard = resource.getrlimit(limit)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))


def _main(arguments: Sequence[str]) -> None:
    descriptor, max_bytes, max_pixels, min_longer_side_px = map(int, arguments[:4])
    timeout_s = float(arguments[4])
    memory_bytes = _MEMORY_OF_PYTHON_BYTES + _MEMORY_PER_FILE_BYTE * max_bytes + _MEMORY_PER_PIXEL_BYTES * max_pixels
    _lower_limit(resource.RLIMIT_AS, memory_bytes)
    _lower_limit(resource.RLIMIT_CORE, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with socket.socket(fileno=descriptor) as connection:
        _serve(connection, DecodeLimits(max_bytes, max_pixels), timeout_s, min_longer_side_px or None)


if __name__ == "__main__":
    _main(sys.argv[1:])
