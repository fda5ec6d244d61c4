"""Decoding in a child process, with a decoder that really crashes and hangs."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from locray.images import isolated
from locray.images.decode import DecodedImage, DecodeLimits, ImageFailure, decode_image
from locray.images.isolated import IsolatedDecoder
from tests.helpers.commands import PROJECT_ROOT
from tests.helpers.poison import install_broken_decoder, poison

LIMITS = DecodeLimits(max_bytes=10_000_000, max_pixels=1_000_000)
SHORT_S = 0.5
LONG_S = 60


@pytest.fixture(autouse=True)
def broken_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = install_broken_decoder(tmp_path / "broken_decoder")
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture
def decode() -> Iterator[IsolatedDecoder]:
    before = children_of("self")
    with IsolatedDecoder(LIMITS, LONG_S) as decoder:
        yield decoder
    assert children_of("self") == before


def children_of(pid: int | str) -> set[int]:
    """Child processes, including zombies."""
    return {int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()}


def test_a_child_returns_what_the_process_itself_would(decode: IsolatedDecoder, real_data: Path) -> None:
    files = [next((real_data / "exif" / "orientation").glob("*_6.jpg")), *(real_data / "broken/pillow").glob("h*")]
    images = [b"", b"no image", poison("nothing"), *(file.read_bytes() for file in files)]
    assert len(images) > 10
    others, pids = children_of("self"), set()
    for data in images:
        expected, answer = decode_image(data, LIMITS), decode(data)
        pids |= children_of("self") - others
        if isinstance(expected, ImageFailure):
            assert answer == expected
            continue
        assert isinstance(answer, DecodedImage)
        np.testing.assert_array_equal(answer.image_hwc_u8, expected.image_hwc_u8)
        names = ("width_px", "height_px", "format", "orientation")
        assert [getattr(answer, name) for name in names] == [getattr(expected, name) for name in names]
    assert len(pids) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("crash", "the decoder died of SIGSEGV"),
        ("exit", "the decoder ended with code 3"),
        ("be killed", "the decoder died of SIGKILL"),
    ],
)
def test_a_crash_is_an_outcome_of_the_image(decode: IsolatedDecoder, fault: str, message: str) -> None:
    for _ in range(2):
        failure = decode(poison(fault))
        assert isinstance(failure, ImageFailure)
        assert (failure.code, failure.message, failure.format) == ("decoder_crash", message, "gif")
        assert isinstance(decode(poison("nothing")), DecodedImage)


def test_a_killed_decoder_is_replaced_and_retried(
    decode: IsolatedDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert isinstance(decode(poison("be killed once")), DecodedImage)
    assert (tmp_path / "was-killed").exists()


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["hang", "hang with the lock", "hang deaf to alarms"])
def test_a_hang_ends_at_the_deadline(fault: str) -> None:
    before = children_of("self")
    with IsolatedDecoder(LIMITS, SHORT_S) as decode:
        failure = decode(poison(fault))
        assert children_of("self") == before
    assert isinstance(failure, ImageFailure)
    assert (failure.code, failure.format) == ("decoder_timeout", "gif")
    assert failure.message == "the decoder was not done after 0.5 s"


def test_a_crash_does_not_affect_the_next_image(decode: IsolatedDecoder) -> None:
    assert isinstance(decode(poison("spoil")), DecodedImage)
    assert isinstance(decode(poison("nothing")), DecodedImage)


def test_memory_is_limited(decode: IsolatedDecoder) -> None:
    failure = decode(poison("hog"))
    assert isinstance(failure, ImageFailure)
    assert (failure.code, failure.message) == ("too_many_pixels", "MemoryError: ")


@pytest.mark.slow
def test_the_largest_allowed_images_fit_in_the_memory_limit() -> None:
    side = 3000
    pixels = np.linspace(0, 1000, side * side, dtype=np.float32).reshape(side, side)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "TIFF")
    data = buffer.getvalue()
    with IsolatedDecoder(DecodeLimits(len(data), side * side), LONG_S) as decode:
        assert isinstance(decode(data), DecodedImage)


def test_a_child_inherits_no_secrets_and_no_files(decode: IsolatedDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("ANYTHING_ELSE", "secret")
    reading, writing = os.pipe()
    os.set_inheritable(reading, True)
    try:
        failure = decode(poison("tell"))
    finally:
        os.close(reading)
        os.close(writing)
    assert isinstance(failure, ImageFailure)
    told = json.loads(failure.message.removeprefix("ValueError: "))
    assert set(told["environment"]) <= {*isolated._KEPT_VARIABLES, "PYTHONPATH", "OPENBLAS_NUM_THREADS", "LC_CTYPE"}
    kinds = sorted(target.split(":")[0] for target in told["files"])
    assert kinds == ["/dev/null", "/dev/null", "/dev/null", "socket"]
    assert told["limits"]["RLIMIT_CORE"] == [0, 0]


def test_a_child_that_cannot_start_is_an_os_error(decode: IsolatedDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ChildProcessError, match="the decoder ended with code 1 before it was ready"):
        decode(poison("nothing"))


ORPHAN = """
import sys
from locray.images.decode import DecodeLimits
from locray.images.isolated import IsolatedDecoder
with IsolatedDecoder(DecodeLimits(10**6, 10**6), timeout_s=1) as decode:
    decode(b"")
    print("ready", flush=True)
    decode(sys.stdin.buffer.read())
"""


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["nothing", "hang with the lock"])
def test_a_child_does_not_outlive_its_parent(broken_decoder: str, fault: str) -> None:
    path = os.pathsep.join([broken_decoder, str(PROJECT_ROOT)])
    command = [sys.executable, "-c", ORPHAN]
    environment = os.environ | {"PYTHONPATH": path}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        (child,) = children_of(parent.pid)
        if fault != "nothing":
            parent.stdin.write(poison(fault))
            parent.stdin.close()
            wait_until(lambda: "nanosleep" in Path(f"/proc/{child}/wchan").read_text())
        os.kill(parent.pid, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{child}").exists())


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
