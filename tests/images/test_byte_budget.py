"""The budget of bytes that fetched images share."""

import threading

from locray.images.byte_budget import ByteBudget, ByteReservation


def start_acquire(budget: ByteBudget, num_bytes: int) -> threading.Thread:
    """A thread that reserves `num_bytes` and ends when it has them."""
    thread = threading.Thread(target=ByteReservation(budget).acquire, args=(num_bytes,), daemon=True)
    thread.start()
    thread.join(0.05)
    return thread


def test_acquire_waits_until_enough_is_free() -> None:
    budget = ByteBudget(10)
    first, second = ByteReservation(budget), ByteReservation(budget)
    first.acquire(6)
    second.acquire(4)
    third = start_acquire(budget, 5)
    assert third.is_alive()
    second.release()
    assert third.is_alive()
    first.release()
    third.join(60)
    assert not third.is_alive()


def test_a_reservation_larger_than_the_budget_is_granted_alone() -> None:
    budget = ByteBudget(10)
    reservation = ByteReservation(budget)
    reservation.acquire(100)
    second = start_acquire(budget, 1)
    assert second.is_alive()
    reservation.release()
    reservation.release()
    second.join(60)
    assert not second.is_alive()


def test_a_growing_reservation_does_not_hold_its_old_bytes() -> None:
    budget = ByteBudget(10)
    one, other = ByteReservation(budget), ByteReservation(budget)
    one.acquire(4)
    other.acquire(4)
    growing = threading.Thread(target=one.acquire, args=(9,), daemon=True)
    growing.start()
    other.acquire(3)  # its reservation is sufficient
    other.acquire(8)  # not blocked by the first one's reservation
    other.release()
    growing.join(60)
    assert not growing.is_alive()


def test_closing_the_budget_ends_all_waits() -> None:
    budget = ByteBudget(10)
    ByteReservation(budget).acquire(10)
    second = start_acquire(budget, 10)
    assert second.is_alive()
    budget.close()
    second.join(60)
    assert not second.is_alive()
