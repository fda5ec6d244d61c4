"""Fetching: one outcome per image, from files, a real S3 server, and a server that fails on purpose."""

import os
import pickle
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from locray.errors import DeferralCause, ErrorCode
from locray.images.decode import ImageFailure
from locray.images.fetch import Deferred, Fetched, FetchRequest, Outcome, fetch_images
from locray.storage import local_uri
from locray.storage.retries import REFILL_PER_RESPONSE, RetryBudget, RetryPolicy
from tests.helpers.failing_store import failing_store
from tests.helpers.s3_proxy import BUSY, Answer, Forward, Request, honest, s3_proxy
from tests.helpers.s3_server import S3Bucket, S3Server, free_ports

LIMIT_BYTES = 1000
FEW_RETRIES = RetryPolicy(max_retries=2, first_backoff_s=0.01, max_backoff_s=0.02, total_s=10)
ODD_KEYS = [
    "a b#%20.JPG",
    "100%",
    "ünï/日本",
    "q?x=1&y=+2",
    "no-ending",
    "~*<>|:",
    "new\nline",
    "bell\x07",
    "tab\t.jpg",
]


def outcomes(requests: Sequence[FetchRequest], **options: object) -> list[Outcome]:
    """Returns the outcomes in the order of the requests. Each index must occur once."""
    arrived = list(fetch_images(requests, **{"max_bytes": LIMIT_BYTES, "retries": FEW_RETRIES, **options}))
    assert sorted(index for index, _ in arrived) == list(range(len(requests)))
    return [outcome for _, outcome in sorted(arrived, key=lambda pair: pair[0])]


def outcome_of(uri: str, etag: str | None = None, size_bytes: int | None = None, **options: object) -> Outcome:
    (outcome,) = outcomes([FetchRequest(uri, etag, size_bytes)], **options)
    return outcome


def code_of(outcome: Outcome) -> ErrorCode:
    assert isinstance(outcome, ImageFailure), outcome
    return outcome.code


