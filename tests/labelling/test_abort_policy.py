"""When a run ends before its worklist: policies on a real committer."""

from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest

from locray import schema
from locray.errors import ErrorCode
from locray.labelling.abort_policy import MAX_CANARY_IMAGES, MIN_IMAGES_BEFORE_ABORT, AbortPolicy, CanaryImages
from locray.labelling.committer import Committer
from locray.labelling.worklist import InlineWorklist
from locray.table.writer import TableWriter
from tests.helpers.rows import predicted
from tests.helpers.s3_server import S3Bucket, S3Server

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
    policy = AbortPolicy()
    committer.add(predicted(list(range(MIN_IMAGES_BEFORE_ABORT - 1)), status=FAILED, code="access_denied"))
    assert policy.abort_reason(committer, 0.0) is None
    committer.add(predicted([MIN_IMAGES_BEFORE_ABORT], status=DEFERRED, code="throttled"))
    told = policy.abort_reason(committer, 0.0)
    assert told is not None
    assert "none of the first 200 images could be labelled (access_denied 199, throttled 1). The cred" in told
    assert "need s3:GetObject" in told


def test_one_unit_that_is_deferred_whole_does_not_end_a_run(committer: Committer) -> None:
    policy = AbortPolicy()
    committer.add(predicted(list(range(256)), status=DEFERRED, code="store"))
    assert policy.abort_reason(committer, 0.0) is None
    committer.add(predicted(list(range(256, 512)), status=DEFERRED, code="store"))
    assert "none of the first 512 images could be labelled (store 512)" in str(policy.abort_reason(committer, 0.0))


def test_one_image_that_can_be_labelled_ends_the_probation(committer: Committer) -> None:
    committer.add(predicted(list(range(1000)), status=FAILED, code="access_denied"))
    committer.add(predicted([5000]))
    assert AbortPolicy().abort_reason(committer, 0.0) is None


def test_a_store_that_stops_answering_is_retried_then_given_up(committer: Committer) -> None:
    policy = AbortPolicy(max_outage_s=10)
    committer.add(predicted([0]))
    committer.add(predicted(list(range(1, 500)), status=DEFERRED, code="throttled"))
    assert policy.abort_reason(committer, 100.0) is None
    committer.add(predicted(list(range(500, 700)), status=DEFERRED, code="throttled"))
    assert policy.abort_reason(committer, 109.0) is None
    told = policy.abort_reason(committer, 110.0)
    assert told == "the run was aborted: the last 200 images were all deferred, for 10 s"
    committer.add(predicted([700]))
    assert policy.abort_reason(committer, 111.0) is None
    committer.add(predicted(list(range(701, 800)), status=DEFERRED, code="throttled"))
    assert policy.abort_reason(committer, 999.0) is None


def test_images_that_can_not_be_fetched_any_more_end_a_run(committer: Committer) -> None:
    committer.add(predicted([0]))
    committer.store_failure = ErrorCode.ACCESS_DENIED
    assert "fetched at its start no longer can (access_denied). The credentials" in str(
        AbortPolicy().abort_reason(committer, 0.0)
    )


def canaries_of(*uris: str) -> CanaryImages:
    """Returns the canaries of a worklist of these images, whose versions are unknown."""
    rows = pa.Table.from_pylist([{schema.IMAGE_URI: uri} for uri in uris], schema.LISTING_SCHEMA)
    return CanaryImages.fetch(InlineWorklist.of(rows, 256), max_bytes=10)


def test_nothing_is_lost_while_one_of_the_images_is_there(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(9)]
    for path in paths:
        path.write_bytes(b"x")
    canaries = canaries_of(*map(str, paths))
    assert len(canaries.images) == MAX_CANARY_IMAGES
    assert canaries.failure() is None
    for path in paths[1:]:
        path.unlink()
    assert canaries.failure() is None
    paths[0].unlink()
    assert canaries.failure() is ErrorCode.NOT_FOUND


def test_a_driver_that_could_not_fetch_them_can_not_tell() -> None:
    canaries = canaries_of("/only/on/the/workers.jpg")
    assert (canaries.images, canaries.failure()) == ([], None)


@pytest.mark.s3
def test_lost_rights_are_noticed(s3_server: S3Server, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    s3_bucket.put("a.jpg", b"x")
    canaries = canaries_of(f"{s3_bucket.uri}/a.jpg")
    assert canaries.failure() is None
    for name, value in s3_server.stranger.items():
        monkeypatch.setenv(name, value)
    assert canaries.failure() is ErrorCode.ACCESS_DENIED
    for name, value in s3_server.reader.items():
        monkeypatch.setenv(name, value)
    assert canaries.failure() is None
