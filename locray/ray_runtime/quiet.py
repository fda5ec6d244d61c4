"""Keeping Ray's own messages off the terminal, and off stdout, which is for results."""

import logging
import os
import sys
import threading
from typing import Any

_log = logging.getLogger(__name__)

_HARMLESS = (
    # Written for every pool of actors: https://github.com/ray-project/ray/issues/53727
    b"has constructor arguments in the object store and max_restarts > 0",
    # Training and labelling consist of many small actors, each a process.
    b"PYTHON worker processes have been started on node",
    # Written for each actor of a pool that is shut down at the end of an execution.
    b"The actor is dead because it was killed by `ray.kill`",
)
"""Parts of messages that no user needs."""

_stderr_is_filtered = False


def quiet_loggers() -> None:
    """Lets only errors of Ray's libraries through to the terminal; their log files stay complete.

    To be called after the libraries are imported, which sets up their loggers.
    """
    for name in ("ray", "ray.data", "ray.train"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setLevel(logging.ERROR)
                handler.addFilter(_is_not_raised)


def _is_not_raised(record: logging.LogRecord) -> bool:
    """False for what Ray Data logs with its traceback and then raises: the caller reports it."""
    return not (record.name.startswith("ray.data") and (record.exc_info or record.name.endswith("exceptions")))


def log_messages(*, verbose: bool) -> None:
    """Logs messages of Ray's nodes and workers instead of printing them to stdout.

    Unless `verbose`, harmless ones and repetitions are left out. Ray has no setting for this: if its private name is
    missing, the messages stay on stdout, where the result is still the last line.
    """
    try:
        from ray._private import worker
    except ImportError:
        return
    last = ""

    def pass_on(data: dict[str, Any], **_: Any) -> None:
        nonlocal last
        if verbose:
            for line in data["lines"]:
                _log.debug("(%s, pid %s) %s", data.get("actor_name") or data.get("task_name"), data.get("pid"), line)
            return
        for message in map(_without_traceback, data["lines"]):
            if message != last and not any(harmless in message.encode() for harmless in _HARMLESS):
                _log.warning(message)
                last = message

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = pass_on  # type: ignore[assignment]


def _without_traceback(message: str) -> str:
    """The last line of a traceback; any other message as it is."""
    return message.strip().rsplit("\n", 1)[-1] if message.startswith("Traceback") else message


def quiet_stderr() -> None:
    """Logs the lines that Ray's C++ core writes to this process's stderr, without the harmless ones.

    The core writes to file descriptor 2, so the descriptor becomes a pipe, which a thread reads. Python's own stderr
    keeps the terminal. A stderr that has been replaced, as in a notebook, is left alone.
    """
    global _stderr_is_filtered  # noqa: PLW0603
    stderr = sys.__stderr__
    if _stderr_is_filtered or stderr is None or sys.stderr is not stderr:
        return
    _stderr_is_filtered = True
    stderr.flush()
    terminal = os.dup(2)
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    sys.stderr = os.fdopen(terminal, "w", buffering=1, encoding="utf-8", errors="backslashreplace")

    def pass_on() -> None:
        with os.fdopen(reading, "rb") as lines:
            for line in lines:
                if line.strip() and not any(harmless in line for harmless in _HARMLESS):
                    _log.warning(line.decode(errors="replace").rstrip())

    threading.Thread(target=pass_on, name="stderr-filter", daemon=True).start()
