"""A limit on the bytes of images that are fetched and not yet decoded."""

import threading


class ByteBudget:
    """A number of bytes that may be reserved at a time. Safe in many threads.

    A reservation that is larger than the whole budget is granted when no other one is held.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._free_bytes = capacity_bytes
        self._num_holders = 0
        self._is_open = True
        self._changed = threading.Condition()

    def acquire(self, num_bytes: int) -> None:
        """Waits until `num_bytes` are free, or nothing is reserved, or the budget is closed."""
        with self._changed:
            self._changed.wait_for(lambda: num_bytes <= self._free_bytes or self._num_holders == 0 or not self._is_open)
            self._free_bytes -= num_bytes
            self._num_holders += 1

    def release(self, num_bytes: int) -> None:
        """Frees what one `acquire` reserved."""
        with self._changed:
            self._free_bytes += num_bytes
            self._num_holders -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """Lets all waiting threads pass: nothing will be released any more."""
        with self._changed:
            self._is_open = False
            self._changed.notify_all()


class ByteReservation:
    """The bytes that one image holds of a budget. They may grow when its size becomes known."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._num_bytes: int | None = None

    def acquire(self, num_bytes: int) -> None:
        """Waits until the reservation holds at least `num_bytes` in all."""
        if self._num_bytes is not None and num_bytes <= self._num_bytes:
            return
        self.release()  # two images that each held a part and waited for more would wait for each other
        self._budget.acquire(num_bytes)
        self._num_bytes = num_bytes

    def release(self) -> None:
        """Frees all of it. Does nothing if nothing is held."""
        if self._num_bytes is not None:
            self._budget.release(self._num_bytes)
            self._num_bytes = None
