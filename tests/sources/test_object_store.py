"""Prefixes of a real S3 server, against boto3's own listing."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from locray.errors import StoreAccessError, UsageError
from locray.schema import ETAG, IMAGE_URI, LAST_MODIFIED, SIZE_BYTES
from locray.sources import object_listing, open_source
from locray.sources.key_ranges import KeyRange, find_split_keys
from locray.sources.object_listing import ObjectListing
from locray.sources.object_store import ObjectStoreSource
from locray.sources.source import Step, run_steps
from tests.helpers.listings import listed, uris
from tests.helpers.s3_server import S3Bucket, S3Server

pytestmark = pytest.mark.s3

ODD_KEYS = [
    "two words",
    "#",
    "100%",
    "%20",
    "a%2Fb",
    "q?x=1&y=+2",
    "ünï/日本.JPG",
    "~*<>|:",
    "no-ending",
    "a-b",
    "a.b",
    "a/b",
]
KEYS_THAT_OBSTORE_CANNOT_NAME = ["new\nline", "tab\t", "bell\x07", "folder\n/a", "folder\n/b"]


def as_boto3_lists(bucket: S3Bucket, prefix: str = "") -> list[dict[str, object]]:
    return [
        {
            IMAGE_URI: f"{bucket.uri}/{key}",
            ETAG: entry["ETag"].strip('"'),
            SIZE_BYTES: entry["Size"],
            LAST_MODIFIED: entry["LastModified"],
        }
        for key, entry in sorted(bucket.entries().items())
        if key.startswith(prefix) and not (key.endswith("/") and entry["Size"] == 0)
    ]


def fill(bucket: S3Bucket, keys: list[str]) -> None:
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda key: bucket.put(key, key.encode()), keys))


def uris_of(step: Step, num_threads: int = 8) -> list[str]:
    return sorted(uri for batch in run_steps([step], num_threads) for uri in batch[IMAGE_URI].to_pylist())


def split_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes short listings split like long ones."""
    monkeypatch.setattr(object_listing, "_MAX_PAGES", 1)
    monkeypatch.setattr(object_listing, "_CHUNK_ROWS", 20)
    monkeypatch.setattr(object_listing, "_ROWS_BETWEEN_PROBES", 20)


def test_an_empty_source_is_an_error_unless_rows_exist(s3_bucket: S3Bucket) -> None:
    with pytest.raises(UsageError, match=rf"no object lies below {s3_bucket.uri}/?: {s3_bucket.uri} is empty"):
        open_source(s3_bucket.uri).check()
    fill(s3_bucket, ["photos/2024/a.jpg", "listing.csv"])
    hints = {
        "phots": f"{s3_bucket.uri} has no 'phots'; did you mean 'photos'?",
        "photos/2042/x": f"{s3_bucket.uri}/photos has no '2042'; did you mean '2024'?",
        "listing.cvs": "did you mean 'listing.csv'?",
        "phot": "did you mean 'photos'?",
        "nothing": "has no 'nothing'. Check the name",
    }
    for name, hint in hints.items():
        source = open_source(f"{s3_bucket.uri}/{name}")
        with pytest.raises(UsageError, match=re.escape(hint)):
            source.check()
        source.check(may_be_empty=True)
        assert list(source.listing()) == []


def test_a_folder_with_only_its_marker_lists_nothing(s3_bucket: S3Bucket) -> None:
    s3_bucket.put("photos/", b"")
    assert listed(open_source(f"{s3_bucket.uri}/photos")) == []


def test_odd_keys_are_listed_as_they_are(s3_bucket: S3Bucket) -> None:
    fill(s3_bucket, [f"in/{key}" for key in ODD_KEYS] + ["in2/other", "inn"])
    assert listed(open_source(f"{s3_bucket.uri}/in/")) == as_boto3_lists(s3_bucket, "in/")
    assert listed(open_source(s3_bucket.uri)) == as_boto3_lists(s3_bucket)


def test_keys_that_obstore_cannot_name_are_listed(s3_bucket: S3Bucket) -> None:
    fill(s3_bucket, [f"in/{key}" for key in (*ODD_KEYS, *KEYS_THAT_OBSTORE_CANNOT_NAME)])
    assert listed(open_source(f"{s3_bucket.uri}/in")) == as_boto3_lists(s3_bucket)


def test_some_thousand_keys_in_folders_of_every_depth(s3_bucket: S3Bucket) -> None:
    shallow = [f"flat-{number:04d}.jpg" for number in range(600)]
    deep = [f"{number % 7}/{number % 3}/{number % 2}/x/y/{number:04d}.jpg" for number in range(600)]
    fill(s3_bucket, shallow + deep)
    assert listed(open_source(s3_bucket.uri)) == as_boto3_lists(s3_bucket)


