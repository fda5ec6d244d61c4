"""Messages of Ray's nodes are logged; without Ray's private name they are left alone."""

import sys

import pytest

from locray.ray_runtime.quiet import log_messages

WORKER = "ray._private.worker"


@pytest.fixture(autouse=True)
def original_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restores Ray's function at the end of each test."""
    from ray._private import worker

    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)


def test_messages_are_logged_once(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    from ray._private import worker

    log_messages(verbose=False)
    for line in ("no space", "no space", "12 PYTHON worker processes have been started on node: 1", "Traceback\nlast"):
        worker.print_to_stdstream({"lines": [line]}, ignore_prefix=False)
    assert capsys.readouterr().out == ""
    assert caplog.messages == ["no space", "last"]


def test_without_the_private_function_nothing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import worker

    monkeypatch.delattr(worker, "print_to_stdstream")
    log_messages(verbose=False)
    assert not hasattr(worker, "print_to_stdstream")


def test_without_the_private_module_nothing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray._private

    monkeypatch.delattr(ray._private, "worker")
    monkeypatch.setitem(sys.modules, WORKER, None)
    log_messages(verbose=False)
