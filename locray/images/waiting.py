"""How many bytes of fetched images may wait to be decoded. Called by images/fetch.py."""

import threading


class ByteBudget:
    """Room for bytes that images share, in many threads at once. One image always has room, however large it is."""

    def __init__(self, capacity_bytes: int) -> None:
        self._free_bytes = capacity_bytes
        self._num_holders = 0
        self._is_open = True
        self._changed = threading.Condition()

    def take(self, num_bytes: int) -> None:
        """Waits until there is room, or nobody holds any."""
        with self._changed:
            self._changed.wait_for(lambda: num_bytes <= self._free_bytes or self._num_holders == 0 or not self._is_open)
            self._free_bytes -= num_bytes
            self._num_holders += 1

    def give_back(self, num_bytes: int) -> None:
        """What `take` took."""
        with self._changed:
            self._free_bytes += num_bytes
            self._num_holders -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """Lets everyone pass who waits: nobody will consume anything any more."""
        with self._changed:
            self._is_open = False
            self._changed.notify_all()


class Room:
    """One image's part of a budget, which grows when its size is learnt."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._held_bytes: int | None = None

    def cover(self, num_bytes: int) -> None:
        """Waits until there is room for so many bytes in all."""
        if self._held_bytes is not None and num_bytes <= self._held_bytes:
            return
        self.leave()  # two images that each held something and waited for more would wait for each other
        self._budget.take(num_bytes)
        self._held_bytes = num_bytes

    def leave(self) -> None:
        """Gives all back."""
        if self._held_bytes is not None:
            self._budget.give_back(self._held_bytes)
            self._held_bytes = None