def test_an_odd_key_deep_in_a_prefix_that_is_listed_as_a_whole(
    s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Chunks of 50 rows, so that obstore has returned some before it meets the key that it can't represent.
    monkeypatch.setattr(object_listing, "_MAX_PAGES", 1)
    monkeypatch.setattr(object_listing, "_CHUNK_ROWS", 50)
    fill(s3_bucket, [f"in/{number:04d}" for number in range(1300)] + ["in/1200\n", "in/0-0", "in/0/0", "in/marker/"])
    source = open_source(f"{s3_bucket.uri}/in")
    rows = listed(source)
    assert rows == as_boto3_lists(s3_bucket)
    assert len(rows) == 1303


def test_one_huge_folder_is_split_and_listed_completely(s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    split_often(monkeypatch)
    numbers = [f"in/{number:06d}.jpg" for number in range(0, 90_000, 100)]
    odd = [f"in/{key}{number}" for key in ("ünï 日本", "a+b", "100%20", "~", "\U0001f600") for number in range(80)]
    fill(s3_bucket, [*numbers, *odd, "in/" + "/".join(["é" * 100] * 5) + "/" + "x" * 16])
    assert max(len(key.encode()) for key in s3_bucket.entries()) == 1024
    assert listed(open_source(s3_bucket.uri)) == as_boto3_lists(s3_bucket)
    listing = ObjectListing(s3_bucket.name)  # in one thread, so that probes come in time
    assert uris_of(lambda: listing._open("in/", 1), 1) == [row[IMAGE_URI] for row in as_boto3_lists(s3_bucket)]
    assert len(listing._ends) > 8
    assert not listing._ranges


@pytest.mark.parametrize("obstore_names_them", [True, False])
def test_a_store_with_an_order_of_its_own_is_listed_completely(
    s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch, *, obstore_names_them: bool
) -> None:
    # The server of the tests lists a/1 before a-b and a b; S3 lists it after them.
    split_often(monkeypatch)
    folders = ("a/", "a-b/", "a b/", "a", "a/b-", "a0/x/", "")
    odd = [] if obstore_names_them else ["in/a/05\n", "in/tab\t"]
    fill(s3_bucket, [f"in/{folder}{number:02d}" for folder in folders for number in range(60)] + odd)
    expected = [row[IMAGE_URI] for row in as_boto3_lists(s3_bucket)]
    for num_threads in (1, 8):
        assert uris_of(lambda: ObjectListing(s3_bucket.name)._list("in/"), num_threads) == expected
    assert uris_of(lambda: ObjectListing(s3_bucket.name)._list("")) == expected


def test_a_range_whose_end_was_deleted_goes_on_to_the_next(s3_bucket: S3Bucket) -> None:
    keys = [f"in/{number:03d}" for number in range(60)]
    fill(s3_bucket, keys)
    listing = ObjectListing(s3_bucket.name)
    listing._ends = ["in/019-deleted", "in/039"]
    first, second = (
        KeyRange(s3_bucket.name, "in/", after, until)
        for after, until in (("", "in/019-deleted"), ("in/019-deleted", "in/039"))
    )
    assert uris_of(lambda: listing._start(object_listing._Stream(first, first, plain=True))) == [
        f"{s3_bucket.uri}/{key}" for key in keys[:40]
    ]
    assert uris_of(lambda: listing._start(object_listing._Stream(second, second, plain=False))) == [
        f"{s3_bucket.uri}/{key}" for key in keys[20:40]
    ]


def test_split_keys_are_at_the_uppermost_letter_that_changes(s3_bucket: S3Bucket) -> None:
    for key in ("0001", "0002", "0100", "0250", "0251", "0300/", "0400", "1000", "2000"):
        s3_bucket.put(f"in/{key}", b"" if key.endswith("/") else b"x")
    s3_bucket.put("in2/3000", b"x")

    def split(after: str, until: str = "", max_keys: int = 9) -> list[str]:
        keys = KeyRange(s3_bucket.name, "in/", after, until)
        return [key.removeprefix("in/") for key in find_split_keys(keys, max_keys)]

    assert split("in/0001") == ["1000", "2000"]
    assert split("in/0001", max_keys=1) == ["1000"]
    assert split("in/0001", "in/1000") == ["0100", "0250", "0400"]
    assert split("in/0100", "in/0300") == ["0250"]
    assert split("in/0001", "in/0002") == split("in/2000") == []
    assert find_split_keys(KeyRange(s3_bucket.name, "in/", "in/0001"), 9, is_needed=lambda: False) == []


def test_folder_markers_are_skipped_and_empty_objects_are_not(s3_bucket: S3Bucket) -> None:
    s3_bucket.put("in/a/", b"")
    s3_bucket.put("in/a/b/", b"")
    s3_bucket.put("in/a/b/c/d/e/f/", b"")
    s3_bucket.put("in/a/empty.jpg", b"")
    s3_bucket.put("in/a/b/c/d/e/empty.jpg", b"")
    source = ObjectStoreSource(s3_bucket.name, "in/")
    expected = [f"{s3_bucket.uri}/in/a/b/c/d/e/empty.jpg", f"{s3_bucket.uri}/in/a/empty.jpg"]
    assert uris(source) == expected
    assert uris_of(lambda: ObjectListing(s3_bucket.name)._list("in/")) == expected


def test_a_single_object_is_no_prefix(s3_bucket: S3Bucket) -> None:
    s3_bucket.put("in/a.jpg", b"x")
    with pytest.raises(UsageError, match="is one object"):
        open_source(f"{s3_bucket.uri}/in/a.jpg").check()


def test_an_absent_or_denied_bucket_is_an_error_before_work_starts(
    s3_server: S3Server, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreAccessError, match="there is no bucket"):
        open_source("s3://test-no-such-bucket/in").check()
    for name, value in s3_server.stranger.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreAccessError, match="denied"):
        open_source(s3_bucket.uri).check()
    with pytest.raises(StoreAccessError, match="denied"):
        list(open_source(s3_bucket.uri).listing())
    with pytest.raises(StoreAccessError, match="denied"):
        uris_of(lambda: ObjectListing(s3_bucket.name)._list("in/"))
