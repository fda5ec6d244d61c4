"""What a labelling run tells: its speed while it lasts, its summary at the end. Called by labelling/run.py."""

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from locray.errors import ExitCode
from locray.labelling.committer import FEW_IMAGES


class Clock:
    """Times a run: start-up is until the first rows arrive, the steady state is what comes after them."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._last: tuple[float, int] | None = None

    def tick(self, num_done: int) -> None:
        """Notes that so many images are done by now."""
        self._last = (time.monotonic(), num_done)
        self._first = self._first or self._last

    @property
    def wall_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._started

    @property
    def startup_s(self) -> float:
        """Seconds until the first rows arrived; 0 if none did."""
        return self._first[0] - self._started if self._first else 0.0

    @property
    def images_per_s_steady(self) -> float | None:
        """Images a second after the first rows; None while there is nothing to measure."""
        if self._first is None or self._last is None or self._last[0] <= self._first[0]:
            return None
        return (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])

    def speed(self) -> dict[str, float]:
        """The steady state as a fact to report; no fact while there is nothing to measure."""
        steady = self.images_per_s_steady
        return {} if steady is None else {"images/s": steady}


@dataclass
class LabelSummary:
    """The outcome of a run, as `--json` prints it. Every planned image is `ok`, `failed` or `deferred`."""

    run_id: str
    model_id: str
    table: str
    listed: int
    already_labelled: int
    planned: int
    ok: int = 0
    failed: int = 0
    deferred: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    deferred_causes: dict[str, int] = field(default_factory=dict)
    """Deferred images by `DeferralCause`, or by the code that a failed one would have."""
    deferred_examples: dict[str, str] = field(default_factory=dict)
    """Reasons by URI, of some. Not of images that were not tried."""
    deferred_list: str | None = None
    """Where all of them are listed (`DEFERRED_SCHEMA`), if that was asked for and no error stopped the run."""
    wall_s: float = 0.0
    startup_s: float = 0.0
    images_per_s: float = 0.0
    images_per_s_steady: float | None = None
    commits: int = 0
    deferred_reason: str | None = None
    """Why images were deferred, where there is one reason for it."""
    config_hash: str = ""
    transaction: int = 0
    """The number that the run's last commit carried: whoever goes on with it is this run's heir."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, rounded for reading."""
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(self).items()}

    def failure_rate(self) -> float:
        """Failed images as a share of those that have a row."""
        return self.failed / max(1, self.ok + self.failed)

    def exit_code(self, max_failure_rate: float) -> ExitCode:
        """What to tell the shell: a failure rate over the limit weighs more than images left for the next run.

        It isn't judged by a few failures, but in a table's first run: a night may have one new image, and that broken.
        """
        is_judged = self.failed >= FEW_IMAGES or not self.already_labelled
        if is_judged and self.failure_rate() > max_failure_rate:
            return ExitCode.FAILURE_RATE
        return ExitCode.DEFERRED if self.deferred else ExitCode.DONE