class TestFiles:
    def test_many_files_each_arrive_once(self, tmp_path: Path) -> None:
        for number in range(300):
            (tmp_path / str(number)).write_bytes(str(number).encode())
        requests = [FetchRequest(str(tmp_path / str(number)), None, None) for number in range(300)]
        fetched = outcomes(requests, concurrency=7)
        assert [outcome.data for outcome in fetched if isinstance(outcome, Fetched)] == [
            str(number).encode() for number in range(300)
        ]
        assert outcomes([]) == []

    def test_fetched_files_have_their_version(self, tmp_path: Path) -> None:
        path = os.fsencode(tmp_path) + b"/caf\xe9 %.jpg"
        Path(os.fsdecode(path)).write_bytes(b"12345")
        os.utime(path, ns=(0, 1_700_000_000_123_456_789))
        etag = "1700000000123456789-5"
        modified = datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)
        for known in (None, etag):
            assert outcome_of(local_uri(path), known) == Fetched(b"12345", etag, 5, modified)

    def test_a_file_that_was_written_to_since_it_was_listed(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"12345")
        assert code_of(outcome_of(str(tmp_path / "a"), "1700000000000000000-5")) is ErrorCode.CHANGED

    def test_a_file_that_is_written_to_while_it_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        path.write_bytes(b"x" * 100_000)
        # A separate process: a thread could write only when this one releases the interpreter's lock.
        command = [sys.executable, "-c", "import sys\nfile = open(sys.argv[1], 'ab', 0)\nwhile True: file.write(b'y')"]
        found: list[Outcome] = []
        with subprocess.Popen([*command, str(path)]) as writer:
            try:
                deadline = time.monotonic() + 120
                while not any(isinstance(outcome, ImageFailure) for outcome in found):
                    assert time.monotonic() < deadline
                    found += outcomes([FetchRequest(str(path), None, None)] * 50, max_bytes=1 << 30)
            finally:
                writer.kill()
        assert {outcome.code for outcome in found if isinstance(outcome, ImageFailure)} == {ErrorCode.CHANGED}
        whole = [outcome for outcome in found if isinstance(outcome, Fetched)]
        assert all(outcome.etag and outcome.etag.endswith(f"-{len(outcome.data)}") for outcome in whole)

    def test_files_that_cannot_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        os.mkfifo(tmp_path / "pipe")
        names = ["gone", "file/below", "loop", "n" * 300, "nul\0", ".", "pipe"]
        found = outcomes([FetchRequest(f"{tmp_path}/{name}", None, None) for name in names])
        assert [code_of(outcome) for outcome in found] == [
            *[ErrorCode.NOT_FOUND] * 5,
            ErrorCode.UNSUPPORTED_FORMAT,
            ErrorCode.UNSUPPORTED_FORMAT,
        ]
        assert outcome_of(str(tmp_path / "file")) == Fetched(b"", *stat_of(tmp_path / "file"))

    def test_a_file_that_is_too_large_is_not_read(self, tmp_path: Path) -> None:
        (tmp_path / "fits").write_bytes(b"x" * LIMIT_BYTES)
        with (tmp_path / "sparse").open("wb") as file:
            file.truncate(1 << 40)
        assert isinstance(outcome_of(str(tmp_path / "fits")), Fetched)
        assert code_of(outcome_of(str(tmp_path / "sparse"))) is ErrorCode.TOO_MANY_BYTES
        assert code_of(outcome_of("/gone", None, LIMIT_BYTES + 1)) is ErrorCode.TOO_MANY_BYTES

    def test_an_unreadable_file(self, unprivileged_folder: Path) -> None:
        (unprivileged_folder / "closed").touch(mode=0)
        assert code_of(outcome_of(str(unprivileged_folder / "closed"))) is ErrorCode.ACCESS_DENIED

    def test_a_slow_consumer_slows_the_fetching_down(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"x" * 10)
        fetching = fetch_images([FetchRequest(str(tmp_path / "a"), None, 10)] * 100, max_bytes=99, concurrency=8)
        next(fetching)
        assert len(fetching.gi_frame.f_locals["running"]) < 8  # type: ignore[attr-defined]
        assert fetching.gi_frame.f_locals["next_index"] == 8  # type: ignore[attr-defined]
        fetching.close()

    @pytest.mark.parametrize("size_bytes", [1_000_000, None])
    def test_waiting_bytes_are_limited_even_if_sizes_are_unknown(self, tmp_path: Path, size_bytes: int | None) -> None:
        (tmp_path / "a").write_bytes(b"x" * 1_000_000)
        requests = [FetchRequest(str(tmp_path / "a"), None, size_bytes)] * 40
        assert peak_bytes(requests, max_waiting_bytes=3_500_000) < 5_500_000
        assert peak_bytes(requests, max_waiting_bytes=50_000_000) > 10_000_000

    def test_an_image_over_the_budget_is_fetched_alone(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"x" * 100)
        requests = [FetchRequest(str(tmp_path / "a"), None, 100)] * 5
        assert all(isinstance(outcome, Fetched) for outcome in outcomes(requests, max_waiting_bytes=1))

    def test_requests_and_outcomes_can_be_pickled(self) -> None:
        for value in (FetchRequest("/a", None, 1), Fetched(b"x", None, 1, None), Deferred(DeferralCause.STORE, "why")):
            assert pickle.loads(pickle.dumps(value)) == value
        assert pickle.loads(pickle.dumps(fetch_images)) is fetch_images


