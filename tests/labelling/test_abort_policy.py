"""When a run ends before its worklist: judged on a real committer."""

from datetime import date
from pathlib import Path

import pytest

from locray import schema
from locray.errors import ErrorCode
from locray.labelling.abort_policy import MIN_IMAGES_BEFORE_ABORT, AbortPolicy
from locray.labelling.committer import Committer
from locray.table.writer import TableWriter
from tests.helpers.rows import predicted

FAILED, DEFERRED = schema.STATUS_FAILED, schema.STATUS_DEFERRED


@pytest.fixture
def committer(tmp_path: Path) -> Committer:
    return Committer(
        TableWriter.claim(str(tmp_path / "table"), "net@0123456789ab"),
        10_000,
        stamp={schema.CONFIG_HASH: "c0ffee", schema.RUN_ID: "run"},
        run_date=date(2026, 1, 2),
        commit_rows=10_000,
    )


def test_a_run_that_labels_nothing_ends_after_the_probation(committer: Committer) -> None:
    judge = AbortPolicy()
    committer.add(predicted(list(range(MIN_IMAGES_BEFORE_ABORT - 1)), status=FAILED, code="access_denied"))
    assert judge.abort_reason(committer, 0.0) is None
    committer.add(predicted([MIN_IMAGES_BEFORE_ABORT], status=DEFERRED, code="throttled"))
    told = judge.abort_reason(committer, 0.0)
    assert told is not None
    assert "none of the first 200 images could be labelled (access_denied 199, throttled 1). The cred" in told
    assert "need s3:GetObject" in told


def test_one_unit_that_is_deferred_whole_does_not_end_a_run(committer: Committer) -> None:
    judge = AbortPolicy()
    committer.add(predicted(list(range(256)), status=DEFERRED, code="store"))
    assert judge.abort_reason(committer, 0.0) is None
    committer.add(predicted(list(range(256, 512)), status=DEFERRED, code="store"))
    assert "none of the first 512 images could be labelled (store 512)" in str(judge.abort_reason(committer, 0.0))


def test_one_image_that_can_be_labelled_ends_the_probation(committer: Committer) -> None:
    committer.add(predicted(list(range(1000)), status=FAILED, code="access_denied"))
    committer.add(predicted([5000]))
    assert AbortPolicy().abort_reason(committer, 0.0) is None


def test_a_store_that_stops_answering_is_retried_then_given_up(committer: Committer) -> None:
    judge = AbortPolicy(outage_s=10)
    committer.add(predicted([0]))
    committer.add(predicted(list(range(1, 500)), status=DEFERRED, code="throttled"))
    assert judge.abort_reason(committer, 100.0) is None
    committer.add(predicted(list(range(500, 700)), status=DEFERRED, code="throttled"))
    assert judge.abort_reason(committer, 109.0) is None
    told = judge.abort_reason(committer, 110.0)
    assert told == "the run was given up, since the last 200 images were all deferred, for 10 s"
    committer.add(predicted([700]))
    assert judge.abort_reason(committer, 111.0) is None
    committer.add(predicted(list(range(701, 800)), status=DEFERRED, code="throttled"))
    assert judge.abort_reason(committer, 999.0) is None


def test_images_that_can_not_be_fetched_any_more_end_a_run(committer: Committer) -> None:
    committer.add(predicted([0]))
    committer.quarantine = ErrorCode.ACCESS_DENIED
    assert "fetched before can't be any more (access_denied). The credentials" in str(
        AbortPolicy().abort_reason(committer, 0.0)
    )
