"""Patterns over the keys of a real S3 server mean what they mean over the names of files."""

from pathlib import Path

import pytest

from locray.errors import StoreAccessError, UsageError
from locray.sources import open_source
from tests.helpers.listings import uris
from tests.helpers.s3_server import S3Bucket, S3Server

pytestmark = pytest.mark.s3

KEYS = ["a.jpg", "b.JPG", ".hidden.jpg", "new\nline.jpg", "sub/c.jpg", "sub/.d.jpg", "sub/deep/e.jpg", ".trash/f.jpg"]
PATTERNS = ["*", "*.jpg", "*/*", "**/*.jpg", "**", "sub/**/*", "s?b/[cx].jpg", "[!a]*", ".*", "**/.*"]


def test_patterns_mean_what_they_mean_on_a_disk(s3_bucket: S3Bucket, tmp_path: Path) -> None:
    s3_bucket.put("other/a.jpg", b"")
    for key in KEYS:
        s3_bucket.put(f"in/{key}", b"x")
        (tmp_path / "in" / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / key).write_bytes(b"x")
    for folder in ("in", "i?"):
        for pattern in PATTERNS:
            expected = uris(open_source(f"{tmp_path}/{folder}/{pattern}"))
            found = uris(open_source(f"{s3_bucket.uri}/{folder}/{pattern}"))
            assert found == [uri.replace(str(tmp_path), s3_bucket.uri) for uri in expected]
            assert found, pattern


def test_a_prefix_that_is_there_as_it_is_written_is_no_pattern(s3_bucket: S3Bucket) -> None:
    s3_bucket.put("photos [2024]/a.jpg", b"")
    s3_bucket.put("photos 2/b.jpg", b"")
    assert uris(open_source(f"{s3_bucket.uri}/photos [2024]")) == [f"{s3_bucket.uri}/photos [2024]/a.jpg"]
    assert uris(open_source(f"{s3_bucket.uri}/photos [[]2024]/*")) == [f"{s3_bucket.uri}/photos [2024]/a.jpg"]


def test_a_pattern_below_an_empty_segment(s3_bucket: S3Bucket) -> None:
    """(The server of these tests folds such segments, so the name alone is asked.)"""
    assert open_source(f"{s3_bucket.uri}/a//*.jpg").lists(f"{s3_bucket.uri}/a//b.jpg")


def test_a_pattern_that_matches_nothing_is_told(s3_bucket: S3Bucket) -> None:
    s3_bucket.put("photos/a.jpg", b"")
    with pytest.raises(UsageError, match=r"no object below s3://.*/photos matches '\*\*/\*.tiff': check the pattern"):
        open_source(f"{s3_bucket.uri}/photos/**/*.tiff").check()
    with pytest.raises(UsageError, match=r"matches '\*.jpg' \(.* has no 'photo'; did you mean 'photos'\?\)"):
        open_source(f"{s3_bucket.uri}/photo/*.jpg").check()
    source = open_source(f"{s3_bucket.uri}/photos/*.tiff")
    source.check(may_be_empty=True)
    assert list(source.listing()) == []


def test_no_access_is_told_before_work_starts(
    s3_server: S3Server, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.stranger.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreAccessError, match="denied"):
        open_source(f"{s3_bucket.uri}/*.jpg").check(may_be_empty=True)