def peak_bytes(requests: Sequence[FetchRequest], max_waiting_bytes: int) -> int:
    """Returns the peak memory of Python objects while the consumer is slow with the first image."""
    assert isinstance(outcome_of(requests[0].uri, max_bytes=1 << 30), Fetched)  # creates the client, which is kept
    tracemalloc.start()
    try:
        fetching = fetch_images(
            requests, max_bytes=1 << 30, concurrency=16, max_waiting_bytes=max_waiting_bytes, retries=FEW_RETRIES
        )
        for number, (_, outcome) in enumerate(fetching):
            assert isinstance(outcome, Fetched)
            if number == 0:
                time.sleep(0.2)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def stat_of(path: Path) -> tuple[str, int, datetime]:
    status = path.stat()
    modified = datetime.fromtimestamp(status.st_mtime_ns // 1000 / 1_000_000, UTC)
    return f"{status.st_mtime_ns}-{status.st_size}", status.st_size, modified


@pytest.mark.s3
class TestObjects:
    @pytest.mark.parametrize("key", ["plain.jpg", "odd\n.jpg"])
    def test_waiting_bytes_are_limited_if_sizes_are_unknown(self, s3_bucket: S3Bucket, key: str) -> None:
        s3_bucket.put(key, b"x" * 1_000_000)
        requests = [FetchRequest(f"{s3_bucket.uri}/{key}", None, None)] * 40
        assert peak_bytes(requests, max_waiting_bytes=3_500_000) < 9_000_000

    def test_an_image_is_one_request(
        self, s3_server: S3Server, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        requests = objects(s3_bucket, 20)
        with s3_proxy(s3_server.endpoint_url) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
            outcomes(requests)
            assert [request.method for request in proxy.requests] == ["GET"] * 20

    @pytest.mark.parametrize("knows_version", [True, False])
    def test_every_key_is_fetched(self, s3_bucket: S3Bucket, knows_version: bool) -> None:
        etags = [s3_bucket.put(key, key.encode()) for key in ODD_KEYS]
        requests = [
            FetchRequest(f"{s3_bucket.uri}/{key}", etag if knows_version else None, None)
            for key, etag in zip(ODD_KEYS, etags, strict=True)
        ]
        entries = s3_bucket.entries()
        assert outcomes(requests) == [
            Fetched(key.encode(), etag, len(key.encode()), entries[key]["LastModified"])
            for key, etag in zip(ODD_KEYS, etags, strict=True)
        ]

    @pytest.mark.parametrize("key", ["plain.jpg", "odd\n.jpg"])
    def test_an_object_that_is_gone_replaced_or_too_large(self, s3_bucket: S3Bucket, key: str) -> None:
        uri = f"{s3_bucket.uri}/{key}"
        assert code_of(outcome_of(uri)) is ErrorCode.NOT_FOUND
        assert code_of(outcome_of(f"s3://test-no-such-bucket/{key}")) is ErrorCode.NOT_FOUND
        old_etag = s3_bucket.put(key, b"old")
        new_etag = s3_bucket.put(key, b"new")
        assert code_of(outcome_of(uri, old_etag)) is ErrorCode.CHANGED
        assert isinstance(outcome_of(uri, new_etag), Fetched)
        s3_bucket.put(key, b"x" * (LIMIT_BYTES + 1))
        assert code_of(outcome_of(uri)) is ErrorCode.TOO_MANY_BYTES

    def test_keys_that_differ_in_a_slash_are_kept_apart(self, s3_bucket: S3Bucket) -> None:
        s3_bucket.put("a", b"a")
        s3_bucket.put("folder/", b"")
        assert code_of(outcome_of(f"{s3_bucket.uri}/a/")) is ErrorCode.NOT_FOUND
        assert outcome_of(f"{s3_bucket.uri}/folder/") != outcome_of(f"{s3_bucket.uri}/folder")

    @pytest.mark.parametrize("key", ["plain.jpg", "odd\n.jpg"])
    def test_denied_access_fails_an_image_and_wrong_credentials_defer_it(
        self, s3_server: S3Server, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch, key: str
    ) -> None:
        s3_bucket.put(key, b"x")
        uri = f"{s3_bucket.uri}/{key}"
        for name, value in s3_server.stranger.items():
            monkeypatch.setenv(name, value)
        assert code_of(outcome_of(uri)) is ErrorCode.ACCESS_DENIED
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
        assert outcome_of(uri) == Deferred(DeferralCause.CREDENTIALS, "the store answered SignatureDoesNotMatch")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        assert outcome_of(uri) == Deferred(DeferralCause.CREDENTIALS, "the store answered InvalidAccessKeyId")
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        assert isinstance(outcome_of(uri), Deferred)

    @pytest.mark.parametrize("key", ["plain.jpg", "odd\n.jpg"])
    def test_a_store_that_does_not_answer_defers(
        self, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch, key: str
    ) -> None:
        (port,) = free_ports(1)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        assert outcome_of(f"{s3_bucket.uri}/{key}") == Deferred(DeferralCause.DISCONNECTED, "the store did not answer")


class TestFailingStore:
    @pytest.mark.parametrize("key", ["plain.jpg", "odd\n.jpg"])
    def test_errors_that_pass_are_retried(self, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
        with failing_store([500, 503, 200], monkeypatch) as asked_for:
            fetched = outcome_of(f"s3://bucket/{key}", "abc")
        assert isinstance(fetched, Fetched)
        assert (fetched.data, fetched.etag) == (b"12345", "abc")
        assert asked_for == ['"abc"'] * 3

    @pytest.mark.parametrize("key", ["plain.jpg", "odd\n.jpg"])
    def test_errors_that_stay_defer_the_image(self, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
        with failing_store([503], monkeypatch) as asked_for:
            assert outcome_of(f"s3://bucket/{key}") == Deferred(DeferralCause.THROTTLED, "the store answered Code503")
        assert asked_for == [None] * (1 + FEW_RETRIES.max_retries)

    @pytest.mark.parametrize("key", ["plain.jpg", "odd\n.jpg"])
    @pytest.mark.parametrize(
        ("listed", "answered", "asked", "is_changed"),
        [
            ("abc", '"abc"', '"abc"', False),
            ("W/abc", 'W/"abc"', None, False),
            ("W/abc", '"abc"', None, False),
            ("abc", 'W/"abc"', '"abc"', False),
            ("W/abc", 'W/"xyz"', None, True),
            ("abc", None, '"abc"', False),
            (None, 'W/"abc"', None, False),
        ],
    )
    def test_weak_and_missing_etags(
        self,
        monkeypatch: pytest.MonkeyPatch,
        key: str,
        listed: str | None,
        answered: str | None,
        asked: str | None,
        is_changed: bool,
    ) -> None:
        with failing_store([200], monkeypatch, etag=answered) as asked_for:
            outcome = outcome_of(f"s3://bucket/{key}", listed)
        assert asked_for == [asked]
        assert isinstance(outcome, ImageFailure if is_changed else Fetched)
        if is_changed:
            assert code_of(outcome) is ErrorCode.CHANGED

    @pytest.mark.parametrize(
        ("status", "code", "expected"),
        [
            (400, "KMS.DisabledException", ErrorCode.ACCESS_DENIED),
            (400, "AnythingElse", ErrorCode.ACCESS_DENIED),
            (403, "InvalidObjectState", ErrorCode.ARCHIVED),
            (405, "MethodNotAllowed", ErrorCode.ACCESS_DENIED),
            (410, "Gone", ErrorCode.NOT_FOUND),
            (451, "UnavailableForLegalReasons", ErrorCode.ACCESS_DENIED),
        ],
    )
    def test_refusals_of_one_object_are_its_row(
        self, monkeypatch: pytest.MonkeyPatch, status: int, code: str, expected: ErrorCode
    ) -> None:
        with failing_store([status], monkeypatch, code) as asked_for:
            outcome = outcome_of("s3://bucket/a.jpg")
        assert code_of(outcome) is expected
        assert isinstance(outcome, ImageFailure)
        assert code in outcome.message
        assert len(asked_for) == 1

    @pytest.mark.parametrize("key", ["plain.jpg", "odd\n.jpg"])
    def test_half_a_body_defers_the_image(self, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
        with failing_store([None], monkeypatch):
            assert isinstance(outcome_of(f"s3://bucket/{key}"), Deferred)

    @pytest.mark.parametrize("key", ["plain.jpg", "odd\n.jpg"])
    @pytest.mark.parametrize(
        ("status", "cause", "requests"),
        [
            (429, DeferralCause.THROTTLED, 3),
            (500, DeferralCause.SERVER_ERROR, 3),
            (408, DeferralCause.TIMED_OUT, 3),
            (418, DeferralCause.STORE, 1),
        ],
    )
    def test_only_transient_errors_are_retried(
        self, monkeypatch: pytest.MonkeyPatch, key: str, status: int, cause: DeferralCause, requests: int
    ) -> None:
        with failing_store([status], monkeypatch) as asked_for:
            outcome = outcome_of(f"s3://bucket/{key}", budget=RetryBudget())
        assert outcome == Deferred(cause, f"the store answered Code{status}")
        assert len(asked_for) == requests


def objects(bucket: S3Bucket, count: int) -> list[FetchRequest]:
    etags = {f"{number}.jpg": bucket.put(f"{number}.jpg", str(number).encode()) for number in range(count)}
    return [FetchRequest(f"{bucket.uri}/{key}", etag, None) for key, etag in etags.items()]


@pytest.mark.s3
class TestSharedRetries:
    def test_the_budget_limits_retries_while_a_store_is_down(
        self, s3_server: S3Server, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        requests, budget = objects(s3_bucket, 100), RetryBudget(capacity=30)
        with s3_proxy(s3_server.endpoint_url) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
            proxy.fault = lambda *_: BUSY
            down = outcomes(requests, budget=budget)
            assert down == [Deferred(DeferralCause.THROTTLED, "the store answered SlowDown")] * 100
            assert len(proxy.requests) == 130
            assert budget.is_exhausted

            proxy.fault = honest
            fetched = outcomes(requests, budget=budget)
            assert [outcome.data for outcome in fetched if isinstance(outcome, Fetched)] == [
                str(number).encode() for number in range(100)
            ]
            assert len(proxy.requests) == 230
            assert not budget.is_exhausted

            proxy.fault = lambda *_: BUSY
            assert outcomes(requests, budget=budget) == down
            assert 330 < len(proxy.requests) <= 330 + 100 * REFILL_PER_RESPONSE

    def test_each_kind_of_error_has_its_own_budget(
        self, s3_server: S3Server, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        broken = Answer(500, b"<Error><Code>InternalError</Code></Error>")
        requests = objects(s3_bucket, 20)
        with s3_proxy(s3_server.endpoint_url) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
            proxy.fault = lambda request, _: broken if "1" in request.path.split("/")[-1] else BUSY
            found = outcomes(requests, budget=RetryBudget(capacity=5))
            assert len(proxy.requests) == 20 + 5 + 5
        causes = [outcome.cause for outcome in found if isinstance(outcome, Deferred)]
        assert (causes.count(DeferralCause.SERVER_ERROR), causes.count(DeferralCause.THROTTLED)) == (11, 9)

    def test_throttled_images_are_all_fetched_in_the_end(
        self, s3_server: S3Server, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        requests, asked_for = objects(s3_bucket, 100), set[str]()

        def at_first(request: Request, forward: Forward) -> Answer:
            known = request.path in asked_for
            asked_for.add(request.path)
            return forward() if known else BUSY

        with s3_proxy(s3_server.endpoint_url) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
            proxy.fault = at_first
            assert all(isinstance(outcome, Fetched) for outcome in outcomes(requests, budget=RetryBudget()))
            assert len(proxy.requests) == 200
