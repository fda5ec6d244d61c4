"""A request to stop, while a run waits and while it works."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from locray.signals import stop_requests


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_wish_in_the_middle_of_work_is_granted_after_it(number: signal.Signals) -> None:
    done = []
    with stop_requests() as stop:
        for item in stop.until_requested(range(5)):
            if item == 2:
                os.kill(os.getpid(), number)
            done.append(item)
    assert done == [0, 1, 2]
    assert stop.signal_name == number.name


def test_a_wish_ends_the_wait_for_the_next_item_at_once() -> None:
    def items() -> Iterator[int]:
        yield 0
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("waited on")

    with stop_requests() as stop:
        assert list(stop.until_requested(items())) == [0]
    assert stop.signal_name == "SIGTERM"


def test_the_second_signal_and_any_after_the_run_act_as_usual() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_requests() as stop:
        for _ in stop.until_requested(range(1)):
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_who_ignores_a_signal_goes_on_ignoring_it() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_requests() as stop:
            for _ in stop.until_requested(range(3)):
                os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal_name is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_without_a_wish_all_items_come() -> None:
    with stop_requests() as stop:
        assert list(stop.until_requested("abc")) == ["a", "b", "c"]
    assert stop.signal_name is None


def test_an_error_leaves_the_handlers_as_they_were() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), stop_requests() as stop:
        list(stop.until_requested(1 // n for n in (1, 0)))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_in_another_thread_all_items_come() -> None:
    def work() -> list[str]:
        with stop_requests() as stop:
            return list(stop.until_requested("abc"))

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(work).result() == ["a", "b", "c"]
