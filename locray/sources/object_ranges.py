"""Where a long listing of objects can be cut, so that its parts are read at once. Used by the object store source.

S3 lists in one order only, a thousand keys a request, each needing the one before. What can be asked for is the first
key after any text: a few such questions find out how the names go on.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from locray.storage.s3 import client
from locray.storage.s3_errors import S3_ERRORS, store_error
from locray.storage.uris import S3_SCHEME, is_plain_key

_SURROGATES = (0xD800, 0xDFFF)


@dataclass(frozen=True, slots=True)
class KeyRange:
    """Keys below a prefix that are yet to be listed: those after `after`, up to `until` and with it.

    Attributes:
        bucket: The bucket.
        prefix: What all of the keys begin with.
        after: The last key that was listed, or the start; empty: from the beginning.
        until: The key that the listing ends with; empty: the prefix's last.
    """

    bucket: str
    prefix: str
    after: str = ""
    until: str = ""


def cuts(keys: KeyRange, most: int, wanted: Callable[[], bool] = lambda: True) -> list[str]:
    """Existing keys in a range, ascending, each of which may end one part and begin the next; empty where none helps.

    The names of the keys ahead are a tree of letters. Its uppermost branching after `keys.after` is found by bisection
    of that key's length; then each branch gives its first key. So numbers are cut by their highest digit that still
    grows, hashes by their first, dates by year, month or day. A part that is still long can be cut again.

    Args:
        keys: What is ahead; `after` is a key that was listed.
        most: How many to return.
        wanted: Whether to go on asking; with a no, the result is empty.

    Raises:
        StoreError: the listing failed, retries exhausted.
    """
    last = keys.after
    lowest, highest = len(keys.prefix), len(last) - 1
    entry = _first_beyond(keys, last, highest)
    if entry is None:
        return []
    while lowest < highest and wanted():
        middle = (lowest + highest) // 2
        found = _first_beyond(keys, last, middle)
        if found is None:
            lowest = middle + 1
        else:
            entry, highest = found, middle
    ends: list[str] = []
    while entry is not None and len(ends) < most and wanted():
        key = str(entry["Key"])
        # obstore has to name it, and must not take it for a folder's marker.
        if is_plain_key(key) and entry["Size"] > 0:
            ends.append(key)
        if key[:highest] != last[:highest] or len(key) == highest:
            break
        entry = _first_beyond(keys, key, highest)
    return ends if wanted() else []


def _first_beyond(keys: KeyRange, key: str, position: int) -> dict[str, Any] | None:
    """boto3's entry of the first key in the range that is larger than all that begin with `key[: position + 1]`."""
    beyond = key[:position] + _next_letter(key[position])
    try:
        page = client().list_objects_v2(Bucket=keys.bucket, Prefix=keys.prefix, StartAfter=beyond, MaxKeys=1)
    except S3_ERRORS as error:
        raise store_error(f"{S3_SCHEME}{keys.bucket}/{keys.prefix}", error) from error
    for entry in page.get("Contents", ()):
        if key < entry["Key"] and (not keys.until or entry["Key"] < keys.until):
            return dict(entry)
    return None


def _next_letter(letter: str) -> str:
    code = min(ord(letter) + 1, sys.maxunicode)
    return chr(_SURROGATES[1] + 1 if code == _SURROGATES[0] else code)
