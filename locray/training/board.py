"""Where workers put up how far they are. An actor that `loop` starts; the driver reads it.

Ray Train runs its callbacks in a process of its own, so they can't report to the driver. Without torch, and so at
hand at once.
"""

from locray.progress import Progress


class Board:
    """Holds the latest progress."""

    def __init__(self) -> None:
        self._latest: Progress | None = None

    def post(self, progress: Progress) -> None:
        """Replaces what is on the board."""
        self._latest = progress

    def read(self) -> Progress | None:
        """What is on the board; nothing before the first worker speaks."""
        return self._latest
