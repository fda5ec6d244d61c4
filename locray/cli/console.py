"""What a person sees while a command runs: a live bar on a terminal, plain lines elsewhere.

Everything except the result goes to stderr, so that stdout can be piped.
"""

import json
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from locray.progress import Progress

SECONDS_BETWEEN_LINES = 5.0


class Console:
    """Renders the progress of a command, its result and its errors."""

    def __init__(self, *, as_json: bool = False) -> None:
        self._as_json = as_json
        self._stderr = Terminal(stderr=True, highlight=False)
        self._stdout = Terminal(highlight=False)
        self._bar: Bar | None = None
        self._stage: str | None = None
        self._last_line = 0.0

    def report(self, progress: Progress) -> None:
        """Progress callback of the runs."""
        if self._stderr.is_terminal:
            self._show_bar(progress)
        else:
            self._show_line(progress)
        self._stage = progress.stage

    def result(self, facts: Mapping[str, Any], lines: Mapping[str, str] | None = None) -> None:
        """Shows the outcome: `facts` as one JSON object with --json, else `lines`, by default made from the facts."""
        self.close()
        if self._as_json:
            print(json.dumps(facts, ensure_ascii=False), flush=True)  # noqa: T201
            return
        lines = format_values(facts) if lines is None else lines
        width = max(map(len, lines), default=0)
        for name, value in lines.items():
            self._stdout.print(f"{name:<{width}}  {value}", markup=False, soft_wrap=True)

    def say(self, text: str = "") -> None:
        """Shows a line that is no part of the result."""
        self.close()
        self._stderr.print(text, markup=False, soft_wrap=True)

    def error(self, message: str) -> None:
        """Shows an error."""
        self.close()
        self._stderr.print(f"locray: error: {message}", markup=False, style="red", soft_wrap=True)

    def close(self) -> None:
        """Ends the live bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show_bar(self, progress: Progress) -> None:
        if self._bar is None or progress.stage != self._stage:
            self.close()
            columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[facts]}")]
            if progress.planned:
                columns[2:2] = [MofNCompleteColumn(), TimeRemainingColumn()]
            # Not redirecting leaves sys.stderr as it is, for ray_runtime/start.py to keep Ray's messages out of it.
            self._bar = Bar(
                *columns, TimeElapsedColumn(), console=self._stderr, redirect_stdout=False, redirect_stderr=False
            )
            self._bar.add_task(progress.stage, total=progress.planned or None, facts="")
            self._bar.start()
        self._bar.update(
            self._bar.task_ids[0], completed=progress.done, total=progress.planned or None, facts=_facts(progress)
        )

    def _show_line(self, progress: Progress) -> None:
        finished = progress.planned > 0 and progress.done >= progress.planned
        now = time.monotonic()
        if progress.stage == self._stage and not finished and now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        count = f" {progress.done:,}/{progress.planned:,}" if progress.planned else ""
        self._stderr.print(f"{progress.stage}{count} {_facts(progress)}".rstrip(), markup=False, soft_wrap=True)


def format_values(values: Mapping[str, Any]) -> dict[str, str]:
    """Returns the values as text, without those that are None."""
    return {name: format_value(value) for name, value in values.items() if value is not None}


def format_value(value: Any) -> str:
    """Returns a value as a person reads it."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {format_value(item)}" for name, item in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"  # noqa: PLR2004
    if isinstance(value, list):
        return ", ".join(map(format_value, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def _facts(progress: Progress) -> str:
    return "  ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in progress.facts.items()
    )
