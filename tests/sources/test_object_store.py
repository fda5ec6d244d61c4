"""Prefixes of a real S3 server, against boto3's own listing."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from listings import listed, uris
from s3_server import S3Bucket, S3Server

from locray.errors import StoreAccessError, UsageError
from locray.schema import ETAG, IMAGE_URI, LAST_MODIFIED, SIZE_BYTES
from locray.sources import object_store, open_source
from locray.sources.object_store import ObjectStoreSource

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


def test_a_place_without_objects_is_told_unless_something_was_there_before(s3_bucket: S3Bucket) -> None:
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


def test_a_folder_of_which_only_the_marker_is_there_lists_nothing(s3_bucket: S3Bucket) -> None:
    s3_bucket.put("photos/", b"")
    assert listed(open_source(f"{s3_bucket.uri}/photos")) == []


def test_odd_keys_are_listed_as_they_are(s3_bucket: S3Bucket) -> None:
    fill(s3_bucket, [f"in/{key}" for key in ODD_KEYS] + ["in2/other", "inn"])
    assert listed(open_source(f"{s3_bucket.uri}/in/")) == as_boto3_lists(s3_bucket, "in/")
    assert listed(open_source(s3_bucket.uri)) == as_boto3_lists(s3_bucket)


def test_keys_that_obstore_cannot_name_are_listed_too(s3_bucket: S3Bucket) -> None:
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
    # Chunks of 50 rows, so that obstore has given some when it meets the key that it can't name.
    monkeypatch.setattr(object_store, "_MAX_PAGES", 1)
    monkeypatch.setattr(object_store, "BATCH_ROWS", 50)
    fill(s3_bucket, [f"in/{number:04d}" for number in range(1300)] + ["in/1200\n", "in/0-0", "in/0/0", "in/marker/"])
    source = open_source(f"{s3_bucket.uri}/in")
    rows = listed(source)
    assert rows == as_boto3_lists(s3_bucket)
    assert len(rows) == 1303


def test_folder_markers_are_left_out_and_empty_objects_are_not(s3_bucket: S3Bucket) -> None:
    s3_bucket.put("in/a/", b"")
    s3_bucket.put("in/a/b/", b"")
    s3_bucket.put("in/a/b/c/d/e/f/", b"")
    s3_bucket.put("in/a/empty.jpg", b"")
    s3_bucket.put("in/a/b/c/d/e/empty.jpg", b"")
    source = ObjectStoreSource(s3_bucket.name, "in/")
    expected = [f"{s3_bucket.uri}/in/a/b/c/d/e/empty.jpg", f"{s3_bucket.uri}/in/a/empty.jpg"]
    assert uris(source) == expected
    found = source._list("in/")
    by_obstore = list(object_store.run_steps([lambda: found], 1))
    assert sorted(uri for batch in by_obstore for uri in batch[IMAGE_URI].to_pylist()) == expected


def test_a_single_object_is_no_prefix(s3_bucket: S3Bucket) -> None:
    s3_bucket.put("in/a.jpg", b"x")
    with pytest.raises(UsageError, match="is one object"):
        open_source(f"{s3_bucket.uri}/in/a.jpg").check()


def test_no_bucket_and_no_access_are_told_before_work_starts(
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
        list(object_store.run_steps([lambda: ObjectStoreSource(s3_bucket.name, "in/")._list("in/")], 1))
