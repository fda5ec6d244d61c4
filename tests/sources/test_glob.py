"""Patterns over the names of files and over the keys of a real S3 server."""

import glob
import os
from pathlib import Path

import pytest

from locray.errors import StoreAccessError, UsageError
from locray.sources import open_source
from locray.sources.glob import matches
from tests.helpers.listings import uris
from tests.helpers.s3_server import S3Bucket, S3Server


@pytest.mark.parametrize(
    "pattern",
    ["*", "*.jpg", "*.JPG", "*/*", "**/*.jpg", "**", "sub/**/*", "s?b/[ab].jpg", "[!a]*", ".*", "**/.*", "*/*/*"],
)
def test_patterns_match_as_in_python(tree: Path, pattern: str) -> None:
    expected = {path for path in glob.glob(str(tree / pattern), recursive=True) if os.path.isfile(path)}
    assert expected
    assert uris(open_source(str(tree / pattern))) == sorted(expected)


def test_braces_hold_alternatives(tree: Path) -> None:
    both = {path for ending in ("jpg", "JPG") for path in glob.glob(str(tree / f"*.{ending}"))}
    assert uris(open_source(str(tree / "*.{jpg,JPG}"))) == sorted(both)
    assert matches(["sub", "ab.png"], ["{sub,other}", "{a,c}{b,d}.{jp*g,png}"])
    assert not matches(["sub", "ab.gif"], ["{sub,other}", "{a,c}{b,d}.{jp*g,png}"])
    (tree / "{x}.jpg").write_bytes(b"")
    assert uris(open_source(str(tree / "{x}.jp?"))) == [str(tree / "{x}.jpg")]


def test_a_pattern_in_a_folder_with_a_wildcard_in_its_name(tree: Path) -> None:
    (tree / "[x]").mkdir()
    (tree / "[x]" / "a.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match="no file in"):
        open_source(str(tree / "[x]" / "*.jpg")).check()
    assert uris(open_source(str(tree / "[[]x]" / "*.jpg"))) == [str(tree / "[x]" / "a.jpg")]


def test_a_pattern_reaches_names_that_are_not_utf8(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).write_bytes(b"x")
    assert uris(open_source(str(tmp_path / "caf?.jpg"))) == [f"file://{tmp_path}/caf%E9.jpg"]


def test_a_pattern_that_matches_no_file_is_an_error(tree: Path) -> None:
    with pytest.raises(UsageError, match=r"no file in .* matches '\*.tiff'"):
        open_source(str(tree / "*.tiff")).check()
    with pytest.raises(StoreAccessError, match="does not exist"):
        open_source(str(tree / "gone" / "*.jpg")).check()


def test_a_pattern_without_double_stars_does_not_look_deeper() -> None:
    assert matches(["a", "b"], ["*"]) is False
    assert matches(["a", "b"], ["**", "b"]) is True
    assert matches(["a"], ["**", "**", "a"]) is True


KEYS = ["a.jpg", "b.JPG", ".hidden.jpg", "new\nline.jpg", "sub/c.jpg", "sub/.d.jpg", "sub/deep/e.jpg", ".trash/f.jpg"]
OBJECT_PATTERNS = ["*", "*.jpg", "*/*", "**/*.jpg", "**", "sub/**/*", "s?b/[cx].jpg", "[!a]*", ".*", "**/.*"]


@pytest.mark.s3
def test_patterns_match_keys_as_they_match_files(s3_bucket: S3Bucket, tmp_path: Path) -> None:
    s3_bucket.put("other/a.jpg", b"")
    for key in KEYS:
        s3_bucket.put(f"in/{key}", b"x")
        (tmp_path / "in" / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / key).write_bytes(b"x")
    for folder in ("in", "i?"):
        for pattern in OBJECT_PATTERNS:
            expected = uris(open_source(f"{tmp_path}/{folder}/{pattern}"))
            found = uris(open_source(f"{s3_bucket.uri}/{folder}/{pattern}"))
            assert found == [uri.replace(str(tmp_path), s3_bucket.uri) for uri in expected]
            assert found, pattern


@pytest.mark.s3
def test_a_prefix_that_exists_as_written_is_no_pattern(s3_bucket: S3Bucket) -> None:
    s3_bucket.put("photos [2024]/a.jpg", b"")
    s3_bucket.put("photos 2/b.jpg", b"")
    assert uris(open_source(f"{s3_bucket.uri}/photos [2024]")) == [f"{s3_bucket.uri}/photos [2024]/a.jpg"]
    assert uris(open_source(f"{s3_bucket.uri}/photos [[]2024]/*")) == [f"{s3_bucket.uri}/photos [2024]/a.jpg"]


@pytest.mark.s3
def test_a_pattern_below_an_empty_segment(s3_bucket: S3Bucket) -> None:
    """(The server of these tests merges such segments, so only the URI is checked.)"""
    assert open_source(f"{s3_bucket.uri}/a//*.jpg").lists(f"{s3_bucket.uri}/a//b.jpg")


@pytest.mark.s3
def test_a_pattern_that_matches_no_object_is_an_error(s3_bucket: S3Bucket) -> None:
    s3_bucket.put("photos/a.jpg", b"")
    with pytest.raises(UsageError, match=r"no object below s3://.*/photos matches '\*\*/\*.tiff': check the pattern"):
        open_source(f"{s3_bucket.uri}/photos/**/*.tiff").check()
    with pytest.raises(UsageError, match=r"matches '\*.jpg' \(.* has no 'photo'; did you mean 'photos'\?\)"):
        open_source(f"{s3_bucket.uri}/photo/*.jpg").check()
    source = open_source(f"{s3_bucket.uri}/photos/*.tiff")
    source.check(may_be_empty=True)
    assert list(source.listing()) == []


@pytest.mark.s3
def test_denied_access_is_an_error_before_work_starts(
    s3_server: S3Server, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.stranger.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreAccessError, match="denied"):
        open_source(f"{s3_bucket.uri}/*.jpg").check(may_be_empty=True)
