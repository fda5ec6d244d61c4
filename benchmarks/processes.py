"""Runs a command and measures all its processes: time, processor time and memory. Linux only.

The processes are watched through /proc, because their parent never waits for Ray's workers, so the operating system
does not add up their times. The last quarter second of a process, and processes that live shorter, are not seen.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from locray.errors import UsageError

_INTERVAL_S = 0.25
_MEMORY_TIME_SHARE = 0.02
"""Maximum share of time for reading memory sizes, which takes tens of milliseconds for many large processes."""
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_KIB = 1024
_ERROR_TAIL = 2000


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of a command."""

    started_at_s: float
    """In seconds since the epoch."""
    wall_s: float
    cpu_s: float
    """User and system time of all processes."""
    peak_bytes: int
    """Largest sum of the proportional set sizes (PSS), which count shared memory once."""


def run_measured(command: Sequence[str], environment: Mapping[str, str]) -> Measured:
    """Runs a command to its end.

    Raises:
        UsageError: it failed; the message holds the end of its output.
    """
    tree, num_looks, peak, next_memory_s = _ProcessTree(), 0, 0, 0.0
    with tempfile.TemporaryFile() as output:
        started, began = time.time(), time.monotonic()
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        ) as process:
            try:
                while process.poll() is None:
                    tree.look(process.pid)
                    now = time.monotonic()
                    if now >= next_memory_s:
                        peak = max(peak, tree.memory_bytes())
                        next_memory_s = now + (time.monotonic() - now) / _MEMORY_TIME_SHARE
                    num_looks += 1
                    time.sleep(_INTERVAL_S if num_looks > 1 else 0.05)
            except BaseException:
                process.terminate()
                raise
        wall_s = time.monotonic() - began
        if process.returncode:
            size = output.seek(0, os.SEEK_END)
            output.seek(max(0, size - _ERROR_TAIL))
            text = output.read().decode(errors="replace").strip()
            raise UsageError(f"{' '.join(command[:4])} ... ended with {process.returncode}: {text}")
    return Measured(started, wall_s, tree.cpu_s(), peak)


class _ProcessTree:
    """A process and its descendants, including those whose parent has died."""

    def __init__(self) -> None:
        self._ticks: dict[tuple[int, str], int] = {}
        """Processor time by process id and start time."""
        self._alive: list[int] = []

    def look(self, root: int) -> None:
        """Records the running processes and their processor times."""
        found: dict[int, tuple[int, str, int]] = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
                except OSError:
                    continue  # the process has ended
                found[int(folder.name)] = (int(fields[1]), fields[19], int(fields[11]) + int(fields[12]))
        ours = {root} | {pid for pid, (_, start, _) in found.items() if (pid, start) in self._ticks}
        size = 0
        while len(ours) > size:
            size = len(ours)
            ours |= {pid for pid, (parent, _, _) in found.items() if parent in ours}
        self._alive = [pid for pid in ours if pid in found]
        self._ticks |= {(pid, found[pid][1]): found[pid][2] for pid in self._alive}

    def memory_bytes(self) -> int:
        """PSS of the processes of the last look."""
        total = 0
        for pid in self._alive:
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
            except OSError:
                continue
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total * _KIB

    def cpu_s(self) -> float:
        """Processor time of all processes seen so far."""
        return sum(self._ticks.values()) / _TICKS_PER_SECOND
