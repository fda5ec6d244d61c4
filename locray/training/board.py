"""What workers and driver leave for each other. An actor that `loop` starts.

Ray Train runs its callbacks in a process of its own, so they can't report to the driver. Without torch, and so at
hand at once.
"""

from dataclasses import dataclass

from locray.progress import Progress


@dataclass(frozen=True, slots=True)
class Notes:
    """What is on the board for the driver."""

    progress: Progress | None = None
    failure: str | None = None
    """Why the run ended early, where that is no worker's death: it would only happen again."""


class Board:
    """Holds the latest progress, a failure, and the wish to stop."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._failure: str | None = None
        self._stop = False

    def post(self, progress: Progress) -> None:
        """Replaces the progress."""
        self._progress = progress

    def fail(self, message: str) -> None:
        """Says why the run ends; the first message stays."""
        self._failure = self._failure or message

    def read(self) -> Notes:
        """What the workers have said so far."""
        return Notes(self._progress, self._failure)

    def ask_to_stop(self) -> None:
        """Asks the workers to save and end."""
        self._stop = True

    def is_to_stop(self) -> bool:
        """Whether the workers were asked to save and end."""
        return self._stop
