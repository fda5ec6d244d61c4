"""Complete runs on a store that fails in mid-run: a real server behind a proxy that injects faults.

The stages run in the driver's process, except for one run with Ray: they handle the store in the same way there.
"""

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, quote
from uuid import uuid4

import pytest

from locray import schema
from locray.labelling.abort_policy import MAX_CANARY_IMAGES
from locray.table.open import open_table
from tests.helpers.commands import locray
from tests.helpers.fault_images import (
    Done,
    Versions,
    check_sound,
    check_whole,
    fill_bucket,
    label,
    picture,
    summary_of,
)
from tests.helpers.made_up import without_ray
from tests.helpers.s3_proxy import BUSY, CLOSED, Answer, Fault, Forward, Request, S3Proxy, honest, s3_proxy
from tests.helpers.s3_server import S3Bucket, S3Server, new_bucket, new_client
from tests.helpers.tables import dataset_of

pytestmark = pytest.mark.s3

NUM_IMAGES = 240
OUTAGE_S = 30
UNIT_SIZE = 8
OPTIONS = ("--unit-size", str(UNIT_SIZE), "--commit-rows", "24", "--max-failure-rate", "1")
LOG = "/_delta_log/"
FIRST_ROWS = 2
"""Version of a new table's first commit with rows: the first two create and claim it."""

