"""Keys at which a long listing of objects can be split, so that its parts are listed in parallel.

S3 lists in one order only, a thousand keys per request, and each request needs the last key of the one before. But a
request may ask for the first key after any text. A few such requests show how the keys continue.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from locray.storage.errors import translate_io_errors
from locray.storage.s3 import client
from locray.storage.uris import S3_SCHEME, is_plain_key

_SURROGATES = (0xD800, 0xDFFF)


@dataclass(frozen=True, slots=True)
class KeyRange:
    """Keys below a prefix that are still to be listed: those after `after`, up to and including `until`.

    Attributes:
        bucket: The bucket.
        prefix: The start of all of the keys.
        after: The last key that was listed, or the start; empty: from the first one on.
        until: The last key of the range; empty: the prefix's last one.
    """

    bucket: str
    prefix: str
    after: str = ""
    until: str = ""


def find_split_keys(keys: KeyRange, max_keys: int, is_needed: Callable[[], bool] = lambda: True) -> list[str]:
    """Existing keys in a range, ascending, at each of which the range may be split; empty if no split helps.

    The keys ahead form a tree of letters. Its uppermost branching after `keys.after` is found by bisection over the
    length of that key; then each branch gives its first key. So numbers are split at their highest digit that still
    grows, hashes at their first, dates at the year, month or day. A part that is still long can be split again.

    Args:
        keys: The range; `after` is a key that was listed.
        max_keys: The most keys to return.
        is_needed: Called before each request; once it is false, the result is empty.

    Raises:
        StoreError: the listing failed, retries exhausted.
    """
    last = keys.after
    lowest, highest = len(keys.prefix), len(last) - 1
    entry = _first_beyond(keys, last, highest)
    if entry is None:
        return []
    while lowest < highest and is_needed():
        middle = (lowest + highest) // 2
        found = _first_beyond(keys, last, middle)
        if found is None:
            lowest = middle + 1
        else:
            entry, highest = found, middle
    ends: list[str] = []
    while entry is not None and len(ends) < max_keys and is_needed():
        key = str(entry["Key"])
        # obstore must be able to name it, and must not take it for a folder's marker.
        if is_plain_key(key) and entry["Size"] > 0:
            ends.append(key)
        if key[:highest] != last[:highest] or len(key) == highest:
            break
        entry = _first_beyond(keys, key, highest)
    return ends if is_needed() else []


def _first_beyond(keys: KeyRange, key: str, position: int) -> dict[str, Any] | None:
    """boto3's entry of the first key in the range that is larger than all that begin with `key[: position + 1]`."""
    beyond = key[:position] + _next_letter(key[position])
    with translate_io_errors(f"{S3_SCHEME}{keys.bucket}/{keys.prefix}"):
        page = client().list_objects_v2(Bucket=keys.bucket, Prefix=keys.prefix, StartAfter=beyond, MaxKeys=1)
    for entry in page.get("Contents", ()):
        if key < entry["Key"] and (not keys.until or entry["Key"] < keys.until):
            return dict(entry)
    return None


def _next_letter(letter: str) -> str:
    code = min(ord(letter) + 1, sys.maxunicode)
    return chr(_SURROGATES[1] + 1 if code == _SURROGATES[0] else code)
