"""URIs: the opaque names of files and objects.

An object is `s3://bucket/<key>`, the key as it is: nothing is percent-decoded, and `#` and `%` have no meaning.
A local file is its absolute path. Only a path that isn't valid UTF-8, which no Arrow string can hold, is written as
`file://` and its percent-encoded bytes.

A member of a zip archive is `zip:<archive>!/<member>`, the archive being one of the above with `%` and `!` written as
`%25` and `%21`, so that the first `!` ends it; the member's name stands as it is. No other URI begins with `zip:`.
"""

import os
import re
from urllib.parse import quote, unquote_to_bytes

from locray.errors import UsageError

S3_SCHEME = "s3://"
FILE_SCHEME = "file://"
ZIP_SCHEME = "zip:"
ZIP_ENDING = ".zip"

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_IN_ARCHIVE = re.compile(r"zip:(/|file://|s3://)[^!]*!(/.*)?", re.DOTALL)


def is_remote(uri: str) -> bool:
    """Whether `uri` names an object of a store rather than a local file."""
    return uri.startswith(S3_SCHEME)


def is_in_archive(uri: str) -> bool:
    """Whether `uri` names a member of a zip archive, or a folder of members."""
    return _IN_ARCHIVE.fullmatch(uri) is not None


def archive_folder(archive_uri: str) -> str:
    """The URI of the content of a zip archive; `join` leads from there to members."""
    return f"{ZIP_SCHEME}{archive_uri.replace('%', '%25').replace('!', '%21')}!"


def split_archive(uri: str) -> tuple[str, str]:
    """The archive's own URI, and the name of the member (or folder of members, perhaps empty) in it."""
    assert is_in_archive(uri), uri
    archive, _, member = uri[len(ZIP_SCHEME) :].partition("!")
    return archive.replace("%21", "!").replace("%25", "%"), member.removeprefix("/")


def local_uri(path: str | bytes) -> str:
    """The URI of a local path, bytes or (surrogate-escaped) text: the path itself wherever that is valid UTF-8."""
    path_bytes = os.fsencode(path)
    try:
        return path_bytes.decode("utf-8")
    except UnicodeDecodeError:
        return FILE_SCHEME + quote(path_bytes)


def local_path(uri: str) -> str:
    """The path of a local URI, as `os` functions take it (bytes that are not UTF-8 are surrogate-escaped)."""
    assert not is_remote(uri), uri
    assert not is_in_archive(uri), uri
    if uri.startswith(FILE_SCHEME):
        return os.fsdecode(unquote_to_bytes(uri[len(FILE_SCHEME) :]))
    return uri


def split_s3(uri: str) -> tuple[str, str]:
    """Bucket and raw key (or prefix, perhaps empty) of an `s3://` URI.

    Raises:
        UsageError: no bucket is named.
    """
    assert is_remote(uri), uri
    bucket, _, key = uri[len(S3_SCHEME) :].partition("/")
    if not bucket:
        raise UsageError(f"no bucket in {uri!r}: expected s3://BUCKET/PREFIX")
    return bucket, key


def normalise(uri: str) -> str:
    """A folder or file that a user named in its only spelling: absolute, without a slash at its end.

    Not for URIs of images, which are opaque.

    Raises:
        UsageError: the URI is empty, names no bucket, or its scheme is not supported.
    """
    if not uri:
        raise UsageError("an empty path: expected a local path or s3://BUCKET/PREFIX")
    if "\0" in uri:
        raise UsageError(f"{uri!r} contains a NUL, which no path may")
    if is_in_archive(uri):
        return uri.rstrip("/")
    scheme = _SCHEME.match(uri)
    if scheme is None:
        return local_uri(_absolute(uri))
    if scheme[0] == FILE_SCHEME:
        path = local_path(uri)
        if not os.path.isabs(path):
            raise UsageError(f"{uri!r} names a host or a relative path: expected file:///ABSOLUTE/PATH")
        return local_uri(_absolute(path))
    if scheme[0] != S3_SCHEME:
        raise UsageError(f"{uri!r}: the scheme {scheme[1]!r} is not supported; expected a local path, file:// or s3://")
    split_s3(uri)
    return uri.rstrip("/")


def _absolute(path: str) -> str:
    # Only the file system knows where `link/..` is.
    return os.path.realpath(path) if ".." in path.split("/") else os.path.abspath(path)


def join(uri: str, *parts: str) -> str:
    """`uri` with relative `parts` below it, each of one or more segments."""
    assert not any(part.startswith("/") for part in parts), parts
    if is_remote(uri) or is_in_archive(uri):
        return "/".join([uri.rstrip("/"), *parts])
    return local_uri(os.path.join(local_path(uri), *parts))


def is_plain_key(key: str) -> bool:
    """Whether obstore can name this object.

    Its paths have no empty, `.` or `..` segment and no control character. It refuses some such keys, and silently
    reads `/a` and `a/` as `a`. boto3 reads those objects.
    """
    if any(segment in ("", ".", "..") for segment in key.split("/")):
        return False
    return not _CONTROL.search(key)