EXPIRED = Answer(403, b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>")
DENIED = Answer(403, b"<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>")


@pytest.fixture(scope="module")
def proxy(s3_server: S3Server) -> Iterator[S3Proxy]:
    with s3_proxy(s3_server.endpoint_url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def behind_proxy(proxy: S3Proxy) -> Iterator[None]:
    """Points drivers and the test itself at the proxy instead of the store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        patch.delenv("RAY_ADDRESS", raising=False)  # a run starts its own Ray, whose workers inherit this
        yield


@pytest.fixture(scope="module")
def bucket(behind_proxy: None) -> Iterator[S3Bucket]:  # noqa: ARG001 (the environment names it)
    with closing(new_client()) as client:
        yield new_bucket(client)


@pytest.fixture(scope="module")
def images(bucket: S3Bucket) -> Versions:
    return fill_bucket(bucket, "in", NUM_IMAGES)


@dataclass
class Runs:
    """Successive runs into one table, each with a fault in the store."""

    proxy: S3Proxy
    arguments: tuple[str, str, str]

    @property
    def table(self) -> str:
        return self.arguments[2]

    def __call__(self, fault: Fault, *, run: Callable[..., Done] = without_ray) -> Done:
        self.proxy.fault = fault
        try:
            return label(*self.arguments, *OPTIONS, run=run)
        finally:
            self.proxy.fault = honest


@pytest.fixture
def run(bucket: S3Bucket, artifact: str, proxy: S3Proxy) -> Runs:
    return Runs(proxy, (f"{bucket.uri}/in", artifact, f"{bucket.uri}/out-{uuid4().hex[:8]}"))


def is_for_an_image(request: Request) -> bool:
    return request.method == "GET" and request.path.endswith(".jpg")


class FromTheMiddle:
    """No fault until some images were requested and rows are committed; then `fault`."""

    def __init__(self, fault: Fault, *, after: int = NUM_IMAGES // 2, first_rows: int = FIRST_ROWS) -> None:
        self.fault = fault
        self.began = False
        self._after = after
        self._asked_for = 0
        self._commit = f"_delta_log/{first_rows:020d}.json"
        self._committed = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, request: Request, forward: Forward) -> Answer:
        if is_for_an_image(request):
            with self._lock:
                self._asked_for += 1
            if self._asked_for > self._after:
                assert self._committed.wait(60)
                self.began = True
        if self.began:
            return self.fault(request, forward)
        answer = forward()
        if request.method == "PUT" and request.path.endswith(self._commit):
            self._committed.set()
        return answer


@pytest.mark.ray
def test_a_temporary_outage_of_the_store_loses_no_image(run: Runs, images: Versions) -> None:
    refused: list[float] = []

    def outage(_: Request, forward: Forward) -> Answer:
        now = time.monotonic()
        if refused and now > refused[0] + OUTAGE_S:
            return forward()
        refused.append(now)
        return BUSY

    done = run(FromTheMiddle(outage), run=locray)
    first = summary_of(done)
    assert done.returncode in {0, 4}, done
    assert len(refused) > 1
    assert check_sound(run.table, images).num_rows == first["ok"] >= NUM_IMAGES // 2
    if done.returncode == 4:
        again = run(honest)
        assert (again.returncode, summary_of(again)["planned"]) == (0, first["deferred"]), again
    check_whole(run.table, images)


def test_lost_responses_lose_and_repeat_no_image(run: Runs, images: Versions) -> None:
    """A fifth of all requests fail, before or after their effect; a retry draws anew."""
    asked: Counter[tuple[str, str, str]] = Counter()
    lost = []

    def lossy(request: Request, forward: Forward) -> Answer:
        key = (request.method, request.path, request.query)
        asked[key] += 1
        dice = hashlib.sha256(repr((key, asked[key])).encode()).digest()
        if dice[0] >= 256 // 5:
            return forward()
        lost.append(request)
        if dice[1] % 2:
            forward()
        return CLOSED

    for _ in range(5):  # a run may end early, but only with an exit code of the README
        done = run(lossy)
        if done.returncode == 0:
            break
        assert done.returncode in {1, 2, 4}, done
        if open_table(run.table) is not None:  # else it ended before it created one, and left nothing else
            check_sound(run.table, images)
    assert len(lost) > NUM_IMAGES // 10
    assert done.returncode == 0, done
    check_whole(run.table, images)


def test_credentials_that_expire_during_a_run_lose_no_image(run: Runs, images: Versions) -> None:
    """The workers' first, then all: images that can't be fetched any more get no row."""
    done = run(FromTheMiddle(lambda request, forward: EXPIRED if is_for_an_image(request) else forward()))
    assert done.returncode == 4, done
    assert "ExpiredToken" in done.stderr
    held = check_sound(run.table, images)
    assert 0 < held.num_rows == summary_of(done)["ok"] < NUM_IMAGES - 100
    assert codes_of(run.table) == {}

    done = run(FromTheMiddle(lambda _, __: EXPIRED, after=60, first_rows=held.version + 2))
    assert done.returncode in {2, 4}, done
    told = " ".join(done.stderr.split())
    assert "no valid AWS credentials to reach" in told
    assert "the store answered ExpiredToken" in told
    before, held = held, check_sound(run.table, images)
    assert before.num_rows < held.num_rows < NUM_IMAGES

    last = run(honest)
    summary = summary_of(last)
    assert (last.returncode, summary["already_labelled"], summary["deferred"]) == (0, held.num_rows, 0), last
    check_whole(run.table, images)


class Renewal:
    """Renews keys in mid-run, while the images of a unit are fetched; then the old ones expire.

    Requests made earlier with the old ones still succeed, since no store expires them to the second.
    """

    def __init__(self, old: str, renew: Callable[[], None]) -> None:
        self.refused: list[Request] = []
        self._old = old
        self._renew = renew
        self._have_expired = threading.Event()
        self._unit = threading.Barrier(UNIT_SIZE, self._renew_and_expire, timeout=60)

    def __call__(self, request: Request, forward: Forward) -> Answer:
        if self._have_expired.is_set() and request.access_key == self._old:
            self.refused.append(request)
            return EXPIRED
        if not self._have_expired.is_set() and is_for_an_image(request):
            self._unit.wait()
        return forward()

    def _renew_and_expire(self) -> None:
        self._renew()
        time.sleep(1)  # obstore asks for keys ten times a second at most
        self._have_expired.set()


def test_renewed_credentials_are_used_at_once(
    run: Runs, images: Versions, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither fetching nor committing uses expired keys."""
    old, new = s3_server.owner["AWS_ACCESS_KEY_ID"], s3_server.successor["AWS_ACCESS_KEY_ID"]
    source = tmp_path / "keys.json"

    def hand_out(keys: dict[str, str], minutes: int) -> None:
        facts = {"AccessKeyId": keys["AWS_ACCESS_KEY_ID"], "SecretAccessKey": keys["AWS_SECRET_ACCESS_KEY"]}
        expiration = (datetime.now(UTC) + timedelta(minutes=minutes)).isoformat()
        written = tmp_path / "written"
        written.write_text(json.dumps({"Version": 1, "Expiration": expiration, **facts}))
        written.replace(source)

    (tmp_path / "config").write_text(f"[default]\ncredential_process = cat {source}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    for name in s3_server.owner:
        monkeypatch.setenv(name, "")  # boto3 treats it as absent
    hand_out(s3_server.owner, minutes=5)  # so close to expiry that boto3 requests new ones each time
    renewal = Renewal(old, lambda: hand_out(s3_server.successor, minutes=60))
    before = len(run.proxy.requests)
    done = run(FromTheMiddle(renewal, after=MAX_CANARY_IMAGES + NUM_IMAGES // 2))
    assert (done.returncode, summary_of(done)["ok"]) == (0, NUM_IMAGES), done
    assert renewal.refused == []
    requests = run.proxy.requests[before:]
    fetched = Counter(request.access_key for request in requests if is_for_an_image(request))
    half = NUM_IMAGES // 2
    assert fetched == {old: MAX_CANARY_IMAGES + half + UNIT_SIZE, new: half - UNIT_SIZE}
    committed = [request.access_key for request in requests if request.method == "PUT" and LOG in request.path]
    assert {committed[0], committed[-1]} == {old, new}
    check_whole(run.table, images)


def test_images_that_change_between_listing_and_fetching(bucket: S3Bucket, artifact: str, proxy: S3Proxy) -> None:
    versions = dict(fill_bucket(bucket, "moving", 12))
    uri = {
        name: f"{bucket.uri}/moving/{number:04d}.jpg" for number, name in enumerate(["denied", "gone", "new", "huge"])
    }
    new_version = ""

    def moving(request: Request, forward: Forward) -> Answer:
        nonlocal new_version
        if request.path.endswith("moving/0000.jpg"):
            return DENIED
        answer = forward()
        if request.method == "GET" and "list-type=2" in request.query:
            key, size = rb"(<Key>moving/0003\.jpg</Key>.*?<Size>)", str(5 << 30).encode()
            body = re.sub(key + rb"\d+", rb"\g<1>" + size, answer.body, flags=re.DOTALL)
            return edited(answer, body)
        if request.method == "PUT" and "/worklist-" in request.path:
            bucket.client.delete_object(Bucket=bucket.name, Key="moving/0001.jpg")
            new_version = bucket.put("moving/0002.jpg", picture(1000))
        return answer

    run = Runs(proxy, (f"{bucket.uri}/moving", artifact, f"{bucket.uri}/out-{uuid4().hex[:8]}"))
    before = len(proxy.requests)
    first = summary_of(run(moving))
    assert (first["planned"], first["ok"], first["deferred"]) == (12, 8, 0)
    assert first["errors"] == {"access_denied": 1, "not_found": 1, "changed": 1, "too_many_bytes": 1}
    assert not [one for one in proxy.requests[before:] if one.path.endswith("moving/0003.jpg") and one.method == "GET"]
    check_whole(run.table, versions)
    assert codes_of(run.table) == {
        uri["denied"]: "access_denied", uri["gone"]: "not_found", uri["new"]: "changed", uri["huge"]: "too_many_bytes",
    }  # fmt: skip

    second = summary_of(run(moving))
    assert (second["listed"], second["planned"], second["ok"]) == (11, 1, 1)
    check = check_sound(run.table, versions | {uri["new"]: new_version})
    assert (check.findings.pending, check.num_rows) == ({}, 13)


def codes_of(table: str) -> dict[str, str]:
    """Returns the error codes of images that have one."""
    rows = dataset_of(table).to_table()
    codes = zip(rows[schema.IMAGE_URI].to_pylist(), rows[schema.ERROR_CODE].to_pylist(), strict=True)
    return {uri: code for uri, code in codes if code is not None}


def edited(answer: Answer, body: bytes) -> Answer:
    """Returns the server's answer with another body."""
    headers = tuple((name, value) for name, value in answer.headers if name.lower() != "content-length")
    return Answer(answer.status, body, headers)


FORGED = ["forged/../up.jpg", "forged/./here.jpg", "forged/../../etc/passwd", "forged/nul\0.jpg", "forged//double.jpg"]


def forge(request: Request, answer: Answer) -> Answer:
    """Adds objects to the store's answers that S3 allows and the test server refuses."""
    query = {name: values[0] for name, values in parse_qs(request.query, keep_blank_values=True).items()}
    if request.method == "GET" and request.path.partition("/")[2].partition("/")[2] in FORGED:
        return Answer(200, picture(7), (("ETag", '"forged"'), ("Last-Modified", "Tue, 14 Nov 2023 22:13:20 GMT")))
    if query.get("list-type") != "2":
        return answer
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    written = quote if query.get("encoding-type") == "url" else str
    below = [key for key in FORGED if key.startswith(prefix) and key > query.get("start-after", "")]
    folders = {prefix + key[len(prefix) :].partition("/")[0] + "/" for key in below if "/" in key[len(prefix) :]}
    objects = [key for key in below if not delimiter or delimiter not in key[len(prefix) :]]
    entries = [
        f"<Contents><Key>{written(key)}</Key><LastModified>2023-11-14T22:13:20Z</LastModified>"
        f"<ETag>&quot;forged&quot;</ETag><Size>{len(picture(7))}</Size></Contents>"
        for key in objects
    ]
    entries += [
        f"<CommonPrefixes><Prefix>{written(folder)}</Prefix></CommonPrefixes>" for folder in folders if delimiter
    ]
    body = answer.body.replace(b"</ListBucketResult>", "".join(entries).encode() + b"</ListBucketResult>")
    return edited(answer, body)


def test_odd_object_keys_are_labelled_as_they_are(bucket: S3Bucket, artifact: str, proxy: S3Proxy) -> None:
    versions = dict(fill_bucket(bucket, "forged", 3)) | {f"{bucket.uri}/{key}": "forged" for key in FORGED}
    run = Runs(proxy, (f"{bucket.uri}/forged", artifact, f"{bucket.uri}/out-{uuid4().hex[:8]}"))
    summary = summary_of(run(lambda request, forward: forge(request, forward())))
    assert (summary["listed"], summary["ok"]) == (8, 8)
    check_whole(run.table, versions)
