"""Console output while a command runs: a live bar on a terminal, lines elsewhere.

Everything except the result goes to stderr, so that stdout can be piped.
"""

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from locray.config import LogFormat, LogLevel
from locray.progress import Progress
from locray.ray_runtime.logs import PACKAGE

SECONDS_BETWEEN_LINES = 5.0

_log = logging.getLogger(__name__)

_PREFIXES = {"WARNING": "locray: warning: ", "ERROR": "locray: error: ", "CRITICAL": "locray: error: "}
_STYLES = {"DEBUG": "dim", "WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}


class Console:
    """Renders the progress of a command, its log lines and its result."""

    def __init__(self, *, as_json: bool = False, log_format: LogFormat = "text") -> None:
        self._as_json = as_json
        self._log_format = log_format
        self._stderr = Terminal(stderr=True, highlight=False, emoji=False)
        self._stdout = Terminal(highlight=False, emoji=False)
        self._bar: Bar | None = None
        self._stage: str | None = None
        self._last_line = 0.0

    @contextmanager
    def show_log(self, level: LogLevel) -> Iterator[None]:
        """Shows the log lines of locray, from this level on, until the block ends. Ends the live bar with it."""
        logger, handler = logging.getLogger(PACKAGE), _Handler(self)
        before = logger.level
        logger.addHandler(handler)
        logger.setLevel(level.upper())
        try:
            yield
        finally:
            self.close()
            logger.removeHandler(handler)
            logger.setLevel(before)

    def report(self, progress: Progress) -> None:
        """Progress callback of the runs."""
        if self._stderr.is_terminal and self._log_format == "text":
            self._show_bar(progress)
        else:
            self._log_progress(progress)
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

    def write(self, record: logging.LogRecord) -> None:
        """Writes a log record to stderr, above a live bar."""
        if self._log_format == "json":
            print(_as_json(record), file=sys.stderr, flush=True)  # noqa: T201
            return
        text = _PREFIXES.get(record.levelname, "") + logging.Formatter().format(record)
        if not self._stderr.is_terminal:
            text = f"{_time_of(record).strftime('%Y-%m-%dT%H:%M:%SZ')} {text}"
        self._stderr.print(text, style=_STYLES.get(record.levelname), markup=False, soft_wrap=True)

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
        facts = _format_facts(progress)
        self._bar.update(self._bar.task_ids[0], completed=progress.done, total=progress.planned or None, facts=facts)

    def _log_progress(self, progress: Progress) -> None:
        finished = progress.planned > 0 and progress.done >= progress.planned
        now = time.monotonic()
        if progress.stage == self._stage and not finished and now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        count = f" {progress.done:,}/{progress.planned:,}" if progress.planned else ""
        text = f"{progress.stage}{count} {_format_facts(progress)}".rstrip()
        _log.info(text, extra={"progress": progress})


class _Handler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Passes the record on to the console."""
        try:
            self._console.write(record)
        except Exception:  # noqa: BLE001 - a log line that can't be written is no reason to end a run
            self.handleError(record)


def _as_json(record: logging.LogRecord) -> str:
    values: dict[str, Any] = {
        "time": _time_of(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
    }
    progress = getattr(record, "progress", None)
    if isinstance(progress, Progress):
        values |= {"stage": progress.stage, "done": progress.done, "planned": progress.planned}
        values["facts"] = dict(progress.facts)
    if record.exc_info:
        values["traceback"] = logging.Formatter().formatException(record.exc_info)
    return json.dumps(values, ensure_ascii=False, default=str)


def _time_of(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


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


def _format_facts(progress: Progress) -> str:
    return "  ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in progress.facts.items()
    )
