"""The budget of bytes that fetched images share."""

import threading

from locray.images.waiting import ByteBudget, Room


def waits(budget: ByteBudget, num_bytes: int) -> threading.Thread:
    """A thread that takes so many bytes; it is over once it has them."""
    thread = threading.Thread(target=Room(budget).cover, args=(num_bytes,), daemon=True)
    thread.start()
    thread.join(0.05)
    return thread


def test_who_finds_no_room_waits_until_there_is_some() -> None:
    budget = ByteBudget(10)
    first, second = Room(budget), Room(budget)
    first.cover(6)
    second.cover(4)
    third = waits(budget, 5)
    assert third.is_alive()
    second.leave()
    assert third.is_alive()
    first.leave()
    third.join(60)
    assert not third.is_alive()


def test_one_has_room_however_large_it_is() -> None:
    budget = ByteBudget(10)
    room = Room(budget)
    room.cover(100)
    second = waits(budget, 1)
    assert second.is_alive()
    room.leave()
    room.leave()
    second.join(60)
    assert not second.is_alive()


def test_a_size_that_turns_out_larger_waits_without_holding_bytes() -> None:
    budget = ByteBudget(10)
    one, other = Room(budget), Room(budget)
    one.cover(4)
    other.cover(4)
    growing = threading.Thread(target=one.cover, args=(9,), daemon=True)
    growing.start()
    other.cover(3)  # what it has is enough
    other.cover(8)  # not held up by what the first one held
    other.leave()
    growing.join(60)
    assert not growing.is_alive()


def test_nobody_waits_for_a_consumer_that_is_gone() -> None:
    budget = ByteBudget(10)
    Room(budget).cover(10)
    second = waits(budget, 10)
    assert second.is_alive()
    budget.close()
    second.join(60)
    assert not second.is_alive()
