"""The processes of a Ray cluster, as the kernel sees them."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DEADLINE_S = 120


def children_of(pid: int) -> set[int]:
    """Returns the child processes that have not been waited for."""
    found: set[int] = set()
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found |= {int(child) for child in file.read_text().split()}
        except OSError:  # the thread has ended
            continue
    return found


def descendants_of(pid: int) -> set[int]:
    """Returns the children, their children, and so on."""
    children = children_of(pid)
    return children.union(*map(descendants_of, children))


def title_of(pid: int) -> str:
    """Returns the title of the process; empty after its end."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def raylet_pid(node: Any) -> int:
    """Returns the raylet process of a node of `ray.cluster_utils.Cluster`; its workers are its children."""
    ((raylet, *_),) = [infos for kind, infos in node.all_processes.items() if kind == "raylet"]
    return int(raylet.process.pid)


def wait_for(find: Callable[[], Any]) -> Any:
    """Waits until `find` returns something true, and returns that."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := find()):
        assert time.monotonic() < deadline, f"{find} has not come true"
        time.sleep(0.01)
    return found


@contextmanager
def peak_memory_bytes(root_pid: int) -> Iterator[dict[str, int]]:
    """Peak resident memory of the descendants of a process, by process title; complete when the block ends."""
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
    """Returns the peak of private memory. Shared memory, such as Ray's object store, is not counted."""
    try:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    except OSError:
        return 0
    if "VmHWM" not in status:  # a zombie
        return 0
    kib = {name: int(status[name].split()[0]) for name in ("VmHWM", "RssShmem")}
    return (kib["VmHWM"] - kib["RssShmem"]) * 1024
