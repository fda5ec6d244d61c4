"""When a run ends before its worklist: judged on a real committer; real signals to this process."""

import os
import queue
import signal
import threading
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
from labelling.rows import predicted

from locray import schema
from locray.errors import ErrorCode
from locray.labelling.committer import Committer
from locray.labelling.stopping import PROBATION_IMAGES, Judge, StopRequest
from locray.labelling.table import TableWriter

FAILED, DEFERRED = schema.STATUS_FAILED, schema.STATUS_DEFERRED


@pytest.fixture
def committer(tmp_path: Path) -> Committer:
    return Committer(
        TableWriter.claim(str(tmp_path / "table"), "net@0123456789ab"),
        10_000,
        stamp={schema.CONFIG_HASH: "c0ffee", schema.RUN_ID: "run"},
        run_date=date(2026, 1, 2),
        commit_rows=10_000,
        commit_interval_s=3600,
    )


def test_a_run_that_labels_nothing_ends_after_the_probation(committer: Committer) -> None:
    judge = Judge()
    committer.add(predicted(list(range(PROBATION_IMAGES - 1)), status=FAILED, code="access_denied"))
    assert judge.verdict(committer, 0.0) is None
    committer.add(predicted([PROBATION_IMAGES], status=DEFERRED, code="throttled"))
    told = judge.verdict(committer, 0.0)
    assert told is not None
    assert "none of the first 200 images could be labelled (access_denied 199, throttled 1). The cred" in told
    assert "need s3:GetObject" in told


def test_one_image_that_can_be_labelled_ends_the_probation(committer: Committer) -> None:
    committer.add(predicted(list(range(1000)), status=FAILED, code="access_denied"))
    committer.add(predicted([5000]))
    assert Judge().verdict(committer, 0.0) is None


def test_a_store_that_gives_nothing_any_more_is_waited_for_and_then_given_up(committer: Committer) -> None:
    judge = Judge(outage_s=10)
    committer.add(predicted([0]))
    committer.add(predicted(list(range(1, 500)), status=DEFERRED, code="throttled"))
    assert judge.verdict(committer, 100.0) is None
    committer.add(predicted(list(range(500, 700)), status=DEFERRED, code="throttled"))
    assert judge.verdict(committer, 109.0) is None
    told = judge.verdict(committer, 110.0)
    assert told == "the run was given up, since the last 200 images were all deferred, for 10 s"
    committer.add(predicted([700]))
    assert judge.verdict(committer, 111.0) is None
    committer.add(predicted(list(range(701, 800)), status=DEFERRED, code="throttled"))
    assert judge.verdict(committer, 999.0) is None


def test_images_that_can_not_be_fetched_any_more_end_a_run(committer: Committer) -> None:
    committer.add(predicted([0]))
    committer.doubt = ErrorCode.ACCESS_DENIED
    assert "fetched before can't be any more (access_denied). The credentials" in str(Judge().verdict(committer, 0.0))


def waiting(items: "queue.Queue[int]") -> Iterator[int]:
    while True:
        yield items.get()


def test_a_signal_ends_the_waiting_at_once() -> None:
    items: queue.Queue[int] = queue.Queue()
    items.put(1)
    request = StopRequest()
    before = signal.getsignal(signal.SIGTERM)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    assert list(request.until(waiting(items))) == [1]
    timer.join()
    assert request.signal_name == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_lets_the_work_under_way_come_to_its_end() -> None:
    request, done = StopRequest(), []
    for item in request.until(iter(range(5))):
        if item == 1:
            os.kill(os.getpid(), signal.SIGINT)
        done.append(item)
    assert (done, request.signal_name) == ([0, 1], "SIGINT")


def test_without_a_signal_nothing_is_changed() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    request = StopRequest()
    assert list(request.until(iter(range(3)))) == [0, 1, 2]
    for _ in request.until(iter(range(3))):
        break
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    with pytest.raises(ZeroDivisionError):
        list(request.until(1 // n for n in (1, 0)))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), request.signal_name) == (*before, None)
    with pytest.raises(ValueError, match="main thread"):
        run_in_thread(lambda: signal.signal(signal.SIGTERM, before[0]))
    assert run_in_thread(lambda: list(StopRequest().until(iter(range(3))))) == [0, 1, 2]


def run_in_thread(work: object) -> object:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(work).result()  # type: ignore[arg-type]
