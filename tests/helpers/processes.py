"""The processes of a cluster of Ray, as the kernel sees them. Used by tests that kill some, or look at their memory."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DEADLINE_S = 120


def children_of(pid: int) -> set[int]:
    """Processes that this one has started and not waited for."""
    found: set[int] = set()
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found |= {int(child) for child in file.read_text().split()}
        except OSError:  # the thread has ended
            continue
    return found


def descendants_of(pid: int) -> set[int]:
    """The children, their children, and so on."""
    children = children_of(pid)
    return children.union(*map(descendants_of, children))


def title_of(pid: int) -> str:
    """What the process calls itself; empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def raylet_pid(node: Any) -> int:
    """The process that a node of `ray.cluster_utils.Cluster` is made of; its workers are its children."""
    ((raylet, *_),) = [infos for kind, infos in node.all_processes.items() if kind == "raylet"]
    return int(raylet.process.pid)


def wait_for(find: Callable[[], Any]) -> Any:
    """What is found, as soon as it is true."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := find()):
        assert time.monotonic() < deadline, f"{find} has not come true"
        time.sleep(0.01)
    return found


@contextmanager
def peak_memory_bytes(root_pid: int) -> Iterator[dict[str, int]]:
    """The most memory, by the process's title, that descendants of a process have been resident with by the end."""
    peaks: dict[str, int] = {}
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            for pid in descendants_of(root_pid):
                title = title_of(pid)
                peaks[title] = max(peaks.get(title, 0), _peak_bytes(pid))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def _peak_bytes(pid: int) -> int:
    """Private memory at most; what is shared, such as Ray's object store, is not counted."""
    try:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    except OSError:
        return 0
    if "VmHWM" not in status:  # a process that has ended and is not yet waited for
        return 0
    kib = {name: int(status[name].split()[0]) for name in ("VmHWM", "RssShmem")}
    return (kib["VmHWM"] - kib["RssShmem"]) * 1024
